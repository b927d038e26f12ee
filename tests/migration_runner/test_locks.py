"""One runner at a time, and none in the way of the services."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from migration_runner.revisions import main as write_manifest
from tests.conftest import Database
from tests.migration_runner.conftest import Project, migrate, run
from tests.migration_runner.processes import eventually, in_statement, started, transaction, upgrade

SLEEP = "op.execute('SELECT pg_sleep(100)')"
ALTER = "op.execute('ALTER TABLE t ADD x int')"
INDEX = "with op.get_context().autocommit_block(): op.execute('CREATE INDEX CONCURRENTLY t_id ON t (id)')"
LOCK_HOLDER = """
SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
HAS_X = "SELECT 1 FROM information_schema.columns WHERE (table_name, column_name) = ('t', 'x')"


@contextmanager
def other_queries(database: Database) -> Iterator[list[float]]:
    """Queries of a service on ``t``, one after the other; how long each took, in seconds."""
    took: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with closing(database.connect()) as session, session.cursor() as cursor:
            while not over.wait(0.01):
                began = time.monotonic()
                cursor.execute("SELECT count(*) FROM t")
                took.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


# P1
def test_behind_a_long_reader_other_queries_wait_a_moment_and_the_migration_goes_through(
    database: Database, project: Project
) -> None:
    # given a plain ALTER TABLE behind a reader: whoever comes next waits as long as it does
    database.rows("CREATE TABLE t (id int)")
    with transaction(database, "SELECT FROM t") as reader, other_queries(database) as unprotected:
        altering = threading.Thread(target=database.rows, args=["ALTER TABLE t ADD y int"])
        altering.start()
        time.sleep(1.5)
        reader.rollback()
        altering.join()
    assert max(unprotected) > 1
    # when a runner comes behind one of 3 seconds
    project.write("aaaa", None, ALTER)
    with (
        transaction(database, "SELECT FROM t") as reader,
        other_queries(database) as took,
        started(database, project=project.path) as runner,
    ):
        runner.until("migration.locked")
        time.sleep(3)
        reader.rollback()
        outcome = runner.finish()
    # then the others hardly notice: 0.1 s is the lock_timeout, the rest is a loaded machine
    assert outcome.exit_code == 0
    assert len(outcome.named("migration.locked")) >= 3
    assert database.rows(HAS_X)
    assert max(took) < 0.5


# P1
def test_a_reader_that_stays_is_named_without_the_values_of_its_query(database: Database, project: Project) -> None:
    # given a reader that will not go away
    database.rows("CREATE TABLE t (id int, name text)")
    project.write("aaaa", None, f"op.execute('CREATE TABLE made ()'); {ALTER}")
    with transaction(database, "SELECT count(*) FROM t WHERE name = 'hunter2'", "weekly report") as reader:
        # when a runner gives up
        outcome = upgrade(database, project.path, "--lock-wait", "1")
        pid = reader.info.backend_pid
    # then it says who stood in the way, and nothing has changed
    assert (outcome.exit_code, outcome.error["kind"], outcome.error["sqlstate"]) == (4, "LockNotAvailable", "55P03")
    assert f"session {pid} (weekly report, idle in transaction, " in outcome.error["message"]
    assert " s old, SELECT count(*) FROM t WHERE name =)" in outcome.error["message"]
    assert "hunter2" not in outcome.output
    assert (outcome.error["revision"], outcome.result["at"]) == ("aaaa", "base")
    assert database.rows("SELECT 1 FROM pg_tables WHERE tablename = 'made'") == []
    assert not database.rows(HAS_X)


# P2
@pytest.mark.parametrize(("count", "manifest"), [(20, False), (6, True)], ids=["twenty", "six with a manifest"])
def test_of_many_runners_at_once_one_applies_each_revision_and_all_end_well(
    database: Database, project: Project, count: int, manifest: bool
) -> None:
    # given three revisions that count how often they are run
    project.write("aaaa", None, "op.execute('CREATE TABLE ran (revision text)'); op.execute('SELECT pg_sleep(1)')")
    project.write("bbbb", "aaaa", "op.execute(\"INSERT INTO ran VALUES ('bbbb')\")")
    project.write("cccc", "bbbb", "op.execute(\"INSERT INTO ran VALUES ('cccc')\")")
    if manifest:
        write_manifest([str(project.path / "alembic.ini")])
    # when many runners begin at once
    with ExitStack() as stack:
        runners = [stack.enter_context(started(database, project=project.path)) for _ in range(count)]
        outcomes = [runner.finish() for runner in runners]
    # then each revision was run once
    assert [outcome.exit_code for outcome in outcomes] == [0] * count
    assert sorted(len(outcome.result["applied"]) for outcome in outcomes) == [0] * (count - 1) + [3]
    assert sorted(database.rows("SELECT revision FROM ran")) == [("bbbb",), ("cccc",)]


