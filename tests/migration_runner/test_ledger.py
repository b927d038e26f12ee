"""What others have done to the schema, or to an applied file, is noticed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, Project
from tests.migration_runner.processes import upgrade

RECORDED = "SELECT revision FROM migration_runner.applied ORDER BY revision"


def alembic(database: Database, project: Project, *arguments: str) -> None:
    """Alembic as a person runs it, with a file that says where the database is."""
    ini = project.path / "alembic.ini"
    by_hand = project.path / "by_hand.ini"
    url = database.url.replace("postgresql:", "postgresql+psycopg2:").replace("%", "%%")
    by_hand.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", url))
    subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(by_hand), *arguments],
        env=BARE_ENVIRONMENT,
        check=True,
        capture_output=True,
    )


def applied_to_bbbb(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE b ()')", "op.execute('DROP TABLE b')")
    assert upgrade(database, project.path).exit_code == 0
    assert database.rows(RECORDED) == [("aaaa",), ("bbbb",)]


# P17
def test_a_migration_by_hand_is_named_and_the_run_goes_on_from_there(database: Database, project: Project) -> None:
    applied_to_bbbb(database, project)
    project.write("cccc", "bbbb", "op.execute('CREATE TABLE c ()')")
    project.write("dddd", "cccc", "op.execute('CREATE TABLE d ()')")
    alembic(database, project, "upgrade", "cccc")
    outcome = upgrade(database, project.path)
    assert (outcome.exit_code, outcome.result["from"], outcome.result["applied"]) == (0, "cccc", ["dddd"])
    foreign = {"event": "migration.foreign", "applied": ["cccc"], "taken_back": []}
    assert outcome.named("migration.foreign") == [foreign]
    assert database.rows(RECORDED) == [("aaaa",), ("bbbb",), ("cccc",), ("dddd",)]
    assert upgrade(database, project.path).named("migration.foreign") == []


# P17
def test_a_downgrade_by_hand_is_named_and_done_again(database: Database, project: Project) -> None:
    applied_to_bbbb(database, project)
    alembic(database, project, "downgrade", "aaaa")
    outcome = upgrade(database, project.path)
    assert (outcome.exit_code, outcome.result["applied"]) == (0, ["bbbb"])
    foreign = {"event": "migration.foreign", "applied": [], "taken_back": ["bbbb"]}
    assert outcome.named("migration.foreign") == [foreign]
    assert database.rows(RECORDED) == [("aaaa",), ("bbbb",)]


# P17
def test_a_stamp_by_hand_is_named_and_believed(database: Database, project: Project) -> None:
    applied_to_bbbb(database, project)
    project.write("cccc", "bbbb", "op.execute('CREATE TABLE c ()')")
    alembic(database, project, "stamp", "cccc")
    outcome = upgrade(database, project.path)
    assert (outcome.exit_code, outcome.result["at"], outcome.result["applied"]) == (0, "cccc", [])
    assert [one["applied"] for one in outcome.named("migration.foreign")] == [["cccc"]]
    assert database.rows(RECORDED) == [("aaaa",), ("bbbb",), ("cccc",)]


# P17
def test_a_file_that_was_edited_after_it_was_applied_is_named_each_time(database: Database, project: Project) -> None:
    applied_to_bbbb(database, project)
    project.write("aaaa", None, "op.execute('CREATE TABLE a ()')")
    for _ in range(2):
        outcome = upgrade(database, project.path)
        assert (outcome.exit_code, outcome.result["at"]) == (0, "bbbb")
        edited = {"event": "migration.edited", "revision": "aaaa", "file": "aaaa_step.py"}
        assert outcome.named("migration.edited") == [edited]


@pytest.mark.fresh
def test_a_schema_that_alembic_has_made_is_taken_over(database: Database, project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa")
    alembic(database, project, "upgrade", "aaaa")
    outcome = upgrade(database, project.path)
    assert (outcome.exit_code, outcome.result["applied"]) == (0, ["bbbb"])
    assert outcome.named("migration.adopted") == [{"event": "migration.adopted", "revisions": 1}]
    assert outcome.named("migration.foreign") == []
    assert database.rows(RECORDED) == [("aaaa",), ("bbbb",)]
