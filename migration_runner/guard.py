"""The runner's own connection: it holds the lock of which there is one, and sees who stands in whose way.

In autocommit, and idle nearly always, it never holds a snapshot: CREATE INDEX CONCURRENTLY would wait for that.
"""

from __future__ import annotations

import hashlib
import random
import re
import select
import time
from collections.abc import Collection, Sequence
from typing import Any

import psycopg2
from psycopg2.extensions import connection, encodings, quote_ident

from migration_runner.database import database_failure
from migration_runner.errors import ExitCode, RunError
from migration_runner.report import Report

POLL_SECONDS = 0.2
TELL_EVERY = 5.0
HOLDER = """
SELECT l.pid, a.application_name, a.backend_start, extract(epoch FROM now() - a.backend_start)
FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""
# Its name, and since when its server runs.
DATABASE = "current_database()::text, extract(epoch FROM pg_postmaster_start_time())::text"
BLOCKERS = """
SELECT a.pid, a.application_name, a.query, a.state, extract(epoch FROM now() - coalesce(a.xact_start, a.backend_start))
FROM pg_stat_activity a
WHERE a.pid = ANY (SELECT unnest(pg_blocking_pids(pid)) FROM unnest(%s) AS waiting(pid))
"""
HELD = "SELECT count(*) FROM pg_locks WHERE pid = ANY (%s) AND locktype <> 'virtualxid'"
# Of a query only the words before its first value: what comes later may be anybody's data.
COMMENTS = re.compile(r"(?s)/\*.*?\*/|--[^\n]*")
FIRST_WORDS = re.compile(r"""(?s)([^'"$0-9\\\n]{0,40}).*""")


class Guard:
    """The runner's own connection.

    Args:
        own: in autocommit.
        report: gets a line while another runner is waited for.
    """

    def __init__(self, own: connection, report: Report) -> None:
        self.own = own
        self.pid = own.get_backend_pid()
        self._report = report
        self._key: int | None = None

    def query(self, statement: str, *parameters: object, **named: object) -> list[tuple[Any, ...]]:
        """The rows that a statement returns; none for a command. Raises RunError when the session is lost."""
        try:
            with self.own.cursor() as cursor:
                cursor.execute(statement, named or parameters or None)
                return cursor.fetchall() if cursor.description else []
        except psycopg2.Error as error:
            failure = database_failure(error, None)
            if failure and failure.exit_code is ExitCode.UNREACHABLE:
                raise failure from None
            raise

    def quoted(self, name: str) -> str:
        """The name as an identifier in SQL."""
        return str(quote_ident(name, self.own))

    def qualified(self, schema: str, name: str) -> str:
        """A name and its schema as SQL."""
        return f"{self.quoted(schema)}.{self.quoted(name)}"

    def filled(self, statement: str, **named: object) -> str:
        """The statement with its parameters in it."""
        with self.own.cursor() as cursor:
            return str(cursor.mogrify(statement, named), encodings[self.own.encoding])

    def take_role(self, role: str, search_path: str | None = None) -> tuple[str, str]:
        """Read and write as env.py's session does from now on; returns which database this is.

        Args:
            role: whose rights it has.
            search_path: where it looks for names; None to leave that.
        """
        path = "coalesce(%s, current_setting('search_path'))"
        settings = f"set_config('role', %s, false), set_config('search_path', {path}, false)"
        _, _, *database = self.query(f"SELECT {settings}, {DATABASE}", role, search_path)[0]
        return tuple(database)

    def lock(self, version_table: str, seconds: float) -> None:
        """Be the only runner of this version table in this database; polled, for who waits for a lock holds up others.

        Args:
            version_table: its schema and name.
            seconds: how long to wait.

        Raises:
            RunError: another runner has held it all the time.
        """
        key = _key(version_table)
        if self._key == key:
            return
        deadline, told = time.monotonic() + seconds, 0.0
        while not self.query("SELECT pg_try_advisory_lock(%s)", key)[0][0]:
            now = time.monotonic()
            holder = holder_of(self.query(HOLDER, key))
            if now >= deadline:
                raise RunError(
                    f"Another migration has held the lock for {seconds:g} s: {holder}.",
                    exit_code=ExitCode.LOCKED,
                    kind="MigrationLocked",
                    hint="Wait for it, or end its session with pg_terminate_backend; then run this again.",
                )
            if now - told >= TELL_EVERY:
                told = now
                self._report.progress(
                    "migration.waiting",
                    f"Waiting for another migration, {deadline - now:.0f} s left: {holder}.",
                    holder=holder,
                    seconds_left=round(deadline - now, 1),
                )
            time.sleep(min(POLL_SECONDS * random.uniform(0.5, 1.5), max(deadline - now, 0)))  # noqa: S311
        self._key = key

    def holder(self, version_table: str) -> str | None:
        """Who holds the lock of the version table, in words; None for nobody."""
        rows = self.query(HOLDER, _key(version_table))
        return holder_of(rows) if rows else None

    def check(self) -> None:
        """Raise RunError when the connection, and so the lock, is gone; costs no round trip."""
        if self.own.closed or select.select([self.own], [], [], 0)[0]:
            self.query("SELECT 1")

    def blockers(self, sessions: Sequence[int]) -> list[str]:
        """Who stands in the way of the sessions now, each in words."""
        return [blocker(*row) for row in self.query(BLOCKERS, list(sessions))]

    def locks_of(self, sessions: Collection[int]) -> int:
        """How many locks the sessions hold."""
        return int(self.query(HELD, list(sessions))[0][0])


def _key(version_table: str) -> int:
    """Of the advisory lock, which PostgreSQL keeps apart by database."""
    return int.from_bytes(hashlib.sha256(f"migration_runner {version_table}".encode()).digest()[:8], signed=True)


def holder_of(rows: Sequence[tuple[Any, ...]]) -> str:
    """Who holds the lock, out of what HOLDER returns."""
    if not rows:
        return "it was given free just now"
    pid, name, since, age = rows[0]
    connected = f", connected since {since:%Y-%m-%d %H:%M:%S %Z} ({age:.0f} s)" if since else ""
    return f"session {pid} ({name or 'without a name'}{connected})"


def blocker(pid: int, name: str | None, query: str | None, state: str | None, age: float | None) -> str:
    """A session that stands in the way, in words, without a value."""
    if query == "<insufficient privilege>":
        words = "pg_read_all_stats would show its query"
    else:
        words = FIRST_WORDS.sub(r"\1", COMMENTS.sub(" ", query or "").lstrip()).strip()
    told = [name or "without a name", state or "", f"{age:.0f} s old" if age is not None else "", words]
    return f"session {pid} ({', '.join(part for part in told if part)})"
