"""The runner against a real PostgreSQL: every command, every way to end."""

from __future__ import annotations

import os
import pty
import runpy
import subprocess
import sys
import time

import pytest

from migration_runner.__main__ import main
from migration_runner.errors import ExitCode
from migration_runner.failures import failure
from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, ROOT, Project, migrate, run

CREATE_ITEMS, RENAME = "48871d03964b", "49871d03964c"
RESULT_FIELDS = ["event", "status", "command", "from", "at", "target", "applied", "open", "duration_ms", "error"]


def stamp(database: Database, revision: str) -> None:
    database.rows("CREATE TABLE IF NOT EXISTS alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY)")
    database.rows("DELETE FROM alembic_version")
    database.rows(f"INSERT INTO alembic_version VALUES ('{revision}')")


def columns(database: Database, table: str) -> set[object]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_name = '%s'"
    return {row[0] for row in database.rows(query % table)}


def test_a_rename_keeps_the_data_up_down_and_up_again_until_all_is_taken_back(database: Database) -> None:
    # given a schema before the rename, with data
    first = migrate(database, "upgrade", CREATE_ITEMS)
    assert (first.exit_code, first.result["at"], first.result["applied"]) == (0, CREATE_ITEMS, [CREATE_ITEMS])
    database.rows("INSERT INTO parent_items (name) VALUES ('bolt')")
    database.rows("INSERT INTO child_items (parent_id, name, quantity) SELECT id, 'nut', 3 FROM parent_items")

    # when it is renamed
    renamed = migrate(database, "upgrade", MIGRATION_TARGET=RENAME)
    # then the result says so, in the order that the trigger knows
    result = renamed.result
    assert list(result) == RESULT_FIELDS
    duration = result.pop("duration_ms")
    assert result == {
        "event": "migration.result",
        "status": "succeeded",
        "command": "upgrade",
        "from": CREATE_ITEMS,
        "at": RENAME,
        "target": RENAME,
        "applied": [RENAME],
        "open": [],
        "error": None,
    }
    assert [one["revision"] for one in renamed.named("migration.revision")] == [RENAME]
    assert 0 <= renamed.named("migration.revision")[0]["duration_ms"] <= duration
    assert renamed.errors == ""
    # and the data is there under the new name
    assert database.rows(
        "SELECT p.sku, c.sku, quantity FROM parent_items p JOIN child_items c ON parent_id = p.id"
    ) == [("bolt", "nut", 3)]

    back = migrate(database, "downgrade", "-1")
    assert (back.exit_code, back.result["from"], back.result["at"], back.result["target"], back.result["applied"]) == (
        0,
        RENAME,
        CREATE_ITEMS,
        CREATE_ITEMS,
        [RENAME],
    )
    assert database.rows("SELECT name FROM parent_items") == [("bolt",)]

    assert migrate(database, "upgrade").exit_code == 0
    assert database.rows("SELECT sku, quantity FROM child_items") == [("nut", 3)]

    down = migrate(database, "downgrade", "base")
    assert (down.exit_code, down.result["at"], down.result["target"]) == (0, "base", "base")
    assert down.result["applied"] == [RENAME, CREATE_ITEMS]
    assert columns(database, "parent_items") == set()


def test_a_run_that_does_nothing_says_so(database: Database) -> None:
    stamp(database, RENAME)
    outcome = migrate(database, "upgrade")
    assert (outcome.exit_code, outcome.result["applied"], outcome.result["at"]) == (0, [], RENAME)
    assert len(outcome.named("migration.nothing_to_do")) == 1
    assert not outcome.named("migration.revision")


