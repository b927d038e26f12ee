"""Rollbacks of stacks that ask for DOWNGRADE, as stories: what is undone, what is kept, and what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from record import Record

from tests.constructs_lib.world import FAILED, SUCCEEDED, LambdaTimeout, Run, World, fault

OLD, NEW = "48871d03964b", "49871d03964c"
OLDER_IMAGE, NEWER_IMAGE = (
    f"arn:aws:ecs:us-west-2:111122223333:task-definition/dev-migration-task:{n}" for n in (6, 7)
)
OLDER = {"Target": OLD, "Fingerprint": "old", "TaskDefinition": OLDER_IMAGE}
NEWER = {"Target": NEW, "Fingerprint": "new", "TaskDefinition": NEWER_IMAGE, "OnRollback": "DOWNGRADE"}
AT_OLD = json.dumps({"fingerprint": "old", "before": "-", "after": OLD})
WENT_BACK = {"event": "migration.result", "command": "downgrade", "from": NEW, "at": OLD, "applied": [NEW]}
NOT_BACK = {**FAILED, "command": "downgrade", "from": NEW, "at": NEW}
RUNNING_NEW = {"event": "migration.revision_started", "revision": NEW, "from": OLD}
DOWNGRADE = {"name": "migration", "command": ["python", "-m", "migration_runner", "downgrade", OLD]}
TRY_AGAIN = "aws cloudformation continue-update-rollback --stack-name DevStack"


def upgrade(world: World, request_id: str = "upgrade", **newer: Any) -> dict[str, Any]:
    world.stack_status = "UPDATE_IN_PROGRESS"
    return world.deliver("Update", request_id, OLDER, **{**NEWER, **newer})


def roll_back(world: World, request_id: str = "rollback", **newer: Any) -> dict[str, Any]:
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    return world.deliver("Update", request_id, {**NEWER, **newer}, **OLDER)


def commands(world: World) -> list[list[dict[str, Any]]]:
    return [run["overrides"]["containerOverrides"] for run in world.called("RunTask")]


def record(world: World) -> Record:
    return Record.parse(world.recorded)


def test_a_rollback_takes_the_schema_back_in_the_newer_image() -> None:  # C8
    world = World([Run(), Run(seconds=7, said=WENT_BACK)], recorded=AT_OLD)
    assert upgrade(world)["Status"] == "SUCCESS"
    answer = roll_back(world)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == f"The stack rolls back, and so does the schema. The schema is at {OLD}."
    assert answer["Data"] | {"TaskArn": ""} == {
        "RevisionBefore": NEW,
        "RevisionAfter": OLD,
        "TaskArn": "",
        "Duration": "7",
        "Contract": "-",
    }
    assert commands(world) == [[], [DOWNGRADE]]
    assert world.called("RunTask")[1]["taskDefinition"] == NEWER_IMAGE


def test_after_the_way_back_the_older_release_counts_as_unchanged_and_the_newer_runs_again() -> None:
    world = World([Run(), Run(said=WENT_BACK), Run()], recorded=AT_OLD)
    upgrade(world)
    roll_back(world)
    world.stack_status = "UPDATE_IN_PROGRESS"
    assert "No migration has changed" in world.deliver("Update", "code-only", OLDER, **OLDER)["Reason"]
    assert upgrade(world, "again")["Data"]["RevisionBefore"] == OLD
    assert len(world.tasks) == 3


def test_a_request_id_that_is_used_again_never_repeats_a_success_that_has_been_undone() -> None:  # C4
    world = World([Run(), Run(said=WENT_BACK)] * 3, recorded=AT_OLD)
    for deployment in (1, 2, 3):
        assert upgrade(world)["Status"] == "SUCCESS"
        assert roll_back(world)["Status"] == "SUCCESS"
        assert len(world.tasks) == 2 * deployment


def test_the_newer_release_decides_for_only_it_knows_how_it_is_undone() -> None:
    world = World([Run()], recorded=AT_OLD)
    upgrade(world, OnRollback="KEEP")
    answer = roll_back(world, OnRollback="KEEP")
    assert answer["Reason"] == f"The stack rolls back; the schema is kept, last seen at {NEW}."
    assert len(world.tasks) == 1


@pytest.mark.parametrize(
    "failure",
    [Run(exit_code=1, said=FAILED), Run(exit_code=None, stop_code="TaskFailedToStart", said=None)],
    ids=["failed", "never started"],
)
def test_a_schema_that_the_upgrade_has_not_moved_needs_no_way_back(failure: Run) -> None:
    world = World([failure], recorded=AT_OLD)
    assert upgrade(world)["Status"] == "FAILED"
    answer = roll_back(world)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == f"The stack rolls back; the schema is at {OLD}, where the older release expects it."
    assert answer["Data"]["RevisionAfter"] == OLD
    assert len(world.tasks) == 1


@pytest.mark.parametrize(
    "failure",
    [
        Run(exit_code=1, said={**FAILED, "from": OLD, "at": "4a", "applied": ["4a"]}),
        Run(exit_code=137, said=RUNNING_NEW),
    ],
    ids=["half-way", "killed"],
)
def test_an_upgrade_that_failed_half_way_is_undone_too(failure: Run) -> None:
    world = World([failure, Run(said=WENT_BACK)], recorded=AT_OLD)
    assert upgrade(world)["Status"] == "FAILED"
    assert roll_back(world)["Status"] == "SUCCESS"
    assert commands(world)[1] == [DOWNGRADE]
    assert (record(world).fingerprint, record(world).after) == ("old", OLD)


def test_a_second_try_that_found_half_of_it_done_does_not_hide_where_the_first_began() -> None:  # C3
    half, rest = {"from": OLD, "at": "4a", "applied": ["4a"]}, {"from": "4a", "at": "4a", "applied": []}
    world = World(
        [Run(exit_code=1, said={**FAILED, **half}), Run(exit_code=1, said={**FAILED, **rest}), Run(said=WENT_BACK)],
        recorded=AT_OLD,
    )
    upgrade(world)
    world.deliver_again()
    assert roll_back(world)["Status"] == "SUCCESS"
    assert commands(world)[-1] == [DOWNGRADE]


@pytest.mark.parametrize("said", [None, {**SUCCEEDED, "from": None, "at": None}], ids=["nothing", "nowhere"])
def test_a_killed_upgrade_that_has_told_nothing_is_kept_and_people_are_told(said: Any) -> None:
    world = World([Run(exit_code=137, said=None), Run(said=said)], recorded=AT_OLD)
    upgrade(world)
    answer = roll_back(world)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == (
        "The stack rolls back, but the schema is kept: its revision is unknown, and it is not known that this "
        f"deployment has brought it there from {OLD}, which the older release expects. To take it back, run in the "
        f"newer image: python -m migration_runner downgrade {OLD}."
    )
    assert len(world.tasks) == 1


def test_what_someone_has_migrated_by_hand_before_is_kept_and_people_are_told(capsys: Any) -> None:
    by_hand = {**SUCCEEDED, "from": NEW, "at": NEW, "applied": []}
    world = World([Run(said=by_hand)], recorded=AT_OLD)
    topic = "arn:aws:sns:us-west-2:111122223333:failures"
    upgrade(world)
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    capsys.readouterr()
    answer = world.deliver("Update", "rollback", NEWER, **OLDER, FailureTopic=topic)
    assert answer["Status"] == "SUCCESS"
    assert "the schema is kept: it was last seen at 49871d03964c" in answer["Reason"]
    assert len(world.tasks) == 1
    assert world.messages == [
        {
            "TopicArn": topic,
            "Subject": "DevStack: the database migration needs attention",
            "Message": answer["Reason"],
        }
    ]
    assert json.loads(capsys.readouterr().out)["Failures"] == 1


def test_what_an_earlier_deployment_has_migrated_is_kept() -> None:
    world = World([Run()], recorded=AT_OLD)
    upgrade(world, OnRollback="KEEP")
    roll_back(world, OnRollback="KEEP")
    assert "No migration has changed" in upgrade(world, "second")["Reason"]
    assert "the schema is kept" in roll_back(world, "second rollback")["Reason"]
    assert len(world.tasks) == 1


def test_what_an_earlier_attempt_without_a_rollback_has_migrated_is_kept() -> None:  # C17
    never_started = Run(exit_code=None, stop_code="TaskFailedToStart", said=None)
    world = World([Run(), never_started], recorded=AT_OLD)
    upgrade(world, "with --no-rollback")
    upgrade(world, "and again", Fingerprint="newest")
    assert "the schema is kept" in roll_back(world, Fingerprint="newest")["Reason"]


def test_a_rollback_whose_upgrade_never_arrived_undoes_nothing_of_an_earlier_deployment() -> None:
    world = World([Run()], recorded=AT_OLD)
    upgrade(world, OnRollback="KEEP")
    roll_back(world, OnRollback="KEEP")
    assert "the schema is kept" in roll_back(world, "of a lost upgrade")["Reason"]
    assert len(world.tasks) == 1


def test_a_release_that_changes_no_migration_rolls_back_even_without_a_record() -> None:
    world = World(faults={"GetParameter": [fault("AccessDeniedException", service="ssm")] * 99})
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    answer = world.deliver("Update", "rollback", NEWER, **{**NEWER, "TaskDefinition": OLDER_IMAGE})
    assert answer["Status"] == "SUCCESS"


def test_a_way_back_that_fails_says_where_the_schema_is_and_the_two_commands_that_help() -> None:
    world = World([Run(), Run(exit_code=1, said=NOT_BACK)], recorded=AT_OLD)
    upgrade(world)
    answer = roll_back(world)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith(
        f"The schema could not be taken back to {OLD}: Migration {NEW} failed: UndefinedColumn: column "
        f'"name" does not exist. The transaction was rolled back; the schema is still at {NEW}. Log: '
    )
    assert answer["Reason"].endswith(
        f" To try again: {TRY_AGAIN}. To keep the schema: {TRY_AGAIN} --resources-to-skip Migration8F2B1C3D."
    )


def test_a_way_back_that_failed_can_be_tried_again() -> None:
    world = World([Run(), Run(exit_code=1, said=NOT_BACK), Run(said=WENT_BACK)], recorded=AT_OLD)
    upgrade(world)
    assert roll_back(world)["Status"] == "FAILED"
    assert roll_back(world, "continued")["Status"] == "SUCCESS"
    assert (record(world).fingerprint, record(world).after) == ("old", OLD)


def test_after_a_way_back_that_failed_and_was_skipped_nothing_counts_as_unchanged() -> None:
    world = World([Run(), Run(exit_code=1, said=NOT_BACK), Run()], recorded=AT_OLD)
    upgrade(world)
    roll_back(world)
    assert upgrade(world, "the next")["Status"] == "SUCCESS"
    assert len(world.tasks) == 3


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        ({"no_room": 999}, "ECS did not start the migration's task: RESOURCE:ENI. Nothing has changed."),
        ({"faults": {"RunTask": [fault("AccessDeniedException")] * 99}}, "AccessDeniedException: An error occurred"),
        ({"faults": {"GetParameter": [fault("ThrottlingException", service="ssm")] * 99}}, "ThrottlingException: An"),
        ({"faults": {"ListTasks": [ValueError("odd")]}}, "ValueError: odd."),
    ],
)
def test_whatever_is_in_the_way_back_the_two_commands_are_named(trouble: dict[str, Any], sentence: str) -> None:
    world = World([Run()], recorded=AT_OLD)
    upgrade(world)
    world = replace(world, **trouble)
    answer = roll_back(world)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith(f"The schema could not be taken back to {OLD}: {sentence}")
    assert answer["Reason"].endswith("--resources-to-skip Migration8F2B1C3D.")


def test_a_cancelled_upgrade_is_stopped_first_and_then_undone() -> None:  # C9
    world = World(
        [Run(seconds=600, said=RUNNING_NEW), Run(said=WENT_BACK)],
        recorded=AT_OLD,
    )

    def cancel() -> None:
        world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
        world.invoke(world.request("Update", "rollback", NEWER, **OLDER))

    world.after(30, cancel)
    world.invoke(world.request("Update", "upgrade", OLDER, **NEWER))
    assert [(a["RequestId"], a["Status"]) for a in world.answers] == [("rollback", "SUCCESS"), ("upgrade", "FAILED")]
    assert not world.running
    assert (record(world).fingerprint, record(world).after) == ("old", OLD)


def test_an_upgrade_that_wins_the_race_against_its_cancellation_is_undone_and_not_recorded() -> None:  # C9
    world = World([Run(seconds=31, seconds_to_stop=60), Run(said=WENT_BACK)], recorded=AT_OLD)

    def cancel() -> None:
        world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
        world.invoke(world.request("Update", "rollback", NEWER, **OLDER))

    world.after(30, cancel)
    world.invoke(world.request("Update", "upgrade", OLDER, **NEWER))
    assert (record(world).fingerprint, record(world).after) == ("old", OLD)


def test_an_upgrade_that_can_not_be_stopped_is_not_undone_under_its_feet() -> None:
    world = World([Run(seconds=99999, seconds_to_stop=9999)], recorded=AT_OLD)
    world.after(5, die)
    with pytest.raises(LambdaTimeout):
        upgrade(world)
    answer = roll_back(world)
    assert answer["Status"] == "FAILED"
    assert "the upgrade's task can't be stopped." in answer["Reason"]
    assert len(world.tasks) == 1


def die() -> None:
    raise LambdaTimeout


def test_the_same_rollback_twice_gives_one_way_back() -> None:  # C3
    world = World([Run(), Run(seconds=60, said=WENT_BACK)], recorded=AT_OLD)
    upgrade(world)
    world.after(10, die)
    with pytest.raises(LambdaTimeout):
        roll_back(world)
    assert roll_back(world)["Status"] == "SUCCESS"
    assert len(world.tasks) == 2
    assert world.called("StopTask") == []


def test_a_way_back_longer_than_an_invocation_goes_on_in_the_next() -> None:  # C15
    world = World([Run(), Run(seconds=1500, said=WENT_BACK)], recorded=AT_OLD)
    upgrade(world)
    answer = roll_back(world)
    assert (answer["Status"], answer["Data"]["Duration"]) == ("SUCCESS", "1500")
    assert len(world.called("Invoke")) >= 2


def test_a_way_back_that_takes_too_long_is_stopped_in_time() -> None:  # C1
    world = World([Run(), Run(seconds=99999, seconds_to_stop=120)], recorded=AT_OLD)
    upgrade(world)
    began = world.clock
    answer = roll_back(world, Timeout="3300")
    assert answer["Status"] == "FAILED"
    assert "took longer than its timeout of 30 min" in answer["Reason"]
    assert answer["Reason"].endswith("--resources-to-skip Migration8F2B1C3D.")
    assert world.clock - began < 1800 + 180
    assert not world.running


def test_the_upgrades_own_event_delivered_again_while_the_stack_rolls_back_disturbs_nothing() -> None:  # C5
    world = World([Run(), Run(seconds=60, said=WENT_BACK)], recorded=AT_OLD)
    upgrade(world)
    event = world.requests[-1]
    world.after(20, lambda: world.invoke(event))
    assert roll_back(world)["Status"] == "SUCCESS"
    late = [answer for answer in world.answers if answer["RequestId"] == "upgrade"][-1]
    assert late["Status"] == "FAILED"
    assert "came too late" in late["Reason"]
    assert world.called("StopTask") == []


@pytest.mark.parametrize("on_rollback", ["KEEP", "DOWNGRADE"])
def test_a_delete_never_touches_the_schema(on_rollback: str) -> None:  # C7
    world = World([Run()], stack_status="CREATE_IN_PROGRESS")
    world.deliver("Create", "create", None, **{**NEWER, "OnRollback": on_rollback})
    world.stack_status = "ROLLBACK_IN_PROGRESS"
    assert world.deliver("Delete", "delete", None, **{**NEWER, "OnRollback": on_rollback})["Status"] == "SUCCESS"
    assert len(world.tasks) == 1


def test_an_older_release_whose_event_comes_after_the_rollback_began_is_no_rollback() -> None:  # C5, C8
    # given yesterday's upgrade, and today's deployment of the release before it
    world = World([Run()], recorded=AT_OLD)
    upgrade(world)
    world.clock += 86_400
    event = world.request("Update", "older release", NEWER, **OLDER)
    # when its event is delivered after the stack has begun to roll back
    world.clock += 5
    world.stack_status, world.rolled_back_at = "UPDATE_ROLLBACK_IN_PROGRESS", world.clock
    world.invoke(event)
    # then the schema of the release that runs is not taken back under it
    assert "came too late" in world.answers[-1]["Reason"]
    assert len(world.tasks) == 1


def test_a_rollback_of_which_the_stack_has_no_event_goes_on() -> None:
    world = World([Run(), Run(said=WENT_BACK)], recorded=AT_OLD)
    upgrade(world)
    world.rolled_back_at = 0
    assert roll_back(world)["Status"] == "SUCCESS"


@pytest.mark.parametrize("length", [200, 5000])
def test_however_long_a_message_is_the_reason_says_where_the_schema_is(length: int) -> None:
    error = {"kind": "RaiseException", "message": "x" * length}
    long = {**NOT_BACK, "error": error}
    world = World([Run(), Run(exit_code=1, said=long)], recorded=AT_OLD)
    upgrade(world)
    assert f"the schema is still at {NEW}." in roll_back(world)["Reason"]


def lose(world: World, after: float) -> None:
    """Let the upgrade's invocation die, and Lambda not deliver the event again."""
    world.after(after, die)
    with pytest.raises(LambdaTimeout):
        upgrade(world)