# P3
def test_an_index_built_concurrently_waits_for_old_writers_and_no_waiting_runner_holds_it_up(
    database: Database, project: Project
) -> None:
    database.rows("CREATE TABLE t (id int)")
    project.write("aaaa", None, INDEX)
    # given a runner that builds an index, and must wait for a writer longer than its lock_timeout
    with ExitStack() as stack:
        writer = stack.enter_context(transaction(database, "INSERT INTO t VALUES (1)"))
        building = stack.enter_context(started(database, project=project.path))
        in_statement(database, "CREATE INDEX")
        # and another one that waits for the first
        waiting = stack.enter_context(started(database, project=project.path))
        waiting.until("migration.waiting")
        time.sleep(0.5)
        # when the writer is done
        writer.commit()
        outcomes = [building.finish(), waiting.finish()]
    # then both end well
    assert [outcome.exit_code for outcome in outcomes] == [0, 0]
    assert [outcome.result["applied"] for outcome in outcomes] == [["aaaa"], []]
    assert database.rows("SELECT indisvalid FROM pg_index WHERE indexrelid = 't_id'::regclass") == [(True,)]


@pytest.mark.fresh
def test_who_holds_the_lock_is_named_when_the_wait_is_over(database: Database, project: Project) -> None:
    project.write("aaaa", None, SLEEP)
    with started(database, project=project.path):
        in_statement(database, "pg_sleep")
        pid = database.rows(LOCK_HOLDER)[0][0]
        outcome = upgrade(database, project.path, "--lock-wait", "1")
        connected = database.rows(
            "SELECT to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS') FROM pg_stat_activity "
            f"WHERE pid = {pid} AND application_name = 'migration_runner'"
        )[0][0]
    assert (outcome.exit_code, outcome.error["kind"]) == (4, "MigrationLocked")
    holder = f"session {pid} (migration_runner, connected since {connected} "
    assert outcome.error["message"].startswith(f"Another migration has held the lock for 1 s: {holder}")
    assert outcome.named("migration.waiting")[0]["holder"].startswith(holder)


@pytest.fixture
def other_project(project: Project) -> Project:
    """A project of the same database with a version table of its own."""
    path = project.path.parent / "other"
    (path / "migrations" / "versions").mkdir(parents=True)
    for name in ("alembic.ini", "migrations/env.py"):
        (path / name).write_text((project.path / name).read_text().replace(str(project.path), str(path)))
    env = path / "migrations" / "env.py"
    env.write_text(env.read_text().replace("connection=connection,", "connection=connection, version_table='other',"))
    return Project(path)


def test_version_tables_of_one_database_do_not_wait_for_each_other(
    database: Database, project: Project, other_project: Project
) -> None:
    project.write("aaaa", None, SLEEP)
    other_project.write("bbbb", None)
    with started(database, project=project.path) as first:
        in_statement(database, "pg_sleep")
        other = upgrade(database, other_project.path, "--lock-wait", "0")
        assert first.running
    assert (other.exit_code, other.result["at"]) == (0, "bbbb")
    assert database.rows("SELECT version_num FROM other") == [("bbbb",)]


def test_the_first_runs_of_two_version_tables_may_come_at_once(
    database: Database, project: Project, other_project: Project
) -> None:
    # given a ledger that neither can make yet
    project.write("aaaa", None)
    other_project.write("bbbb", None)
    with ExitStack() as stack:
        first = stack.enter_context(transaction(database, "CREATE SCHEMA migration_runner"))
        runners = [stack.enter_context(started(database, project=one.path)) for one in (project, other_project)]
        # when both want to make it at the same time
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        eventually(lambda: len(database.rows(waiting)) == 2)
        first.rollback()
        # then both do
        outcomes = [runner.finish() for runner in runners]
    assert [outcome.exit_code for outcome in outcomes] == [0, 0]
    assert database.rows("SELECT revision FROM migration_runner.applied ORDER BY 1") == [("aaaa",), ("bbbb",)]


def test_a_run_that_loses_the_lock_stops_before_the_next_revision(database: Database, project: Project) -> None:
    # given a run whose lock is lost in its first revision
    project.write("aaaa", None, "op.execute('SELECT pg_sleep(1)')")
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE t ()')")
    with started(database, project=project.path) as runner:
        in_statement(database, "pg_sleep")
        database.rows(f"SELECT pg_terminate_backend(pid) FROM ({LOCK_HOLDER}) AS holder")
        outcome = runner.finish()
    # then the second one is left to who has the lock now
    assert (outcome.exit_code, outcome.error["kind"]) == (3, "SessionLost")
    assert (outcome.result["at"], outcome.result["applied"]) == ("aaaa", ["aaaa"])
    assert database.rows("SELECT 1 FROM pg_tables WHERE tablename = 't'") == []


