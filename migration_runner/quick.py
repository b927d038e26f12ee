"""The run that has nothing to do: one connection, one query, and neither Alembic nor SQLAlchemy.

It says yes only when all of it is certain: the manifest is fresh, the database is at its head, the last run has
recorded the same revision files, no index is INVALID, and no rename is open. At the head no contract revision is left
either. Anything else is left to the runner, errors too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg2

from migration_runner.manifest import fresh_header
from migration_runner.settings import INVALID_INDEXES, connection_parameters

# Who holds up the version table is the runner's business.
STATE = """
SET lock_timeout = '1s';
SELECT (SELECT array_agg(version_num::text) FROM {table}),
       (SELECT fingerprint FROM migration_runner.verified WHERE version_table = {key}),
       EXISTS (SELECT {invalid}),
       EXISTS (SELECT FROM migration_runner.renames WHERE version_table = {key} AND closed_at IS NULL)
"""


def at_target(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the database is where a plain upgrade would bring it; then that is reported too.

    Args:
        arguments: the command line.
        environment: names the database, and in MIGRATION_TARGET the revision that must be the newest.
    """
    if environment.get("SERVICE_SECRET"):
        # The services' role is to be looked at too.
        return False
    started = time.monotonic()
    command, *rest = arguments or [""]
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    config = options.pop("--config", environment.get("ALEMBIC_CONFIG") or "alembic.ini")
    output_format = options.pop("--output-format", None)
    if command != "upgrade" or len(rest) % 2 or options or output_format not in (None, "json"):
        return False
    try:
        header = fresh_header(config)
        if not header or not header["version_table"] or not sys.stdout:
            return False
        if sys.stdout.isatty() and not output_format:
            return False
        head = header["head"]
        if environment.get("MIGRATION_TARGET", head) not in ("", head):
            return False
        schema, table = header["version_table"]
        if _state(schema, table, environment) != ([head], header["fingerprint"], False, False):
            return False
    except Exception:
        # The runner meets it again, and tells.
        return False
    _say(event="migration.started", command="upgrade", newest=head)
    _say(event="migration.nothing_to_do", at=head)
    duration = round((time.monotonic() - started) * 1000)
    result = {"status": "succeeded", "command": "upgrade", "from": head, "at": head, "target": head, "applied": []}
    _say(event="migration.result", **result, open=[], duration_ms=duration, error=None)
    return True


def _state(schema: str | None, table: str, environment: Mapping[str, str]) -> Any:
    settings: dict[str, Any] = {"connect_timeout": "5", **connection_parameters(environment)}
    connection = psycopg2.connect(**settings)
    # Otherwise a BEGIN goes ahead of the query.
    connection.autocommit = True
    try:
        name = ".".join(psycopg2.extensions.quote_ident(part, connection) for part in (schema, table) if part)
        key = "coalesce(%(schema)s, current_schema()) || '.' || %(table)s"
        with connection.cursor() as cursor:
            query = STATE.format(table=name.replace("%", "%%"), key=key, invalid=INVALID_INDEXES)
            cursor.execute(query, {"schema": schema, "table": table})
            return cursor.fetchone()
    finally:
        connection.close()


def _say(**fields: object) -> None:
    # The exit code tells too, should nobody listen.
    with suppress(OSError):
        os.write(1, f"{json.dumps(fields, separators=(',', ':'))}\n".encode())
