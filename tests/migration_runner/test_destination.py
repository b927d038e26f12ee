"""Which revision a command ends at; decided without a database."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from migration_runner.errors import RunError
from migration_runner.target import Request, check_request, destination, is_at, pending_contract
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


@pytest.mark.parametrize("target", ["firs", "-1", "head", None])
def test_a_release_is_reopened_by_its_whole_id_or_base(target: str | None) -> None:
    with pytest.raises(RunError, match="This image has no revision"):
        check_request(request("reopen", target), REVISIONS, None)
    for known in ("first", "base"):
        check_request(request("reopen", known), REVISIONS, None)


# Releases that expand, and contract later: a to b is the first one, c to e the second, f to h the third.
E, C = "expand", "contract"
PHASED = [
    revision("h", "g", phase=C),
    revision("g", "f", phase=C),
    revision("f", "e"),
    revision("e", "d", phase=C),
    revision("d", "c", phase=C),
    revision("c", "b"),
    revision("b", "a", phase=C),
    revision("a"),
]


def ends(command: str, target: str | None, current: list[str]) -> str | None:
    asked = request(command, target)
    check_request(asked, PHASED, "h")
    return destination(asked, PHASED, current)


@pytest.mark.parametrize(("current", "expected"), [([], "h"), (["e"], "f"), (["f"], "f"), (["g"], "g"), (["h"], "h")])
@pytest.mark.parametrize("target", [None, "head"])
def test_an_upgrade_ends_before_the_last_contract_revisions_but_not_where_nobody_uses_the_schema(
    target: str | None, current: list[str], expected: str
) -> None:
    assert ends("upgrade", target, current) == expected


def test_between_the_last_expand_revision_and_the_head_an_upgrade_has_nothing_to_do() -> None:
    for at in ("f", "g", "h"):
        assert is_at(ends("upgrade", None, [at]), [at], PHASED)


@pytest.mark.parametrize(
    ("target", "current", "expected"),
    [("h", [], "h"), ("g", [], "g"), ("c", ["b"], "c"), ("b", ["b"], "b"), ("g", ["g"], "g"), ("f", ["e"], "f")],
)
def test_an_upgrade_to_a_revision_ends_there(target: str, current: list[str], expected: str) -> None:
    assert ends("upgrade", target, current) == expected


@pytest.mark.parametrize(("target", "current"), [("g", ["f"]), ("h", ["f"]), ("h", ["a"]), ("b", ["a"])])
def test_an_upgrade_to_a_contract_revision_is_refused(target: str, current: list[str]) -> None:
    with pytest.raises(RunError) as refused:
        ends("upgrade", target, current)
    assert (refused.value.exit_code, refused.value.kind) == (2, "ContractRevision")
    assert refused.value.message == f"{target} is a contract revision, which an upgrade does not apply."
    assert str(refused.value.hint).endswith("run: python -m migration_runner contract")


@pytest.mark.parametrize(
    ("target", "current", "message", "release", "by_hand"),
    [
        (None, ["a"], "Before f come b and d and e, which", "b", "By hand: `{} contract`, once"),
        (None, ["c"], "Before f come d and e, which", "e", "By hand: `{} contract`, once"),
        (None, ["d"], "Before f comes e, which", "e", "By hand: `{} contract`, once"),
        ("c", ["a"], "Before c comes b, which", "b", "By hand: `{} contract`, once"),
        (None, ["b"], "Before f come d and e, which", "e",
         "By hand: `{0} upgrade c` and `{0} contract`, once"),
    ],
)  # fmt: skip
def test_a_contract_revision_that_is_pending_before_the_target_stops_an_upgrade(
    target: str | None, current: list[str], message: str, release: str, by_hand: str
) -> None:
    with pytest.raises(RunError) as refused:
        ends("upgrade", target, current)
    assert (refused.value.exit_code, refused.value.kind) == (2, "ContractPending")
    assert refused.value.message == f"{message} only a contract step applies."
    told = (
        f"Deploy the release whose newest revision is {release} first. {by_hand.format('python -m migration_runner')}"
    )
    assert str(refused.value.hint).startswith(told)


@pytest.mark.parametrize(
    ("current", "expected", "pending"),
    [
        ([], None, []),
        (["a"], "b", ["b"]),
        (["b"], "b", []),
        (["c"], "e", ["d", "e"]),
        (["d"], "e", ["e"]),
        (["f"], "h", ["g", "h"]),
        (["h"], "h", []),
    ],
)
def test_a_contract_ends_at_the_last_contract_revision_before_the_next_of_another_phase(
    current: list[str], expected: str | None, pending: list[str]
) -> None:
    assert ends("contract", None, current) == expected
    assert [one.revision for one in pending_contract(PHASED, current)] == pending
    if not pending:
        assert is_at(expected, current, PHASED)


def test_of_contract_revisions_beside_each_other_a_contract_goes_to_one_after_the_other() -> None:
    forked = [
        revision("m", "x", "z"),
        revision("z", "y", phase=C),
        revision("y", "a", phase=C),
        revision("x", "a", phase=C),
        revision("a"),
    ]
    assert [one.revision for one in pending_contract(forked, ["a"])] == ["x", "y", "z"]
    assert destination(request("contract"), forked, ["a"]) == "x"
    assert destination(request("contract"), forked, ["x"]) == "z"
    assert destination(request("contract"), forked, ["x", "z"]) in ("x", "z")
    assert destination(request("upgrade"), forked, ["x", "z"]) == "m"


def test_a_contract_revision_waits_for_what_it_depends_on() -> None:
    other, last = revision("other"), revision("merge", "contract", "other")
    contract = replace(revision("contract", "first", phase=C), depends_on=("other",))
    line = [last, contract, other, revision("first")]
    assert pending_contract(line, ["first"]) == []
    assert pending_contract(line, ["first", "other"]) == [contract]
    with pytest.raises(RunError) as refused:
        destination(request("upgrade"), line, ["first"])
    assert "upgrade other` and `python -m migration_runner contract`" in str(refused.value.hint)
