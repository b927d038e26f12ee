"""What stands against a bridge of a table, as far as the catalog shows it: looked for before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.guard import Guard
from migration_runner.renames import SUFFIX, Bridge, Rename

LONGEST_NAME = 63
# The first PostgreSQL whose views look at the rights and the policies of whoever reads them.
FIRST_VERSION = 150000
TABLES = {"p": "is partitioned", "f": "is a foreign table"}
OTHERS = {"v": "a view", "m": "a materialized view", "S": "a sequence", "i": "an index", "c": "a type"}
PUBLISHED = """
SELECT pubname::text FROM pg_publication WHERE puballtables
UNION SELECT pubname FROM pg_publication_tables WHERE schemaname = %(schema)s AND tablename = c.relname ORDER BY 1
"""
# A trigger knows the table's columns by their names: of a row, of a transition table, or as its arguments. What it
# takes out of JSON may be one of two names: that is the way out.
LOOK = f"""
SELECT c.relkind::text, c.relispartition,
       EXISTS (SELECT FROM pg_inherits WHERE c.oid IN (inhrelid, inhparent)),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL AND NOT attisdropped),
       ARRAY({PUBLISHED}),
       EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = c.oid),
       ARRAY(SELECT slot_name::text FROM pg_replication_slots
             WHERE slot_type = 'logical' AND plugin <> 'pgoutput' AND database = current_database() ORDER BY 1),
       ARRAY(SELECT pg_describe_object(classid, objid, objsubid) FROM pg_depend d JOIN pg_type t ON t.oid = c.reltype
             WHERE d.deptype = 'n' AND refclassid = 'pg_type'::regclass AND refobjid IN (t.oid, t.typarray) ORDER BY 1),
       ARRAY(SELECT DISTINCT ARRAY[t.tgname::text, CASE WHEN NOT is_given THEN p.oid::regprocedure::text END, old]
             FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid, unnest(%(olds)s::text[]) AS old,
                  LATERAL (SELECT old = ANY (string_to_array(encode(t.tgargs, 'escape'), '\\000')) AS is_given) AS of
             WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
               AND (is_given
                    OR (t.tgtype & 1 = 1 OR coalesce(t.tgnewtable, t.tgoldtable) IS NOT NULL)
                       AND regexp_replace(p.prosrc, '->>?\\s*''[^'']*''', '', 'g')
                           ~* ('\\m' || regexp_replace(old, '\\W', '\\\\\\&', 'g') || '\\M'))),
       ARRAY(SELECT DISTINCT quote_ident(r.rolname) FROM pg_roles r
             WHERE (r.oid = c.relowner OR r.rolname = current_user)
               AND NOT has_schema_privilege(r.oid, c.relnamespace, 'CREATE') ORDER BY 1)
FROM pg_class c WHERE c.oid = to_regclass(%(name)s)
"""  # noqa: S608 - constants
# What PostgreSQL makes for a table's arrays it renames when somebody else needs the name.
TAKEN = """
SELECT to_regclass(%(name)s) IS NOT NULL,
       EXISTS (SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
               WHERE nspname = %(schema)s AND typname = %(plain)s
                 AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid))
