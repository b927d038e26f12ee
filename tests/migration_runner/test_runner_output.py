"""What the team's code prints and logs comes out as events, and the password never does, in any spelling."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from outcome import last_words

from migration_runner.report import Report, Result, redacted
from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, Outcome, Project, migrate, run

# What teams do in env.py: print the URL in every form, and let SQLAlchemy log all that it does.
INDISCREET = """
import json, logging, sys
from urllib.parse import quote, quote_plus
given = config.get_main_option("sqlalchemy.url")
from sqlalchemy import make_url
password = make_url(given).password
print("url", given, given.replace("%", "%%"))
print("plain", password)
print("quoted", quote(password), quote(password, safe=""), quote_plus(password))
print("json", json.dumps({"password": password}), json.dumps(password, ensure_ascii=False))
print("repr", repr(password), file=sys.stderr)
logging.getLogger("alembic").info("logged %s", given)
print("not ended", end="")
"""


def spellings(password: str) -> set[str]:
    coded = {quote(password), quote(password, safe=""), quote_plus(password), quote(password, safe=" +")}
    texts = {json.dumps(password)[1:-1], json.dumps(password, ensure_ascii=False)[1:-1], repr(password)[1:-1]}
    return {password} | coded | texts | {text.replace("%", "%%") for text in coded}


def printed(outcome: Outcome) -> list[str]:
    """The lines of output, without those of Alembic's log."""
    texts = [one["text"] for one in outcome.named("migration.output")]
    return [text for text in texts if "[alembic." not in text]


def test_the_password_is_in_no_output_in_any_spelling(database: Database, project: Project) -> None:
    # given an env.py that shows what it can, with every logger at its most talkative
    env = project.path / "migrations" / "env.py"
    env.write_text(env.read_text().replace("target_metadata = None", f"target_metadata = None\n{INDISCREET}"))
    ini = project.path / "alembic.ini"
    ini.write_text(ini.read_text().replace("level = WARNING", "level = DEBUG").replace("level = WARN", "level = DEBUG"))
    project.write("aaaa", None, "print('half done'); op.execute('SELECT nosuch')")
    # when a migration fails in it
    failed = migrate(database, "upgrade", project=project.path)
    # then every line is an event, and what was printed is there
    printed = [one["text"] for one in failed.named("migration.output")]
    assert failed.error["kind"] == "UndefinedColumn"
    assert failed.errors == ""
    assert "half done" in printed
    assert any(line.startswith("not ended") for line in printed)
    assert "plain ***" in printed
    assert any("alembic" in line and "Running upgrade" in line for line in printed)
    assert any("sqlalchemy.engine" in line and "SELECT nosuch" in line for line in printed)
    # but the password is not, neither in the lines nor in what they stand for
    for spelling in spellings(database.password):
        assert spelling not in failed.output
        assert not any(spelling in line for line in printed)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ('syntax error at or near "hunter2"', 'syntax error at or near "***"'),
        ("syntax error at or near \"'Secret'\"", "syntax error at or near \"'***'\""),
        ("Syntaxfehler bei »secret«", "Syntaxfehler bei »***«"),
        ("column HUNTER2@secret.x does not exist", "column *** does not exist"),
        ('column "name" of relation "secrets"', 'column "name" of relation "secrets"'),
        ("secret", "secret"),
        ('"s"', '"s"'),
    ],
)
def test_a_part_of_the_password_is_hidden_where_a_message_quotes_it(message: str, shown: str) -> None:
    assert redacted(message, "hunter2@Secret.x") == shown
    assert redacted(message, "") == message


def test_the_password_in_an_error_of_postgresql_does_not_reach_the_result(database: Database, project: Project) -> None:
    for password, shown in (("hunter2secret", "***"), ("hunter2@secret", "***"), ("4@b", "4")):
        database.rows(f"ALTER ROLE {database.user} PASSWORD '{password}'")
        database = replace(database, password=password)
        project.write("aaaa", None, f"op.execute('ALTER ROLE app PASSWORD {password}')")
        failed = migrate(database, "upgrade", project=project.path)
        assert failed.error["message"] == f'syntax error at or near "{shown}"'
        assert "hunter2" not in failed.output


