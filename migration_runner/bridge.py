"""Renames that cost no request: the older name works beside the newer one until a contract takes it away.

In one short transaction per table, the table gets the name ``<table>__base``, its columns are renamed, and a view takes
the table's name, with each renamed column under both. PostgreSQL reads and writes through such a view as if it were the
table: https://www.postgresql.org/docs/current/sql-createview.html#SQL-CREATEVIEW-UPDATABLE-VIEWS
Two tables in one transaction would deadlock with an application that locks them in the other order.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple

import psycopg2

from migration_runner.database import LOCK_NOT_AVAILABLE, connect
from migration_runner.errors import ExitCode, RunError
from migration_runner.failures import failure
from migration_runner.guard import Guard, blocker
from migration_runner.ledger import EXISTS
from migration_runner.obstacles import cannot_reopen, refuse_published, refuse_reopen, refuse_table, refuse_version
from migration_runner.patience import Limits, Sampler, locked_out
from migration_runner.renames import SUFFIX, Bridge, Recorded, Rename, bridges, groups
from migration_runner.report import Report
from migration_runner.stop import Stop

DEADLOCK, STILL_NEEDED = "40P01", "2BP01"
# How long is waited for a view or a table, and for those of one bridge: so long others are held up.
LOCK_SECONDS, TOGETHER_SECONDS = 0.1, 0.12
# However long others hold the table, it is asked for this often at least.
ASK_AGAIN_SECONDS = 1.0
CONNECT_SECONDS = 10

READ = """
SELECT version_table, revision, position, table_schema, table_name, old_name, new_name, of_table,
       closed_at IS NOT NULL, reverted_at IS NOT NULL
FROM migration_runner.renames ORDER BY id
"""
OPENED = """
INSERT INTO migration_runner.renames
    (version_table, revision, position, table_schema, table_name, old_name, new_name, of_table)
VALUES (%(version_table)s, %(revision)s, %(position)s, %(schema)s, %(table)s, %(old)s, %(new)s, %(of_table)s)
ON CONFLICT (version_table, revision, position) DO UPDATE SET closed_at = NULL, reverted_at = NULL, opened_at = now(),
    table_schema = excluded.table_schema, table_name = excluded.table_name, old_name = excluded.old_name,
    new_name = excluded.new_name, of_table = excluded.of_table
"""
ONE = "WHERE (version_table, revision, position) = (%(version_table)s, %(revision)s, %(position)s)"
CLOSED = f"UPDATE migration_runner.renames SET closed_at = now() {ONE}"  # noqa: S608 - constants
FORGOTTEN = f"DELETE FROM migration_runner.renames {ONE}"  # noqa: S608
REVERTED = f"UPDATE migration_runner.renames SET reverted_at = now() {ONE}"  # noqa: S608

# By the catalog alone: who asks may have no rights in a schema of another version table's.
KINDS_OF = """
SELECT relname::text, relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE nspname = %(schema)s AND relname = ANY (%(names)s) AND relkind NOT IN ('i', 'I')
"""
# Views as a bridge has them: who else would make one of its own name's base, with the rights of whoever reads it?
STANDING = f"""
SELECT DISTINCT n.nspname::text, v.relname::text
FROM pg_class v JOIN pg_namespace n ON n.oid = v.relnamespace JOIN pg_rewrite r ON r.ev_class = v.oid
     JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
     JOIN pg_class b ON d.refclassid = 'pg_class'::regclass AND b.oid = d.refobjid
WHERE v.relkind = 'v' AND 'security_invoker=true' = ANY (v.reloptions) AND b.relkind IN ('r', 'p')
  AND b.relnamespace = v.relnamespace AND b.relname = v.relname || '{SUFFIX}'
  AND EXISTS (SELECT attname FROM pg_attribute WHERE attrelid = v.oid
              EXCEPT SELECT attname FROM pg_attribute WHERE attrelid = b.oid) ORDER BY 1, 2
"""  # noqa: S608 - constant
# Where a name without a schema leads to.
SCHEMA_OF = """
SELECT nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(quote_ident(%(table)s))
"""
# What its view must have too.
STATE = """
SELECT (SELECT array_agg(ARRAY[attname::text, quote_ident(attname), quote_literal(col_description(c.oid, attnum)),
                               CASE WHEN attgenerated = '' THEN pg_get_expr(adbin, adrelid) END] ORDER BY attnum)
        FROM pg_attribute LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
        WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped),
       quote_ident(pg_get_userbyid(relowner)), pg_get_userbyid(relowner) = current_user,
       quote_literal(obj_description(c.oid, 'pg_class')), relacl IS NOT NULL,
       ARRAY(SELECT ARRAY[coalesce(quote_ident(r.rolname), 'PUBLIC'), is_grantable::text,
                          string_agg(privilege_type, ', ' ORDER BY privilege_type)]
             FROM aclexplode(relacl) LEFT JOIN pg_roles r ON r.oid = grantee GROUP BY r.rolname, is_grantable
             ORDER BY 1),
       ARRAY(SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC')
             FROM pg_default_acl d, aclexplode(defaclacl) LEFT JOIN pg_roles r ON r.oid = grantee
             WHERE defaclobjtype = 'r' AND defaclnamespace IN (0, c.relnamespace)
               AND defaclrole = (SELECT oid FROM pg_roles WHERE rolname = current_user))