def test_status_changes_nothing_and_tells_by_its_exit_code_whether_revisions_are_pending(database: Database) -> None:
    before = migrate(database, "status")
    assert (before.exit_code, before.result["at"], before.result["target"]) == (1, "base", RENAME)
    assert before.error["kind"] == "RevisionsPending"
    (told,) = before.named("migration.status")
    assert [(one["revision"], one["message"]) for one in told["pending"]] == [
        (CREATE_ITEMS, "create items"),
        (RENAME, "rename name to sku"),
    ]
    assert database.rows("SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []

    stamp(database, RENAME)
    after = migrate(database, "status")
    assert (after.exit_code, after.result["at"], after.result["error"]) == (0, RENAME, None)


def test_a_migration_that_fails_half_way_leaves_the_earlier_ones_and_says_where_the_schema_is(
    database: Database, project: Project
) -> None:
    # given three revisions, of which the second fails after it has made a table
    project.write("aaaa", None, "op.execute('CREATE TABLE kept (id int)')")
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE lost (id int)'); op.execute('SELECT nosuch FROM kept')")
    project.write("cccc", "bbbb")
    # when they are run
    failed = migrate(database, "upgrade", project=project.path)
    # then only the failed one is rolled back
    assert failed.exit_code == 1
    assert failed.result["status"] == "failed"
    assert (failed.result["from"], failed.result["at"], failed.result["target"]) == ("base", "aaaa", "cccc")
    assert failed.result["applied"] == ["aaaa"]
    assert failed.error == {
        "kind": "UndefinedColumn",
        "sqlstate": "42703",
        "revision": "bbbb",
        "message": 'column "nosuch" does not exist',
        "hint": None,
    }
    assert database.rows("SELECT relname FROM pg_class WHERE relname IN ('kept', 'lost')") == [("kept",)]


def test_values_in_the_details_of_an_error_are_not_shown(database: Database, project: Project) -> None:
    twice = (
        "op.execute('CREATE TABLE t (x text UNIQUE)'); op.execute(\"INSERT INTO t VALUES ('private'), ('private')\")"
    )
    project.write("aaaa", None, twice)
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["kind"], failed.error["sqlstate"]) == (1, "UniqueViolation", "23505")
    assert "private" not in failed.output + failed.errors


def test_a_value_that_a_message_quotes_is_not_shown_either(database: Database, project: Project) -> None:
    project.write("aaaa", None, "op.execute(\"SELECT 'private'::int\")")
    failed = migrate(database, "upgrade", project=project.path)
    assert failed.error["message"] == 'invalid input syntax for type integer: "***"'
    assert "private" not in failed.output + failed.errors


@pytest.mark.parametrize(
    ("upgrade", "kind"),
    [("import asyncio; raise asyncio.CancelledError", "CancelledError"), ("raise BaseException", "BaseException")],
)
def test_whatever_a_migration_raises_there_is_a_result(
    database: Database, project: Project, upgrade: str, kind: str
) -> None:
    project.write("aaaa", None, upgrade)
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["kind"], failed.error["revision"]) == (1, kind, "aaaa")


def test_a_thread_that_a_migration_leaves_behind_does_not_keep_the_run_from_its_end(
    database: Database, project: Project
) -> None:
    project.write("aaaa", None, "import threading, time; threading.Thread(target=time.sleep, args=(50,)).start()")
    began = time.monotonic()
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    assert time.monotonic() - began < 30


def test_a_direction_that_a_file_lacks_is_named(database: Database, project: Project) -> None:
    path = project.write("aaaa", None)
    path.write_text(path.read_text().replace("def upgrade", "def up"))
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["message"]) == (1, "aaaa_step.py has no upgrade().")


def test_a_version_table_that_contradicts_itself_is_refused(database: Database, project: Project) -> None:  # P17
    project.write("aaaa", None)
    project.write("bbbb", "aaaa")
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    database.rows("INSERT INTO alembic_version VALUES ('aaaa')")
    for command in (["upgrade"], ["downgrade", "aaaa"], ["status"], ["stamp", "head"]):
        refused = migrate(database, *command, project=project.path)
        assert (refused.exit_code, refused.error["kind"]) == (1, "VersionTableInconsistent")
        assert "holds aaaa and bbbb, of which one comes after another" in refused.error["message"]


def test_an_error_at_commit_is_the_revisions_own_and_is_not_counted_as_applied(
    database: Database, project: Project
) -> None:
    deferred = "CREATE TABLE t (x int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO t VALUES (1), (1)"
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", f"op.execute({deferred!r})")
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.error["kind"], failed.error["revision"]) == ("UniqueViolation", "bbbb")
    assert (failed.result["at"], failed.result["applied"]) == ("aaaa", ["aaaa"])


def test_a_migration_that_exits_with_0_is_no_success(database: Database, project: Project) -> None:
    project.write("aaaa", None, "import sys; sys.exit(0)")
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["kind"], failed.error["revision"]) == (1, "SystemExit", "aaaa")
    assert failed.error["message"] == "SystemExit was raised in aaaa_step.py, line 10."


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        ("ValueError('fill the skus first')", "fill the skus first"),
        ("ValueError('the password is ' + 'cAnArY')", "ValueError was raised in aaaa_step.py, line 10."),
    ],
    ids=["its author's sentence", "a text that is computed"],
)
def test_of_an_exceptions_text_only_what_its_author_wrote_is_shown(project: Project, raised: str, message: str) -> None:
    path = project.write("aaaa", None, f"raise {raised}")
    with pytest.raises(ValueError, match=r"skus|cAnArY") as caught:
        runpy.run_path(str(path))["upgrade"]()
    told = failure(caught.value, "aaaa", [path.name])
    assert (told.exit_code, told.kind, told.revision, told.message) == (1, "ValueError", "aaaa", message)


