"""The role of the services: it reads and writes the data, and can't change the schema.

Its secret may be rotated with alternating users. Secrets Manager's function for PostgreSQL then makes a second role,
``NAME_clone``, grants it the first one, and from then on gives each of the two a new password in turn:
https://github.com/aws-samples/aws-secrets-manager-rotation-lambdas (SecretsManagerRDSPostgreSQLRotationMultiUser).
It grants only what it creates, so the privileges belong to the first role, and a clone must be a member of it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any

import psycopg2
from psycopg2.extensions import encrypt_password

from migration_runner.database import LOCK_NOT_AVAILABLE, connect, connection_refusal
from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.failures import failure
from migration_runner.guard import Guard
from migration_runner.report import Report

CLONE = "_clone"
LOGIN_SECONDS = 5
WRONG_PASSWORD = "28P01"  # noqa: S105 - an SQLSTATE
LOCK_TIMEOUT = "SET LOCAL lock_timeout = '10s'"
# Roles belong to all databases of a server, so the lock of this one keeps nobody else away from them: a rotation, or
# the runner of another database. Two who write one row of the catalog get XX000, "tuple concurrently updated".
CONTENDED = ("XX000", "23505", "42710", "40P01", LOCK_NOT_AVAILABLE)
TRIES = 5
# Not what everybody may who can use the schema: the runner's records, the system's own, and others' temporary tables.
OURS = "n.nspname <> 'migration_runner' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'"
OWN = f"""
SELECT c.oid, c.relkind, c.relnamespace, c.relacl, c.relowner, n.nspname, n.nspname || '.' || c.relname AS plain_name,
       format('%%I.%%I', n.nspname, c.relname) AS name
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND {OURS}
  AND c.relowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""  # noqa: S608 - constants
# What there is of the two roles: whether it may log in, whether it is a member of the first, why it can't be the
# services', and whether the one who manages roles may change it. Since PostgreSQL 16 that takes the ADMIN OPTION.
ROLES = f"""
WITH migrating AS (
    SELECT (SELECT oid FROM pg_roles WHERE rolname = current_user) AS owner,
           (SELECT oid FROM pg_roles WHERE rolname = session_user) AS login
)
SELECT r.rolname::text, r.rolcanlogin,
       pg_has_role(r.oid, (SELECT oid FROM pg_roles WHERE rolname = %(base)s), 'USAGE'),
       CASE WHEN r.oid IN (owner, login) THEN 'is the role that migrates'
            WHEN r.rolsuper THEN 'is a superuser'
            WHEN r.rolcreaterole THEN 'may create roles'
            WHEN pg_has_role(r.oid, owner, 'MEMBER') OR pg_has_role(r.oid, login, 'MEMBER')
            THEN 'is a member of the role that migrates'
            WHEN r.oid = (SELECT datdba FROM pg_database WHERE datname = current_database()) THEN 'owns the database'
            WHEN EXISTS (SELECT FROM pg_namespace n WHERE n.nspowner = r.oid AND {OURS})
              OR EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                         WHERE c.relowner = r.oid AND {OURS})
            THEN 'owns objects in the schema'
       END,
       coalesce(pg_has_role(%(manager)s, r.oid, 'USAGE WITH ADMIN OPTION')
                OR current_setting('server_version_num')::int < 160000, false)
FROM pg_roles r, migrating
WHERE r.rolname IN (%(base)s, %(clone)s)
"""  # noqa: S608 - constants
# The attribute is not inherited: whoever logs in may lack what env.py's SET ROLE brings, and the other way round.
MANAGER = """
SELECT rolname::text FROM pg_roles
WHERE rolname IN (session_user, current_user) AND (rolcreaterole OR rolsuper)
ORDER BY rolname = session_user DESC LIMIT 1
"""
VERSION_TABLES = "SELECT DISTINCT version_table FROM migration_runner.applied"
PRIVILEGES = f"""
SELECT CASE own.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, own.name,
       ARRAY (SELECT unnest(wanted.privileges) EXCEPT SELECT unnest(held.privileges) ORDER BY 1),
       CASE WHEN plain_name = ANY (%(version_tables)s)
       THEN ARRAY (SELECT unnest(held.privileges) INTERSECT SELECT unnest('{{INSERT,UPDATE,DELETE,TRUNCATE}}'::text[]))
       END
FROM ({OWN}) AS own,
LATERAL (SELECT CASE WHEN relkind = 'S' THEN '{{USAGE,SELECT}}'
                     WHEN relkind = 'm' OR plain_name = ANY (%(version_tables)s) THEN '{{SELECT}}'
                     ELSE '{{SELECT,INSERT,UPDATE,DELETE}}' END::text[] AS privileges) AS wanted,
LATERAL (SELECT array_agg(privilege_type) AS privileges FROM aclexplode(relacl)
         WHERE grantee = (SELECT oid FROM pg_roles WHERE rolname = %(base)s)) AS held
ORDER BY 1, 3, 2
"""  # noqa: S608 - constants
# What everybody may is enough only where we can't grant: it may be taken from everybody one day.
PLACES = f"""
SELECT 'SCHEMA', quote_ident(n.nspname), 'USAGE', has_schema_privilege(%(base)s, n.oid, 'USAGE'),
       has_schema_privilege(n.oid, 'USAGE WITH GRANT OPTION'),
       EXISTS (SELECT FROM aclexplode(n.nspacl) WHERE grantee = r.oid AND privilege_type = 'USAGE'),
       has_schema_privilege(%(base)s, n.oid, 'CREATE'),
       NOT EXISTS (SELECT FROM unnest('{{SELECT,INSERT,UPDATE,DELETE}}'::text[]) AS wanted WHERE wanted NOT IN (
           SELECT privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl)
           WHERE (defaclrole, defaclnamespace, defaclobjtype) = (own.relowner, n.oid, 'r') AND grantee = r.oid))
       AND NOT EXISTS (SELECT FROM unnest('{{USAGE,SELECT}}'::text[]) AS wanted WHERE wanted NOT IN (
           SELECT privilege_type FROM pg_default_acl d, aclexplode(d.defaclacl)
           WHERE (defaclrole, defaclnamespace, defaclobjtype) = (own.relowner, n.oid, 'S') AND grantee = r.oid))
       -- A schema of the version table alone gets no others.
       OR own.records_only
FROM (SELECT relnamespace, relowner, bool_and(plain_name = ANY (%(version_tables)s)) AS records_only FROM ({OWN}) AS own
      GROUP BY 1, 2) AS own
JOIN pg_namespace n ON n.oid = own.relnamespace JOIN pg_roles r ON r.rolname = %(base)s
UNION ALL
SELECT 'DATABASE', quote_ident(datname), 'CONNECT', has_database_privilege(%(base)s, d.oid, 'CONNECT'),
       has_database_privilege(d.oid, 'CONNECT WITH GRANT OPTION'),
       EXISTS (SELECT FROM aclexplode(datacl) WHERE grantee = r.oid AND privilege_type = 'CONNECT'), false, true
FROM pg_database d JOIN pg_roles r ON r.rolname = %(base)s WHERE datname = current_database()
ORDER BY 1, 2
"""  # noqa: S608 - constants


