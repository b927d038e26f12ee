"""Revision files are read as Alembic reads them, and every way in which they can't be used is one sentence."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from migration_runner.revisions import RevisionError, expand_target, fingerprint, head, lineage, read_revisions
from tests.migration_runner.conftest import ROOT, Project, revision


def error_of(config: Path) -> str:
    with pytest.raises(RevisionError) as refused:
        read_revisions(config)
    message = str(refused.value)
    assert "\n" not in message
    return message


def assert_as_alembic_sees_it(config: Path) -> None:
    ours = read_revisions(config)
    script = ScriptDirectory.from_config(Config(str(config)))
    theirs = list(script.walk_revisions())
    assert {one.revision for one in ours} == {one.revision for one in theirs}
    assert head(ours) == script.get_current_head()
    position = {one.revision: index for index, one in enumerate(ours)}
    for one in theirs:
        mine = ours[position[one.revision]]
        assert set(mine.down_revisions) == set(one._versioned_down_revisions)
        assert set(mine.depends_on) == set(one._resolved_dependencies)
        assert all(position[parent] > position[one.revision] for parent in one._all_down_revisions)


def test_this_projects_revisions_are_read_newest_first() -> None:
    newest, oldest = read_revisions(ROOT / "alembic.ini")
    assert (newest.revision, newest.down_revisions, newest.depends_on) == ("49871d03964c", ("48871d03964b",), ())
    assert (newest.message, oldest.message) == ("rename name to sku", "create items")
    assert newest.checksum == hashlib.sha256(newest.path.read_bytes()).hexdigest()
    assert oldest.down_revisions == ()
    assert_as_alembic_sees_it(ROOT / "alembic.ini")


def test_branches_merges_and_dependencies_are_read_as_alembic_reads_them(project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", branch_labels=("left",))
    project.write("cccc", ("aaaa",))
    project.write("dddd", "cccc", depends_on="left")
    project.write("eeee", ["bbbb", "dddd"], depends_on=("cccc",))
    assert_as_alembic_sees_it(project.path / "alembic.ini")


def test_the_order_of_independent_branches_does_not_depend_on_the_file_system(project: Project) -> None:
    names = ["bbbb", "dddd", "cccc"]
    project.write("aaaa", None)
    for name in names:
        project.write(name, "aaaa")
    project.write("eeee", names)
    orders = [[one.revision for one in read_revisions(project.path / "alembic.ini")]]
    for index, name in enumerate(names):
        (project.path / "migrations/versions" / f"{name}_step.py").rename(
            project.path / f"migrations/versions/{index}.py"
        )
    orders.append([one.revision for one in read_revisions(project.path / "alembic.ini")])
    assert orders[0] == orders[1]


def test_what_a_schema_has_been_through_includes_its_dependencies(project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", None)
    project.write("cccc", "aaaa", depends_on="bbbb")
    project.write("dddd", ("cccc", "bbbb"))
    revisions = read_revisions(project.path / "alembic.ini")
    assert lineage(revisions, ["cccc"]) == {"aaaa", "bbbb", "cccc"}
    assert lineage(revisions, []) == set()


@pytest.mark.parametrize(
    ("phases", "been", "expected"),
    [
        ("e", "", "0"),
        ("ee", "", "1"),
        ("ec", "", "0"),
        ("ecec", "", "2"),
        ("ecc", "", "0"),
        ("ecc", "01", "1"),
        ("ecc", "012", "2"),
        ("eccce", "", "4"),
    ],
)
def test_the_target_of_an_upgrade_leaves_out_the_contract_revisions_at_the_end(
    phases: str, been: str, expected: str
) -> None:
    line = [
        revision(str(at), *([str(at - 1)] if at else []), phase={"c": "contract", "e": "expand"}[phase])
        for at, phase in enumerate(phases)
    ]
    assert expand_target(line[::-1], been) == expected


def test_a_revision_of_another_phase_is_another_one() -> None:
    line = [revision("bbbb", "aaaa"), revision("aaaa")]
    assert fingerprint(line) != fingerprint([revision("bbbb", "aaaa", phase="contract"), revision("aaaa")])


def test_a_file_without_a_docstring_is_told_by_its_name(project: Project) -> None:
    path = project.write("aaaa", None)
    path.write_text("revision = 'aaaa'\ndown_revision = None\n")
    path.rename(path.with_name("aaaa_add_the_price.py"))
    assert read_revisions(project.path / "alembic.ini")[0].message == "add the price"


@pytest.mark.parametrize(("separator", "between"), [("os", os.pathsep), ("space", " "), ("newline", "\n"), (";", ";")])
def test_versions_may_live_in_several_folders(project: Project, separator: str, between: str) -> None:
    # given a second folder, that also overlaps with the first
    project.write("aaaa", None)
    folders = [project.path / "more", project.path / "migrations" / "versions"]
    folders[0].mkdir()
    project.write("bbbb", "aaaa").rename(folders[0] / "bbbb_step.py")
    locations = between.join(["%(here)s/more", "%(here)s/migrations/versions"]).replace("\n", "\n  ")
    ini = project.path / "alembic.ini"
    ini.write_text(
        f"[alembic]\nscript_location = %(here)s/migrations\nversion_locations = {locations}\n"
        f"path_separator = {separator}\n"
    )
    assert_as_alembic_sees_it(ini)


def test_folders_below_the_versions_count_only_when_alembic_is_told_so(project: Project) -> None:
    project.write("aaaa", None)
    below = project.path / "migrations/versions/2026"
    below.mkdir()
    project.write("bbbb", "aaaa").rename(below / "bbbb_step.py")
    ini = project.path / "alembic.ini"
    assert_as_alembic_sees_it(ini)
    ini.write_text(ini.read_text().replace("[alembic]", "[alembic]\nrecursive_version_locations = true"))
    assert head(read_revisions(ini)) == "bbbb"
    assert_as_alembic_sees_it(ini)


def test_a_relative_location_starts_at_the_working_directory(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("aaaa", None)
    ini = project.path / "alembic.ini"
    ini.write_text("[alembic]\nscript_location = project/migrations\n")
    monkeypatch.chdir(tmp_path)
    assert_as_alembic_sees_it(ini)
    monkeypatch.chdir(project.path)
    assert "project/migrations/versions" in error_of(ini)


def test_files_are_never_imported_and_only_the_standard_library_is(project: Project) -> None:
    path = project.write("aaaa", None)
    path.write_text(path.read_text() + "\nraise SystemExit('imported')\n")
    program = (
        "import sys; from migration_runner import revisions; print(revisions.read_revisions(sys.argv[1])[0].revision)"
    )
    isolated = [sys.executable, "-S", "-c", program, str(project.path / "alembic.ini")]
    done = subprocess.run(isolated, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "aaaa\n"


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "alembic.ini").startswith(f"There is no {tmp_path}/alembic.ini")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has no script_location"),
        ("[alembic]\n", "has no script_location"),
        ("script_location = x\n", "can't be read: File contains no section headers."),
        ("[alembic]\nscript_location = %(nowhere)s\n", "can't be read: Bad value substitution"),
        ("[alembic]\nscript_location = package:migrations\n", "names the package package:migrations"),
        ("[alembic]\nscript_location = x\npath_separator = comma\n", "is 'comma', but must be one of os, space"),
        ("[alembic]\nscript_location = nowhere\n", "has no revision files: none in nowhere/versions."),
    ],
)
def test_a_configuration_that_can_not_be_used_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    ini = tmp_path / "alembic.ini"
    ini.write_text(content)
    message = error_of(ini)
    assert str(ini) in message
    assert sentence in message


def two_heads(project: Project) -> None:
    project.write("bbbb", "aaaa")
    project.write("cccc", "aaaa")


def twins(project: Project) -> None:
    project.write("aaaa", None).rename(project.path / "migrations/versions/copy.py")
    project.write("aaaa", None)


def cycle(project: Project) -> None:
    project.write("bbbb", "cccc")
    project.write("cccc", "bbbb")
    project.write("dddd", ("aaaa", "cccc"))


def labels(name: str) -> Callable[[Project], None]:
    def write(project: Project) -> None:
        project.write("bbbb", "aaaa", branch_labels=name)
        project.write("cccc", "bbbb", branch_labels=(name,))

    return write


def content(text: str) -> Callable[[Project], None]:
    def write(project: Project) -> None:
        (project.path / "migrations/versions/odd.py").write_text(text)

    return write


def folder(project: Project) -> None:
    (project.path / "migrations/versions/odd.py").mkdir()


def link(to: str) -> Callable[[Project], None]:
    return lambda project: (project.path / "migrations/versions/odd.py").symlink_to(to)


@pytest.mark.parametrize(
    ("break_it", "sentences"),
    [
        (two_heads, ["has 2 heads, bbbb (bbbb_step.py) and cccc (cccc_step.py)", "`alembic merge bbbb cccc`"]),
        (twins, ["aaaa_step.py and ", "copy.py have the same revision id, aaaa."]),
        (cycle, ["bbbb", "cccc", "form a cycle"]),
        (lambda project: project.write("bbbb", "zzzz"), ["bbbb_step.py comes after zzzz, but no file has"]),
        (lambda project: project.write("bbbb", "aaa"), ["bbbb_step.py comes after aaa, but no file has"]),
        (lambda project: project.write("bbbb", "aaaa", depends_on="zzzz"), ["comes after zzzz, but no file has"]),
        (lambda project: project.write("bbbb", "bbbb"), ["bbbb -> bbbb form a cycle"]),
        (labels("left"), ["cccc_step.py has the branch label left, but another revision has this name."]),
        (labels("aaaa"), ["bbbb_step.py has the branch label aaaa, but another revision has this name."]),
        (content("revision = 'x'\ndown_revision = None\nphase = 'contract'\n"),
         ["odd.py is the first revision, and no contract revision can be: remove its phase."]),
        (content("revision = 'x'\ndown_revision = ('aaaa', 'bbbb')\nphase = 'contract'\n"),
         ["odd.py joins aaaa and bbbb, and no contract revision can: remove its phase, and write"]),
        (content("revision = 'x'\n"), ["odd.py does not set down_revision"]),
        (content("print('a helper')\n"), ["odd.py does not set revision"]),
        (content("revision = 'x'\n\ndef (\n"), ["odd.py, line 3 is not valid Python."]),
        (content("revision = 'x'\0"), ["odd.py is not valid Python."]),
        (content(f"revision = 'x'\nx = {'1+' * 100_000}1\n"), ["odd.py is nested too deeply"]),
        (content(f"revision = 'x'\nx = {'-' * 100_000}1\n"), ["odd.py is nested too deeply"]),
        (folder, ["odd.py can't be read: Is a directory."]),
        (link("nowhere.py"), ["odd.py can't be read: No such file or directory."]),
        (link("odd.py"), ["odd.py can't be read: Too many levels of symbolic links."]),
        (content("revision = new_id()\ndown_revision = None\n"), ["revision in", "odd.py is computed"]),
        (content("revision = {[]: 1}\ndown_revision = None\n"), ["revision in", "odd.py is computed"]),
        (content("revision = 5\ndown_revision = None\n"), ["revision in", "odd.py must be a string"]),
        (content("revision = None\ndown_revision = None\n"), ["odd.py must be one id, as a string."]),
        (content("revision = 'x'\ndown_revision = {'aaaa': 1}\n"), ["down_revision in", "must be a string"]),
    ],
)  # fmt: skip
def test_files_that_can_not_be_used_are_named_with_what_is_wrong(
    project: Project, break_it: Callable[[Project], object], sentences: list[str]
) -> None:
    project.write("aaaa", None)
    break_it(project)
    message = error_of(project.path / "alembic.ini")
    for sentence in sentences:
        assert sentence in message


def test_types_on_the_assignments_are_understood(project: Project) -> None:
    project.write("aaaa", None)
    content("revision: str = 'x'\ndown_revision: str | None = 'aaaa'\ndepends_on: str | None\n")(project)
    assert head(read_revisions(project.path / "alembic.ini")) == "x"