@pytest.mark.parametrize(
    ("env", "more", "kind", "message"),
    [
        ("def (:", "", "SyntaxError", "env.py, line 1 is not valid Python."),
        ("  import models", "", "IndentationError", "env.py, line 1 is not valid Python."),
        ("import models", "\ndef (:", "SyntaxError", "models.py, line 2 is not valid Python."),
        (
            "import nosuch.part",
            "",
            "ModuleNotFoundError",
            "env.py, line 1 imports nosuch, but there is no such module.",
        ),
        (
            "import models",
            "\n\nimport nosuch",
            "ModuleNotFoundError",
            "models.py, line 3 imports nosuch, but there is no such module.",
        ),
        ("import models", "\n1 / 0", "ZeroDivisionError", "ZeroDivisionError was raised in env.py, line 1."),
    ],
)
def test_code_that_can_not_be_imported_is_named(
    database: Database, project: Project, env: str, more: str, kind: str, message: str
) -> None:
    project.write("aaaa", None)
    (project.path / "migrations" / "env.py").write_text(env)
    (project.path / "models.py").write_text(more)
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["kind"], failed.error["message"]) == (1, kind, message)


def test_a_revision_that_python_can_not_compile_is_named(database: Database, project: Project) -> None:
    path = project.write("aaaa", None)
    path.write_text(path.read_text() + "\nreturn")
    failed = migrate(database, "upgrade", project=project.path)
    assert failed.error["message"] == "aaaa_step.py, line 16 is not valid Python."


def test_a_module_that_is_imported_by_its_name_is_named(database: Database, project: Project) -> None:
    project.write("aaaa", None, "import importlib; importlib.import_module('nosuch')")
    failed = migrate(database, "upgrade", project=project.path)
    assert failed.error["message"] == "aaaa_step.py, line 10 imports nosuch, but there is no such module."