FROM pg_class c WHERE c.oid = to_regclass(%(table)s)
"""
# Who granted it does not matter: what is made of the table has it from its maker.
RIGHTS = """
SELECT NULL, coalesce(quote_ident(r.rolname), 'PUBLIC'), privilege_type, bool_or(is_grantable)
FROM pg_class c, aclexplode(coalesce(relacl, acldefault('r', relowner))) LEFT JOIN pg_roles r ON r.oid = grantee
WHERE c.oid = to_regclass(%(name)s) GROUP BY 1, 2, 3
UNION ALL
SELECT attname::text, coalesce(quote_ident(r.rolname), 'PUBLIC'), privilege_type, bool_or(is_grantable)
FROM pg_attribute, aclexplode(attacl) LEFT JOIN pg_roles r ON r.oid = grantee
WHERE attrelid = to_regclass(%(name)s) AND NOT attisdropped GROUP BY 1, 2, 3
"""
# What is made of it by name, or of it alone.
USERS = """
SELECT DISTINCT CASE v.relkind WHEN 'm' THEN 'materialized view ' WHEN 'v' THEN 'view ' ELSE 'a rule of ' END
                || v.oid::regclass, false
FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
  AND d.refobjid = to_regclass(%(name)s) AND v.oid <> ALL (%(views)s::regclass[]) AND v.oid <> d.refobjid
UNION
SELECT 'function ' || p.oid::regprocedure, true FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%%'
  AND EXISTS (SELECT FROM unnest(%(tables)s::text[]) AS name
              WHERE p.prosrc ~* ('\\m' || regexp_replace(name, '\\W', '\\\\\\&', 'g') || '\\M'))
ORDER BY 1
"""
NEEDED_BY = """
SELECT DISTINCT CASE WHEN r.oid IS NULL THEN pg_describe_object(d.classid, d.objid, 0)
                     ELSE pg_describe_object('pg_class'::regclass, r.ev_class, 0) END
FROM pg_depend d LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
WHERE d.deptype = 'n' AND coalesce(r.ev_class <> ALL (%(views)s::regclass[]), true) AND (d.refclassid, d.refobjid) IN (
    SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c WHERE c.oid = ANY (%(views)s::regclass[])
    UNION SELECT 'pg_type'::regclass, unnest(ARRAY[t.oid, t.typarray])
          FROM pg_type t WHERE t.typrelid = ANY (%(views)s::regclass[]))
ORDER BY 1
"""
LEFT = """
SELECT to_regclass(%(base)s) IS NOT NULL
       AND coalesce((SELECT relkind = 'v' FROM pg_class WHERE oid = to_regclass(%(table)s)), true)
"""
OIDS = "SELECT to_regclass(name)::oid FROM unnest(%(names)s::text[]) AS name"
HOLDERS = """
SELECT a.pid, a.application_name, a.query, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'relation' AND l.granted AND l.pid <> ALL (%(own)s)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.relation = ANY (%(tables)s::oid[])
  AND clock_timestamp() - a.xact_start > make_interval(secs => %(seconds)s)
  AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
GROUP BY a.pid, a.application_name, a.query, a.state, a.xact_start
"""
LOCKABLE = """
SELECT name, quote_ident(pg_get_userbyid(relowner)), has_table_privilege(c.oid, 'UPDATE, DELETE, TRUNCATE')
FROM unnest(%(names)s::text[]) WITH ORDINALITY AS named (name, at) JOIN pg_class c ON c.oid = to_regclass(name)
ORDER BY at
"""
# Held before the lock that others feel: VACUUM, CREATE INDEX and other migrations wait for it, and nobody else. After
# deadlock_timeout the server ends an autovacuum that is in its way:
# https://www.postgresql.org/docs/current/routine-vacuuming.html#AUTOVACUUM
APART = """
SELECT set_config('lock_timeout', (setting::int + 500)::text, true) FROM pg_settings WHERE name = 'deadlock_timeout';
LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE
"""
# For the next lock, of the time since this came to the server; no timeout would be 0.
WHILE_LEFT = f"""
SELECT set_config('lock_timeout', greatest(1, least({LOCK_SECONDS * 1000:.0f}, {TOGETHER_SECONDS * 1000:.0f}
    - extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000))::int::text, true)
