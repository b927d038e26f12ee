"""The role of the services: it reads and writes the data, and can't change the schema.

Its secret may be rotated with alternating users. Secrets Manager's function for PostgreSQL then makes a second role,
``NAME_clone``, grants it the first one, and from then on gives each of the two a new password in turn:
https://github.com/aws-samples/aws-secrets-manager-rotation-lambdas (SecretsManagerRDSPostgreSQLRotationMultiUser).
It grants only what it creates, so the privileges belong to the first role, and a clone must be a member of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import encrypt_password

from migration_runner.database import LOCK_NOT_AVAILABLE, connect, connection_refusal
from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.failures import failure
from migration_runner.guard import Guard
from migration_runner.patience import Limits, Sampler, locked_out
from migration_runner.report import Report

CLONE = "_clone"
LOGIN_SECONDS = 5
WRONG_PASSWORD = "28P01"  # noqa: S105 - an SQLSTATE
CANCELED = "57014"
# Like a migration: in nobody's way for long, and tried again for as long as the run waits for a lock.
LOCK_TIMEOUT = "SET LOCAL lock_timeout = '100ms'"
LONGEST_PAUSE = 5.0
# Roles belong to all databases of a server, so the lock of this one keeps nobody else away from them: a rotation, or
# the runner of another database. Two who write one row of the catalog get XX000, "tuple concurrently updated".
CONTENDED = ("XX000", "23505", "42710", "40P01")
TRIES = 5
# Not the system's own, and not others' temporary tables.
OURS = "n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'"
# What there is of the two roles: whether it may log in, whether it has the rights of the first, why it can't be the
# services', and whether the one who manages roles may change it. Since PostgreSQL 16 that takes the ADMIN OPTION.
# Whoever is a member of a role can become it, also where nothing is inherited. The server's own roles but those that
# only watch write, read or run what they like: https://www.postgresql.org/docs/current/predefined-roles.html
ROLES = f"""
WITH migrating AS (SELECT oid FROM pg_roles WHERE rolname IN (current_user, session_user)),
grounds AS (
    SELECT s.oid, s.rolname,
           CASE WHEN s.oid IN (TABLE migrating) THEN 'is the role that migrates'
                WHEN s.rolsuper OR s.rolname = 'rds_superuser' THEN 'is a superuser'
                WHEN s.rolcreaterole THEN 'may create roles'
                WHEN s.rolcreatedb THEN 'may create databases'
                WHEN s.rolreplication THEN 'may replicate the server'
                WHEN s.rolbypassrls THEN 'is above row-level security'
                WHEN s.oid = (SELECT datdba FROM pg_database WHERE datname = current_database())
                THEN 'owns the database'
                WHEN s.rolname LIKE 'pg\\_%%' AND s.rolname NOT IN (
                    'pg_monitor', 'pg_read_all_settings', 'pg_read_all_stats', 'pg_stat_scan_tables')
                THEN 'is one of the server''s own'
                WHEN s.oid IN (SELECT nspowner FROM pg_namespace n WHERE {OURS}
                               UNION ALL SELECT relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                               WHERE {OURS})
                THEN 'owns objects in the schema'
           END AS ground
    FROM pg_roles s
)
SELECT r.rolname::text, r.rolcanlogin,
       pg_has_role(r.oid, (SELECT oid FROM pg_roles WHERE rolname = %(base)s), 'USAGE'),
       (SELECT CASE WHEN g.oid = r.oid THEN ground
                    WHEN g.oid IN (TABLE migrating) THEN 'is a member of the role that migrates'
                    ELSE format('is a member of %%s, which %%s', g.rolname, ground) END
        FROM grounds g WHERE ground IS NOT NULL AND pg_has_role(r.oid, g.oid, 'MEMBER')
        ORDER BY g.oid = r.oid DESC, g.oid IN (TABLE migrating) DESC, g.rolname LIMIT 1),
       coalesce(pg_has_role(%(manager)s, r.oid, 'USAGE WITH ADMIN OPTION')
                OR current_setting('server_version_num')::int < 160000, false)