def test_what_an_upgrade_did_whose_invocation_was_lost_is_found_and_undone() -> None:  # C1, C8
    half = {**FAILED, "from": OLD, "at": "4a", "applied": ["4a"]}
    world = World([Run(seconds=30, exit_code=1, said=half), Run(said=WENT_BACK)], recorded=AT_OLD)
    lose(world, after=10)
    world.clock += 60
    assert roll_back(world)["Reason"].startswith("The stack rolls back, and so does the schema.")
    assert commands(world)[1] == [DOWNGRADE]
    assert world.called("StopTask") == []


def test_an_upgrade_whose_invocation_was_lost_and_that_ecs_has_lost_too_is_kept_and_people_are_told() -> None:  # E7
    world = World([Run(seconds=30)], recorded=AT_OLD)
    lose(world, after=10)
    world.tasks.clear()
    began = world.clock
    answer = roll_back(world)
    assert answer["Reason"].startswith("The stack rolls back, but the schema is kept: its revision is unknown")
    assert 30 <= world.clock - began < 35
    assert record(world).fingerprint == "-"


def test_an_upgrade_that_was_about_to_start_is_looked_for_and_stopped() -> None:  # C9, E3
    world = World([Run(seconds=600, said=RUNNING_NEW), Run(said=WENT_BACK)], recorded=AT_OLD, unseen_for=20)
    lose(world, after=2)
    world.unseen_for = 20
    assert roll_back(world)["Status"] == "SUCCESS"
    assert len(world.called("StopTask")) == 1
    assert not world.running