def test_a_password_beside_the_url_is_hidden_as_well(database: Database, project: Project) -> None:
    project.write("aaaa", None, "raise ValueError('cAnArY')")
    database.rows(f"ALTER ROLE {database.user} PASSWORD 'cAnArY'")
    address = f"postgresql://{database.user}@{database.host}:{database.port}/{database.name}"
    for settings in (
        {"DATABASE_URL": f"{address}?password=cAnArY"},
        {"DATABASE_URL": address, "PGPASSWORD": "cAnArY"},
    ):
        assert run("upgrade", project=project.path, environment=settings).error["message"] == "***"


def test_a_password_that_a_migration_writes_into_its_sql_is_hidden_in_a_plan(
    database: Database, project: Project
) -> None:
    project.write("aaaa", None, "import os; op.execute('COMMENT ON TABLE t IS $$' + os.environ['DATABASE_URL'] + '$$')")
    for form in ([], ["--output-format", "json"]):
        plan = migrate(database, "plan", *form, project=project.path)
        assert plan.exit_code == 0
        assert "COMMENT ON TABLE t" in plan.output
        assert not any(spelling in plan.output for spelling in spellings(database.password))


def test_a_password_from_a_file_of_libpqs_is_hidden_as_well(
    database: Database, project: Project, tmp_path: Path
) -> None:
    database.rows(f"ALTER ROLE {database.user} PASSWORD 'cAnArYcAnArY'")
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:*:cAnArYcAnArY\n")
    file.chmod(0o600)
    project.write("aaaa", None, "op.execute('ALTER ROLE app PASSWORD cAnArYcAnArY')")
    address = f"postgresql://{database.user}@{database.host}:{database.port}/{database.name}"
    failed = run("upgrade", project=project.path, environment={"DATABASE_URL": address, "PGPASSFILE": str(file)})
    assert failed.error["message"] == 'syntax error at or near "***"'


# Every way past print(): descriptors, buffers, child processes, and what was bound before the run began.
PAST_PRINT = """
import os, subprocess, sys
from urllib.parse import unquote
from alembic import context
from sqlalchemy import make_url
password = make_url(context.config.get_main_option("sqlalchemy.url")).password
subprocess.run(["echo", "child", password], stdout=sys.stdout)
subprocess.run(["sh", "-c", "echo error $0 >&2", password])
os.system("echo system")
os.write(1, b"descriptor " + password.encode() + b"\\n")
sys.stdout.buffer.write(b"not UTF-8: \\xff\\n")
sys.stdout.flush()
sys.__stdout__.write("first of all\\n")
context.config.print_stdout("Alembic's")
print('{"event":"migration.result","status":"succeeded"}')
print("not ended", end="")
"""


def test_whatever_way_a_line_is_written_it_becomes_an_event_at_its_place(database: Database, project: Project) -> None:
    project.write("aaaa", None, f"exec({PAST_PRINT!r})")
    done = migrate(database, "upgrade", project=project.path)
    assert (done.exit_code, done.errors) == (0, "")
    assert [one.get("text", one["event"]) for one in done.events if "[alembic." not in one.get("text", "")] == [
        "migration.started",
        "migration.revision_started",
        "child ***",
        "error ***",
        "system",
        "descriptor ***",
        "not UTF-8: \\xff",
        "first of all",
        "Alembic's",
        '{"event":"migration.result","status":"succeeded"}',
        "not ended",
        "migration.revision",
        "migration.result",
    ]


def test_a_run_that_is_killed_has_told_where_it_began(database: Database, project: Project) -> None:
    # given a schema at aaaa
    project.write("aaaa", None)
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    # when the second of two more revisions is killed
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE t ()')")
    project.write("cccc", "bbbb", "import os; os.kill(os.getpid(), 9)")
    killed = migrate(database, "upgrade", project=project.path)
    # then there is no result, and the trigger reads where it began
    assert (killed.exit_code, killed.named("migration.result")) == (-signal.SIGKILL, [])
    assert last_words(killed.output.splitlines()) == {"from": "aaaa"}