@dataclass(frozen=True)
class Change:
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
        report: gets a line when something was done.
    """

    def __init__(
        self,
        username: str,
        password: str,
        parameters: Mapping[str, str],
        guard: Guard,
        run: Callable[[str], None],
        report: Report,
    ) -> None:
        self._username = username
        self._password = password
        self._base = username.removesuffix(CLONE) or username
        # Without the session's settings that the URL may hold, such as a role.
        self._login = {key: value for key, value in parameters.items() if key != "options"}
        self._login |= {"user": username, "password": password}
        self._guard = guard
        self._run = run
        self._report = report
        self._lets_in = False

    def check(self) -> None:
        """Find out, before anything has changed, whether the secret is one for services, and its role can be had.

        Raises:
            RunError: it can't.
        """
        manager = self._guard.query(MANAGER)
        # The first try of a role that is not there would be a refused login in the server's log.
        self._lets_in = self._username in self._found(manager) and self._can_log_in()
        self._changes_of_roles(manager)

    def ensure(self, version_table: str) -> None:
        """Let the role be there, with its rights and no more than these; nothing is done when all is so.

        Args:
            version_table: its schema and name; the services may only read it.

        Raises:
            RunError: the role can't be made, or be given its rights.
        """
        for attempt in count(1):
            try:
                done = self._make() + self._give(version_table)
                break
            except RunError as error:
                # By now the revisions have run: it is no run that was not started.
                error.exit_code = ExitCode.FAILED if error.exit_code is ExitCode.WRONG_USE else error.exit_code
                raise
            except psycopg2.Error as error:
                if error.pgcode not in CONTENDED or attempt == TRIES:
                    raise self._told(error) from None
                time.sleep(random.uniform(0.1, 0.5) * attempt)  # noqa: S311
        if done:
            told = [change.told for change in done]
            self._report.event(
                "migration.service_role",
                f"The services' role {self._base}: {'; '.join(told)}.",
                role=self._base,
                did=told,
            )

    def _can_log_in(self) -> bool:
        """Whether the password is the secret's; a server that lets nobody in now says nothing of it."""
        try:
            connect(self._login, LOGIN_SECONDS).close()
        except (psycopg2.Error, UnicodeDecodeError) as error:
            return connection_refusal(error).sqlstate != WRONG_PASSWORD
        return True

    def _make(self) -> list[Change]:
        """Make the roles, and let the database know the secret's password."""
        manager = self._guard.query(MANAGER)
        changes = self._changes_of_roles(manager)
        if not changes:
            return []
        # Back to the role of env.py at the end; should one fail, nothing of this has happened.
        role = self._guard.query("SELECT current_user::text")[0][0]
        taken = [f"SET ROLE {self._guard.quoted(name)}" for name in (manager[0][0], role)]
        self._run("; ".join([LOCK_TIMEOUT, taken[0], *(change.statement for change in changes), taken[1]]))
        if not self._lets_in and not self._can_log_in():
            raise RunError(
                f"The role {self._username} has the password of SERVICE_SECRET, but is not let in with it.",
                exit_code=ExitCode.FAILED,
                kind="ServiceRoleRefused",
                hint="Look at its VALID UNTIL, and at the server's rules for it (pg_hba.conf).",
            )
        self._lets_in = True
        return changes

    def _found(self, manager: Sequence[tuple[Any, ...]]) -> dict[str, tuple[bool, bool, bool]]:
        """Which of the two roles are there: may it log in, is it a member of the first, may it be changed."""
        named = {"base": self._base, "clone": self._base + CLONE, "manager": manager[0][0] if manager else None}
        found = {}
        for name, can_log_in, is_member, unfit, changeable in self._guard.query(ROLES, **named):
            if unfit:
                raise wrong_use(
                    "ServiceRoleUnfit",
                    f"The services can't have the role {self._username}, because {name} {unfit}.",
                    "Give SERVICE_SECRET the secret of a role of their own; the runner makes it when it is not there.",
                )
            found[name] = (can_log_in, is_member, changeable)
        return found

    def _changes_of_roles(self, manager: Sequence[tuple[Any, ...]]) -> list[Change]:
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
        if user in found and not (self._lets_in and found[user][0]):
            changes.append(Change(f"set the password of {user}", f"ALTER ROLE {quoted(user)} LOGIN{self._verifier()}"))
            altered.append(user)
        if (user == clone and clone not in found) or (clone in found and not found[clone][1]):
            changes.append(Change(f"granted {base} to {clone}", f"GRANT {quoted(base)} TO {quoted(clone)}"))
            altered += [base] if base in found else []
        forbidden = [name for name in altered if not found[name][2]]
        if changes and (not manager or forbidden):
            raise self._not_allowed(manager[0][0] if manager else None, forbidden)
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
        """Grant what is missing, now and for what the owner will create."""
        guard, base = self._guard, self._guard.quoted(self._base)
        tables = [version_table, *(name for (name,) in guard.query(VERSION_TABLES))]
        named = {"base": self._base, "version_tables": tables}
        changes = []
        for kind, name, privilege, has_it, can_grant, is_granted, may_create, gets_later in guard.query(
            PLACES, **named
        ):
            if can_grant and not is_granted:
                changes.append(
                    Change(f"granted {privilege} on {name}", f"GRANT {privilege} ON {kind} {name} TO {base}")
                )
            elif not has_it:
                raise RunError(
                    f"The services' role {self._base} has no {privilege} on {name}, and the role that migrates may "
                    "not grant it.",
                    exit_code=ExitCode.FAILED,
                    kind="InsufficientPrivilege",
                    hint=f"Let the owner run GRANT {privilege} ON {kind} {name} TO {base}; then run this again.",
                )
            if not gets_later:
                later = f"ALTER DEFAULT PRIVILEGES IN SCHEMA {name} GRANT"
                changes.append(
                    Change(
                        f"granted the same on what will be created in {name}",
                        f"{later} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {base}; "
                        f"{later} USAGE, SELECT ON SEQUENCES TO {base}",
                    )
                )
            if may_create:
                self._tell_may_create(name)
        found = guard.query(PRIVILEGES, **named)
        for (kind, missing), group in groupby(found, key=lambda row: (row[0], row[2])):
            names, privileges = [name for _, name, *_ in group], ", ".join(missing)
            if missing:
                what = names[0] if len(names) == 1 else f"{len(names)} {kind.lower()}s"
                statement = f"GRANT {privileges} ON {kind} {', '.join(names)} TO {base}"
                changes.append(Change(f"granted {privileges} on {what}", statement))
        for _, name, _, excess in found:
            if excess:
                privileges = ", ".join(excess)
                statement = f"REVOKE {privileges} ON {name} FROM {base}"
                changes.append(Change(f"revoked {privileges} on {name}", statement))
        if changes:
            self._run("; ".join([LOCK_TIMEOUT, *(change.statement for change in changes)]))
        return changes

    def _tell_may_create(self, schema: str) -> None:
        self._report.event(
            "migration.service_role_may_create",
            f"The services' role {self._base} may create objects in the schema {schema}; in public, PostgreSQL before "
            f"15 lets everybody. To end that: REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC.",
            role=self._base,
            schema=schema,
        )

    def _told(self, error: psycopg2.Error) -> RunError:
        told = failure(error)
        if told.exit_code is ExitCode.UNREACHABLE:
            return told
        return RunError(
            f"The services' role {self._base} could not be made, or be given its rights: {told.message.rstrip('.')}.",
            exit_code=told.exit_code,
            kind=told.kind,
            sqlstate=told.sqlstate,
            hint="Run this again; if it fails again, let an administrator make the role."
            if told.sqlstate in CONTENDED
            else "Compare the rights of the role that migrates with what this asks for.",
        )
