from __future__ import annotations

from dataclasses import replace

import pytest
from decision import Action, Undo, asks_for_downgrade, decide, decide_contract, rolls_back, undo
from hypothesis import given
from hypothesis import strategies as st
from record import Record, Turn
from request import Request, resource_id

from tests.constructs_lib.world import CONTRACT, STACK, World

OLD, NEW = "48871d03964b", "49871d03964c"


def recorded(fingerprint: str, before: str, after: str) -> Record:
    return Record(fingerprint=fingerprint, before=before, after=after)


RECORDED = recorded("same", OLD, NEW)


def request(kind: str, fingerprint: str) -> Request:
    return Request.parse(World().request(kind, f"request-{fingerprint}", Fingerprint=fingerprint))


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
        ("Create", "DELETE_IN_PROGRESS", "other", Action.REFUSE),
    ],
)
def test_what_is_done_follows_from_the_request_the_stack_and_the_last_success(
    kind: str, status: str, fingerprint: str, action: Action
) -> None:
    assert decide(request(kind, fingerprint), status, RECORDED) is action


CLOSED = Record(fingerprint="same", contract="closed")


@pytest.mark.parametrize(
    ("last", "status", "action"),
    [
        (CLOSED, "UPDATE_IN_PROGRESS", Action.ANSWER_UNCHANGED),
        (replace(CLOSED, contract="open"), "UPDATE_IN_PROGRESS", Action.WAIT),
        (replace(CLOSED, contract="-"), "UPDATE_IN_PROGRESS", Action.WAIT),
        (replace(CLOSED, fingerprint="other"), "UPDATE_IN_PROGRESS", Action.WAIT),
        (replace(CLOSED, running=True), "UPDATE_IN_PROGRESS", Action.WAIT),
        (replace(CLOSED, closing=Turn(running=True)), "UPDATE_IN_PROGRESS", Action.WAIT),
        (CLOSED, "UPDATE_COMPLETE", Action.REFUSE),
        (CLOSED, "DELETE_IN_PROGRESS", Action.REFUSE),
        (replace(CLOSED, closing=Turn(newest=9e9)), "UPDATE_IN_PROGRESS", Action.REFUSE),
    ],
)
@pytest.mark.parametrize("kind", ["Create", "Update"])
def test_a_contract_that_is_not_known_to_be_closed_is_closed(
    kind: str, last: Record, status: str, action: Action
) -> None:
    asked = Request.parse(World().request(kind, Fingerprint="same", **CONTRACT))
    assert decide_contract(asked, status, last) is action


def test_the_migration_and_its_contract_do_not_make_each_others_requests_late() -> None:
    world = World()
    migration = sent(world, "migration")
    world.clock += 1
    contract = Request.parse(world.request("Update", "contract", **CONTRACT))
    record = Record().opened_for(migration, 1.0, runs=False).opened_for(contract, 2.0, runs=True)
    assert not record.refuses(migration)
    assert (record.closing.began, record.has_closed, record.closing.refuses(contract)) == (contract.sent, True, False)
    taken_back = record.taken_back_by(sent(world, "back"))
    assert (taken_back.refuses(migration), taken_back.closing.refuses(contract)) == (True, True)


def test_what_a_contract_has_done_of_which_nothing_is_recorded_is_not_known_to_the_next_deployment() -> None:
    lost = replace(RECORDED, contract="closed", closing=Turn(running=True))
    begun = lost.opened_for(request("Update", "other"), 9.0, runs=True)
    assert (begun.fingerprint, begun.after, begun.contract, begun.closing.running) == ("same", "-", "-", False)


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
        (recorded("new", OLD, NEW), Undo.DOWNGRADE),
        (recorded("-", OLD, "4a"), Undo.DOWNGRADE),
        (recorded("-", OLD, "-"), Undo.DOWNGRADE),
        (recorded("old", "-", OLD), Undo.NOTHING),
        (recorded("old", OLD, OLD), Undo.NOTHING),
        (recorded("new", NEW, NEW), Undo.NOT_OURS),
        (recorded("new", "-", NEW), Undo.NOT_OURS),
        (recorded("-", "4a", NEW), Undo.NOT_OURS),
        (Record(), Undo.NOT_OURS),
    ],
)
def test_a_rollback_undoes_only_what_is_known_to_have_begun_at_the_older_release(deployment: Record, way: Undo) -> None:
    assert undo([OLD], deployment) is way


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