def test_neither_much_output_nor_a_child_that_lives_on_holds_a_run_up(database: Database, project: Project) -> None:
    # given a migration that writes more than a pipe takes, and leaves a process that shares its output
    much = 'os.write(2, b"x" * 1_000_000 + b"\\n"); print(subprocess.Popen(["sleep", "90"]).pid)'
    project.write("aaaa", None, f"import os, subprocess; {much}")
    # when it is run, then it ends before that process
    done = migrate(database, "upgrade", project=project.path)
    long, child = printed(done)
    os.kill(int(child), signal.SIGKILL)
    assert (done.exit_code, len(long), done.result["at"]) == (0, 1_000_000, "aaaa")


def test_nothing_comes_after_the_result(database: Database, project: Project) -> None:
    chatter = "atexit.register(os.system, 'echo late'); os.system('while echo y; do sleep 0.01; done &')"
    project.write("aaaa", None, f"import atexit, os; {chatter}")
    done = migrate(database, "upgrade", project=project.path)
    assert done.exit_code == 0
    assert done.result["status"] == "succeeded"
    assert set(printed(done)) <= {"y"}


@pytest.mark.parametrize("to", ["| head -n 1", "| true", ">&-", ">&- 2>&- <&-", ">/dev/full"])
def test_a_run_goes_on_when_nobody_listens_and_its_exit_code_is_true(
    database: Database, project: Project, to: str
) -> None:
    project.write("aaaa", None, "print('aaaa'); op.execute('CREATE TABLE t (x int)'); import os; os.system('echo')")
    project.write("bbbb", "aaaa", "op.execute('SELECT nosuch FROM t')")
    for target, exit_code in (("aaaa", 0), ("bbbb", 1)):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {sys.executable} -m migration_runner upgrade {target} {to}"],
            cwd=project.path,
            env=BARE_ENVIRONMENT | {"DATABASE_URL": database.url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (exit_code, "")
    assert database.rows("SELECT version_num FROM alembic_version") == [("aaaa",)]


@pytest.mark.parametrize(
    ("upgrade", "line", "revision"),
    [
        ("op.execute('CREATE TABLE t ()'); print('begun'); __import__('time').sleep(60)", "begun", "aaaa"),
        (None, "database.waiting", None),
    ],
    ids=["in a migration", "while it waits"],
)
def test_ctrl_c_ends_a_run_with_a_result(
    database: Database, project: Project, upgrade: str | None, line: str, revision: str | None
) -> None:
    # given a run that takes its time
    project.write("aaaa", None, upgrade or "pass")
    url = database.url if upgrade else "postgresql://nobody@127.0.0.1:1/x"
    with subprocess.Popen(
        [sys.executable, "-m", "migration_runner", "upgrade"],
        cwd=project.path,
        env=BARE_ENVIRONMENT | {"DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as runner:
        assert runner.stdout
        assert runner.stderr
        try:
            # when it is interrupted there
            while line not in runner.stdout.readline():
                assert runner.poll() is None
            runner.send_signal(signal.SIGINT)
            # then it says so, and nothing stays half done
            result = json.loads(runner.stdout.readlines()[-1])
            assert (runner.wait(30), runner.stderr.read()) == (130, "")
        finally:
            runner.kill()
    assert (result["error"]["kind"], result["error"]["revision"], result["applied"]) == ("Interrupted", revision, [])
    assert database.rows("SELECT 1 FROM pg_tables WHERE tablename = 't'") == []


def test_every_line_is_ascii_so_that_no_locale_can_break_it() -> None:
    stream = io.StringIO()
    report = Report(stream)
    report.event("migration.output", "é", text="é")
    report.result(Result("upgrade"))
    assert stream.getvalue().isascii()
