from __future__ import annotations

import pytest
from decision import Action, Record, decide, resource_id, rolls_back
from hypothesis import given
from hypothesis import strategies as st

from tests.constructs_lib.world import STACK

RECORDED = Record("same", "48871d03964b", "49871d03964c")


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
    assert decide(kind, status, fingerprint, RECORDED) is action


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
    assert decide("Update", "UPDATE_IN_PROGRESS", "same", Record.parse(text)) is Action.RUN


@pytest.mark.parametrize("text", ["none", "", "[]", "[" * 4096, "null", "7", '{"fingerprint": "same"}', '"same"'])
def test_a_record_that_is_not_complete_counts_as_none(text: str) -> None:
    assert Record.parse(text) == Record()


def test_a_record_reads_back_as_it_was_written() -> None:
    assert Record.parse(RECORDED.dump()) == RECORDED


def test_an_id_fits_started_by_and_tells_stacks_and_resources_apart() -> None:
    ids = {resource_id(stack, logical) for stack in (STACK, f"{STACK}2") for logical in ("Migration", "Other")}
    assert len(ids) == 4
    assert all(len(one) <= 36 for one in ids)