@pytest.mark.parametrize(
    ("deployment", "way"),
    [
        (recorded("new", OLD, "50"), Undo.DOWNGRADE),
        (recorded("new", "48c", "50"), Undo.DOWNGRADE),
        (recorded("-", "-", "48c"), Undo.NOTHING),
        (recorded("new", "47", "50"), Undo.NOT_OURS),
    ],
)
def test_an_older_release_may_have_left_its_contract_open_or_not(deployment: Record, way: Undo) -> None:
    assert undo([OLD, "48c"], deployment) is way


def test_a_create_has_nothing_to_take_back() -> None:
    assert not asks_for_downgrade(World().request("Create", OnRollback="DOWNGRADE"))


def test_a_deployment_begins_with_a_record_that_has_nothing_to_undo() -> None:
    one, other = request("Update", "one"), request("Update", "other")
    begun = RECORDED.opened_for(one, 7.0, runs=True)
    assert (begun.fingerprint, begun.before, begun.after, begun.began, begun.running) == (
        "same",
        "-",
        NEW,
        one.sent,
        True,
    )
    assert begun.is_of(one)
    assert not begun.is_of(other)


def test_a_request_that_is_delivered_again_goes_on_with_its_deployment() -> None:
    one = request("Update", "one")
    begun = RECORDED.opened_for(one, 7.0, runs=False)
    assert begun.opened_for(one, 9.0, runs=False) == begun
    assert begun.opened_for(one, 9.0, runs=True) == replace(begun, running=True)
    assert replace(begun, running=True).opened_for(one, 9.0, runs=False).running


def test_what_a_task_has_done_of_which_nothing_is_recorded_is_not_known_to_the_next_deployment() -> None:
    lost = RECORDED.opened_for(request("Update", "one"), 7.0, runs=True)
    begun = lost.opened_for(request("Update", "other"), 9.0, runs=True)
    assert (begun.fingerprint, begun.before, begun.after) == ("-", "-", "-")


def test_a_deployment_of_which_a_task_may_run_is_not_unchanged() -> None:
    running = replace(RECORDED, running=True)
    assert decide(request("Update", "same"), "UPDATE_IN_PROGRESS", running) is Action.RUN


def test_a_request_is_refused_by_what_came_after_it() -> None:
    world = World()
    first, back, second, again = (sent(world, name) for name in ("first", "back", "second", "again"))
    record = Record().opened_for(first, 1.0, runs=True)
    assert (record.began, record.refuses(first), record.refuses_rollback(first)) == (first.sent, False, True)
    record = record.taken_back_by(back)
    assert (record.refuses(first), record.refuses(back)) == (True, True)
    assert (record.refuses_rollback(first), record.refuses_rollback(back)) == (True, False)
    record = record.closed_by(back).opened_for(second, 3.0, runs=True)
    assert all(record.refuses(one) and record.refuses_rollback(one) for one in (first, back))
    assert (record.refuses(second), record.refuses_rollback(again)) == (False, False)


def test_a_first_delivery_that_comes_after_a_newer_request_is_refused() -> None:  # C5
    world = World()
    late, newer = sent(world, "late"), sent(world, "newer")
    assert Record().opened_for(newer, 1.0, runs=True).refuses(late)
    assert Record().taken_back_by(newer).refuses_rollback(late)


@pytest.mark.parametrize("address", ["https://answer.example/", "https://answer.example/?X-Amz-Date=yesterday", ""])
def test_an_address_without_a_date_refuses_nothing(address: str) -> None:
    unknown = Request.parse({**World().request("Update"), "ResponseURL": address})
    assert unknown.sent == 0
    record = Record(newest=1e9).opened_for(unknown, 7.0, runs=True)
    assert (record.began, record.newest) == (7.0, 1e9)
    assert not record.refuses(unknown)


def sent(world: World, name: str) -> Request:
    """A request that is sent a second after the one before."""
    world.clock += 1
    return Request.parse(world.request("Update", name))


def test_a_new_address_makes_another_request_of_the_same_id() -> None:  # C4
    world = World()
    first, second = (Request.parse(world.request("Update")) for _ in range(2))
    assert first.key != second.key
    assert first.release == second.release
    assert first.client_token(1) != second.client_token(1)
    assert first.sent == 1_800_000_000
    assert Request.parse(world.requests[0]).client_token(1) == first.client_token(1)
    assert len({first.client_token(attempt) for attempt in range(1, 11)}) == 10


def test_what_is_stored_of_the_signed_address_does_not_tell_it() -> None:  # C11
    record = Record().opened_for(Request.parse(World().request("Update")), 1.0, runs=True)
    assert "c0ffee" not in record.dump()
