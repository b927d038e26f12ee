"""Which revision a command ends at; decided without a database."""

from __future__ import annotations

from pathlib import Path

import pytest

from migration_runner.errors import RunError
from migration_runner.target import Request, check_request, destination
from tests.migration_runner.conftest import revision

# A line of two, a fork, and its merge: newest first.
REVISIONS = [
    revision("merge", "left", "right"),
    revision("right", "second"),
    revision("left", "second"),
    revision("second", "first"),
    revision("first"),
]


def request(command: str, target: str | None = None) -> Request:
    return Request(command, Path("alembic.ini"), 0, target)


@pytest.mark.parametrize(
    ("command", "target", "current", "expected"),
    [
        ("upgrade", None, [], "merge"),
        ("upgrade", "head", ["first"], "merge"),
        ("upgrade", "second", ["first"], "second"),
        ("upgrade", "second", ["second"], "second"),
        ("upgrade", "right", ["left"], "right"),
        ("downgrade", "base", ["merge"], None),
        ("downgrade", "first", ["merge"], "first"),
        ("downgrade", "-1", ["right"], "second"),
        ("downgrade", "-2", ["right"], "first"),
        ("downgrade", "-2", ["second"], None),
    ],
)
def test_a_target_is_found(command: str, target: str | None, current: list[str], expected: str | None) -> None:
    asked = request(command, target)
    check_request(asked, REVISIONS, "merge")
    assert destination(asked, REVISIONS, current) == expected


@pytest.mark.parametrize(
    ("command", "target", "current", "sentence"),
    [
        ("upgrade", "first", ["second"], "The schema is at second, beyond first."),
        ("downgrade", "second", ["first"], "The schema is at first, before second."),
        ("downgrade", "first", [], "The schema is at base, before first."),
        ("downgrade", "-3", ["second"], "The schema can't go back 3 revisions: only 2 are applied."),
        ("downgrade", "-1", ["merge"], "The way back forks into left and right."),
        ("downgrade", "-1", ["left", "right"], "The way back forks into left and right."),
    ],
)
def test_a_target_in_the_other_direction_is_refused(
    command: str, target: str, current: list[str], sentence: str
) -> None:
    with pytest.raises(RunError) as refused:
        destination(request(command, target), REVISIONS, current)
    assert (refused.value.exit_code, refused.value.message) == (2, sentence)


@pytest.mark.parametrize("target", ["firs", "nosuch", "+1", "-1", "base", ""])
def test_an_upgrade_takes_whole_ids_only(target: str) -> None:
    with pytest.raises(RunError, match="This image has no revision"):
        check_request(request("upgrade", target), REVISIONS, None)


@pytest.mark.parametrize("target", ["firs", "-0", "-x", "+1"])
def test_a_downgrade_takes_whole_ids_base_or_a_number_of_steps(target: str) -> None:
    with pytest.raises(RunError, match="This image has no revision"):
        check_request(request("downgrade", target), REVISIONS, None)