"""  # noqa: S608 - constants
# The runner itself may get to know of it late.
LOCKED = "SELECT set_config('migration_runner.locked', clock_timestamp()::text, false)"
LOCKED_MS = """
SELECT round(extract(epoch FROM clock_timestamp() - current_setting('migration_runner.locked')::timestamptz) * 1000, 1)
"""

WITH_OPTION = " WITH GRANT OPTION"
# The letters of PostgreSQL's for them.
TABLES = ("r", "p")

Query = Callable[..., Sequence[Any]]


class Move(NamedTuple):
    """What is done to one table in one transaction.

    Args:
        event: how it is told.
        before: its bridge before; without views for a plain table.
        after: its bridge afterwards.
        columns: the columns to rename, older and newer name.
        records: what the ledger is told: a statement, and of which rename.
    """

    event: str
    before: Bridge
    after: Bridge
    columns: Sequence[tuple[str, str]]
    records: Sequence[tuple[str, Recorded]]


TOLD = {
    "migration.bridged": "{table}: both names work from now on",
    "migration.contracted": "{table}: the older names are gone",
    "migration.reopened": "{table}: both names work again",
    "migration.reverted": "{table}: the newer names are gone",
}


class Bridges:
    """The bridges of one database.

    Args:
        guard: the runner's connection, with the role and the search path of env.py: it is what changes the tables.
        parameters: the database, as libpq knows it.
        version_table: its schema and name.
        limits: how long to wait for locks.
        report: gets a line per table.
        stop: learns what to cancel.
    """

    def __init__(
        self,
        guard: Guard,
        parameters: Mapping[str, str],
        version_table: str,
        limits: Limits,
        report: Report,
        stop: Stop,
    ) -> None:
        self._guard = guard
        self._parameters = parameters
        self._version_table = version_table
        self._limits = limits
        self._report = report
        self._stop = stop

    def recorded(self) -> list[Recorded]:
        """Every rename that was bridged, in that order."""
        return self._all().get(self._version_table, [])

    def _all(self) -> dict[str, list[Recorded]]:
        """The same, by version table."""
        if not self._guard.query(EXISTS)[0][0]:
            return {}
        found: dict[str, list[Recorded]] = {}
        for version_table, revision, position, schema, table, old, new, of_table, *is_over in self._guard.query(READ):
            rename = Rename(schema, table, old, new, of_table)
            found.setdefault(version_table, []).append(Recorded(revision, position, rename, *is_over))
        return found

    def open_bridges(self) -> list[Bridge]:
        """Those that are there now."""
        return [one for one in bridges_of(self.recorded()).values() if one.views]

    def open_bridges_of_others(self) -> list[Bridge]:
        """Those of the other version tables in this database."""
        others = [known for version_table, known in self._all().items() if version_table != self._version_table]
        return [one for known in others for one in bridges_of(known).values() if one.views]

    def damage(self, *, before_contract: bool = False) -> list[str]:
        """Where the catalog and the records of open renames disagree, each in a sentence.

        Args:
            before_contract: leave out what a contract gets over.
        """
        found = self._damage(before_contract=before_contract)
        # Records and catalog are read one after the other, while a runner of another version table may be at it.
        return [one for one in self._damage(before_contract=before_contract) if one in found] if found else []

    def _damage(self, *, before_contract: bool) -> list[str]:
        standing = self._guard.query(STANDING)
        own = self.open_bridges()
        covered = {(one.schema, name) for one in [*own, *self.open_bridges_of_others()] for name in one.views}
        told = []
        for bridge in own:
            kinds = self._kinds(bridge)
            if before_contract and (_is_contracted(bridge, kinds) or _can_contract(bridge, kinds)):
                continue
            if kinds.get(bridge.base) not in TABLES:
                told.append(f"The table {bridge.schema}.{bridge.base} is gone, whose older names are open.")
            told += [
                f"The view {bridge.schema}.{view} is gone, through which {bridge.base} has its older names."
                for view in bridge.views
                if kinds.get(view) != "v"
            ]
        return [
            *told,
            *(
                f"The view {schema}.{view} stands for {view}{SUFFIX}, but no rename is recorded as open there: restore "
                "the records, or drop the view and give the table its name once no task of an older release is left."
                for schema, view in standing
                if (schema, view) not in covered
            ),
        ]

    def _kinds(self, bridge: Bridge) -> dict[str, str]:
        """What PostgreSQL has under each name of a bridge."""
        names = [*bridge.names, bridge.table]
        return dict(self._guard.query(KINDS_OF, schema=bridge.schema, names=names))

    def schema_of(self, table: str) -> str:
        """The schema of a table that is named without one; the first of the search path when there is no such table."""
        rows = self._guard.query(SCHEMA_OF, table=table) or self._guard.query("SELECT current_schema()::text")
        return str(rows[0][0])

    def check(self, revision: str, renames: Sequence[Rename], *, strictly: bool) -> None:
        """Look for what stands against bridges for the renames of a revision, before anything is changed.

        Args:
            revision: whose renames they are.
            renames: what is renamed.
            strictly: whether the table must be there: another revision may be about to make it.

        Raises:
            RunError: there is something.
        """
        refuse_version(self._guard, revision, renames[0])
        known = self.recorded()
        stale = self._stale(known, revision, renames)
        done = {one.rename for one in known if one.revision == revision and one.is_open and one not in stale}
        now = bridges_of(known)
        # Names that would stand for two things.
        kept = _kept([one for one in known if one not in stale])
        bridges([*kept, *((one, True) for one in renames if one not in done)])
        # What a table is like once that is taken back, is seen then.
        unseen = {name for one in stale for name in _with(one.rename, now).names}
        for group in groups([one for one in renames if one not in done]):
            first = group[0]
            bridge = now.get((first.schema, first.table)) or Bridge(first.schema, first.table)
            if not unseen & bridge.names:
                refuse_table(self._guard, revision, group, bridge, strictly=strictly)

    def expand(self, revision: str, renames: Sequence[Rename]) -> None:
        """Let each renamed column or table of a revision have both names; what an interrupted run has done is kept.

        Args:
            revision: whose renames they are.
            renames: what is renamed, in the order of the revision.

        Raises:
            RunError: it can't be bridged, or a lock was not free in time.
        """
        self.forget(self._stale(self.recorded(), revision, renames))
        self.check(revision, renames, strictly=True)
        for group in _by_table(revision, renames):
            self._open("migration.bridged", group)

    @staticmethod
    def _stale(known: Sequence[Recorded], revision: str, renames: Sequence[Rename]) -> list[Recorded]:
        """What an interrupted run has done for a table before its renames in the file were edited."""
        wanted = [one for group in _by_table(revision, renames) if all(one in known for one in group) for one in group]
        return [one for one in known if one.revision == revision and one.is_open and one not in wanted]

    def repair(self, applied: Collection[str]) -> None:
        """Make those bridges anew that an interrupted downgrade has taken away, though their revision stays applied."""
        lost = [one for one in self.recorded() if one.is_reverted and one.revision in applied]
        for _, members in groupby(lost, key=lambda one: one.revision):
            of_revision = [one._replace(is_reverted=False) for one in members]
            for group in groups([one.rename for one in of_revision]):
                self._open("migration.bridged", [one for one in of_revision if one.rename in group])

    def revert(self, renames: Sequence[Recorded]) -> None:
        """Take renames of one revision back, the last one first: the older names stay, and the newer ones are gone.

        Their record stays, marked, until the version table has moved.
        """
        self._take_back(renames, REVERTED)

    def forget(self, renames: Sequence[Recorded]) -> None:
        """Take renames back, as ``revert`` does, and their record: of revisions that are not applied."""
        for _, members in groupby(reversed(renames), key=lambda one: one.revision):
            self._take_back(list(members)[::-1], FORGOTTEN)

    def _take_back(self, renames: Sequence[Recorded], record: str) -> None:
        positions = [(one.revision, one.position) for one in renames]
        still = [one for one in self.recorded() if (one.revision, one.position) in positions and not one.is_reverted]
        for group in reversed(groups([one.rename for one in still])):
            known = self.recorded()
            members = [one for one in still if one.rename in group]
            after = bridges_of([one for one in known if one not in members])
            then = (group[0].schema, group[0].table)
            self._carry_out(
                Move(
                    "migration.reverted",
                    _with(group[-1], bridges_of(known)),
                    after.get(then) or Bridge(*then),
                    [(one.new, one.old) for one in reversed(group) if not one.of_table],
                    [(record, one) for one in members],
                )
            )

    def contract(self, revisions: Collection[str]) -> None:
        """Take the older names away.

        Args:
            revisions: whose renames are contracted.

        Raises:
            RunError: something else needs a view, or a lock was not free in time.
        """
        for bridge in self.open_bridges():
            known = self.recorded()
            members = [one for one in _of(bridge, known) if one.is_open and one.revision in revisions]
            if members:
                left = [one._replace(is_closed=True) if one in members else one for one in known]
                kinds = self._kinds(bridge)
                by_hand = _is_contracted(bridge, kinds)
                if by_hand or any(view not in kinds for view in bridge.views):
                    self._report.event(
                        "migration.changed_by_hand",
                        f"{bridge.schema}.{bridge.table}: somebody has taken away by hand what its older names were: "
                        "what is left of them goes now.",
                        table=f"{bridge.schema}.{bridge.table}",
                    )
                if not by_hand:
                    refuse_published(self._guard, bridge)
                now = replace(bridge, columns={}) if by_hand else bridge
                self._switch("migration.contracted", known, left, [(CLOSED, one) for one in members], now=now)

    def reopen(self, revisions: Collection[str]) -> None:
        """Let the older names work again after a contract.

        Args:
            revisions: whose renames are opened again.

        Raises:
            RunError: something stands against it, or a lock was not free in time.
        """
        self._look_before_reopen(revisions)
        for bridge in bridges_of(self.recorded()).values():
            known = self.recorded()
            members = [one for one in _of(bridge, known) if one.is_closed and one.revision in revisions]
            if members:
                opened = [one._replace(is_closed=False) if one in members else one for one in known]
                self._switch("migration.reopened", known, opened, [(OPENED, one) for one in members])

    def _look_before_reopen(self, revisions: Collection[str]) -> None:
        """All of it, before the first table is locked."""
        known = self.recorded()
        for key, bridge in bridges_of(known).items():
            members = [one for one in _of(bridge, known) if one.is_closed and one.revision in revisions]
            if not members:
                continue
            known = [one._replace(is_closed=False) if one in members else one for one in known]
            try:
                after = bridges_of(known)[key]
            except RunError:
                raise cannot_reopen(
                    f"The older names of {bridge.schema}.{bridge.table} can't all work again: a later rename has given "
                    "one of them another meaning."
                ) from None
            refuse_reopen(self._guard, bridge, after)

    @contextmanager
    def apart(self, bridge: Bridge, query: Query) -> Iterator[None]:
        """Within, a bridged table has its plain name: PostgreSQL names what is added as in plain migrations.

        Args:
            bridge: an open one, which nobody else sees meanwhile; made anew at the end, with the columns of then.
            query: runs in the transaction that changes the table.
        """
        base, table = (self._named(bridge, name) for name in (bridge.base, bridge.table))
        renaming = f"ALTER TABLE {base} RENAME TO {self._guard.quoted(bridge.table)}"
        back = f"ALTER TABLE {table} RENAME TO {self._guard.quoted(bridge.base)}"
        is_away = bridge.base != bridge.table
        views = [f"DROP VIEW {self._named(bridge, view)}" for view in bridge.views]
        self._refuse_other_rights(bridge, query)
        query("; ".join([self.lock(bridge), *views, *([renaming] if is_away else [])]))
        yield
        query("; ".join([*([back] if is_away else []), *self._views(bridge, query, table)]))

    def lock(self, bridge: Bridge) -> str:
        """The statement that locks a bridge: its views, and after them its table."""
        names = [self._named(bridge, name) for name in bridge.views or [bridge.base]]
        rows = self._guard.query(LOCKABLE, names=[*names, self._named(bridge, bridge.base)])
        if all(may_lock for _, _, may_lock in rows):
            return f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE"
        # An owner may alter what nobody has let it read or write; to give it to its owner locks it, and that is all.
        return "; ".join(f"ALTER TABLE {name} OWNER TO {owner}" for name, owner, _ in rows)

    def prove(self, revisions: Collection[str]) -> None:
        """See that nothing of the contracted bridges is left, so that the schema is that of plain migrations.

        Args:
            revisions: that are contracted.

        Raises:
            RunError: something is left.
        """
        wrong = []
        for bridge in bridges_of([one for one in self.recorded() if one.revision in revisions]).values():
            names = [self._named(bridge, name) for name in (bridge.table, f"{bridge.table}{SUFFIX}")]
            if not bridge.views and self._guard.query(LEFT, table=names[0], base=names[1])[0][0]:
                wrong.append(f"{bridge.schema}.{bridge.table}")
        if wrong:
            raise RunError(
                f"The renames are recorded as contracted, but a view still stands for {' and '.join(wrong)}.",
                exit_code=ExitCode.FAILED,
                kind="BridgeLeft",
                hint=f"Somebody has changed it by hand: drop the view, and give the table with {SUFFIX} its name.",
            )

    def _open(self, event: str, group: Sequence[Recorded]) -> None:
        known = self.recorded()
        if all(one in known for one in group):
            return
        others = [one for one in known if (one.revision, one.position) not in [(a.revision, a.position) for a in group]]
        now, then = bridges_of(others), bridges_of([*others, *group])
        first = group[0].rename
        move = Move(
            event,
            now.get((first.schema, first.table)) or Bridge(first.schema, first.table),
            _with(group[-1].rename, then),
            [(one.rename.old, one.rename.new) for one in group if not one.rename.of_table],
            [(OPENED, one) for one in group],
        )
        self._carry_out(move)
        self._tell_users(move)

    def _switch(
        self,
        event: str,
        known: Sequence[Recorded],
        then: Sequence[Recorded],
        records: Sequence[tuple[str, Recorded]],
        *,
        now: Bridge | None = None,
    ) -> None:
        """Let the older names of one table go, or come back; what the table and its columns are called now stays."""
        before, after = bridges_of(known), bridges_of(then)
        (key,) = [key for key, bridge in after.items() if bridge != before[key]]
        self._carry_out(Move(event, now or before[key], after[key], [], records))

    def _carry_out(self, move: Move) -> None:
        """One transaction, tried again while somebody is in its way."""
        began, patience = time.monotonic(), self._limits.patience
        names = [self._named(move.before, name) for name in sorted(move.before.names)]
        # Who logs in may not be who may look into the schema.
        tables = [oid for (oid,) in self._guard.query(OIDS, names=names)]
        attempt, blockers = 0, list[str]()
        with self._beside() as other, self._stoppable():
            while True:
                asked = time.monotonic()
                while (found := self._holders(other, tables)) and time.monotonic() - asked < ASK_AGAIN_SECONDS:
                    blockers = found
                    if time.monotonic() - began >= patience:
                        break
                    time.sleep(random.uniform(0.02, 0.06))  # noqa: S311
                attempt += 1
                sampler = Sampler(other, [self._guard.pid]) if other else None
                try:
                    with sampler.sampling() if sampler and attempt > 1 else nullcontext():
                        locked_ms = self._try(move)
                    break
                except psycopg2.Error as error:
                    told = failure(error, self._revision(move))
                    if error.pgcode == STILL_NEEDED:
                        raise self._still_needed(move) from None
                    if error.pgcode not in (LOCK_NOT_AVAILABLE, DEADLOCK):
                        raise told from None
                    blockers = sorted(sampler.seen) if sampler and sampler.seen else blockers
                    waited = time.monotonic() - began
                    pause = min(0.05 * 1.5**attempt, ASK_AGAIN_SECONDS) * random.uniform(0.5, 1.5)  # noqa: S311
                    if attempt > 1 and waited + pause >= patience:
                        raise locked_out(told, waited, attempt, blockers) from None
                    self._report.progress(
                        "migration.locked",
                        f"{move.after.table} waits for a lock, try {attempt}: {'; '.join(blockers) or told.message}",
                        revision=self._revision(move),
                        table=move.after.table,
                        attempt=attempt,
                        blockers=blockers,
                    )
                    time.sleep(pause)
        renames = [str(one.rename) for _, one in move.records]
        self._report.event(
            move.event,
            f"{', '.join(renames)}: {TOLD[move.event].format(table=f'{move.after.schema}.{move.after.table}')}.",
            table=f"{move.after.schema}.{move.after.table}",
            renames=renames,
            attempts=attempt,
            locked_ms=locked_ms,
            duration_ms=round((time.monotonic() - began) * 1000),
        )

    def _try(self, move: Move) -> float:
        """How long the table was locked, in milliseconds.

        All that happens under the lock is one message to the server, for a runner may get little processor time, or its
        host may be lost.
        """
        query, quoted = self._guard.query, self._guard.quoted
        before, after = move.before, move.after
        table = self._named(before, before.base)
        # What others have committed while they were waited for is to be seen, whatever the role's own default is.
        begin = ["BEGIN ISOLATION LEVEL READ COMMITTED"]
        # A role's own setting is not for this; 0 is none.
        left = 0 if self._limits.deadline is None else max(1, int(self._limits.left * 1000))
        begin.append(f"SET LOCAL statement_timeout = '{left}ms'")
        found = query(LOCKABLE, names=[table])
        if not found:
            raise damaged(f"{before.schema}.{before.table} has open renames, but there is no table {before.base}.")
        self._refuse_other_rights(before, query)
        ((_, owner, may_lock),) = found
        if may_lock:
            begin.append(APART.format(table=table))
        # One after the other: LOCK TABLE of a view would wait for its table as long again.
        locks = [f"DROP VIEW IF EXISTS {self._named(before, view)}" for view in before.views]
        locks.append(
            f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE" if may_lock else f"ALTER TABLE {table} OWNER TO {owner}"
        )
        steps = [part for lock in locks for part in (WHILE_LEFT, lock)]
        steps.append(LOCKED)
        steps += [f"ALTER TABLE {table} RENAME COLUMN {quoted(old)} TO {quoted(new)}" for old, new in move.columns]
        if before.base != after.base:
            steps.append(f"ALTER TABLE {table} RENAME TO {quoted(after.base)}")
        try:
            query("; ".join(begin))
            steps += self._views(after, query, table, move.columns)
            steps += [self._record(*one) for one in move.records]
            return float(query("; ".join([*steps, "COMMIT", LOCKED_MS]))[0][0])
        except BaseException:
            # The session may be lost, and the rollback with it.
            with suppress(RunError, psycopg2.Error):
                query("ROLLBACK")
            raise

    def _views(self, bridge: Bridge, query: Query, table: str, renamed: Sequence[tuple[str, str]] = ()) -> list[str]:
        """What makes the views of a bridge, with all that its table has.

        Args:
            bridge: whose views they are.
            query: asks for it.
            table: what the table is called now.
            renamed: the columns that are renamed before the views are made, older and newer name.
        """
        if not bridge.views:
            return []
        ((columns, owner, is_own, comment, has_acl, acl, defaults),) = query(STATE, table=table)
        for older, newer in renamed:
            columns = [
                (newer, self._guard.quoted(newer), *rest) if name == older else (name, as_identifier, *rest)
                for name, as_identifier, *rest in columns
            ]
        by_name = {name: quoted for name, quoted, *_ in columns}
        quoted = self._guard.quoted
        shown = [(name, name, about) for _, name, about, _ in columns]
        comments = {name: about for name, _, about, _ in columns}
        # For UPDATE ... SET column = DEFAULT. A column that is there twice would get two values from an INSERT.
        alone = {name: default for name, _, _, default in columns if default and name not in bridge.columns.values()}
        for old, new in bridge.columns.items():
            if new not in by_name or old in by_name:
                raise damaged(
                    f"{bridge.schema}.{bridge.table} must have a column {new} and no other {old}, for its open rename."
                )
            shown.append((quoted(old), by_name[new], comments[new]))
        selected = ", ".join(name if name == of else f"{of} AS {name}" for name, of, _ in shown)
        steps = []
        for one in bridge.views:
            view = self._named(bridge, one)
            steps.append(
                f"CREATE VIEW {view} WITH (security_invoker = true) AS "  # noqa: S608 - quoted
                f"SELECT {selected} FROM {self._named(bridge, bridge.base)}"
            )
            steps += [
                f"ALTER VIEW {view} ALTER COLUMN {by_name[name]} SET DEFAULT {default}"
                for name, default in alone.items()
            ]
            # What default privileges grant on whatever is made.
            steps += [f"REVOKE ALL ON {view} FROM {grantee}" for grantee in defaults]
            if not is_own:
                steps.append(f"ALTER VIEW {view} OWNER TO {owner}")
            if has_acl:
                steps.append(f"REVOKE ALL ON {view} FROM {owner}")
                steps += [
                    f"GRANT {privileges} ON {view} TO {grantee}{' WITH GRANT OPTION' if grantable == 'true' else ''}"
                    for grantee, grantable, privileges in acl
                ]
            else:
                steps.append(f"GRANT ALL ON {view} TO {owner}")
            steps += [f"COMMENT ON VIEW {view} IS {comment}"] if comment else []
            steps += [f"COMMENT ON COLUMN {view}.{name} IS {about}" for name, _, about in shown if about]
        return steps

    def _refuse_other_rights(self, bridge: Bridge, query: Query) -> None:
        """Raise RunError when a view has other rights than its table: they would go with it, or come back."""
        table = self._named(bridge, bridge.base)
        of_table = {tuple(row) for row in query(RIGHTS, name=table)} if bridge.views else set()
        for view in bridge.views:
            of_view = {
                (bridge.columns.get(column, column), *rest)
                for column, *rest in query(RIGHTS, name=self._named(bridge, view))
            }
            if not of_view or of_view == of_table:
                continue
            alone = [("the view", of_view - of_table), (bridge.base, of_table - of_view)]
            told = [
                f"{role} has {self._right(column, right, is_grantable=is_grantable)} on {where} alone"
                for where, rights in alone
                for column, role, right, is_grantable in sorted(rights, key=str)
            ]
            statements = [
                f"REVOKE {self._right(column, right)} ON {table} FROM {role}"
                for column, role, right, _ in sorted(of_table - of_view, key=str)
            ] + [
                f"GRANT {self._right(column, right)} ON {table} TO {role}{WITH_OPTION if is_grantable else ''}"
                for column, role, right, is_grantable in sorted(of_view - of_table, key=str)
            ]
            raise RunError(
                f"The rights on {bridge.schema}.{view} were changed while its rename was open: {', '.join(told)}.",
                exit_code=ExitCode.FAILED,
                kind="RightsChanged",
                hint=f"Give both the same, and run this again. To take over the view's: {'; '.join(statements)}.",
            )

    def _right(self, column: str | None, right: str, *, is_grantable: bool = False) -> str:
        return f"{right}{f' ({self._guard.quoted(column)})' if column else ''}{WITH_OPTION if is_grantable else ''}"

    def _record(self, statement: str, one: Recorded) -> str:
        rename = one.rename
        return self._guard.filled(
            statement,
            version_table=self._version_table,
            revision=one.revision,
            position=one.position,
            schema=rename.schema,
            table=rename.table,
            old=rename.old,
            new=rename.new,
            of_table=rename.of_table,
        )

    def _tell_users(self, move: Move) -> None:
        """Name what else is made of the table, so that it is looked after before the contract."""
        after = move.after
        views = [self._named(after, view) for view in after.views]
        names = sorted({*after.views, after.table})
        found = self._guard.query(USERS, name=self._named(after, after.base), views=views, tables=names)
        if not found:
            return
        users = [name for name, _ in found]
        old = ", ".join(one.rename.old for _, one in move.records)
        is_by_name = any(by_name for _, by_name in found)
        then = f" What says {old} there must say the newer name before the contract." if is_by_name else ""
        self._report.event(
            "migration.bridge_users",
            f"Made of {move.after.table}: {', '.join(users)}. They go on working.{then}",
            table=move.after.table,
            users=users,
        )

    def _still_needed(self, move: Move) -> RunError:
        views = [self._named(move.before, view) for view in move.before.views]
        users = [name for (name,) in self._guard.query(NEEDED_BY, views=views)]
        were = "was" if len(users) == 1 else "were"
        return RunError(
            f"The view that stands for {move.before.table} can't go: {' and '.join(users)} {were} made of it while the "
            "rename was open.",
            exit_code=ExitCode.FAILED,
            kind="DependentObjectsStillExist",
            sqlstate=STILL_NEEDED,
            revision=self._revision(move),
            hint="Drop it, run this again, and make it anew.",
        )

    def _holders(self, other: Guard | None, tables: Sequence[int]) -> list[str]:
        """Who has held one of the tables for longer than a lock would be waited for: to queue holds up the others."""
        if other is None:
            return []
        own = [self._guard.pid, other.pid]
        try:
            found = other.query(HOLDERS, own=own, tables=list(tables), seconds=LOCK_SECONDS)
        except (RunError, psycopg2.Error):
            # It is a courtesy, which the run can do without.
            return []
        return [blocker(*row) for row in found]

    @contextmanager
    def _beside(self) -> Iterator[Guard | None]:
        """Another connection, to see who is in the way: the runner's own is the one that waits."""
        try:
            other = connect(self._parameters, CONNECT_SECONDS)
        except psycopg2.Error:
            yield None
            return
        with closing(other):
            yield Guard(other, self._report)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        self._stop.sessions.append(self._guard.own)
        try:
            yield
        finally:
            self._stop.sessions.remove(self._guard.own)

    def _named(self, bridge: Bridge, name: str) -> str:
        return self._guard.qualified(bridge.schema, name)

    @staticmethod
    def _revision(move: Move) -> str:
        return move.records[0][1].revision


