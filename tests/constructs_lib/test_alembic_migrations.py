from __future__ import annotations

from pathlib import Path

import pytest

from constructs_lib import AlembicMigrations
from tests.constructs_lib.projects import alembic_project

CHAIN = {"aaa": None, "bbb": "aaa", "ccc": "bbb"}


def test_a_person_reads_the_revisions_newest_first(tmp_path: Path) -> None:
    migrations = AlembicMigrations(alembic_project(tmp_path, CHAIN, message="rename name to sku"))
    assert migrations.descriptions == ["ccc rename name to sku", "bbb rename name to sku", "aaa rename name to sku"]
    assert migrations.target == "ccc"


def test_a_description_is_at_most_100_characters_long_and_ascii_as_cloudformation_gives_it_back(tmp_path: Path) -> None:
    def description(message: str) -> str:
        (one,) = AlembicMigrations(alembic_project(tmp_path, {"aaa": None}, message=message)).descriptions
        return one

    assert description("x" * 96) == "aaa " + "x" * 96
    assert description("x" * 97) == "aaa " + "x" * 93 + "..."
    assert description("größer → 漢😀") == "aaa gr??er ? ??"
    assert description(r"\ud800") == "aaa ?"


def test_contract_revisions_are_listed_apart_and_those_at_the_end_may_be_left(tmp_path: Path) -> None:
    chain = {**CHAIN, "ddd": "ccc", "eee": "ddd"}
    migrations = AlembicMigrations(alembic_project(tmp_path, chain, contract=["bbb", "ddd", "eee"]))
    assert migrations.descriptions == ["ccc change things", "aaa change things"]
    assert migrations.contract_descriptions == ["eee change things", "ddd change things", "bbb change things"]
    assert (migrations.target, migrations.targets) == ("eee", ["ccc", "ddd", "eee"])


def test_without_contract_revisions_at_the_end_the_head_is_the_only_target(tmp_path: Path) -> None:
    assert AlembicMigrations(alembic_project(tmp_path / "1", CHAIN)).targets == ["ccc"]
    assert AlembicMigrations(alembic_project(tmp_path / "2", CHAIN, contract=["bbb"])).targets == ["ccc"]


def test_the_fingerprint_is_the_same_wherever_the_project_lies(tmp_path: Path) -> None:
    one, other = (alembic_project(tmp_path / name, CHAIN) for name in ("one", "other"))
    assert AlembicMigrations(one).fingerprint == AlembicMigrations(other).fingerprint


def test_the_fingerprint_changes_when_a_revision_is_added_edited_or_moved(tmp_path: Path) -> None:
    projects = {
        "as it was": alembic_project(tmp_path / "1", CHAIN),
        "added": alembic_project(tmp_path / "2", {**CHAIN, "ddd": "ccc"}),
        "edited": alembic_project(tmp_path / "3", CHAIN, message="change other things"),
        "marked": alembic_project(tmp_path / "5", CHAIN, contract=["ccc"]),
        "moved": alembic_project(tmp_path / "4", {"bbb": None, "aaa": "bbb", "ccc": "aaa"}),
    }
    assert len({AlembicMigrations(config).fingerprint for config in projects.values()}) == len(projects)


def test_what_only_surrounds_the_revisions_leaves_the_fingerprint(tmp_path: Path) -> None:
    config = alembic_project(tmp_path, CHAIN)
    before = AlembicMigrations(config).fingerprint
    (tmp_path / "migrations" / "env.py").write_text("raise SystemExit('never imported')")
    assert AlembicMigrations(config).fingerprint == before


@pytest.mark.parametrize(
    ("revisions", "names"),
    [
        ({}, ["no revision"]),
        ({"aaa": None, "bbb": "aaa", "ccc": "aaa"}, ["2 heads", "bbb", "ccc"]),
        ({"aaa": None, "bbb": "zzz"}, ["bbb", "zzz"]),
        ({"aaa": "bbb", "bbb": "aaa"}, ["cycle"]),
    ],
    ids=["none", "two heads", "broken chain", "cycle"],
)
def test_revisions_that_can_not_be_migrated_to_are_refused(
    tmp_path: Path, revisions: dict[str, str | None], names: list[str]
) -> None:
    config = alembic_project(tmp_path, revisions)
    with pytest.raises(ValueError, match=names[0]) as refusal:
        AlembicMigrations(config)
    assert all(name in str(refusal.value) for name in names)
    assert "\n" not in str(refusal.value)


def test_a_project_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no .*alembic\.ini"):
        AlembicMigrations(tmp_path / "alembic.ini")