"""


class Seen(NamedTuple):
    """A row of LOOK.

    Args:
        kind: PostgreSQL's letter for tables, views and so on.
        is_partition: whether it is one.
        inherits: whether it does, or another table from it.
        columns: their names.
        granted: the columns with GRANTs of their own.
        publications: that it is in.
        is_subscribed: whether a subscription fills it.
        decoded: replication slots whose plugin tells all tables by name.
        typed: what uses the type of its rows.
        triggers: a trigger that knows an older name, its function if that says it, and that name.
        unable: the roles that need to make a view in its schema, and may not.
    """

    kind: str
    is_partition: bool
    inherits: bool
    columns: list[str]
    granted: list[str]
    publications: list[str]
    is_subscribed: bool
    decoded: list[str]
    typed: list[str]
    triggers: list[tuple[str, str | None, str]]
    unable: list[str]


def refuse_version(guard: Guard, revision: str, rename: Rename) -> None:
    """Raise RunError for a server that is too old."""
    if guard.own.server_version < FIRST_VERSION:
        raise impossible(
            revision,
            rename,
            "PostgreSQL 14 has no views that look at the rights of whoever reads them (security_invoker)",
            "Upgrade PostgreSQL to 15 or later, or",
        )


def refuse_table(guard: Guard, revision: str, group: Sequence[Rename], bridge: Bridge, *, strictly: bool) -> None:
    """Look for what stands against the renames of one table.

    Args:
        guard: the runner's connection.
        revision: whose renames they are.
        group: what is renamed.
        bridge: that of the table now; without views for a plain one.
        strictly: whether table and columns must be there: another revision may be about to make them.

    Raises:
        RunError: there is something.
    """
    for one in group:
        if _is_too_long(one.new):
            raise impossible(revision, one, _too_long(one.new), "Choose a shorter one, or")
    name = guard.qualified(bridge.schema, bridge.base)
    olds = [one.old for one in group if not one.of_table]
    rows = guard.query(LOOK, name=name, schema=bridge.schema, olds=olds)
    if rows:
        seen = Seen(*rows[0])
        _refuse_names(guard, revision, group, bridge, seen.columns, strictly=strictly)
        for reason, way_out in _reasons(guard, group, bridge, seen):
            raise impossible(revision, group[0], reason, way_out)
    elif strictly:
        raise _as_postgresql(revision, f'relation "{group[0].table}" does not exist', "UndefinedTable", "42P01")


def refuse_reopen(guard: Guard, before: Bridge, after: Bridge) -> None:
    """Look for what stands against older names that are to work again.

    Args:
        guard: the runner's connection.
        before: the bridge of the table now.
        after: what it is to be.

    Raises:
        RunError: there is something.
    """
    table = f"{before.schema}.{before.table}"
    name = guard.qualified(before.schema, before.base)
    rows = guard.query(LOOK, name=name, schema=before.schema, olds=[])
    if not rows:
        raise cannot_reopen(f"There is no table {before.schema}.{before.base} any more, so its older names can't work.")
    seen = Seen(*rows[0])
    for old, new in after.columns.items():
        if new not in seen.columns:
            raise cannot_reopen(f"{table} has no column {new} any more, so its older name {old} can't work.")
        if old in seen.columns:
            raise cannot_reopen(f"{table} has another column {old} by now, so this can't be the older name of {new}.")
    reasons = list(_reasons_of_table(guard, before, seen))
    reasons += [
        (f"there is a {name} already", "Rename or drop that one, or")
        for name in [after.base, *after.views]
        if name not in before.names and any(_taken(guard, before.schema, name))
    ]
    for reason, way_out in reasons:
        instead = way_out.removesuffix(", or") or "Take that away"
        raise cannot_reopen(
            f"The older names of {table} can't work again: {reason}.",
            f"{instead}, and run this again; or bring back a release that needs only what is there.",
        )


def cannot_reopen(
    message: str, hint: str = "A later revision has done that. Bring back a release that needs only what is there."
) -> RunError:
    """Why an older name can't be brought back."""
    return RunError(message, exit_code=ExitCode.FAILED, kind="CannotReopen", hint=hint)


def refuse_published(guard: Guard, bridge: Bridge) -> None:
    """Raise RunError when somebody has put a bridged table into a publication: a subscriber knows it by its name."""
    query = f"SELECT ARRAY({PUBLISHED}) FROM pg_class c WHERE c.oid = to_regclass(%(name)s)"  # noqa: S608 - constants
    rows = guard.query(query, name=guard.qualified(bridge.schema, bridge.base), schema=bridge.schema)
    if rows and rows[0][0]:
        raise RunError(
            f"{bridge.base} was put into the publication {', '.join(rows[0][0])} while its rename was open: with "
            "another name its subscribers would stop.",
            exit_code=ExitCode.FAILED,
            kind="Published",
            hint="Take it out of the publication, run this again, and publish it anew.",
        )


def impossible(revision: str, rename: Rename, reason: str, way_out: str) -> RunError:
    """Why a rename can't be bridged."""
    instead = f"{way_out} write" if way_out else "Write"
    error = wrong_use(
        "NoBridge",
        f"The rename {rename} of {revision} can't be bridged: {reason}.",
        f"{instead} bridge = False into the revision: it is then a plain rename, which fails the older release's "
        "requests until its tasks are gone.",
    )
    error.revision = revision
    return error