def test_tasks_of_earlier_deployments_are_not_taken_for_this_ones() -> None:
    earlier = {**FAILED, "from": OLD, "at": "4a", "applied": ["4a"]}
    never_started = Run(exit_code=None, stop_code="TaskFailedToStart", said=None)
    world = World([Run(exit_code=1, said=earlier), never_started], recorded=AT_OLD)
    upgrade(world, "earlier")
    roll_back(world, "earlier rollback", OnRollback="KEEP")
    world.clock += 60
    lose(world, after=2)
    world.clock += 60
    assert "the schema is kept" in roll_back(world)["Reason"]
    assert len(world.tasks) == 2


def test_an_upgrade_that_was_delivered_twice_is_undone_from_where_the_first_began() -> None:  # C3
    half, rest = {"from": OLD, "at": "4a", "applied": ["4a"]}, {"from": "4a", "at": "4a", "applied": []}
    world = World(
        [Run(exit_code=1, said={**FAILED, **half}), Run(exit_code=1, said={**FAILED, **rest}), Run(said=WENT_BACK)],
        recorded=AT_OLD,
    )
    lose(world, after=10)
    world.clock += 60
    assert world.deliver_again()["Status"] == "FAILED"
    assert (record(world).before, record(world).after) == (OLD, "4a")
    assert roll_back(world)["Status"] == "SUCCESS"
    assert commands(world)[-1] == [DOWNGRADE]
