"""A run at the target costs one connection and one query; and it is never taken for one that has something to do."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from local_aws.postgres import HOST, free_port
from migration_runner.manifest import manifest_path
from migration_runner.revisions import write_manifest
from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, Outcome, Project, migrate, migrate_here, run

pytestmark = pytest.mark.fresh


class Wire:
    """What lies between a run and its server: it counts the connections, and what is asked over them.

    Each message after the first is a letter and its length: https://www.postgresql.org/docs/current/protocol-flow.html
    """

    def __init__(self, database: Database) -> None:
        self._server = (database.host, database.port)
        self._port = free_port()
        self.url = f"{replace(database, port=self._port).url}?sslmode=disable"
        self.connections = 0
        self.messages: list[str] = []

    @contextmanager
    def open(self) -> Iterator[Wire]:
        with ExitStack() as ends, socket.create_server((HOST, self._port)) as listener:
            accepting = threading.Thread(target=self._accept, args=[listener, ends])
            accepting.start()
            try:
                yield self
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join()

    def _accept(self, listener: socket.socket, ends: ExitStack) -> None:
        with suppress(OSError):
            while True:
                client = ends.enter_context(listener.accept()[0])
                server = ends.enter_context(socket.create_connection(self._server))
                self.connections += 1
                for source, to, count in ((client, server, self._count()), (server, client, None)):
                    forwarding = threading.Thread(target=self._forward, args=[source, to, count])
                    ends.callback(forwarding.join)
                    forwarding.start()

    def _forward(self, source: socket.socket, to: socket.socket, count: Callable[[bytes], None] | None) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                if count:
                    count(part)
                to.sendall(part)
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def _count(self) -> Callable[[bytes], None]:
        left, begun = b"", False

        def count(part: bytes) -> None:
            nonlocal left, begun
            left += part
            while len(left) >= 5:
                letter = 1 if begun else 0
                size = letter + int.from_bytes(left[letter : letter + 4])
                if len(left) < size:
                    return
                if begun:
                    self.messages.append(chr(left[0]))
                left, begun = left[size:], True

        return count


@pytest.fixture
def released(database: Database, project: Project) -> Project:
    """A database at the head of a project, with a manifest."""
    project.write("aaaa", None, "op.execute('CREATE TABLE a (n int)')", "op.execute('DROP TABLE a')")
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE b ()')", "op.execute('DROP TABLE b')")
    write_manifest(project.path / "alembic.ini")
    assert migrate_here(database, "upgrade", project=project.path).exit_code == 0
    return project


def upgrade(database: Database, project: Project, *options: str, **environment: str) -> Outcome:
    """An upgrade that tells on standard error what it imports."""
    return migrate(database, "upgrade", *options, project=project.path, PYTHONPROFILEIMPORTTIME="1", **environment)


def imported(outcome: Outcome) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in outcome.errors.splitlines()}


def was_quick(outcome: Outcome) -> bool:
    assert "migration_runner.quick" in imported(outcome)
    return not imported(outcome) & {"alembic", "sqlalchemy", "migration_runner.runner"}


def told(outcome: Outcome) -> list[dict[str, object]]:
    """Every line of the runner's own, as it is written, but for the time."""
    return [{**event, "duration_ms": 0} for event in outcome.events if event["event"] != "migration.output"]


def env_py(project: Project, old: str, new: str) -> None:
    path = project.path / "migrations" / "env.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    write_manifest(project.path / "alembic.ini")


# Taken


def test_at_the_target_neither_alembic_nor_sqlalchemy_is_imported_and_one_query_is_asked(
    database: Database, released: Project
) -> None:
    with Wire(database).open() as wire:
        outcome = upgrade(database, released, DATABASE_URL=wire.url)
    assert (outcome.exit_code, outcome.result["at"], outcome.result["applied"]) == (0, "bbbb", [])
    assert outcome.result["open"] == []
    assert was_quick(outcome)
    assert wire.connections == 1
    assert [letter for letter in wire.messages if letter not in "pX"] == ["Q"]


@pytest.mark.parametrize("target", ["bbbb", ""])
def test_its_lines_are_those_of_any_run_that_has_nothing_to_do(
    database: Database, released: Project, target: str
) -> None:
    quick = upgrade(database, released, "--output-format", "json", "--config", "alembic.ini", MIGRATION_TARGET=target)
    assert was_quick(quick)
    Path(manifest_path(str(released.path / "alembic.ini"))).unlink()
    slow = migrate(database, "upgrade", project=released.path, MIGRATION_TARGET=target)
    assert [list(event.items()) for event in told(quick)] == [list(event.items()) for event in told(slow)]


