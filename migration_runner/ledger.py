"""What the runner keeps in the database: which revision files were applied, and that all was verified.

It has a schema of its own, for autogenerate would take a table beside the team's for one that is to be dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from migration_runner.guard import Guard
from migration_runner.revisions import Revision

# The tables that were added last: what an older release has made lacks them.
EXISTS = "SELECT to_regclass('migration_runner.renames') IS NOT NULL"
BEGUN = "SELECT to_regclass('migration_runner.applied') IS NOT NULL"
# Runners of other version tables may be at it at the same time. What they have committed while they were waited for,
# a session notices when it opens a table.
MAKE = """
SET LOCAL lock_timeout = '10s';
SELECT pg_advisory_xact_lock(hashtext('migration_runner ledger'));
SELECT FROM pg_namespace LIMIT 0;
CREATE SCHEMA IF NOT EXISTS migration_runner;
CREATE TABLE IF NOT EXISTS migration_runner.applied (
    version_table text, revision text, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (version_table, revision)
);
CREATE TABLE IF NOT EXISTS migration_runner.verified (
    version_table text PRIMARY KEY, fingerprint text NOT NULL, verified_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS migration_runner.building (
    version_table text, revision text, statement text, PRIMARY KEY (version_table, revision, statement)
);
CREATE TABLE IF NOT EXISTS migration_runner.renames (
    id bigint GENERATED ALWAYS AS IDENTITY, version_table text, revision text, position int,
    table_schema text NOT NULL, table_name text NOT NULL, old_name text NOT NULL, new_name text NOT NULL,
    of_table boolean NOT NULL, opened_at timestamptz NOT NULL DEFAULT now(), closed_at timestamptz,
    reverted_at timestamptz, PRIMARY KEY (version_table, revision, position)
);
COMMENT ON SCHEMA migration_runner IS 'The ledger of the migration runner. Do not edit.';
SET LOCAL lock_timeout = '100ms'
"""
AGAIN = (
    "ON CONFLICT (version_table, revision) DO UPDATE SET checksum = excluded.checksum, applied_at = excluded.applied_at"
)
ADD = f"INSERT INTO migration_runner.applied (version_table, revision, checksum) VALUES (%s, %s, %s) {AGAIN}"  # noqa: S608
ADD_IF_MOVED = ADD.replace("VALUES (%s, %s, %s)", "SELECT %s, %s, %s WHERE EXISTS (SELECT FROM moved)")
REMOVE = """
WITH gone (version_table, revision) AS (VALUES (%s, %s)),
     renames AS (DELETE FROM migration_runner.renames r USING gone
                 WHERE (r.version_table, r.revision) = (gone.version_table, gone.revision))
DELETE FROM migration_runner.applied a USING gone
WHERE (a.version_table, a.revision) = (gone.version_table, gone.revision)
"""
# An index that is built outside of its revision's transaction may be there although the revision is not applied.
BUILDING = """
INSERT INTO migration_runner.building (version_table, revision, statement) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING
"""
BUILT = "DELETE FROM migration_runner.building WHERE version_table = %s AND revision = %s"
IS_BUILDING = "SELECT 1 FROM migration_runner.building WHERE (version_table, revision, statement) = (%s, %s, %s)"
APPLIED_AT = "SELECT revision, applied_at FROM migration_runner.applied WHERE version_table = %s"
READ = "SELECT revision, checksum FROM migration_runner.applied WHERE version_table = %s"
VERIFY = """
INSERT INTO migration_runner.verified (version_table, fingerprint) VALUES (%s, %s)
ON CONFLICT (version_table) DO UPDATE SET fingerprint = excluded.fingerprint, verified_at = excluded.verified_at
"""
COMPLETE = """
DELETE FROM migration_runner.applied WHERE version_table = %(table)s AND NOT revision = ANY (%(been)s);
INSERT INTO migration_runner.applied (version_table, revision, checksum)
SELECT %(table)s, * FROM unnest(%(revisions)s::text[], %(checksums)s::text[]) ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True)
class Differences:
    """How a schema differs from what the ledger says about it.

    Args:
        adopted: nothing has been recorded so far.
        unrecorded: the revisions that something else has applied, or stamped.
        gone: the revisions that something else has taken back.
        edited: the revisions whose files have changed since they were applied.
    """

    adopted: bool
    unrecorded: Sequence[Revision]
    gone: Sequence[str]
    edited: Sequence[Revision]


class Ledger:
    """The runner's records of one version table.

    Args:
        guard: the runner's connection.
        version_table: its schema and name.
    """

    def __init__(self, guard: Guard, version_table: str) -> None:
        self._guard = guard
        self.version_table = version_table

    def exists(self) -> bool:
        """Whether there is one in this database."""
        return bool(self._guard.query(BEGUN)[0][0])

    def differences(self, revisions: Sequence[Revision], been: Collection[str]) -> Differences:
        """Compare it with the schema.

        Args:
            revisions: the image's.
            been: what the schema has been through.
        """
        recorded = dict(self._guard.query(READ, self.version_table)) if self.exists() else {}
        applied = [one for one in revisions if one.revision in been]
        return Differences(
            adopted=not recorded,
            unrecorded=[one for one in applied if one.revision not in recorded],
            gone=sorted(recorded.keys() - set(been)),
            edited=[one for one in applied if recorded.get(one.revision, one.checksum) != one.checksum],
        )

    def applied_at(self) -> dict[str, datetime]:
        """When each revision was applied, or was first seen to be."""
        return dict(self._guard.query(APPLIED_AT, self.version_table)) if self.exists() else {}

    def complete(self, revisions: Sequence[Revision], been: Collection[str]) -> None:
        """Let it say what the schema has been through; what is recorded of a file stays."""
        applied = [one for one in revisions if one.revision in been]
        self._guard.query(
            COMPLETE,
            table=self.version_table,
            been=list(been),
            revisions=[one.revision for one in applied],
            checksums=[one.checksum for one in applied],
        )

    def verified(self, fingerprint: str) -> None:
        """Record that the schema is at the head of these revision files, and no index is INVALID."""
        self._guard.query(VERIFY, self.version_table, fingerprint)
