"""Whatever ends a run, and wherever: one more run ends at the same schema as an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest
from psycopg2 import sql

from local_aws.postgres import Postgres
from migration_runner.revisions import main as write_manifest
from tests.conftest import Database
from tests.migration_runner.conftest import Outcome, Project
from tests.migration_runner.processes import eventually, in_statement, sessions, started, transaction, upgrade

# `make kills` has the time.
pytestmark = [pytest.mark.fresh] if "KILLS" in os.environ else []
SLEEP = "op.execute('CREATE TABLE t ()'); op.execute('SELECT pg_sleep(100)')"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
INDEXES = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 't'::regclass ORDER BY 1"
CONCURRENTLY = "with op.get_context().autocommit_block(): op.execute('CREATE {} t_id ON t (id)')"


def end_sessions(database: Database, condition: str = "true") -> None:
    database.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND application_name = 'migration_runner' AND {condition}"
    )


# P4
@pytest.mark.fresh
def test_a_session_that_is_ended_in_a_migration_changes_nothing_and_the_next_run_succeeds(
    database: Database, project: Project
) -> None:
    project.write("aaaa", None)
    assert upgrade(database, project.path).exit_code == 0
    project.write("bbbb", "aaaa", SLEEP)
    with started(database, project=project.path) as runner:
        pid = in_statement(database, "pg_sleep")
        database.rows(f"SELECT pg_terminate_backend({pid})")
        outcome = runner.finish()
    assert (outcome.exit_code, outcome.error["kind"], outcome.error["revision"]) == (3, "SessionLost", "bbbb")
    assert (outcome.result["at"], outcome.result["applied"]) == ("aaaa", [])
    assert database.rows(TABLES) == [("alembic_version",)]
    project.write("bbbb", "aaaa", SLEEP.replace("100", "0"))
    assert upgrade(database, project.path).exit_code == 0
    assert database.rows(TABLES) == [("alembic_version",), ("t",)]


# P6
@pytest.mark.fresh
def test_the_server_ends_the_statement_of_a_killed_run_and_the_next_run_succeeds(
    database: Database, project: Project
) -> None:
    project.write("aaaa", None, SLEEP)
    with started(database, project=project.path) as runner:
        in_statement(database, "pg_sleep")
        runner.send(signal.SIGKILL)
        assert runner.finish().exit_code == -signal.SIGKILL
        eventually(lambda: not sessions(database), 2)
    project.write("aaaa", None, SLEEP.replace("100", "0"))
    assert upgrade(database, project.path).exit_code == 0
    assert database.rows(TABLES) == [("alembic_version",), ("t",)]


# P7
@pytest.mark.parametrize("kind", ["INDEX CONCURRENTLY", "UNIQUE INDEX CONCURRENTLY IF NOT EXISTS"])
def test_an_index_that_a_killed_run_left_invalid_is_built_anew(database: Database, project: Project, kind: str) -> None:
    # given a run that is killed while CREATE INDEX waits for a writer
    database.rows("CREATE TABLE t (id int)")
    project.write("aaaa", None, CONCURRENTLY.format(kind))
    with transaction(database, "INSERT INTO t VALUES (1)"), started(database, project=project.path) as runner:
        in_statement(database, "CREATE %INDEX")
        runner.send(signal.SIGKILL)
        runner.finish()
        eventually(lambda: not sessions(database), 2)
    assert database.rows(INDEXES) == [("t_id", False)]
    # when the next one comes
    outcome = upgrade(database, project.path)
    # then it is valid
    assert outcome.exit_code == 0
    assert [one["index"] for one in outcome.named("migration.index_dropped")] == ["t_id"]
    assert database.rows(INDEXES) == [("t_id", True)]


# P7
def test_what_a_killed_run_had_built_already_does_not_stop_the_next_one(database: Database, project: Project) -> None:
    # given a run that is killed between its index and its version
    database.rows("CREATE TABLE t (id int)")
    killed = f"{CONCURRENTLY.format('INDEX CONCURRENTLY')}; import os; os.path.exists('go') or os.kill(os.getpid(), 9)"
    project.write("aaaa", None, killed)
    assert upgrade(database, project.path).exit_code == -signal.SIGKILL
    assert database.rows(INDEXES) == [("t_id", True)]
    # when the next one comes
    (project.path / "go").touch()
    outcome = upgrade(database, project.path)
    # then it takes the index as its own
    assert (outcome.exit_code, outcome.result["applied"]) == (0, ["aaaa"])
    assert database.rows(INDEXES) == [("t_id", True)]
    assert database.rows("SELECT * FROM migration_runner.building") == []


# P7
def test_an_index_of_this_name_that_no_run_has_built_is_an_error_each_time(
    database: Database, project: Project
) -> None:
    database.rows("CREATE TABLE t (id int, x int); CREATE INDEX t_id ON t (x)")
    project.write("aaaa", None, CONCURRENTLY.format("INDEX CONCURRENTLY"))
    for _ in range(2):
        outcome = upgrade(database, project.path)
        assert (outcome.exit_code, outcome.error["kind"]) == (1, "DuplicateTable")


@pytest.fixture
def with_invalid_index(database: Database, project: Project) -> Project:
    """A schema at its target, also for a quick run, but an index is left INVALID by values that are there twice."""
    project.write("aaaa", None, "op.execute('CREATE TABLE t (id int)')")
    write_manifest([str(project.path / "alembic.ini")])
    assert upgrade(database, project.path).exit_code == 0
    assert len(upgrade(database, project.path).events) == 3
    database.rows("INSERT INTO t VALUES (4711), (4711)")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        database.rows("CREATE UNIQUE INDEX CONCURRENTLY t_id ON t (id)")
    assert database.rows(INDEXES) == [("t_id", False)]
    return project


# P7
def test_an_invalid_index_at_the_target_is_rebuilt(database: Database, with_invalid_index: Project) -> None:
    database.rows("DELETE FROM t")
    outcome = upgrade(database, with_invalid_index.path)
    assert (outcome.exit_code, outcome.result["applied"]) == (0, [])
    assert [one["index"] for one in outcome.named("migration.index_rebuilt")] == ["t_id"]
    assert database.rows(INDEXES) == [("t_id", True)]
    assert upgrade(database, with_invalid_index.path).named("migration.index_rebuilt") == []


# P7
def test_an_invalid_index_that_can_not_be_rebuilt_fails_each_run_and_is_named(
    database: Database, with_invalid_index: Project
) -> None:
    for _ in range(2):
        outcome = upgrade(database, with_invalid_index.path)
        assert (outcome.exit_code, outcome.error["kind"]) == (1, "InvalidIndex")
        assert outcome.error["message"] == (
            "The schema is at its target, but left INVALID is: t_id (UniqueViolation: could not create unique index "
            '"t_id_ccnew").'
        )
        assert "4711" not in outcome.output
        assert database.rows(INDEXES) == [("t_id", False)]


# P14
def test_a_killed_run_leaves_what_it_had_finished_and_the_next_one_goes_on_from_there(
    database: Database, project: Project
) -> None:
    project.write("aaaa", None, "op.execute('CREATE TABLE a ()')")
    project.write("bbbb", "aaaa", SLEEP)
    with started(database, project=project.path) as runner:
        in_statement(database, "pg_sleep")
        runner.send(signal.SIGKILL)
        runner.finish()
    project.write("bbbb", "aaaa", SLEEP.replace("100", "0"))
    outcome = upgrade(database, project.path)
    assert (outcome.exit_code, outcome.result["from"], outcome.result["applied"]) == (0, "aaaa", ["bbbb"])
    assert database.rows(TABLES) == [("a",), ("alembic_version",), ("t",)]


# The kill test: every kind of statement, ended at random.

ROWS = 10_000
# Slow to compute, so that an index takes its time.
SLOWLY = """
CREATE FUNCTION slowly(id int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
$$ BEGIN IF id % 2500 = 0 THEN PERFORM pg_sleep(0.03); END IF; RETURN id; END $$
"""
BEFORE = f"""
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, old text);
INSERT INTO customers SELECT n, 'customer ' || n, 'x' FROM generate_series(1, {ROWS}) n;
{SLOWLY}
"""
TRANSACTIONAL = [
    "CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, state text)",
    "SELECT pg_sleep(0.05)",
    "ALTER TABLE customers ADD COLUMN city text DEFAULT 'nowhere'",
    "ALTER TABLE orders ADD CONSTRAINT of_customer FOREIGN KEY (customer) REFERENCES customers NOT VALID",
    "SELECT pg_sleep(0.05)",
    "CREATE VIEW cities AS SELECT id, city FROM customers",
]
DATA = [
    f"INSERT INTO orders SELECT n, n, 'new' FROM generate_series(1, {ROWS}) n",
    *(
        f"UPDATE orders SET state = 'done', id = -id WHERE id > 0 AND id % 4 = {part} AND pg_sleep(0) IS NOT NULL"
        for part in range(4)
    ),
    "SELECT pg_sleep(0.05)",
    "ALTER TABLE orders VALIDATE CONSTRAINT of_customer",
]
TWO_INDEXES = [
    "CREATE INDEX CONCURRENTLY orders_slowly ON orders (slowly(id))",
    "CREATE UNIQUE INDEX CONCURRENTLY customers_slowly ON customers (slowly(id))",
]
LENIENT_INDEX = ["CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_state ON orders (state, slowly(id))"]
IDEMPOTENT = [
    "ALTER TABLE customers ADD COLUMN IF NOT EXISTS note text",
    "UPDATE customers SET note = 'noted' WHERE note IS NULL AND id % 2 = 0",
    "SELECT pg_sleep(0.05)",
    "UPDATE customers SET note = 'odd' WHERE note IS NULL",
    "DROP INDEX CONCURRENTLY IF EXISTS orders_state",
]
RENAMES = [
    "DROP VIEW cities",
    "ALTER TABLE customers DROP COLUMN old",
    "SELECT pg_sleep(0.05)",
    "ALTER TABLE customers RENAME COLUMN name TO title",
    "ALTER TABLE orders RENAME TO purchases",
    "SELECT pg_sleep(0.05)",
]
# Columns, indexes, constraints, views and functions; what is applied; and the data.
SCHEMA = """
SELECT 'column', attrelid::regclass::text, attname, format_type(atttypid, atttypmod), attnotnull::text,
       (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef d WHERE (adrelid, adnum) = (attrelid, attnum))
FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid::text, indisready::text, null
FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated::text, null
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'view', viewname, definition, null, null, null FROM pg_views WHERE schemaname = 'public'
UNION ALL
SELECT 'function', oid::regprocedure::text, prosrc, null, null, null FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT 'applied', version_table, revision, checksum, null, null FROM migration_runner.applied
UNION ALL
SELECT 'building', version_table, revision, statement, null, null FROM migration_runner.building
UNION ALL
SELECT 'at', version_num, null, null, null, null FROM alembic_version
UNION ALL
SELECT 'customers', count(*)::text, md5(string_agg(c::text, ',' ORDER BY id)), null, null, null FROM customers c
UNION ALL
SELECT 'purchases', count(*)::text, md5(string_agg(p::text, ',' ORDER BY id)), null, null, null FROM purchases p
ORDER BY 1, 2, 3, 4
"""
HELD = """
SELECT locktype, mode FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
KINDS = ["SIGKILL", "SIGTERM", "all sessions", "the migration's session", "the lock's session"]
LOCK = "pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')"
CONDITIONS = {"all sessions": "true", "the migration's session": f"NOT {LOCK}", "the lock's session": LOCK}


def of(statements: list[str], *, block: bool = False) -> str:
    """The body of an ``upgrade``."""
    executed = "; ".join(f"op.execute({statement!r})" for statement in statements)
    return f"with op.get_context().autocommit_block(): {executed}" if block else executed