@pytest.mark.parametrize("table", ['Release\'s "100%" {0}', "releases"])
def test_a_version_table_of_another_name_will_do(database: Database, project: Project, table: str) -> None:
    database.rows('CREATE SCHEMA "Te%am"')
    project.write("aaaa", None)
    given = f"connection=connection, version_table={table!r}, version_table_schema='Te%am', "
    env_py(project, "connection=connection, ", given)
    env_py(project, "url=url,", f"url=url, {given.partition(', ')[2]}")
    assert migrate_here(database, "upgrade", project=project.path).exit_code == 0
    outcome = upgrade(database, project)
    assert (outcome.exit_code, was_quick(outcome)) == (0, True)


# Not taken


def edited_file(_: Database, project: Project) -> None:
    path = project.path / "migrations" / "versions" / "aaaa_step.py"
    path.write_text(path.read_text() + "\n")
    write_manifest(project.path / "alembic.ini")


def invalid_index(database: Database, _: Project) -> None:
    database.rows("INSERT INTO a VALUES (1), (1)")
    with suppress(Exception):
        database.rows("CREATE UNIQUE INDEX CONCURRENTLY twice ON a (n)")
    database.rows("DELETE FROM a")


def new_revision(_: Database, project: Project) -> None:
    project.write("cccc", "bbbb")
    write_manifest(project.path / "alembic.ini")


def new_contract(_: Database, project: Project) -> None:
    project.write(
        "cccc", "bbbb", "op.execute('DROP TABLE a')", "op.execute('CREATE TABLE a (n int)')", phase="contract"
    )
    write_manifest(project.path / "alembic.ini")


def sql(statement: str) -> Callable[[Database, Project], object]:
    return lambda database, _: database.rows(statement)


# What makes the difference; the exit code, where the schema is then, and what is told.
DIFFERENCES: dict[str, tuple[Callable[[Database, Project], object], int, str, str]] = {
    "edited file": (edited_file, 0, "bbbb", "edited"),
    "invalid index": (invalid_index, 0, "bbbb", "index_rebuilt"),
    "behind": (new_revision, 0, "cccc", "revision"),
    "ahead": (sql("UPDATE alembic_version SET version_num = 'zzzz'"), 5, "zzzz", "result"),
    "several heads": (sql("INSERT INTO alembic_version VALUES ('aaaa')"), 1, "aaaa, bbbb", "result"),
    "no ledger": (sql("DROP SCHEMA migration_runner CASCADE"), 0, "bbbb", "adopted"),
    "open rename": (
        sql(
            "ALTER TABLE a RENAME TO a__base;"
            "CREATE VIEW a WITH (security_invoker) AS SELECT n, n AS m FROM a__base;"
            "INSERT INTO migration_runner.renames"
            " (version_table, revision, position, table_schema, table_name, old_name, new_name, of_table)"
            " VALUES ('public.alembic_version', 'bbbb', 0, 'public', 'a', 'm', 'n', false)"
        ),
        0,
        "bbbb",
        "nothing_to_do",
    ),
    "contract revision": (new_contract, 0, "bbbb", "nothing_to_do"),
    "no table of renames": (sql("DROP TABLE migration_runner.renames"), 0, "bbbb", "result"),
    "never verified": (sql("DELETE FROM migration_runner.verified"), 0, "bbbb", "nothing_to_do"),
}


@pytest.mark.parametrize("case", DIFFERENCES.values(), ids=DIFFERENCES)
def test_whatever_differs_is_left_to_the_runner(
    database: Database, released: Project, case: tuple[Callable[[Database, Project], object], int, str, str]
) -> None:
    differ, exit_code, at, event = case
    differ(database, released)
    outcome = upgrade(database, released)
    assert not was_quick(outcome)
    assert (outcome.exit_code, outcome.result["at"]) == (exit_code, at), outcome.output
    assert outcome.named(f"migration.{event}")


def test_what_is_closed_or_of_another_version_table_is_not_open(database: Database, released: Project) -> None:
    database.rows(
        "INSERT INTO migration_runner.renames"
        " (version_table, revision, position, table_schema, table_name, old_name, new_name, of_table, closed_at)"
        " VALUES ('public.alembic_version', 'bbbb', 0, 'public', 'a', 'm', 'n', false, now()),"
        " ('other.alembic_version', 'bbbb', 0, 'other', 'a', 'm', 'n', false, NULL)"
    )
    assert was_quick(upgrade(database, released))


def test_once_the_contract_revisions_are_applied_there_is_nothing_left(database: Database, released: Project) -> None:
    new_contract(database, released)
    before = upgrade(database, released)
    assert (was_quick(before), before.result["at"], before.result["open"]) == (False, "bbbb", ["cccc step cccc"])
    assert migrate_here(database, "contract", project=released.path).exit_code == 0
    after = upgrade(database, released)
    assert (was_quick(after), after.result["at"], after.result["open"]) == (True, "cccc", [])


def test_a_schema_that_was_taken_back_is_migrated_again(database: Database, released: Project) -> None:
    assert migrate_here(database, "downgrade", "-1", project=released.path).exit_code == 0
    outcome = upgrade(database, released)
    assert (was_quick(outcome), outcome.exit_code, outcome.result["applied"]) == (False, 0, ["bbbb"])


