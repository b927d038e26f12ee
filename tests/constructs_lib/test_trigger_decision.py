from __future__ import annotations

from dataclasses import replace

import pytest
from decision import Action, Record, Request, Undo, asks_for_downgrade, decide, resource_id, rolls_back, undo
from hypothesis import given
from hypothesis import strategies as st

from tests.constructs_lib.world import STACK, World

OLD, NEW = "48871d03964b", "49871d03964c"
RECORDED = Record("same", OLD, NEW)


def request(kind: str, fingerprint: str) -> Request:
    return Request.parse(World().request(kind, Fingerprint=fingerprint))


@pytest.mark.parametrize(
    ("kind", "status", "fingerprint", "action"),
    [
        ("Create", "CREATE_IN_PROGRESS", "same", Action.RUN),
        ("Create", "UPDATE_IN_PROGRESS", "other", Action.RUN),
        ("Update", "UPDATE_IN_PROGRESS", "other", Action.RUN),
        ("Update", "IMPORT_IN_PROGRESS", "other", Action.RUN),
        ("Update", "UPDATE_IN_PROGRESS", "same", Action.ANSWER_UNCHANGED),
        ("Update", "UPDATE_ROLLBACK_COMPLETE", "other", Action.REFUSE),
        ("Update", "UPDATE_COMPLETE", "same", Action.REFUSE),
        ("Create", "CREATE_FAILED", "other", Action.REFUSE),
    ],
)
def test_what_is_done_follows_from_the_request_the_stack_and_the_last_success(
    kind: str, status: str, fingerprint: str, action: Action
) -> None:
    assert decide(request(kind, fingerprint), status, RECORDED) is action


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("UPDATE_ROLLBACK_IN_PROGRESS", True),
        ("ROLLBACK_IN_PROGRESS", True),
        ("IMPORT_ROLLBACK_IN_PROGRESS", True),
        ("UPDATE_IN_PROGRESS", False),
        ("CREATE_IN_PROGRESS", False),
        ("UPDATE_ROLLBACK_COMPLETE", False),
        ("UPDATE_ROLLBACK_FAILED", False),
    ],
)
def test_the_stacks_status_tells_a_rollback(status: str, answer: bool) -> None:
    assert rolls_back(status) is answer


@given(text=st.text())
def test_what_is_no_record_is_no_success(text: str) -> None:
    assert decide(request("Update", "same"), "UPDATE_IN_PROGRESS", Record.parse(text)) is Action.RUN


@pytest.mark.parametrize("text", ["none", "", "[]", "[" * 4096, "null", "7", '{"fingerprint": "same"}', '"same"'])
def test_a_record_that_is_not_complete_counts_as_none(text: str) -> None:
    assert Record.parse(text) == Record()


def test_a_record_reads_back_as_it_was_written() -> None:
    assert Record.parse(RECORDED.dump()) == RECORDED


def test_an_id_fits_started_by_and_tells_stacks_and_resources_apart() -> None:
    ids = {resource_id(stack, logical) for stack in (STACK, f"{STACK}2") for logical in ("Migration", "Other")}
    assert len(ids) == 4
    assert all(len(one) <= 36 for one in ids)


@pytest.mark.parametrize(
    ("deployment", "way"),
    [
        (Record("new", OLD, NEW), Undo.DOWNGRADE),
        (Record("-", OLD, "4a"), Undo.DOWNGRADE),
        (Record("-", OLD, "-"), Undo.DOWNGRADE),
        (Record("old", "-", OLD), Undo.NOTHING),
        (Record("old", OLD, OLD), Undo.NOTHING),
        (Record("new", NEW, NEW), Undo.NOT_OURS),
        (Record("new", "-", NEW), Undo.NOT_OURS),
        (Record("-", "4a", NEW), Undo.NOT_OURS),
        (Record(), Undo.NOT_OURS),
    ],
)
def test_a_rollback_undoes_only_what_is_known_to_have_begun_at_the_older_release(deployment: Record, way: Undo) -> None:
    assert undo(OLD, deployment) is way


@pytest.mark.parametrize(
    ("older", "newer", "answer"),
    [
        ({"Target": OLD}, {"Target": NEW, "OnRollback": "DOWNGRADE"}, True),
        ({"Target": OLD, "OnRollback": "DOWNGRADE"}, {"Target": NEW, "OnRollback": "KEEP"}, False),
        ({"Target": NEW}, {"Target": NEW, "OnRollback": "DOWNGRADE"}, False),
        ({"Target": OLD}, {"Target": NEW}, False),
    ],
)
def test_the_newer_template_decides_whether_a_changed_schema_is_taken_back(
    older: dict[str, str], newer: dict[str, str], answer: bool
) -> None:
    assert asks_for_downgrade({"ResourceProperties": older, "OldResourceProperties": newer}) is answer


def test_a_create_has_nothing_to_take_back() -> None:
    assert not asks_for_downgrade(World().request("Create", OnRollback="DOWNGRADE"))


def test_a_deployment_begins_with_a_record_that_has_nothing_to_undo() -> None:
    one, other = request("Update", "one"), request("Update", "other")
    begun = RECORDED.opened_for(one)
    assert (begun.fingerprint, begun.before, begun.after) == ("same", "-", NEW)
    assert begun.is_of(one)
    assert not begun.is_of(other)
    migrated = Record("one", OLD, NEW, begun.request)
    assert migrated.opened_for(one) == migrated
    assert migrated.closed().opened_for(one).turn == 1
    assert migrated.closed().opened_for(other).turn == 0


def test_each_turn_of_a_request_has_tokens_of_its_own() -> None:
    first = request("Update", "one")
    tokens = {replace(first, turn=turn).client_token(attempt) for turn in range(3) for attempt in (1, 2)}
    assert len(tokens) == 6