def test_an_env_py_that_migrates_nothing_is_no_success(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    env = project.path / "migrations" / "env.py"
    # given an env.py that forgets to run the migrations
    text = env.read_text()
    env.write_text(text.replace("context.run_migrations()", "pass"))
    forgetful = migrate(database, "upgrade", project=project.path)
    assert (forgetful.exit_code, forgetful.error["kind"]) == (1, "NothingWasRun")
    # and one that takes everything back at the end
    begun = "with connectable.connect() as connection, connection.begin() as outer:"
    taken_back = text.replace("with connectable.connect() as connection:", begun)
    taken_back = taken_back.replace(
        "with context.begin_transaction():\n            context.run_migrations()\n\n\nif",
        "context.run_migrations()\n        outer.rollback()\n\n\nif",
    )
    env.write_text(taken_back)
    undone = migrate(database, "upgrade", project=project.path)
    assert (undone.exit_code, undone.result["at"], undone.result["applied"]) == (1, "base", [])
    assert undone.error["kind"] == "TargetNotReached"


def test_the_version_table_may_live_where_the_team_wants_it(database: Database, project: Project) -> None:
    env = project.path / "migrations" / "env.py"
    options = "connection=connection, version_table='releases', "
    env.write_text(env.read_text().replace("connection=connection, ", options))
    project.write("aaaa", None)
    assert migrate(database, "upgrade", project=project.path).result["at"] == "aaaa"
    assert database.rows("SELECT version_num FROM releases") == [("aaaa",)]


def test_a_session_carries_the_runners_name(database: Database, project: Project) -> None:
    project.write("aaaa", None, "op.execute(\"CREATE TABLE t AS SELECT current_setting('application_name') AS me\")")
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    assert database.rows("SELECT me FROM t") == [("migration_runner",)]


def test_a_lost_session_is_told_from_a_failed_migration(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    killed = "op.execute('CREATE TABLE t ()'); op.execute('SELECT pg_terminate_backend(pg_backend_pid())')"
    project.write("bbbb", "aaaa", killed)
    lost = migrate(database, "upgrade", project=project.path)
    assert (lost.exit_code, lost.error["kind"], lost.error["revision"]) == (3, "SessionLost", "bbbb")
    assert "safe to run this again" in lost.error["hint"]
    assert (lost.result["at"], lost.result["applied"]) == ("aaaa", ["aaaa"])


def test_where_the_schema_is_stays_unknown_when_the_database_can_not_be_asked_again(
    database: Database, project: Project
) -> None:
    # given a migration after which nobody gets in any more, and the runner's own connection is gone
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = user AND pid <> pg_backend_pid()"
    shut = f"op.execute('ALTER DATABASE {database.name} CONNECTION LIMIT 0'); op.execute('COMMIT'); "
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", f"{shut}op.execute({others!r}); op.execute('SELECT nosuch')")
    failed = migrate(database, "upgrade", "--wait", "1", project=project.path)
    # then what failed is still what is told, and the revision that was finished
    assert (failed.exit_code, failed.error["kind"], failed.error["revision"]) == (1, "UndefinedColumn", "bbbb")
    assert (failed.result["at"], failed.result["applied"]) == (None, ["aaaa"])


def test_a_database_ahead_of_the_image_is_left_alone_and_both_revisions_are_named(database: Database) -> None:
    stamp(database, "ffff00000000")
    ahead = migrate(database, "upgrade")
    assert (ahead.exit_code, ahead.error["kind"], ahead.result["at"]) == (5, "DatabaseAhead", "ffff00000000")
    assert "ffff00000000" in ahead.error["message"]
    assert RENAME in ahead.error["message"]
    assert "Deploy an image that has this revision" in ahead.error["hint"]
    assert columns(database, "parent_items") == set()


def test_an_image_with_another_newest_revision_than_the_deployment_is_refused_before_connecting() -> None:
    outcome = run(
        "upgrade", environment={"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", "MIGRATION_TARGET": "eeee"}
    )
    assert (outcome.exit_code, outcome.error["kind"]) == (2, "UnexpectedTarget")
    assert "eeee" in outcome.error["message"]
    assert RENAME in outcome.error["message"]
    assert not outcome.named("database.waiting")


def test_an_image_without_revisions_fails(database: Database, project: Project) -> None:
    empty = migrate(database, "upgrade", project=project.path)
    assert (empty.exit_code, empty.error["kind"]) == (2, "RevisionError")
    assert "has no revision files" in empty.error["message"]


def test_a_revision_that_the_image_does_not_have_is_refused_before_connecting() -> None:
    outcome = run("upgrade", "4887", environment={"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x"})
    assert (outcome.exit_code, outcome.error["kind"]) == (2, "UnknownRevision")
    assert "4887" in outcome.error["message"]
    assert not outcome.named("database.waiting")


def test_a_target_in_the_other_direction_is_refused(database: Database) -> None:
    stamp(database, RENAME)
    beyond = migrate(database, "upgrade", CREATE_ITEMS)
    assert (beyond.exit_code, beyond.error["kind"], beyond.result["at"]) == (2, "AlreadyBeyond", RENAME)


def test_merged_branches_go_up_and_back_down(database: Database, project: Project) -> None:
    for revision, parents in (("aaaa", None), ("bbbb", "aaaa"), ("cccc", "aaaa"), ("dddd", ("bbbb", "cccc"))):
        project.write(revision, parents)
    up = migrate(database, "upgrade", project=project.path)
    assert (up.exit_code, up.result["at"]) == (0, "dddd")
    assert sorted(up.result["applied"]) == ["aaaa", "bbbb", "cccc", "dddd"]
    down = migrate(database, "downgrade", "aaaa", project=project.path)
    assert (down.exit_code, down.result["at"]) == (0, "aaaa")


@pytest.mark.parametrize("arguments", [[], ["migrate"], ["downgrade"], ["upgrade", "--wait", "-1"]], ids=" ".join)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "python -m migration_runner" in capsys.readouterr().err


def test_help_tells_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out.partition("exit codes:")[2].splitlines()
    assert [int(line.split()[0]) for line in told if line] == list(ExitCode)


def on_a_terminal(*arguments: str, url: str) -> tuple[int, str]:
    """The exit code of a run, and what a person sees of it."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "migration_runner", *arguments],
        cwd=ROOT,
        env=BARE_ENVIRONMENT | {"DATABASE_URL": url},
        stdout=theirs,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        return done.returncode, terminal.read(65536).decode()


def test_on_a_terminal_a_person_reads_sentences(database: Database) -> None:
    exit_code, shown = on_a_terminal("upgrade", url=database.url)
    assert exit_code == 0
    assert f"{RENAME} rename name to sku: done in" in shown
    assert f"The schema is at {RENAME}." in shown
    assert "\033[32m" in shown
    assert "{" not in shown


def test_on_a_terminal_it_is_told_where_the_schema_is_only_when_it_was_seen(database: Database) -> None:
    assert "The schema is at base." in on_a_terminal("status", url=database.url)[1]
    exit_code, shown = on_a_terminal("upgrade", "--wait", "0", url="postgresql://nobody@127.0.0.1:1/x")
    assert exit_code == 3
    assert "The database can't be reached" in shown
    assert "The schema" not in shown