@pytest.mark.parametrize("options", [("bbbb",), ("--timeout", "60"), ("--wait", "5")])
def test_other_options_are_left_to_the_runner(database: Database, released: Project, options: tuple[str, ...]) -> None:
    outcome = upgrade(database, released, *options)
    assert (was_quick(outcome), outcome.exit_code) == (False, 0)


def test_a_deployment_that_was_made_for_another_revision_is_refused(database: Database, released: Project) -> None:
    outcome = upgrade(database, released, MIGRATION_TARGET="aaaa")
    assert (was_quick(outcome), outcome.exit_code, outcome.error["kind"]) == (False, 2, "UnexpectedTarget")


def test_a_version_table_that_env_py_computes_is_left_to_the_runner(database: Database, released: Project) -> None:
    env_py(released, "connection=connection, ", "connection=connection, version_table='alembic' + '_version', ")
    outcome = upgrade(database, released)
    assert (was_quick(outcome), outcome.exit_code, outcome.result["at"]) == (False, 0, "bbbb")


TENANT = "__import__('os').environ['TENANT']"


@pytest.mark.parametrize(
    "statement", ["'SET search_path TO ' + {}", "\"SELECT set_config('search_' || 'path', '%s', false)\" % {}"]
)
def test_each_tenant_of_an_env_py_that_sets_the_search_path_is_migrated(
    database: Database, project: Project, statement: str
) -> None:
    database.rows("CREATE SCHEMA tenant")
    project.write("aaaa", None)
    configure = "        context.configure(\n            connection"
    execute = f"        connection.exec_driver_sql({statement.format(TENANT)})\n        connection.commit()\n"
    env_py(project, configure, execute + configure)
    for tenant in ("public", "tenant"):
        outcome = migrate(database, "upgrade", project=project.path, TENANT=tenant)
        assert (outcome.exit_code, outcome.result["applied"]) == (0, ["aaaa"])


def on_terminal(database: Database, project: Project, *options: str) -> str:
    """What an upgrade shows there."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "migration_runner", "upgrade", *options],
        cwd=project.path,
        env={**BARE_ENVIRONMENT, "DATABASE_URL": database.url},
        stdout=theirs,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    return shown


def test_on_a_terminal_a_person_reads_a_sentence(database: Database, released: Project) -> None:
    assert "Nothing to do: the schema is at bbbb." in on_terminal(database, released)


def test_on_a_terminal_a_person_can_ask_for_json(database: Database, released: Project) -> None:
    # of the quick run, and of the runner's own, which it is with --wait, and where Alembic's log is passed on
    for options in ([], ["--wait", "5"]):
        lines = on_terminal(database, released, "--output-format", "json", *options).splitlines()
        events = [json.loads(line)["event"] for line in lines]
        own = [event for event in events if event != "migration.output"]
        assert own == ["migration.started", "migration.nothing_to_do", "migration.result"]
        assert (own == events) is not bool(options)


def test_a_person_off_a_terminal_can_ask_for_sentences(database: Database, released: Project) -> None:
    # of a run at the target, which the runner itself does not see otherwise, and of one that fails
    done = upgrade(database, released, "--output-format", "text")
    assert done.exit_code == 0
    assert "Nothing to do: the schema is at bbbb.\n" in done.output
    assert "{" not in done.output
    failed = upgrade(database, released, "--output-format", "text", MIGRATION_TARGET="aaaa")
    assert failed.exit_code == 2
    assert failed.output.startswith("upgrade: UnexpectedTarget: ")
    # and the last one counts, so that a script may ask for one, and its user for the other
    both = upgrade(database, released, "--output-format", "text", "--output-format", "json")
    assert both.result["status"] == "succeeded"


def test_a_refusal_is_told_as_always(database: Database, released: Project) -> None:
    wrong = replace(database, password="wrong")
    refused = upgrade(database, released, DATABASE_URL=wrong.url)
    assert (refused.exit_code, refused.error["kind"]) == (6, "CredentialsRefused")
    nowhere = upgrade(database, released, DATABASE_URL=replace(database, name="nowhere").url)
    assert (nowhere.exit_code, nowhere.error["kind"]) == (2, "SettingsError")
    unset = run("upgrade", project=released.path, environment={})
    assert (unset.exit_code, unset.error["kind"]) == (2, "SettingsError")


def test_a_database_that_starts_late_is_waited_for(database: Database, released: Project) -> None:
    wire = Wire(database)
    process = subprocess.Popen(
        [sys.executable, "-m", "migration_runner", "upgrade"],
        cwd=released.path,
        env={**BARE_ENVIRONMENT, "DATABASE_URL": wire.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert '"migration.started"' in process.stdout.readline()
        assert '"nothing listens at its port"' in process.stdout.readline()
        with wire.open():
            assert process.wait(20) == 0
