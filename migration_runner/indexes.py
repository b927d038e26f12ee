"""INVALID indexes: what an interrupted CREATE INDEX CONCURRENTLY or REINDEX leaves behind, and how it is mended.

https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import psycopg2

from migration_runner.errors import ExitCode, RunError
from migration_runner.failures import failure
from migration_runner.guard import Guard
from migration_runner.ledger import BUILDING, IS_BUILDING
from migration_runner.report import Report
from migration_runner.settings import INVALID_INDEXES

INVALID = f"SELECT i.indexrelid::regclass::text, c.relname ~ '_cc(new|old)[0-9]*$' {INVALID_INDEXES} ORDER BY 1"
CONCURRENTLY = re.compile(
    r"\s*CREATE\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?P<lenient>IF\s+NOT\s+EXISTS\s+)?"
    r"""(?P<name>"(?:[^"]|"")+"|\w+)\s+ON\s+(?:ONLY\s+)?"""
    r"""(?P<table>(?:"(?:[^"]|"")+"|\w+)(?:\.(?:"(?:[^"]|"")+"|\w+))?)""",
    re.IGNORECASE,
)
OF_THIS_NAME = """
SELECT c.oid::regclass::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = to_regclass(%s) AND c.relname = (parse_ident(%s))[1]
"""


def mend_indexes(guard: Guard, run_long: Callable[[str], None], report: Report) -> None:
    """Build each INVALID index anew.

    Args:
        guard: the runner's connection.
        run_long: runs a statement that may take long.
        report: gets a line for each.

    Raises:
        RunError: one can't be built.
    """
    reasons: dict[str, RunError] = {}
    for name in (name for name, is_remnant in guard.query(INVALID) if not is_remnant):
        report.event("migration.index_rebuilt", f"{name} was left INVALID, and is built anew.", index=name)
        try:
            run_long(f"REINDEX INDEX CONCURRENTLY {name}")
        except psycopg2.Error as error:
            reasons[name] = failure(error)
    # What REINDEX leaves behind when it is interrupted, or fails.
    for name in (name for name, is_remnant in guard.query(INVALID) if is_remnant):
        run_long(f"DROP INDEX CONCURRENTLY {name}")
    left = [name for name, _ in guard.query(INVALID)]
    if left:
        why = {name: f" ({told.kind}: {told.message})" for name, told in reasons.items()}
        named = [f"{name}{why.get(name, '')}" for name in left]
        raise RunError(
            f"The schema is at its target, but left INVALID is: {', '.join(named)}.",
            exit_code=ExitCode.FAILED,
            kind="InvalidIndex",
            hint="Mend what keeps it from being built, then run this again; or drop it.",
        )


def resumed(connection: Any, index: re.Match[str], version_table: str, revision: str, report: Report) -> str:
    """The statement, after what an interrupted run has left of its index would make it fail, or do nothing.

    Args:
        connection: SQLAlchemy's, in autocommit.
        index: what CONCURRENTLY has matched.
        version_table: its schema and name.
        revision: whose statement it is.
        report: gets a line when something was left.
    """
    found = connection.exec_driver_sql(OF_THIS_NAME, (index["table"], index["name"])).all()
    for name, is_valid in found:
        if not is_valid:
            report.event("migration.index_dropped", f"{name} was left INVALID, and is built anew.", index=name)
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
    begun = (version_table, revision, index.string)
    if connection.exec_driver_sql(IS_BUILDING, begun).first():
        at = index.start("name")
        return index.string if index["lenient"] else f"{index.string[:at]}IF NOT EXISTS {index.string[at:]}"
    if not any(is_valid for _, is_valid in found):
        connection.exec_driver_sql(BUILDING, begun)
    return index.string
