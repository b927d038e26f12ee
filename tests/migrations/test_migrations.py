"""The inventory's own migrations: the schema they make, the data they keep, and Alembic's commands at a shell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg2
import pytest
from alembic.config import main as alembic

from migration_runner.revisions import read_revisions
from tests.conftest import Database
from tests.migration_runner.conftest import migrate

ROOT = Path(__file__).parents[2]
CREATE_ITEMS, RENAME = "48871d03964b", "49871d03964c"
ALEMBIC = Path(sys.executable).with_name("alembic")


@pytest.fixture
def shell(database: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The `alembic` command, in the project's folder and with DATABASE_URL."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATABASE_URL", database.url)
    # Alembic adds the project's folder, and must not leave it behind.
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda *arguments: alembic(arguments, prog="alembic")


def column_types(database: Database) -> set[tuple[object, ...]]:
    return set(
        database.rows(
            "SELECT table_name, column_name, data_type, is_nullable, character_maximum_length "
            "FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        )
    )


def constraints(database: Database) -> set[tuple[object, ...]]:
    return set(
        database.rows(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid IN ('parent_items'::regclass, 'child_items'::regclass) AND contype <> 'n'"
        )
    )


def test_the_items_are_made_as_an_inventory_has_them(database: Database, shell: Callable[..., None]) -> None:
    shell("upgrade", CREATE_ITEMS)
    times = {
        (table, column, "timestamp with time zone", "NO", None)
        for table in ("parent_items", "child_items")
        for column in ("created_at", "updated_at")
    }
    assert column_types(database) == times | {
        ("parent_items", "id", "bigint", "NO", None),
        ("parent_items", "name", "character varying", "NO", 120),
        ("child_items", "id", "bigint", "NO", None),
        ("child_items", "parent_id", "bigint", "NO", None),
        ("child_items", "name", "character varying", "NO", 120),
        ("child_items", "quantity", "integer", "NO", None),
    }
    assert constraints(database) == {
        ("pk_parent_items", "PRIMARY KEY (id)"),
        ("uq_parent_items", "UNIQUE (name)"),
        ("pk_child_items", "PRIMARY KEY (id)"),
        ("uq_child_items", "UNIQUE (parent_id, name)"),
        ("fk_child_items_parent_items", "FOREIGN KEY (parent_id) REFERENCES parent_items(id) ON DELETE CASCADE"),
        ("ck_child_items_quantity", "CHECK ((quantity >= 0))"),
    }


def test_the_rename_changes_two_columns_and_no_constraints_name(database: Database, shell: Callable[..., None]) -> None:
    shell("upgrade", CREATE_ITEMS)
    columns, names = column_types(database), {name for name, _ in constraints(database)}
    shell("upgrade", RENAME)
    assert {(table, {"name": "sku"}.get(str(column), column), *rest) for table, column, *rest in columns} == (
        column_types(database)
    )
    assert {name for name, _ in constraints(database)} == names
    # and back: nothing of it is left
    shell("downgrade", CREATE_ITEMS)
    assert column_types(database) == columns


def test_a_parent_takes_its_children_along_and_a_quantity_is_never_negative(
    database: Database, shell: Callable[..., None]
) -> None:
    shell("upgrade", "head")
    database.rows("INSERT INTO parent_items (sku) VALUES ('bolt')")
    database.rows("INSERT INTO child_items (parent_id, sku) SELECT id, 'nut' FROM parent_items")
    assert database.rows("SELECT quantity, created_at = updated_at FROM child_items") == [(0, True)]
    with pytest.raises(psycopg2.errors.CheckViolation):
        database.rows("UPDATE child_items SET quantity = -1")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        database.rows("INSERT INTO child_items (parent_id, sku) SELECT parent_id, sku FROM child_items")
    database.rows("DELETE FROM parent_items")
    assert database.rows("SELECT 1 FROM child_items") == []


def test_the_models_are_what_the_migrations_make(shell: Callable[..., None]) -> None:
    shell("upgrade", "head")
    # ends the process with an error when there is anything to generate
    shell("check")


def test_the_command_of_a_shell_needs_nothing_but_the_url(database: Database, shell: Callable[..., None]) -> None:
    shell("upgrade", CREATE_ITEMS)
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": database.url}
    for command, shown in (
        ("current", f"{CREATE_ITEMS}\n"),
        ("history", f"{CREATE_ITEMS} -> {RENAME} (head), rename name to sku\n<base> -> {CREATE_ITEMS}, create items\n"),
    ):
        done = subprocess.run([ALEMBIC, command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (shown, "")


def test_a_new_revision_is_generated_from_the_models_and_is_clean(
    database: Database, shell: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a copy of the project, whose database lacks a constraint
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    shell("upgrade", "head")
    database.rows("ALTER TABLE parent_items DROP CONSTRAINT uq_parent_items, ADD COLUMN note text")
    # when a revision is generated
    shell("revision", "--autogenerate", "-m", "unique again", "--rev-id", "aaaabbbbcccc")
    # then the project's own rules find nothing in it, it repairs the schema, and synth can read it
    lint: list[str | Path] = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--config",
        ROOT / "pyproject.toml",
        "migrations/versions",
    ]
    assert subprocess.run(lint, capture_output=True, text=True, check=False).stdout == "All checks passed!\n"
    shell("upgrade", "head")
    assert ("uq_parent_items", "UNIQUE (sku)") in constraints(database)
    newest = read_revisions("alembic.ini")[0]
    assert (newest.revision, newest.down_revisions, newest.message) == ("aaaabbbbcccc", (RENAME,), "unique again")
    shell("downgrade", "-1")
    assert ("uq_parent_items", "UNIQUE (sku)") not in constraints(database)


def test_sql_is_written_without_a_database(
    shell: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATABASE_URL")
    shell("upgrade", "head", "--sql")
    sql = capsys.readouterr().out
    assert "ALTER TABLE parent_items RENAME name TO sku;" in sql
    assert sql.count("BEGIN;") == sql.count("COMMIT;") == 2


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "Set DATABASE_URL to the database to work on"),
        ("mysql://u:cAnArY@h/d", "DATABASE_URL can't be read"),
        ("postgresql://u:p@h:cAnArY/d", "DATABASE_URL can't be read"),
    ],
)
def test_a_url_that_can_not_be_used_is_one_sentence(
    shell: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    sentence: str,
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(SystemExit):
        shell("current")
    said = "".join(capsys.readouterr())
    assert said.startswith(f"FAILED: {sentence}")
    assert said.count("\n") == 1
    assert "cAnArY" not in said


def test_autogenerate_finds_nothing_to_do_while_a_rename_is_open(
    database: Database, shell: Callable[..., None]
) -> None:
    shell("upgrade", CREATE_ITEMS)
    outcome = migrate(database, "upgrade", "--contract-follows")
    assert outcome.result["open"] == ["parent_items.name -> sku", "child_items.name -> sku"]
    shell("check")
    # and compares again once the contract has run
    assert migrate(database, "contract").exit_code == 0
    database.rows("ALTER TABLE parent_items DROP COLUMN updated_at")
    with pytest.raises(SystemExit):
        shell("check")
