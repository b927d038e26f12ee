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
KINDS = {"p": "is partitioned", "f": "is a foreign table", "v": "is a view", "m": "is a materialized view"}
PUBLISHED = """
SELECT pubname::text FROM pg_publication WHERE puballtables
UNION SELECT pubname FROM pg_publication_tables WHERE schemaname = %(schema)s AND tablename = c.relname ORDER BY 1
"""
# A trigger function knows the table's columns by their names: of a row, of a transition table, or as its arguments.
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
       ARRAY(SELECT DISTINCT ARRAY[p.oid::regprocedure::text, said[1] || '.' || coalesce(said[2], said[3])]
             FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid,
                  regexp_matches(p.prosrc, '\\m(NEW|OLD)\\.(?:"([^"]+)"|(\\w+))', 'gi') AS said
             WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
       ARRAY(SELECT DISTINCT ARRAY[t.tgname::text, old] FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid,
                  unnest(%(olds)s::text[]) AS old
             WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
               AND (old = ANY (string_to_array(encode(t.tgargs, 'escape'), '\\000'))
                    OR coalesce(t.tgnewtable, t.tgoldtable) IS NOT NULL
                       AND p.prosrc ~* ('\\m' || regexp_replace(old, '\\W', '\\\\\\&', 'g') || '\\M'))),
       ARRAY(SELECT DISTINCT quote_ident(r.rolname) FROM pg_roles r
             WHERE (r.oid = c.relowner OR r.rolname = current_user)
               AND NOT has_schema_privilege(r.oid, c.relnamespace, 'CREATE') ORDER BY 1)
FROM pg_class c WHERE c.oid = to_regclass(%(name)s)
"""  # noqa: S608 - constants


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
        said: a trigger function, and what it says of a row's column.
        triggers: a trigger that knows an older name otherwise, and that name.
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
    said: list[list[str]]
    triggers: list[list[str]]
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
            taken = guard.query("SELECT to_regclass(%s)", guard.qualified(bridge.schema, one.new))[0][0]
            if taken and one.new not in bridge.names:
                raise _as_postgresql(revision, f'relation "{one.new}" already exists', "DuplicateTable", "42P07")
            continue
        if one.old not in names and strictly:
            raise _as_postgresql(revision, f'column "{one.old}" does not exist', "UndefinedColumn", "42703")
        if one.new in names:
            message = f'column "{one.new}" of relation "{group[0].table}" already exists'
            raise _as_postgresql(revision, message, "DuplicateColumn", "42701")
        names = names - {one.old} | {one.new}


def _reasons(guard: Guard, group: Sequence[Rename], bridge: Bridge, seen: Seen) -> Iterator[tuple[str, str]]:
    """Each with the way out, where there is one beside a plain rename."""
    table, carried = group[0].table, "which a view can't carry"
    if seen.kind in KINDS:
        yield f"{table} {KINDS[seen.kind]}, {carried}", ""
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
    olds = {one.old.lower() for one in group if not one.of_table}
    for function, word in seen.said:
        row, _, column = word.partition(".")
        if column.lower() in olds:
            both = f"coalesce(to_jsonb({row})->>'{column}', to_jsonb({row})->>'...')"
            gone = "which is gone from the row with the rename"
            yield f"the trigger function {function} says {word}, {gone}", f"Let it read both names, such as {both}, or"
    for trigger, old in seen.triggers:
        yield f"the trigger {trigger} knows the column as {old}, which is gone from its rows with the rename", ""
    if bridge.columns or olds:
        yield from _reasons_of_base(guard, group, bridge)


def _reasons_of_base(guard: Guard, group: Sequence[Rename], bridge: Bridge) -> Iterator[tuple[str, str]]:
    final = group[-1].new if group[-1].of_table else group[-1].table
    base = f"{final}{SUFFIX}"
    if len(base.encode()) > LONGEST_NAME:
        yield f"{base} is longer than the {LONGEST_NAME} bytes that PostgreSQL takes for a name", ""
    name = guard.qualified(bridge.schema, base)
    taken = "SELECT coalesce(to_regclass(%(name)s)::oid, to_regtype(%(name)s)::oid) IS NOT NULL"
    if base != bridge.base and guard.query(taken, name=name)[0][0]:
        yield f"there is a {base} already", "Rename or drop that one, or"


def _as_postgresql(revision: str, message: str, kind: str, sqlstate: str) -> RunError:
    return RunError(message, exit_code=ExitCode.FAILED, kind=kind, sqlstate=sqlstate, revision=revision)