@pytest.fixture
def template(database: Database, project: Project) -> Database:
    """A database to copy, in which the first of the revisions is applied."""
    project.write("a0", None, of([BEFORE]))
    assert upgrade(database, project.path).exit_code == 0
    project.write("a1", "a0", of(TRANSACTIONAL))
    project.write("a2", "a1", of(DATA))
    project.write("a3", "a2", of(TWO_INDEXES, block=True))
    project.write("a4", "a3", of(LENIENT_INDEX, block=True))
    project.write("a5", "a4", of(IDEMPOTENT, block=True))
    project.write("a6", "a5", of(RENAMES))
    write_manifest([str(project.path / "alembic.ini")])
    return database


def copy(postgres: Postgres, template: Database, name: str) -> Database:
    with closing(postgres.connect()) as session, session.cursor() as cursor:
        names = [sql.Identifier(one) for one in (name, template.name, template.user)]
        cursor.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}").format(*names))
    return replace(template, name=name)


def disturb(database: Database, project: Project, kind: str, after: float) -> tuple[Outcome, str]:
    """Start a run and end it; how it ended, and what it did last."""
    with started(database, project=project.path) as runner:
        runner.until("migration.started")
        time.sleep(after)
        if kind in CONDITIONS:
            end_sessions(database, CONDITIONS[kind])
        else:
            runner.send(signal.Signals[kind])
        outcome = runner.finish()
    whole = outcome.output[: outcome.output.rfind("\n") + 1]
    events = replace(outcome, output=whole).events
    steps = [one for one in events if one["event"].startswith(("migration.revision", "migration.statement"))]
    last = steps[-1] if steps else events[-1]
    if last["event"] == "migration.revision" and last["revision"] == "a6":
        return outcome, "after a6"
    return outcome, str(last.get("revision", "before a1"))


