"""The commands that change no schema: status, plan, history, check and stamp."""

from __future__ import annotations

import io
import json
from contextlib import closing
from typing import Any

import pytest

from migration_runner import inspection
from migration_runner.__main__ import main
from migration_runner.guard import Guard
from migration_runner.report import Report
from migration_runner.revisions import read_revisions
from tests.conftest import Database
from tests.migration_runner.conftest import Outcome, Project, migrate, run

ADD_COLUMN = 'op.execute("ALTER TABLE t ADD COLUMN c int")'


@pytest.fixture
def two(project: Project) -> Project:
    project.write("aaaa", None, 'op.execute("CREATE TABLE t (id int)")')
    project.write("bbbb", "aaaa", ADD_COLUMN, 'op.execute("ALTER TABLE t DROP COLUMN c")')
    return project


def told(outcome: Outcome, event: str) -> dict[str, Any]:
    [one] = outcome.named(event)
    return one


@pytest.mark.fresh
def test_status_names_who_holds_the_lock(database: Database, two: Project) -> None:
    assert migrate(database, "upgrade", project=two.path).exit_code == 0
    assert told(migrate(database, "status", project=two.path), "migration.status")["lock_holder"] is None
    with closing(database.connect()) as other, open("/dev/null", "w") as nowhere:  # noqa: PTH123
        Guard(other, Report(nowhere)).lock("public.alembic_version", 0)
        status = migrate(database, "status", project=two.path)
        assert status.exit_code == 0
        holder = str(told(status, "migration.status")["lock_holder"])
        assert holder.startswith(f"session {other.get_backend_pid()} (")
    assert "connected since" in holder


def test_status_names_the_files_that_were_edited_after_they_had_been_applied(database: Database, two: Project) -> None:
    assert migrate(database, "upgrade", project=two.path).exit_code == 0
    file = two.path / "migrations" / "versions" / "aaaa_step.py"
    file.write_text(f"{file.read_text()}# edited\n")
    assert told(migrate(database, "status", project=two.path), "migration.status")["edited"] == ["aaaa_step.py"]


def test_status_fails_for_what_an_upgrade_applies_and_shows_what_a_contract_is_to_do(
    database: Database, two: Project
) -> None:
    two.write("cccc", "bbbb", "op.execute('DROP TABLE t')", phase="contract")
    two.write("dddd", "cccc", phase="contract")
    # given a schema in which the newest expand revision is not there yet
    assert migrate(database, "upgrade", "aaaa", project=two.path).exit_code == 0
    behind = migrate(database, "status", project=two.path)
    assert (behind.exit_code, behind.error["kind"]) == (1, "RevisionsPending")
    assert behind.error["message"] == "Revisions are pending: bbbb."
    # when it is
    assert migrate(database, "upgrade", project=two.path).exit_code == 0
    status = migrate(database, "status", project=two.path)
    # then nothing is pending, but open
    assert status.exit_code == 0
    shown = told(status, "migration.status")
    assert (shown["current"], shown["head"], shown["pending"]) == (["bbbb"], "dddd", [])
    assert shown["open"] == ["cccc step cccc", "dddd step dddd"]
    as_text = migrate(database, "status", "--output-format", "text", project=two.path)
    assert "pending  0\nopen     cccc step cccc, dddd step dddd\nlock " in as_text.output


def test_status_of_an_empty_schema_counts_all_revisions_as_pending(database: Database, two: Project) -> None:
    two.write("cccc", "bbbb", "op.execute('DROP TABLE t')", phase="contract")
    shown = told(migrate(database, "status", project=two.path), "migration.status")
    assert ([one["revision"] for one in shown["pending"]], shown["open"]) == (["aaaa", "bbbb", "cccc"], [])


def test_status_shows_the_renames_that_are_open(database: Database, two: Project) -> None:
    assert migrate(database, "upgrade", project=two.path).exit_code == 0
    lines = io.StringIO()
    with closing(database.connect()) as own:
        report = Report(lines)
        revisions = read_revisions(two.path / "alembic.ini")
        guard = Guard(own, report)
        inspection.status(guard, "public.alembic_version", revisions, ["bbbb"], report, ["t.b -> c"])
        inspection.plan(two.path / "alembic.ini", [], guard, report, ["t.b -> c"])
    assert [json.loads(line)["open"] for line in lines.getvalue().splitlines()] == [["t.b -> c"]] * 2


def test_a_plan_shows_the_renames_that_are_open(two: Project) -> None:
    lines = io.StringIO()
    inspection.plan(two.path / "alembic.ini", [], None, Report(lines, "text"), ["t.b -> c"])
    assert lines.getvalue() == "t.b -> c is open: both names work until a contract step.\nNothing is pending.\n"