def test_a_run_that_loses_the_lock_while_it_waits_for_a_table_tells_it_as_an_error(
    database: Database, project: Project
) -> None:
    database.rows("CREATE TABLE t (id int)")
    project.write("aaaa", None, ALTER)
    with transaction(database, "SELECT FROM t") as reader, started(database, project=project.path) as runner:
        runner.until("migration.locked", attempt=2)
        database.rows(f"SELECT pg_terminate_backend(pid) FROM ({LOCK_HOLDER}) AS holder")
        runner.until("migration.locked", attempt=3)
        reader.rollback()
        outcome = runner.finish()
    assert (outcome.exit_code, outcome.error["kind"]) == (3, "SessionLost")
    assert "Traceback" not in outcome.output


@pytest.mark.parametrize(
    ("commit", "env"),
    [
        ("op.execute('COMMIT')", None),
        ("op.get_bind().commit()", None),
        ("op.get_bind().connection.commit()", None),
        ("pass", "connectable = connectable.execution_options(isolation_level='AUTOCOMMIT')\n    with connectable"),
    ],
)
def test_what_a_migration_has_committed_itself_is_never_done_twice(
    database: Database, project: Project, commit: str, env: str | None
) -> None:
    project.write("aaaa", None, "op.execute('CREATE TABLE t (id int)'); op.execute('CREATE TABLE log (id int)')")
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    if env:
        file = project.path / "migrations" / "env.py"
        file.write_text(file.read_text().replace("with connectable", env))
    project.write("bbbb", "aaaa", f"op.execute('INSERT INTO log VALUES (1)'); {commit}; {ALTER}")
    with transaction(database, "SELECT FROM t"):
        locked = migrate(database, "upgrade", "--lock-wait", "2", project=project.path)
    assert locked.exit_code == 4
    assert database.rows("SELECT count(*) FROM log") == [(1,)]


def test_the_blocker_is_named_without_its_comments(database: Database, project: Project) -> None:
    project.write("aaaa", None, "op.execute('CREATE TABLE t (id int)')")
    project.write("bbbb", "aaaa", ALTER)
    assert migrate(database, "upgrade", "aaaa", project=project.path).exit_code == 0
    with transaction(database, "/* cAnArY */ SELECT id FROM t -- cAnArY"):
        locked = migrate(database, "upgrade", "--lock-wait", "1", project=project.path)
    assert "SELECT id FROM t" in locked.error["message"]
    assert "cAnArY" not in locked.output


def test_a_migration_of_its_own_patience_keeps_it_after_an_autocommit_block(
    database: Database, project: Project
) -> None:
    shown = "op.execute(\"INSERT INTO seen SELECT current_setting('lock_timeout')\")"
    block = f"{shown}\n    with op.get_context().autocommit_block():\n        {shown}\n    {shown}"
    project.write("aaaa", None, 'op.execute("CREATE TABLE seen (setting text)")')
    project.write("bbbb", "aaaa", block, lock_timeout="5s")
    project.write("cccc", "bbbb", block)
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    assert [row[0] for row in database.rows("SELECT setting FROM seen")] == ["5s", "0", "5s", "100ms", "0", "100ms"]


def test_a_version_table_that_is_locked_is_waited_for(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    project.write("bbbb", "aaaa")
    with closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK alembic_version")
        refused = migrate(database, "upgrade", "--lock-wait", "1", project=project.path)
        assert (refused.exit_code, refused.error["sqlstate"]) == (4, "55P03")
        with started(database, project=project.path) as runner:
            assert eventually(lambda: database.rows("SELECT 1 FROM pg_locks WHERE NOT granted"))
            cursor.execute("ROLLBACK")
            assert runner.finish().exit_code == 0


def test_a_run_with_nothing_to_do_does_not_hang_behind_a_lock(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    assert write_manifest([str(project.path / "alembic.ini")]) == 0
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    with closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK alembic_version")
        refused = run(
            "upgrade",
            project=project.path,
            environment={"DATABASE_URL": database.url, "MIGRATION_TIMEOUT": "2"},
        )
    assert (refused.exit_code, refused.error["sqlstate"]) == (4, "55P03")


@pytest.mark.fresh
def test_a_timeout_bounds_a_run_of_many_statements(database: Database, project: Project) -> None:
    project.write("aaaa", None, "[op.execute('SELECT pg_sleep(0.4)') for _ in range(20)]")
    began = time.monotonic()
    late = migrate(database, "upgrade", "--timeout", "2", project=project.path)
    assert (late.exit_code, late.result["at"]) == (1, "base")
    assert late.error["kind"] in ("TimedOut", "QueryCanceled")
    assert time.monotonic() - began < 6
