"""A run that is told to stop ends at once, leaves no lock, and says where the schema is."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import closing

import pytest

from tests.conftest import Database
from tests.migration_runner.conftest import Outcome, Project
from tests.migration_runner.processes import Runner, eventually, in_statement, sessions, started, transaction, upgrade

pytestmark = pytest.mark.fresh
SLEEP = "op.execute('CREATE TABLE t ()'); op.execute('SELECT pg_sleep(100)')"
INDEX = "with op.get_context().autocommit_block(): op.execute('CREATE INDEX CONCURRENTLY t_id ON t (id)')"
WRITE = "INSERT INTO t VALUES (1)"
# Two cores may be shared by several tests.
AT_ONCE = 2.0


def stopped(runner: Runner, database: Database, number: signal.Signals = signal.SIGTERM) -> Outcome:
    """Tell it to stop: it ends at once, and so do its sessions."""
    told = time.monotonic()
    runner.send(number)
    outcome = runner.finish(10)
    assert time.monotonic() - told < AT_ONCE
    eventually(lambda: not sessions(database), 1)
    return outcome


# P5
@pytest.mark.parametrize(
    ("number", "exit_code", "kind", "sentence"),
    [
        (signal.SIGTERM, 143, "ToldToStop", "The run was told to stop (SIGTERM)"),
        (signal.SIGINT, 130, "Interrupted", "The run was interrupted"),
    ],
)
def test_a_signal_in_the_middle_of_a_statement_ends_the_run_at_once_and_leaves_no_lock(
    database: Database, project: Project, number: signal.Signals, exit_code: int, kind: str, sentence: str
) -> None:
    # given a schema at aaaa, and a run in a long statement of bbbb
    project.write("aaaa", None)
    assert upgrade(database, project.path).exit_code == 0
    project.write("bbbb", "aaaa", SLEEP)
    with started(database, project=project.path) as runner:
        in_statement(database, "pg_sleep")
        # when it is told to stop
        outcome = stopped(runner, database, number)
    # then it says so, and what it had begun is taken back
    assert outcome.exit_code == exit_code
    assert outcome.error["kind"] == kind
    assert outcome.error["message"] == f"{sentence}; what was under way was rolled back, and no lock is left."
    assert (outcome.error["revision"], outcome.result["at"], outcome.result["applied"]) == ("bbbb", "aaaa", [])
    assert database.rows("SELECT 1 FROM pg_tables WHERE tablename = 't'") == []


# P5
def test_sigterm_ends_a_migration_that_waits_in_python(database: Database, project: Project) -> None:
    project.write("aaaa", None, "op.execute('CREATE TABLE t ()'); print('begun'); import time; time.sleep(100)")
    with started(database, project=project.path) as runner:
        runner.until("migration.output", text="begun")
        outcome = stopped(runner, database)
    assert (outcome.exit_code, outcome.result["at"]) == (143, "base")
    assert "no lock is left" in outcome.error["message"]
    assert database.rows("SELECT 1 FROM pg_tables WHERE tablename = 't'") == []


# P5
def test_sigterm_ends_the_wait_for_another_run(database: Database, project: Project) -> None:
    project.write("aaaa", None, SLEEP)
    with started(database, project=project.path) as holder:
        in_statement(database, "pg_sleep")
        with started(database, project=project.path) as waiting:
            waiting.until("migration.waiting")
            told = time.monotonic()
            waiting.send(signal.SIGTERM)
            outcome = waiting.finish(10)
            assert time.monotonic() - told < AT_ONCE
        assert outcome.exit_code == 143
        # and the one that is waited for goes on
        assert holder.running


# P5
def test_sigterm_ends_the_wait_for_a_tables_lock(database: Database, project: Project) -> None:
    database.rows("CREATE TABLE t (id int)")
    project.write("aaaa", None, "op.execute('ALTER TABLE t ADD x int')")
    with transaction(database, "SELECT FROM t"), started(database, project=project.path) as runner:
        runner.until("migration.locked", attempt=3)
        outcome = stopped(runner, database)
    assert (outcome.exit_code, outcome.result["at"]) == (143, "base")


# P5
def test_sigterm_ends_an_index_built_concurrently_and_the_next_run_builds_it_anew(
    database: Database, project: Project
) -> None:
    # given a run that waits for an old transaction
    database.rows("CREATE TABLE t (id int)")
    project.write("aaaa", None, INDEX)
    with transaction(database, WRITE), started(database, project=project.path) as runner:
        in_statement(database, "CREATE INDEX")
        eventually(lambda: database.rows("SELECT 1 FROM pg_class WHERE relname = 't_id'"))
        # when it is told to stop
        outcome = stopped(runner, database)
        assert (outcome.exit_code, outcome.result["at"]) == (143, "base")
    # then the next one does it
    again = upgrade(database, project.path)
    assert again.exit_code == 0
    assert [one["index"] for one in again.named("migration.index_dropped")] == ["t_id"]
    assert database.rows("SELECT indisvalid FROM pg_index WHERE indexrelid = 't_id'::regclass") == [(True,)]


# P5
def test_sigterm_ends_the_rebuilding_of_an_index(database: Database, project: Project) -> None:
    # given a schema that is where it should be, but with an INVALID index
    database.rows("CREATE TABLE t (id int)")
    project.write("aaaa", None, INDEX)
    assert upgrade(database, project.path).exit_code == 0
    database.rows("DROP INDEX t_id")
    leave_invalid(database)
    # when a run that rebuilds it is told to stop, since an old transaction holds it up
    with transaction(database, WRITE), started(database, project=project.path) as runner:
        in_statement(database, "REINDEX")
        outcome = stopped(runner, database)
    assert (outcome.exit_code, outcome.result["at"]) == (143, "aaaa")
    # then the next one mends it, and what that left
    assert upgrade(database, project.path).exit_code == 0
    assert database.rows(
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 't'::regclass"
    ) == [("t_id", True)]


def leave_invalid(database: Database) -> None:
    with transaction(database, WRITE), closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("SET statement_timeout = '200ms'")
        with pytest.raises(Exception, match="statement timeout"):
            cursor.execute("CREATE INDEX CONCURRENTLY t_id ON t (id)")


# P5
def test_sigterm_ends_a_connection_to_an_address_that_does_not_answer(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        with started(database, project=project.path, DATABASE_URL=url) as runner:
            runner.until("migration.started")
            with silent.accept()[0]:
                outcome = stopped(runner, database)
    assert outcome.exit_code == 143
    assert outcome.error["message"] == "The run was told to stop (SIGTERM); nothing was begun."