def _refuse_names(
    guard: Guard, revision: str, group: Sequence[Rename], bridge: Bridge, columns: Sequence[str], *, strictly: bool
) -> None:
    """What PostgreSQL itself would say of such a rename."""
    names = set(columns)
    for one in group:
        if one.of_table:
            is_relation, is_type = _taken(guard, bridge.schema, one.new)
            if is_relation and one.new not in bridge.names:
                raise _as_postgresql(revision, f'relation "{one.new}" already exists', "DuplicateTable", "42P07")
            if is_type and one.new not in bridge.names:
                raise _as_postgresql(revision, f'type "{one.new}" already exists', "DuplicateObject", "42710")
            continue
        if one.old not in names and strictly:
            raise _as_postgresql(revision, f'column "{one.old}" does not exist', "UndefinedColumn", "42703")
        if one.new in names:
            message = f'column "{one.new}" of relation "{group[0].table}" already exists'
            raise _as_postgresql(revision, message, "DuplicateColumn", "42701")
        names = names - {one.old} | {one.new}


def _reasons(guard: Guard, group: Sequence[Rename], bridge: Bridge, seen: Seen) -> Iterator[tuple[str, str]]:
    """Each with the way out, where there is one beside a plain rename."""
    yield from _reasons_of_table(guard, bridge, seen)
    for trigger, function, old in seen.triggers:
        both = f"coalesce(to_jsonb(NEW)->>'{old}', to_jsonb(NEW)->>'...')"
        yield (
            f"the trigger {trigger} knows the column as {old}, which is gone from its rows with the rename",
            f"Let {function} read both names, such as {both}, or" if function else "",
        )
    if bridge.columns or any(not one.of_table for one in group):
        yield from _reasons_of_base(guard, group, bridge)


def _reasons_of_table(guard: Guard, bridge: Bridge, seen: Seen) -> Iterator[tuple[str, str]]:
    """Whatever is renamed."""
    table, carried = bridge.table, "which a view can't carry"
    if seen.kind in TABLES:
        yield f"{table} {TABLES[seen.kind]}, {carried}", ""
    elif seen.kind != "r":
        yield f"{table} is {OTHERS.get(seen.kind, 'something else')}: only tables can be bridged", ""
    if seen.is_partition:
        yield f"{table} is a partition, {carried}", ""
    if seen.inherits:
        yield f"{table} has a table that inherits from it, or inherits itself, {carried}", ""
    if seen.granted:
        yield f"{table} has GRANTs on columns ({', '.join(seen.granted)}), {carried}", ""
    if seen.publications:
        yield f"{table} is in the publication {', '.join(seen.publications)}, {carried}", ""
    if seen.is_subscribed:
        yield f"{table} is filled by a subscription, {carried}", ""
    if seen.decoded:
        slots = ", ".join(seen.decoded)
        yield f"the replication slot {slots} tells its changes by the table's name, which is another one meanwhile", ""
    if seen.typed:
        yield f"{', '.join(seen.typed)} needs the type of its rows, and those of a view have another", ""
    if seen.unable:
        way_out = f"GRANT CREATE ON SCHEMA {guard.quoted(bridge.schema)} TO {', '.join(seen.unable)}, or"
        yield f"{' and '.join(seen.unable)} may not make a view in the schema {bridge.schema}", way_out


def _reasons_of_base(guard: Guard, group: Sequence[Rename], bridge: Bridge) -> Iterator[tuple[str, str]]:
    final = group[-1].new if group[-1].of_table else group[-1].table
    base = f"{final}{SUFFIX}"
    if _is_too_long(base):
        yield _too_long(base), ""
    if base != bridge.base and any(_taken(guard, bridge.schema, base)):
        yield f"there is a {base} already", "Rename or drop that one, or"


def _is_too_long(name: str) -> bool:
    return len(name.encode()) > LONGEST_NAME


def _too_long(name: str) -> str:
    return f"{name} is longer than the {LONGEST_NAME} bytes that PostgreSQL takes for a name"


def _taken(guard: Guard, schema: str, name: str) -> tuple[bool, bool]:
    """Whether a relation, and a type, has the name."""
    ((is_relation, is_type),) = guard.query(TAKEN, name=guard.qualified(schema, name), schema=schema, plain=name)
    return is_relation, is_type


def _as_postgresql(revision: str, message: str, kind: str, sqlstate: str) -> RunError:
    return RunError(message, exit_code=ExitCode.FAILED, kind=kind, sqlstate=sqlstate, revision=revision)