def test_after_any_kill_one_more_run_ends_at_the_same_schema(
    template: Database, postgres: Postgres, project: Project
) -> None:
    kills, seed = int(os.environ.get("KILLS", "40")), int(os.environ.get("SEED", "4"))
    # given what an undisturbed run makes, and how long it takes
    undisturbed = copy(postgres, template, f"{template.name}_0")
    with started(undisturbed, project=project.path) as runner:
        runner.until("migration.started")
        began = time.monotonic()
        assert runner.finish().exit_code == 0
        took = time.monotonic() - began
    expected = undisturbed.rows(SCHEMA)
    postgres.drop_database(undisturbed.name)

    def once(number: int) -> tuple[str, int, str]:
        chance = random.Random(f"{seed} {number}")
        kind, after = KINDS[number % len(KINDS)], chance.uniform(0, took * 1.1)
        database = copy(postgres, template, f"{template.name}_{number + 1}")
        try:
            # when a run is ended at a random moment
            outcome, where = disturb(database, project, kind, after)
            told = f"{number}: {kind} after {after:.3f} s, {where}"
            ends = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143}
            # After its result, a run lets itself be ended.
            late = kind == "SIGTERM" and '"status":"succeeded"' in outcome.output
            assert outcome.exit_code in (0, -signal.SIGTERM if late else ends.get(kind, 3)), f"{told}: {outcome.output}"
            # then one more succeeds, at once
            again = upgrade(database, project.path)
            assert again.exit_code == 0, f"{told}: {again.output}"
            # and the schema, the data and the ledger are as they should be
            assert database.rows(SCHEMA) == expected, told
            assert eventually(lambda: not database.rows(HELD), 2), told
        finally:
            postgres.drop_database(database.name)
        return kind, outcome.exit_code, where

    with ThreadPoolExecutor(max_workers=4) as pool:
        ended = Counter(pool.map(once, range(kills)))
    for (kind, exit_code, where), count in sorted(ended.items()):
        print(f"{kind:24} {where:10} exit {exit_code:4} {count:4} times")
    # Most of them must have come in time.
    assert sum(count for (_, exit_code, _), count in ended.items() if exit_code) > kills / 2
