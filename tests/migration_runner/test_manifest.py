"""The manifest says what the files say, or it is not used; only what is to be run is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from migration_runner.manifest import StaleManifestError, manifest_path
from migration_runner.revisions import (
    RevisionError,
    fingerprint,
    head,
    main,
    read_manifest,
    read_revisions,
    write_manifest,
)
from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, Project, migrate, migrate_here
from tests.migration_runner.graphs import FIXED, Graph, phased, written

# An empty version table is Alembic's first step, and changes nothing.
RELATIONS = """
SELECT oid::regclass::text FROM pg_class
WHERE relnamespace::regnamespace::text !~ '^pg_|^information_schema$' AND relname !~ '^alembic_version' ORDER BY 1
"""


def ini(project: Project) -> Path:
    return project.path / "alembic.ini"


def manifest(project: Project) -> Path:
    return Path(manifest_path(str(ini(project))))


def release(project: Project) -> Project:
    """Two revisions, and what the image's build makes of them."""
    project.write("aaaa", None, "op.execute('CREATE TABLE a ()')", "op.execute('DROP TABLE a')")
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE b ()')", "op.execute('DROP TABLE b')")
    write_manifest(ini(project))
    return project


# Written and read


def test_it_is_written_beside_the_configuration_when_the_image_is_built(project: Project) -> None:
    project.write("aaaa", None)
    done = subprocess.run(
        [sys.executable, "-m", "migration_runner.revisions", "alembic.ini"],
        cwd=project.path, env=BARE_ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "wrote alembic.manifest.json\n"
    assert read_manifest(ini(project)) == (read_revisions(ini(project)), fingerprint(read_revisions(ini(project))))


@pytest.mark.parametrize(
    ("arguments", "exit_code"), [([], 2), (["--help"], 0), (["-x"], 2), (["a.ini", "b.ini"], 2), (["nowhere.ini"], 2)]
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == exit_code
    said = capsys.readouterr()
    assert "usage: " in said.out or said.err.startswith("error: There is no nowhere.ini")


@settings(FIXED, max_examples=25)
@given(drawn=phased())
def test_of_any_project_it_says_what_the_files_say(drawn: tuple[Graph, set[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = written(Path(folder), *drawn)
        revisions = read_revisions(config)
        write_manifest(config)
        read = read_manifest(config)
        assert read is not None
        assert sorted(read[0], key=lambda one: one.revision) == sorted(revisions, key=lambda one: one.revision)
        assert (head(read[0]), read[1]) == (head(revisions), fingerprint(revisions))


@pytest.mark.parametrize("locations", [["."], ["../elsewhere"], ["migrations/versions", "v1.2"]])
def test_it_finds_the_files_wherever_they_are(project: Project, locations: list[str]) -> None:
    last = project.path / locations[-1]
    last.mkdir(exist_ok=True)
    project.write("aaaa", None).rename(last / "aaaa.py")
    given = "".join(f"\n    %(here)s/{location}" for location in locations)
    newline = f"path_separator = newline\nversion_locations ={given}"
    ini(project).write_text(ini(project).read_text().replace("path_separator = os", newline))
    write_manifest(ini(project))
    read = read_manifest(ini(project))
    assert read is not None
    assert [one.path.samefile(last / "aaaa.py") for one in read[0]] == [True]


def test_a_project_is_read_from_its_manifest_wherever_a_run_starts(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release(project)
    monkeypatch.chdir(project.path)
    here = read_manifest("alembic.ini")
    monkeypatch.chdir(tmp_path)
    assert here == read_manifest("project/alembic.ini") == read_manifest(ini(project))


def test_phase_lock_timeout_and_bridge_of_a_revision_are_read(project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", phase="expand", lock_timeout="250ms", bridge=False)
    project.write("cccc", "bbbb", phase="contract", lock_timeout="2 min", bridge=True)
    expected = [("contract", "2 min", True), ("expand", "250ms", False), ("expand", None, True)]
    assert [(one.phase, one.lock_timeout, one.bridge) for one in read_revisions(ini(project))] == expected
    write_manifest(ini(project))
    read = read_manifest(ini(project))
    assert read is not None
    assert [(one.phase, one.lock_timeout, one.bridge) for one in read[0]] == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"phase": "later"}, {"phase": ""}, {"phase": 0}, {"phase": ["expand"] * 2}, {"lock_timeout": 0},
        {"lock_timeout": 100}, {"lock_timeout": "soon"}, {"lock_timeout": "-1s"}, {"lock_timeout": "1.5s"},
        {"lock_timeout": "100ms'; DROP TABLE t; --"}, {"lock_timeout": "\u0661s"}, {"lock_timeout": "2147484s"},
        {"lock_timeout": "9" * 5000}, {"bridge": 0}, {"bridge": "False"}, {"bridge": None},
    ],
    ids=lambda wrong: ascii(wrong)[:40],
)  # fmt: skip
def test_a_wrong_phase_lock_timeout_or_bridge_is_refused_when_it_is_read(
    project: Project, wrong: dict[str, Any]
) -> None:
    project.write("aaaa", None, **wrong)
    with pytest.raises(RevisionError) as refused:
        read_revisions(ini(project))
    assert str(refused.value).startswith(f"{next(iter(wrong))} in {project.path}")
    assert "\n" not in str(refused.value)


def test_the_longest_lock_timeout_is_postgresqls(database: Database, project: Project) -> None:
    show = "op.execute(\"CREATE TABLE t AS SELECT current_setting('lock_timeout')\")"
    project.write("aaaa", None, show, lock_timeout="2147483s")
    assert migrate_here(database, "upgrade", project=project.path).exit_code == 0
    assert database.rows("SELECT * FROM t") == [("2147483s",)]


# Only what is to be run is imported


def test_a_file_of_an_applied_revision_is_not_imported(database: Database, project: Project) -> None:
    first = project.write("aaaa", None, "op.execute('CREATE TABLE a ()')")
    first.write_text(first.read_text() + "if __import__('os').environ.get('APPLIED'):\n    raise SystemExit\n")
    write_manifest(ini(project))
    assert migrate(database, "upgrade", project=project.path).exit_code == 0
    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE b ()')", "op.execute('DROP TABLE b')")
    write_manifest(ini(project))
    for command in (["upgrade"], ["status"], ["downgrade", "-1"]):
        done = migrate(database, *command, project=project.path, APPLIED="1")
        assert done.exit_code == 0, done
        assert not done.named("manifest.stale")
    # and it is, when it is taken back
    assert migrate(database, "downgrade", "base", project=project.path, APPLIED="1").exit_code == 1


@pytest.mark.parametrize("command", [("upgrade",), ("downgrade", "base")], ids=["up", "down"])
def test_a_file_that_was_edited_without_changing_its_size_ends_the_run_before_anything_has_changed(
    database: Database, project: Project, command: tuple[str, ...]
) -> None:
    release(project)
    if command != ("upgrade",):
        assert migrate_here(database, "upgrade", project=project.path).exit_code == 0
    before = database.rows(RELATIONS)
    path = project.path / "migrations" / "versions" / "aaaa_step.py"
    path.write_text(path.read_text().replace("TABLE a", "TABLE z"))
    refused = migrate_here(database, *command, project=project.path)
    assert (refused.exit_code, refused.error["kind"], refused.result["applied"]) == (2, "RevisionChanged", [])
    assert "aaaa_step.py" in refused.error["message"]
    assert database.rows(RELATIONS) == before


# Stale in every way


def versions(project: Project) -> Path:
    return project.path / "migrations" / "versions"


def cut(project: Project, to: Callable[[bytes], bytes]) -> None:
    manifest(project).write_bytes(to(manifest(project).read_bytes()))


def header(project: Project, **changed: object) -> None:
    first, _, rest = manifest(project).read_text().partition("\n")
    told = {key: value for key, value in {**json.loads(first), **changed}.items() if value is not None}
    manifest(project).write_text(f"{json.dumps(told)}\n{rest}")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def folder_in_its_place(project: Project) -> None:
    manifest(project).unlink()
    manifest(project).mkdir()


STALE: dict[str, Callable[[Project], object]] = {
    "added": lambda project: project.write("cccc", "bbbb"),
    "removed": lambda project: (versions(project) / "bbbb_step.py").unlink(),
    "renamed": lambda project: (versions(project) / "bbbb_step.py").rename(versions(project) / "b.py"),
    "edited": lambda project: append(versions(project) / "aaaa_step.py", "\n"),
    "folder": lambda project: (versions(project) / "v1.2").mkdir(),
    "ini": lambda project: append(ini(project), "\n[more]\n"),
    "toml": lambda project: (project.path / "pyproject.toml").write_text("[tool.alembic]\n"),
    "env.py": lambda project: append(project.path / "migrations" / "env.py", "\n"),
    "empty": lambda project: cut(project, lambda _: b""),
    "garbage": lambda project: cut(project, lambda _: os.urandom(2000)),
    "deep": lambda project: cut(project, lambda _: b"[" * 100_000),
    "another thing": lambda project: cut(project, lambda _: b'["alembic"]\n'),
    "a folder": folder_in_its_place,
    "cut in the first line": lambda project: cut(project, lambda told: told[:100]),
    "cut after the first line": lambda project: cut(project, lambda told: told.splitlines(keepends=True)[0]),
    "cut in the middle": lambda project: cut(project, lambda told: told[:-100]),
    "edited itself": lambda project: cut(project, lambda told: told.replace(b"step aaaa", b"step zzzz")),
    "format": lambda project: header(project, format=1),
    "no format": lambda project: header(project, format=None),
    "no head": lambda project: header(project, head=None),
    "no files": lambda project: header(project, files=5),
    "a folder that can not be": lambda project: header(project, folders={"\0": 1}),
}


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_stale_manifest_is_never_used(project: Project, change: Callable[[Project], object]) -> None:
    release(project)
    assert read_manifest(ini(project)) is not None
    change(project)
    with pytest.raises(StaleManifestError):
        read_manifest(ini(project))


@pytest.mark.parametrize("way", ["added", "removed", "edited", "env.py", "cut in the middle", "garbage"])
def test_a_run_tells_of_a_stale_manifest_and_is_right_all_the_same(
    database: Database, project: Project, way: str
) -> None:
    release(project)
    assert migrate_here(database, "upgrade", "aaaa", project=project.path).exit_code == 0
    STALE[way](project)
    done = migrate_here(database, "upgrade", project=project.path)
    newest = {"added": "cccc", "removed": "aaaa"}.get(way, "bbbb")
    assert (done.exit_code, done.result["at"]) == (0, newest)
    [told] = done.named("manifest.stale")
    assert told["hint"] == "Make it anew: python -m migration_runner.revisions alembic.ini"
    [[at]] = database.rows("SELECT version_num FROM alembic_version")
    assert at == newest


@pytest.mark.fresh
def test_without_a_manifest_it_works_the_same(database: Database, project: Project) -> None:
    release(project)
    manifest(project).unlink()
    done = migrate_here(database, "upgrade", project=project.path)
    assert (done.exit_code, done.result["applied"]) == (0, ["aaaa", "bbbb"])
    assert not done.named("manifest.stale")
