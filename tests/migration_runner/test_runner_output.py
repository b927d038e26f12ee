"""What the team's code prints and logs comes out as events, and the password never does, in any spelling."""

from __future__ import annotations

import io
import json
from urllib.parse import quote, quote_plus

from migration_runner.report import Output, Report, Result
from tests.conftest import Database
from tests.migration_runner.conftest import Project, migrate

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


def test_a_line_that_looks_like_a_result_stays_a_line_of_output() -> None:
    stream = io.StringIO()
    Output(Report(stream), None).write('{"event":"migration.result","status":"succeeded"}\n')
    assert json.loads(stream.getvalue())["event"] == "migration.output"


def test_every_line_is_ascii_so_that_no_locale_can_break_it() -> None:
    stream = io.StringIO()
    report = Report(stream)
    report.event("migration.output", "é", text="é")
    report.result(Result("upgrade"))
    assert stream.getvalue().isascii()