def test_a_plan_is_about_what_is_pending_and_how_large_its_tables_are(database: Database, two: Project) -> None:
    assert migrate(database, "upgrade", "aaaa", project=two.path).exit_code == 0
    plan = migrate(database, "plan", "--output-format", "json", project=two.path)
    assert plan.exit_code == 0
    [pending] = told(plan, "migration.plan")["revisions"]
    assert pending["revision"] == "bbbb"
    [statement] = pending["statements"]
    assert statement["sql"] == "ALTER TABLE t ADD COLUMN c int"
    [lock] = statement["locks"]
    assert (lock["table"], lock["mode"], lock["bytes"]) == ("t", "ACCESS EXCLUSIVE", 0)
    assert database.rows("SELECT version_num FROM alembic_version") == [("aaaa",)]


@pytest.mark.fresh
def test_without_a_database_a_plan_is_about_all_revisions(two: Project) -> None:
    plan = run("plan", project=two.path, environment={})
    assert (plan.exit_code, plan.errors) == (0, "")
    assert plan.output.index("aaaa step aaaa") < plan.output.index("CREATE TABLE t") < plan.output.index("bbbb step")
    assert "ALTER TABLE t ADD COLUMN c int;\n        ACCESS EXCLUSIVE on t: blocks reads and writes" in plan.output


def test_a_plan_for_a_schema_that_is_at_the_head_says_so(database: Database, two: Project) -> None:
    migrate(database, "upgrade", project=two.path)
    assert "Nothing is pending." in migrate(database, "plan", project=two.path).output


@pytest.mark.fresh
def test_a_check_fails_with_1_and_speaks_json_when_asked(two: Project) -> None:
    two.write("cccc", "bbbb", 'op.drop_column("t", "c")', 'op.execute("ALTER TABLE t ADD COLUMN c int")')
    check = run("check", "--output-format", "json", project=two.path, environment={})
    assert (check.exit_code, check.error["kind"]) == (1, "UnsafeRevisions")
    rules = [(one["rule"], one["file"], one["line"]) for one in check.named("migration.findings")[0]["findings"]]
    assert ("ban-drop-column", "migrations/versions/cccc_step.py", 10) in rules
    as_text = run("check", project=two.path, environment={})
    assert as_text.exit_code == 1
    assert "migrations/versions/cccc_step.py:10: ban-drop-column" in as_text.output


def test_a_check_of_two_heads_is_wrong_use(two: Project) -> None:
    two.write("cccc", "aaaa")
    check = run("check", "--output-format", "json", project=two.path, environment={})
    assert (check.exit_code, check.error["kind"]) == (2, "RevisionError")
    assert "2 heads" in check.error["message"]


@pytest.mark.fresh
def test_the_history_tells_what_was_applied_and_when(database: Database, two: Project) -> None:
    without = run("history", project=two.path, environment={})
    assert without.output == "aaaa -> bbbb (head)  step bbbb\nbase -> aaaa  step aaaa\n"
    two.write("cccc", "bbbb", phase="contract")
    with_contract = run("history", project=two.path, environment={})
    assert with_contract.output.splitlines()[0] == "bbbb -> cccc (head, contract)  step cccc"
    migrate(database, "upgrade", "aaaa", project=two.path)
    known = migrate(database, "history", "--output-format", "json", project=two.path).named("migration.revision_known")
    assert [(one["revision"], one["state"], one["applied_at"] is None) for one in known] == [
        ("cccc", "pending", True),
        ("bbbb", "pending", True),
        ("aaaa", "applied", False),
    ]


@pytest.mark.fresh
def test_a_stamp_moves_what_is_recorded_and_runs_nothing(database: Database, two: Project) -> None:
    stamped = migrate(database, "stamp", "head", project=two.path)
    assert (stamped.exit_code, stamped.result["at"], stamped.result["applied"]) == (0, "bbbb", [])
    assert database.rows("SELECT to_regclass('t')") == [(None,)]
    assert database.rows("SELECT revision FROM migration_runner.applied ORDER BY 1") == [("aaaa",), ("bbbb",)]
    back = migrate(database, "stamp", "base", project=two.path)
    assert (back.exit_code, back.result["at"]) == (0, "base")
    assert database.rows("SELECT 1 FROM migration_runner.applied") == []
    unknown = migrate(database, "stamp", "nosuch", project=two.path)
    assert (unknown.exit_code, unknown.error["kind"]) == (2, "UnknownRevision")


@pytest.mark.parametrize("command", ["upgrade", "downgrade", "stamp", "plan", "check", "history", "status"])
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example: python -m migration_runner {command}" in capsys.readouterr().out