def _kept(known: Sequence[Recorded]) -> list[tuple[Rename, bool]]:
    """What the tables have gone through, each with whether its older name works."""
    return [(one.rename, one.is_open) for one in known if not one.is_reverted]


def _by_table(revision: str, renames: Sequence[Rename]) -> list[list[Recorded]]:
    """The renames of a revision as its bridges have them, those of one table together."""
    each = [Recorded(revision, at, one, is_closed=False, is_reverted=False) for at, one in enumerate(renames)]
    return [[one for one in each if one.rename in group] for group in groups(renames)]


def bridges_of(known: Sequence[Recorded]) -> dict[tuple[str, str], Bridge]:
    """The bridges of the tables that these renames have gone through, by schema and table; a plain one has no views."""
    return bridges(_kept(known))


def _is_contracted(bridge: Bridge, kinds: Mapping[str, str]) -> bool:
    """Whether somebody has given a table its name back by hand."""
    return bridge.base not in kinds and kinds.get(bridge.table) in TABLES


def _can_contract(bridge: Bridge, kinds: Mapping[str, str]) -> bool:
    """Whether at most views are missing."""
    return kinds.get(bridge.base) in TABLES and all(kinds.get(view, "v") == "v" for view in bridge.views)


def _of(bridge: Bridge, known: Sequence[Recorded]) -> list[Recorded]:
    return [one for one in known if one.rename in bridge.renames]


def _with(rename: Rename, known: Mapping[tuple[str, str], Bridge]) -> Bridge:
    """The bridge that a rename has led to."""
    return next(one for one in known.values() if rename in one.renames)


def damaged(message: str) -> RunError:
    """What somebody has changed by hand, so that nothing can be done with a bridge."""
    return RunError(
        message,
        exit_code=ExitCode.FAILED,
        kind="BridgeDamaged",
        hint="Somebody has changed that by hand: take it back, and run this again.",
    )