FROM pg_roles r WHERE r.rolname IN (%(base)s, %(clone)s) ORDER BY r.rolname
"""  # noqa: S608 - constants
# The attribute is not inherited: whoever logs in may lack what env.py's SET ROLE brings, and the other way round.
MANAGER = """
SELECT rolname::text FROM pg_roles
WHERE rolname IN (session_user, current_user) AND (rolcreaterole OR rolsuper)
ORDER BY rolname = session_user DESC LIMIT 1
"""
VERSION_TABLES = "SELECT DISTINCT version_table FROM migration_runner.applied"
# The schemas that the role that migrates has made, or made something in, and what is in them; of the runner's records
# nothing is the services'. What belongs to an extension is its own concern.
OBJECTS = f"""
WITH me AS (SELECT oid FROM pg_roles WHERE rolname = current_user),
     base AS (SELECT oid FROM pg_roles WHERE rolname = %(base)s),
     schemas AS (
         SELECT n.oid, n.nspname, n.nspowner, n.nspacl, n.nspname = 'migration_runner' AS is_ledger
         FROM pg_namespace n
         WHERE {OURS} AND (n.nspowner = (TABLE me) OR EXISTS (
             SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relowner = (TABLE me)
             AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')))
     ),
     relations AS (
         SELECT c.oid, c.relnamespace, c.relowner, c.relacl, s.is_ledger,
                named.plain = ANY (%(version_tables)s) AS is_version_table,
                format('%%I.%%I', s.nspname, c.relname) AS name,
                CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
                CASE WHEN s.is_ledger THEN '{{}}'
                     WHEN c.relkind = 'S' THEN '{{USAGE,SELECT}}'
                     WHEN c.relkind = 'm' OR named.plain = ANY (%(version_tables)s) THEN '{{SELECT}}'
                     ELSE '{{SELECT,INSERT,UPDATE,DELETE}}' END::text[] AS wanted
         FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace,
         LATERAL (SELECT s.nspname || '.' || c.relname AS plain) AS named
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND (c.relowner = (TABLE me) OR NOT EXISTS (
             SELECT FROM pg_depend d
             WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
     )
"""  # noqa: S608 - constants
# Only of what is new to the role: where it has a part of its rights, somebody has taken the rest away on purpose.
# What everybody may is enough only where we can't grant: it may be taken from everybody one day.
MISSING = f"""
{OBJECTS}
SELECT kind, name, wanted, can_grant
FROM relations r,
LATERAL (SELECT coalesce(array_agg(privilege_type), '{{}}') AS held FROM (
    SELECT relacl AS acl UNION ALL
    SELECT attacl FROM pg_attribute WHERE attrelid = r.oid AND attacl IS NOT NULL
) AS acls, aclexplode(acl) WHERE grantee = (TABLE base)) AS granted,
LATERAL (SELECT bool_and(CASE kind WHEN 'SEQUENCE' THEN has_sequence_privilege(r.oid, one || ' WITH GRANT OPTION')
                         ELSE has_table_privilege(r.oid, one || ' WITH GRANT OPTION') END) AS can_grant,
                bool_or(CASE kind WHEN 'SEQUENCE' THEN has_sequence_privilege(%(base)s, r.oid, one)
                        ELSE has_table_privilege(%(base)s, r.oid, one) END) AS has_some
         FROM unnest(wanted) AS one) AS may
WHERE wanted <> '{{}}' AND NOT held && wanted AND (can_grant OR NOT has_some)
ORDER BY can_grant, kind, wanted, name
"""  # noqa: S608 - constants
# Who has granted what can be taken back only by that role, and with the owner's grants by whoever is the owner.
EXCESS = f"""
{OBJECTS}
SELECT kind, name, coalesce(quote_ident(g.rolname), 'PUBLIC'),
       array_agg(DISTINCT privilege_type ORDER BY privilege_type),
       bool_and(coalesce(g.rolname IN (%(base)s, %(clone)s), false)
                AND pg_has_role(owner, 'USAGE') AND a.grantor = owner) AS can_revoke
FROM (
    SELECT kind, name, wanted, relowner AS owner, relacl AS acl FROM relations
    UNION ALL
    SELECT kind, name, wanted, relowner, attacl FROM relations r JOIN pg_attribute ON attrelid = r.oid
    WHERE attacl IS NOT NULL
    UNION ALL
    SELECT 'SCHEMA', quote_ident(nspname), CASE WHEN is_ledger THEN '{{}}' ELSE '{{USAGE}}' END::text[],
           nspowner, nspacl
    FROM schemas
    UNION ALL
    SELECT 'DATABASE', quote_ident(datname), '{{CONNECT,TEMPORARY}}', datdba, datacl
    FROM pg_database WHERE datname = current_database()
) AS object, aclexplode(acl) AS a LEFT JOIN pg_roles g ON g.oid = a.grantee
WHERE privilege_type <> ALL (wanted) AND a.grantee IN (
    SELECT 0::oid UNION ALL
    SELECT m.oid FROM pg_roles r, pg_roles m
    WHERE r.rolname IN (%(base)s, %(clone)s) AND pg_has_role(r.oid, m.oid, 'MEMBER'))
GROUP BY 1, 2, 3 ORDER BY 5, 3, 1, 4, 2
"""  # noqa: S608 - constants
PLACES = f"""
{OBJECTS}
SELECT 'SCHEMA', quote_ident(n.nspname), 'USAGE', has_schema_privilege(%(base)s, n.oid, 'USAGE'),
       has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION'),
       EXISTS (SELECT FROM aclexplode(n.nspacl) WHERE grantee = (TABLE base) AND privilege_type = 'USAGE'),
       NOT EXISTS (SELECT FROM unnest('{{SELECT,INSERT,UPDATE,DELETE}}'::text[]) AS wanted WHERE wanted NOT IN (
           SELECT privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl)
           WHERE (defaclrole, defaclnamespace, defaclobjtype) = ((TABLE me), n.oid, 'r') AND grantee = (TABLE base)))
       AND NOT EXISTS (SELECT FROM unnest('{{USAGE,SELECT}}'::text[]) AS wanted WHERE wanted NOT IN (
           SELECT privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl)
           WHERE (defaclrole, defaclnamespace, defaclobjtype) = ((TABLE me), n.oid, 'S') AND grantee = (TABLE base)))
       -- A schema of the version table alone gets no others.
       OR coalesce((SELECT bool_and(is_version_table) FROM relations r
                    WHERE r.relnamespace = n.oid AND r.relowner = (TABLE me)), false)
FROM schemas n WHERE NOT n.is_ledger
UNION ALL
SELECT 'DATABASE', quote_ident(datname), 'CONNECT', has_database_privilege(%(base)s, d.oid, 'CONNECT'),
       has_database_privilege(d.oid, 'CONNECT WITH GRANT OPTION'),
       EXISTS (SELECT FROM aclexplode(datacl) WHERE grantee = (TABLE base) AND privilege_type = 'CONNECT'), true
FROM pg_database d WHERE datname = current_database()
ORDER BY 1, 2
"""  # noqa: S608 - constants


class Role(NamedTuple):
    """A row of ROLES.

    Args:
        name: of the role.
        can_log_in: whether it may.
        is_member: whether it has the rights of the first of the two roles.
        unfit: why it can't be the services'; None when it can.
        changeable: whether the one who manages roles may change it.
    """

    name: str
    can_log_in: bool
    is_member: bool
    unfit: str | None
    changeable: bool


class Place(NamedTuple):
    """A row of PLACES: a schema, or the database.

    Args:
        kind: as GRANT calls it.
        name: quoted.
        privilege: what the services need there.
        has_it: whether they have it, from whomever.
        can_grant: whether the role that migrates may grant it.
        is_granted: whether it is granted to the services' role itself.
        gets_later: whether they will get their rights on what the owner creates in it later.
    """

    kind: str
    name: str
    privilege: str
    has_it: bool
    can_grant: bool
    is_granted: bool
    gets_later: bool


class Missing(NamedTuple):
    """A row of MISSING: a table, a view or a sequence that the services' role has no right on.

    Args:
        kind: as GRANT calls it.
        name: quoted, with its schema.
        privileges: what it should have.
        can_grant: whether the role that migrates may grant that.
    """

    kind: str
    name: str
    privileges: list[str]
    can_grant: bool


class Excess(NamedTuple):
    """A row of EXCESS: what the services may do beyond their rights.

    Args:
        kind: of the object, as REVOKE calls it.
        name: quoted, with its schema.
        grantee: who has it, quoted: one of the two roles, one that they are members of, or PUBLIC.
        privileges: which.
        can_revoke: whether it is the services' alone, and the role that migrates may take it back.
    """

    kind: str
    name: str
    grantee: str
    privileges: list[str]
    can_revoke: bool


class Change(NamedTuple):
    """What is to be done for the role: in words, and in SQL."""

    told: str
    statement: str


class ServiceRole:
    """The role of the services, as SERVICE_SECRET names it.

    Args:
        username: who the services log in as now: the role itself, or its clone.
        password: theirs.
        parameters: the database, as libpq knows it, with the runner's own login.
        guard: the runner's connection, with the role that env.py has taken.
        run: runs statements on that connection; a signal, the deadline and the process end them.
        limits: how long to wait for locks.
        report: gets a line when something was done.
    """

    def __init__(
        self,
        username: str,
        password: str,
        parameters: Mapping[str, str],
        guard: Guard,
        run: Callable[[str], None],
        limits: Limits,
        report: Report,
    ) -> None:
        self._username = username
        self._password = password
        self._base = username.removesuffix(CLONE) or username
        self._parameters = parameters
        # Without the session's settings that the URL may hold, such as a role.
        self._login = {key: value for key, value in parameters.items() if key != "options"}
        self._login |= {"user": username, "password": password}
        self._guard = guard
        self._run = run
        self._limits = limits
        self._report = report

    def prepare(self) -> None:
        """Let the role be there before a revision runs, which may grant it something, and be let in with the secret.

        Raises:
            RunError: the secret is not one for services, or is refused, or the role can't be made: nothing has changed.
        """
        encoding = self._guard.query("SHOW server_encoding")[0][0]
        if encoding != "UTF8" and not self._username.isascii():
            raise wrong_use(
                "ServiceRoleUnwritable",
                f"The username in SERVICE_SECRET must be ASCII, because the database's encoding is {encoding}.",
                "Give the services a role with another name.",
            )
        known = self._found(self._manager()).get(self._username)
        # The first try of a role that is not there would be a refused login in the server's log.
        if known and known.can_log_in and not self._can_log_in():
            # Never overwritten: who is to say that the secret is newer than the password?
            raise RunError(
                f"The database refused the credentials of the services' role {self._username}: SERVICE_SECRET was "
                "rotated after this run had got it, or the role has another password, as after a restore.",
                exit_code=ExitCode.REFUSED,
                kind="ServiceCredentialsRefused",
                sqlstate=WRONG_PASSWORD,
                hint="If it was rotated just now, run this again with the new one. If not, run ALTER ROLE "
                f"{self._guard.quoted(self._username)} NOLOGIN, and this again: that sets the secret's password.",
            )
        self._patiently(self._make)

    def ensure(self, version_table: str) -> None:
        """Let the role have its rights and no more than these; nothing is done when all is so.

        Args:
            version_table: its schema and name; the services may only read it.

        Raises:
            RunError: the role can't be made, or be given its rights.
        """
        try:
            self._patiently(lambda: self._make() + self._give(version_table))
        except RunError as error:
            # By now the revisions have run: it is no run that was not started.
            error.exit_code = ExitCode.FAILED if error.exit_code is ExitCode.WRONG_USE else error.exit_code
            raise

    def _patiently(self, act: Callable[[], list[Change]]) -> None:
        """Do it, again while others write to the same rows of the catalog, and tell what was done."""
        began, patience = time.monotonic(), self._limits.patience
        blocked = collided = 0
        while True:
            try:
                with self._sampling() if blocked else _nobody() as seen:
                    done = act()
                break
            except psycopg2.Error as error:
                if error.pgcode == LOCK_NOT_AVAILABLE:
                    blocked += 1
                    pause = min(0.1 * 2**blocked, LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
                    waited, blockers = time.monotonic() - began, sorted(seen())
                    if blocked > 1 and waited + pause >= patience:
                        raise locked_out(failure(error), waited, blocked, blockers) from None
                    self._report.progress(
                        "migration.locked",
                        f"The services' role waits for a lock, try {blocked}: {'; '.join(blockers)}",
                        role=self._base,
                        attempt=blocked,
                        blockers=blockers,
                    )
                else:
                    collided += 1
                    pause = random.uniform(0.1, 0.5) * collided  # noqa: S311
                    if error.pgcode not in CONTENDED or collided == TRIES:
                        raise self._told(error) from None
                time.sleep(pause)
        if done:
            told = [change.told for change in done]
            self._report.event(
                "migration.service_role",
                f"The services' role {self._base}: {'; '.join(told)}.",
                role=self._base,
                did=told,
            )

    @contextmanager
    def _sampling(self) -> Iterator[Callable[[], Collection[str]]]:
        """See who is in the way, on another connection: the runner's own is the one that waits."""
        try:
            other = connect(self._parameters, LOGIN_SECONDS)
        except psycopg2.Error:
            yield tuple
            return
        with closing(other):
            sampler = Sampler(Guard(other, self._report), [self._guard.pid])
            with sampler.sampling():
                yield lambda: sampler.seen

    def _can_log_in(self) -> bool:
        """Whether the password is the secret's; a server that lets nobody in now says nothing of it."""
        try:
            connect(self._login, LOGIN_SECONDS).close()
        except (psycopg2.Error, UnicodeDecodeError) as error:
            return connection_refusal(error).sqlstate != WRONG_PASSWORD
        return True

    def _make(self) -> list[Change]:
        """Make the roles, and let the database know the secret's password."""
        manager = self._manager()
        changes = self._changes_of_roles(manager)
        # Without a manager, changes are refused.
        if not changes or not manager:
            return []
        # Back to the role of env.py at the end; should one fail, nothing of this has happened.
        role = self._guard.query("SELECT current_user::text")[0][0]
        taken = [f"SET ROLE {self._guard.quoted(name)}" for name in (manager, role)]
        self._run("; ".join([LOCK_TIMEOUT, taken[0], *(change.statement for change in changes), taken[1]]))
        if not self._can_log_in():
            raise RunError(
                f"The role {self._username} has the password of SERVICE_SECRET, but is not let in with it.",
                exit_code=ExitCode.FAILED,
                kind="ServiceRoleRefused",
                hint="Look at its VALID UNTIL, and at the server's rules for it (pg_hba.conf).",
            )
        return changes

    def _manager(self) -> str | None:
        """Who manages roles: the login, or the role that env.py has taken; None when neither may."""
        return next((name for (name,) in self._guard.query(MANAGER)), None)

    def _found(self, manager: str | None) -> dict[str, Role]:
        """Those of the two roles that are there."""
        named = {"base": self._base, "clone": self._base + CLONE, "manager": manager}
        found = [Role(*row) for row in self._guard.query(ROLES, **named)]
        for role in found:
            if role.unfit:
                raise wrong_use(
                    "ServiceRoleUnfit",
                    f"The services can't have the role {self._username}, because {role.name} {role.unfit}.",
                    "Give SERVICE_SECRET the secret of a role of their own; the runner makes it when it is not there.",
                )
        return {role.name: role for role in found}

    def _changes_of_roles(self, manager: str | None) -> list[Change]:
        base, clone, user = self._base, self._base + CLONE, self._username
        found = self._found(manager)
        quoted = self._guard.quoted
        changes, altered = [], []
        if base not in found:
            # With a login also where the clone's turn is: a rotation gives it a password, and nothing else.
            what = f"CREATE ROLE {quoted(base)} LOGIN{self._verifier() if user == base else ''}"
            changes.append(Change(f"created {base}", what))
        if user != base and user not in found:
            changes.append(Change(f"created {user}", f"CREATE ROLE {quoted(user)} LOGIN{self._verifier()}"))
        if user in found and not found[user].can_log_in:
            changes.append(Change(f"set the password of {user}", f"ALTER ROLE {quoted(user)} LOGIN{self._verifier()}"))
            altered.append(user)
        if (user == clone and clone not in found) or (clone in found and not found[clone].is_member):
            grant = f"GRANT {quoted(base)} TO {quoted(clone)}"
            if self._guard.own.server_version >= 160000:
                # By itself it takes what the role's attribute says, and leaves a grant that is there as it is.
                grant = f"{grant} WITH INHERIT TRUE"
            elif clone in found:
                grant = f"ALTER ROLE {quoted(clone)} INHERIT; {grant}"
            changes.append(Change(f"granted {base} to {clone}", grant))
            altered += [base] if base in found else []
        forbidden = [name for name in altered if not found[name].changeable]
        if changes and (not manager or forbidden):
            raise self._not_allowed(manager, forbidden)
        return changes

    def _not_allowed(self, manager: str | None, forbidden: Collection[str]) -> RunError:
        owner, login = self._guard.query("SELECT current_user::text, session_user::text")[0]
        quoted, who = self._guard.quoted, manager or login
        needed = [] if manager else [f"ALTER ROLE {quoted(who)} CREATEROLE"]
        needed += [f"GRANT {quoted(name)} TO {quoted(who)} WITH ADMIN OPTION" for name in sorted(set(forbidden))]
        migrating = login if login == owner else f"{login}, or {owner}"
        return wrong_use(
            "MayNotManageRoles",
            f"The services' role {self._username} must be made or mended, but the role that migrates ({migrating}) may "
            "not do that.",
            f"Let an administrator run {' and '.join(needed)}.",
        )

    def _verifier(self) -> str:
        """What of the password the server keeps: computed here, the password itself is in no statement and no log."""
        verifier = encrypt_password(self._password, self._username, self._guard.own, "scram-sha-256")
        return f" PASSWORD '{verifier}'"

    def _give(self, version_table: str) -> list[Change]:
        """Grant what is missing, now and for what the owner will create; revoke what is too much."""
        tables = [version_table, *(name for (name,) in self._guard.query(VERSION_TABLES))]
        named = {"base": self._base, "clone": self._base + CLONE, "version_tables": tables}
        places = [Place(*row) for row in self._guard.query(PLACES, **named)]
        missing = [Missing(*row) for row in self._guard.query(MISSING, **named)]
        excess = [Excess(*row) for row in self._guard.query(EXCESS, **named)]
        changes = [change for place in places for change in self._changes_of_place(place)]
        changes += [*self._grants(missing), *self._revocations(excess)]
        if changes:
            self._run("; ".join([LOCK_TIMEOUT, *(change.statement for change in changes)]))
        self._tell_what_others_must_do(missing, excess)
        return changes

    def _changes_of_place(self, place: Place) -> Iterator[Change]:
        """Let the services in, now and to what will be there."""
        grant = f"GRANT {place.privilege} ON {place.kind} {place.name} TO {self._quoted_base}"
        if place.can_grant and not place.is_granted:
            yield Change(f"granted {place.privilege} on {place.name}", grant)
        elif not place.has_it:
            raise RunError(
                f"The services' role {self._base} has no {place.privilege} on {place.name}, and the role that migrates "
                "may not grant it.",
                exit_code=ExitCode.FAILED,
                kind="InsufficientPrivilege",
                hint=f"Let the owner run {grant}; then run this again.",
            )
        if not place.gets_later:
            later = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {place.name} GRANT"
            yield Change(
                f"granted the same on what will be created in {place.name}",
                f"{later} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {self._quoted_base}; "
                f"{later} USAGE, SELECT ON SEQUENCES TO {self._quoted_base}",
            )

    def _grants(self, missing: Sequence[Missing]) -> Iterator[Change]:
        """What the role lacks; one statement for all that lack the same, as MISSING puts them side by side."""
        for (kind, privileges), group in groupby(
            (one for one in missing if one.can_grant), key=lambda one: (one.kind, one.privileges)
        ):
            names = [one.name for one in group]
            what = names[0] if len(names) == 1 else f"{len(names)} {kind.lower()}s"
            yield Change(
                f"granted {', '.join(privileges)} on {what}",
                f"GRANT {', '.join(privileges)} ON {kind} {', '.join(names)} TO {self._quoted_base}",
            )

    def _revocations(self, excess: Sequence[Excess]) -> Iterator[Change]:
        for one in excess:
            if one.can_revoke:
                privileges = ", ".join(one.privileges)
                revoke = f"REVOKE {privileges} ON {one.kind} {one.name} FROM {one.grantee}"
                yield Change(f"revoked {privileges} on {one.name}", revoke)

    @property
    def _quoted_base(self) -> str:
        return self._guard.quoted(self._base)

    def _tell_what_others_must_do(self, missing: Sequence[Missing], excess: Sequence[Excess]) -> None:
        """Name what only others can grant, or take back; one line for all that take the same words."""
        for (kind, privileges), lacking in groupby(
            (one for one in missing if not one.can_grant), key=lambda one: (one.kind, one.privileges)
        ):
            names = [one.name for one in lacking]
            grant = f"GRANT {', '.join(privileges)} ON {kind} {', '.join(names)} TO {self._quoted_base}"
            self._report.event(
                "migration.service_role_lacks",
                f"The services' role {self._base} has no right on {', '.join(names)}, which the role that migrates "
                f"does not own. If the services need it, let the owner run {grant}.",
                role=self._base,
                on=names,
                hint=f"If the services need it, let the owner run {grant}.",
            )
        for (grantee, kind, privileges), beyond in groupby(
            (one for one in excess if not one.can_revoke), key=lambda one: (one.grantee, one.kind, one.privileges)
        ):
            names, may = [one.name for one in beyond], ", ".join(privileges)
            revoke = f"REVOKE {may} ON {kind} {', '.join(names)} FROM {grantee}"
            self._report.event(
                "migration.service_role_exceeds",
                f"The services' role {self._base} may {may} on {', '.join(names)}, as {grantee} may. To end that, let "
                f"who granted it run {revoke}.",
                role=self._base,
                may=privileges,
                on=names,
                hint=f"To end that, let who granted it run {revoke}.",
            )

    def _told(self, error: psycopg2.Error) -> RunError:
        told = failure(error)
        if told.exit_code is ExitCode.UNREACHABLE:
            return told
        if told.sqlstate == CANCELED and self._limits.left <= 0:
            return RunError(
                "The run has taken longer than its timeout.",
                exit_code=ExitCode.FAILED,
                kind="TimedOut",
                hint="Raise the timeout; the revisions that were applied stay.",
            )
        return RunError(
            f"The services' role {self._base} could not be made, or be given its rights: {told.message.rstrip('.')}.",
            exit_code=told.exit_code,
            kind=told.kind,
            sqlstate=told.sqlstate,
            hint="Run this again; if it fails again, let an administrator make the role."
            if told.sqlstate in (*CONTENDED, CANCELED)
            else "Compare the rights of the role that migrates with what this asks for.",
        )


@contextmanager
def _nobody() -> Iterator[Callable[[], Collection[str]]]:
    yield tuple
