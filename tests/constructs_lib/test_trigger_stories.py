"""What CloudFormation, Lambda and ECS do to the trigger, as stories; FAILURES.md's rows are named."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import index
import pytest
from botocore.exceptions import EndpointConnectionError
from record import Record
from request import Request

from tests.constructs_lib.world import (
    CLUSTER,
    FAILED,
    SUCCEEDED,
    TASK_DEFINITION,
    LambdaTimeout,
    LostAnswerError,
    Run,
    World,
    fault,
)

ATTRIBUTES = {"RevisionBefore", "RevisionAfter", "TaskArn", "Duration", "Contract"}
OLDER = json.dumps({"fingerprint": "old", "before": "-", "after": "48871d03964b"})
MIGRATED = json.dumps({"fingerprint": "new", "before": "48871d03964b", "after": "49871d03964c"})


def fingerprint(world: World) -> str:
    return str(json.loads(world.recorded)["fingerprint"])


def die() -> None:
    raise LambdaTimeout


def lose_the_invocation(world: World, after: float) -> None:
    """Deliver a request to a Lambda that dies without a word."""
    world.after(after, die)
    with pytest.raises(LambdaTimeout):
        world.invoke(world.request("Update"))


def test_a_create_starts_one_task_waits_for_it_and_says_what_it_did() -> None:
    world = World([Run(seconds=42)], stack_status="CREATE_IN_PROGRESS")
    answer = world.deliver("Create")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"]["RevisionBefore"] == "48871d03964b"
    assert answer["Data"]["RevisionAfter"] == "49871d03964c"
    assert answer["Data"]["TaskArn"] in world.tasks
    assert answer["Data"]["Duration"] == "42"
    assert len(world.called("RunTask")) == 1


def test_the_task_runs_where_and_as_what_the_properties_say() -> None:
    world = World([Run()])
    world.deliver("Update")
    started = world.called("RunTask")[0]
    assert started["networkConfiguration"]["awsvpcConfiguration"] == {
        "subnets": ["subnet-1", "subnet-2"],
        "securityGroups": ["sg-1"],
        "assignPublicIp": "DISABLED",
    }
    assert started["launchType"] == "FARGATE"
    assert len(started["startedBy"]) <= 36
    assert len(started["clientToken"]) <= 64


def test_the_answer_follows_the_tasks_end_within_two_seconds() -> None:
    world = World([Run(seconds=300.5)])
    began = world.clock
    world.deliver("Update")
    assert world.clock - began <= 302.5


def test_ecs_is_asked_every_second() -> None:
    world = World([Run(seconds=200)])
    world.deliver("Update")
    assert len(world.called("DescribeTasks")) == 200 + 1


def test_an_update_without_new_migrations_is_answered_without_a_call_to_ecs() -> None:  # C12
    world = World(recorded=MIGRATED)
    answer = world.deliver("Update")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"] == {
        "RevisionBefore": "49871d03964c",
        "RevisionAfter": "49871d03964c",
        "TaskArn": "-",
        "Duration": "-",
        "Contract": "-",
    }
    assert {name for name, _ in world.calls} == {"DescribeStacks", "GetParameter", "PutParameter"}


def test_an_unchanged_update_that_is_delivered_again_starts_no_task_either() -> None:  # C3, C12
    world = World(recorded=MIGRATED)
    world.deliver("Update")
    assert "No migration has changed" in world.deliver_again()["Reason"]
    assert world.tasks == {}


def test_unchanged_means_since_the_last_success_not_since_the_last_attempt() -> None:  # C17
    world = World([Run(exit_code=1, said=FAILED), Run()], recorded=MIGRATED)
    assert world.deliver("Update", "first", Fingerprint="newer")["Status"] == "FAILED"
    assert world.deliver("Update", "second", Fingerprint="newer")["Status"] == "SUCCESS"
    assert len(world.tasks) == 2


def test_a_create_migrates_although_the_record_knows_the_fingerprint() -> None:
    world = World([Run()], stack_status="CREATE_IN_PROGRESS", recorded=MIGRATED)
    world.deliver("Create")
    assert len(world.tasks) == 1


def test_a_failure_that_changed_nothing_leaves_the_last_success_in_force() -> None:
    unmoved = {**FAILED, "from": "49871d03964c", "at": "49871d03964c"}
    world = World([Run(exit_code=1, said=unmoved)], recorded=MIGRATED)
    world.deliver("Update", "first", Fingerprint="newer")
    assert fingerprint(world) == "new"
    assert world.deliver("Update", "second")["Data"]["RevisionAfter"] == "49871d03964c"
    assert len(world.tasks) == 1


@pytest.mark.parametrize(
    "run",
    [
        Run(exit_code=1, said={**FAILED, "at": "4a", "applied": ["4a"]}),
        Run(exit_code=137, said=None),
    ],
    ids=["half-way", "killed"],
)
def test_after_a_failure_that_may_have_moved_the_schema_nothing_counts_as_unchanged(run: Run) -> None:
    world = World([run, Run()], recorded=MIGRATED)
    world.deliver("Update", "first", Fingerprint="newer")
    assert fingerprint(world) == "-"
    world.deliver("Update", "second")
    assert len(world.tasks) == 2


def test_every_success_carries_every_attribute() -> None:
    for kind, status in [
        ("Create", "CREATE"),
        ("Update", "UPDATE"),
        ("Update", "UPDATE_ROLLBACK"),
        ("Delete", "DELETE"),
    ]:
        answer = World([Run(said=None)], stack_status=f"{status}_IN_PROGRESS").deliver(kind)
        assert answer["Status"] == "SUCCESS"
        assert set(answer["Data"]) == ATTRIBUTES
        assert all(answer["Data"].values())


def test_the_physical_id_never_changes_and_one_that_cloudformation_made_up_is_kept() -> None:  # C6, C7
    world = World([Run(), Run()], stack_status="CREATE_IN_PROGRESS")
    created = world.deliver("Create")["PhysicalResourceId"]
    world.stack_status = "UPDATE_IN_PROGRESS"
    assert world.deliver("Update", Fingerprint="newer")["PhysicalResourceId"] == created
    made_up = {**world.request("Delete"), "PhysicalResourceId": "DevStack-Migration-1A2B3C"}
    world.invoke(made_up)
    assert world.answers[-1]["PhysicalResourceId"] == "DevStack-Migration-1A2B3C"


def test_given_a_failed_create_the_later_delete_answers_at_once_and_starts_nothing() -> None:  # C7
    world = World([Run(exit_code=1, said=FAILED)], stack_status="CREATE_IN_PROGRESS")
    assert world.deliver("Create")["Status"] == "FAILED"
    world.stack_status = "ROLLBACK_IN_PROGRESS"
    began = world.clock
    assert world.deliver("Delete", "request-2")["Status"] == "SUCCESS"
    assert world.clock == began
    assert len(world.tasks) == 1


def test_a_delete_during_the_create_stops_the_task_and_both_are_answered() -> None:  # C7
    world = World([Run(seconds=600)], stack_status="CREATE_IN_PROGRESS")
    world.after(30, lambda: world.invoke(world.request("Delete", "request-2")))
    world.invoke(world.request("Create"))
    assert [(a["RequestId"], a["Status"]) for a in world.answers] == [("request-2", "SUCCESS"), ("request-1", "FAILED")]
    assert not world.running


def test_a_rollback_knows_that_nothing_runs_when_the_cluster_is_gone() -> None:
    gone = [fault("ClusterNotFoundException")] * 99
    world = World(stack_status="UPDATE_ROLLBACK_IN_PROGRESS", faults={"ListTasks": gone}, recorded=MIGRATED)
    assert world.deliver("Update")["Reason"] == "The stack rolls back; the schema is kept, last seen at 49871d03964c."


def test_a_delete_asks_for_nothing_but_its_record_and_tasks() -> None:
    world = World(stack_status="DELETE_COMPLETE")
    assert world.deliver("Delete")["Status"] == "SUCCESS"
    assert {name for name, _ in world.calls} == {"GetParameter", "ListTasks"}


def test_a_delete_needs_no_record() -> None:  # C7
    denied = fault("AccessDeniedException", service="ssm")
    world = World([Run(seconds=9999)])
    lose_the_invocation(world, after=5)
    world.faults["GetParameter"] = [denied] * 99
    assert world.deliver("Delete", "delete")["Status"] == "SUCCESS"
    assert not world.running


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        ("ListTasks", "ClusterNotFoundException"),
        ("ListTasks", "AccessDeniedException"),
        ("DescribeTasks", "InvalidParameterException"),
        ("StopTask", "AccessDeniedException"),
        ("StopTask", "InvalidParameterException"),
    ],
)
def test_a_task_that_can_not_be_stopped_fails_no_delete(operation: str, error: str) -> None:  # C7
    world = World([Run(seconds=9999)])
    lose_the_invocation(world, after=5)
    world.faults[operation] = [fault(error)] * 999
    answer = world.deliver("Delete", "delete")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"] == dict.fromkeys(ATTRIBUTES, "-")


def test_a_delete_that_makes_no_sense_succeeds_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:  # C7
    world = World()
    event = world.request("Delete")
    del event["ResourceProperties"]["Cluster"]
    world.invoke(event)
    assert world.answers[0]["Status"] == "SUCCESS"
    assert world.answers[0]["Data"] == dict.fromkeys(ATTRIBUTES, "-")
    assert "KeyError: 'Cluster'" in caplog.text


def test_a_rollback_runs_nothing_and_says_where_the_schema_is() -> None:  # C8
    world = World([Run()])
    world.deliver("Update")
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    answer = world.deliver("Update", "request-2", Fingerprint="old")
    assert answer["Status"] == "SUCCESS"
    assert "49871d03964c" in answer["Reason"]
    assert answer["Data"]["RevisionAfter"] == "49871d03964c"
    assert len(world.tasks) == 1


@pytest.mark.parametrize(
    ("operation", "error", "unknown"),
    [
        ("GetParameter", fault("AccessDeniedException", service="ssm"), "Unknown: its revision."),
        ("GetParameter", ValueError("odd"), "Unknown: its revision."),
        ("ListTasks", fault("AccessDeniedException"), "Unknown: its revision, and whether a task of the migration"),
        ("DescribeTasks", fault("ThrottlingException"), "Unknown: its revision, and whether a task of the migration"),
        ("StopTask", fault("AccessDeniedException"), "Unknown: its revision, and whether a task of the migration"),
        ("PutParameter", fault("AccessDeniedException", service="ssm"), "Unknown: its revision."),
    ],
)
def test_nothing_fails_a_rollback_and_the_answer_says_what_is_unknown(
    operation: str, error: Exception, unknown: str, caplog: pytest.LogCaptureFixture
) -> None:  # C8
    world = World([Run(seconds=9999, said=None)], recorded=OLDER)
    lose_the_invocation(world, after=5)
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    world.faults[operation] = [error] * 999
    began = world.clock
    answer = world.deliver("Update", "rollback", Fingerprint="old")
    assert answer["Status"] == "SUCCESS"
    assert unknown in answer["Reason"]
    assert set(answer["Data"]) == ATTRIBUTES
    assert all(answer["Data"].values())
    assert str(error) in caplog.text
    assert any(one.levelno >= logging.WARNING for one in caplog.records)
    assert world.clock - began < 180


def test_a_rollback_succeeds_when_someone_has_deleted_the_record() -> None:  # C8
    gone = [fault("ParameterNotFound", service="ssm")]
    answer = World(stack_status="UPDATE_ROLLBACK_IN_PROGRESS", faults={"GetParameter": gone}).deliver("Update")
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == "The stack rolls back; the schema is kept. Unknown: its revision."
    assert answer["Data"] == dict.fromkeys(ATTRIBUTES, "-")


def test_a_rollback_says_when_a_task_may_outlive_it() -> None:  # C8, C9
    world = World([Run(seconds=9999, seconds_to_stop=9999)], recorded=OLDER)
    lose_the_invocation(world, after=5)
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    answer = world.deliver("Update", "rollback")
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == (
        "The stack rolls back; the schema is kept. Unknown: its revision, and whether a task of the migration still "
        "runs."
    )
    assert fingerprint(world) == "-"


def test_a_rollback_that_makes_no_sense_succeeds_too(caplog: pytest.LogCaptureFixture) -> None:  # C8
    world = World(stack_status="ROLLBACK_IN_PROGRESS")
    event = world.request("Create")
    del event["ResourceProperties"]["Cluster"]
    world.invoke(event)
    assert world.answers[0]["Status"] == "SUCCESS"
    assert world.answers[0]["Data"] == dict.fromkeys(ATTRIBUTES, "-")
    assert "KeyError: 'Cluster'" in caplog.text


def test_a_record_that_someone_has_deleted_costs_a_task_and_is_made_anew() -> None:
    gone = [fault("ParameterNotFound", service="ssm")]
    world = World([Run()], recorded=MIGRATED, faults={"GetParameter": gone})
    assert world.deliver("Update", "first")["Status"] == "SUCCESS"
    assert len(world.tasks) == 1
    assert fingerprint(world) == "new"


@pytest.mark.parametrize("operation", ["GetParameter", "PutParameter"])
def test_a_record_that_can_not_be_kept_fails_a_deployment_before_anything_has_changed(operation: str) -> None:
    world = World(recorded=MIGRATED, faults={operation: [fault("AccessDeniedException", service="ssm")] * 99})
    answer = world.deliver("Update", Fingerprint="newer")
    assert answer["Status"] == "FAILED"
    assert "AccessDeniedException" in answer["Reason"]


@pytest.mark.parametrize("error", [fault("AccessDeniedException", service="ssm"), ValueError("odd")])
def test_a_success_that_can_not_be_recorded_stays_one_and_costs_another_task(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = World([Run(), Run()], recorded=MIGRATED)
    world.after(10, lambda: world.faults.update(PutParameter=[error] * 99))
    answer = world.deliver("Update", "first", Fingerprint="newer")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"]["RevisionAfter"] == "49871d03964c"
    assert str(error) in caplog.text
    world.faults.clear()
    assert world.deliver("Update", "second", Fingerprint="newer")["Status"] == "SUCCESS"
    assert len(world.tasks) == 2
    assert fingerprint(world) == "newer"


def test_a_failure_that_can_not_be_recorded_keeps_its_reason() -> None:
    denied = fault("AccessDeniedException", service="ssm")
    half_way = {**FAILED, "at": "4a", "applied": ["4a"]}
    world = World([Run(exit_code=1, said=half_way)], recorded=MIGRATED)
    world.after(10, lambda: world.faults.update(PutParameter=[denied] * 99))
    assert world.deliver("Update", Fingerprint="newer")["Reason"].startswith("Migration 49871d03964c failed: Undefined")


@pytest.mark.parametrize("said", ["[" * 100_000, {**FAILED, "error": "boom"}, {**SUCCEEDED, "applied": {"4a": 1}}])
def test_what_a_task_says_out_of_shape_changes_nothing_about_how_it_ended(said: Any) -> None:
    world = World([Run(said=said), Run(exit_code=1, said=said)])
    assert world.deliver("Update", "first")["Status"] == "SUCCESS"
    assert world.deliver("Update", "second", Fingerprint="newer")["Reason"].startswith(
        "Migration 49871d03964c failed: its log has the reason. Where the schema is now is unknown"
    )


def test_after_a_rollback_the_same_migrations_need_no_second_task() -> None:
    world = World([Run()])
    world.deliver("Update", "first")
    world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
    world.deliver("Update", "second", Fingerprint="old")
    world.stack_status = "UPDATE_IN_PROGRESS"
    assert world.deliver("Update", "third")["Status"] == "SUCCESS"
    assert len(world.tasks) == 1


def test_a_cancelled_update_leaves_no_task_and_no_request_without_an_answer() -> None:  # C9
    world = World([Run(seconds=600)], recorded=MIGRATED)

    def cancel() -> None:
        world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
        world.invoke(world.request("Update", "rollback"))
        assert not world.running

    world.after(30, cancel)
    world.invoke(world.request("Update", "update", Fingerprint="newer"))
    assert [(a["RequestId"], a["Status"]) for a in world.answers] == [("rollback", "SUCCESS"), ("update", "FAILED")]


def test_a_cancelled_update_of_another_family_leaves_no_task() -> None:  # C9
    world = World([Run(seconds=600)], recorded=MIGRATED)
    renamed = "arn:aws:ecs:us-west-2:111122223333:task-definition/renamed-migration-task:1"
    world.after(200, lambda: setattr(world, "stack_status", "UPDATE_ROLLBACK_IN_PROGRESS"))
    world.after(200, lambda: world.invoke(world.request("Update", "rollback")))
    world.invoke(world.request("Update", "update", Fingerprint="newer", TaskDefinition=renamed))
    assert [(a["RequestId"], a["Status"]) for a in world.answers] == [("rollback", "SUCCESS"), ("update", "FAILED")]


def test_a_task_that_wins_the_race_against_its_cancellation_is_not_recorded_as_the_older_release() -> None:
    world = World([Run(seconds=31, seconds_to_stop=60)], recorded=MIGRATED)

    def cancel() -> None:
        world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
        world.invoke(world.request("Update", "rollback", Fingerprint="older"))
        assert fingerprint(world) == "-"

    world.after(30, cancel)
    world.invoke(world.request("Update", "update", Fingerprint="newer"))


def test_the_same_event_twice_while_the_task_runs_gives_one_task() -> None:  # C3
    world = World([Run(seconds=100)])
    world.after(10, lambda: world.invoke(world.request("Update")))
    world.invoke(world.request("Update"))
    assert len(world.tasks) == 1
    assert [a["Status"] for a in world.answers] == ["SUCCESS", "SUCCESS"]


def test_the_same_event_after_the_task_has_succeeded_gives_its_outcome() -> None:  # C3, C14
    world = World([Run()], undeliverable=5)
    with pytest.raises(Exception, match="not taken the answer"):
        world.invoke(world.request("Update"))
    first = world.tasks.copy()
    answer = world.deliver_again()
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"]["TaskArn"] in first
    assert answer["Data"]["RevisionBefore"] == "48871d03964b"
    assert len(world.tasks) == 1


def test_a_request_id_that_is_used_again_never_repeats_an_old_failure() -> None:  # C4
    world = World([*[Run(exit_code=1, said=FAILED)] * 3, Run()])
    assert [world.deliver("Update")["Status"] for _ in range(4)] == ["FAILED", "FAILED", "FAILED", "SUCCESS"]
    assert len(world.tasks) == 4


def test_an_event_that_is_delivered_again_after_a_failure_never_repeats_it() -> None:  # C3
    world = World([*[Run(exit_code=1, said=FAILED)] * 3, Run()])
    world.deliver("Update")
    assert [world.deliver_again()["Status"] for _ in range(3)] == ["FAILED", "FAILED", "SUCCESS"]
    assert len(world.tasks) == 4


def test_an_event_that_is_delivered_without_end_is_refused_in_one_sentence() -> None:  # C3
    world = World([Run(exit_code=1, said=FAILED)] * 10)
    world.deliver("Update")
    for _ in range(9):
        world.deliver_again()
    answer = world.deliver_again()
    assert answer["Status"] == "FAILED"
    assert answer["Reason"] == (
        "The same request has been delivered 10 times, and each time the migration's task has failed. The reason is in "
        "/ecs/dev/migration-task. Deploy again."
    )
    assert len(world.tasks) == 10


def test_what_the_task_of_a_lost_invocation_has_done_is_recorded_although_cloudformation_does_not_answer() -> None:
    # The first task may have moved the schema when it is killed; the second never starts.
    world = World(
        [Run(exit_code=137, said=None), Run(exit_code=None, stop_code="TaskFailedToStart", said=None)],
        recorded=MIGRATED,
    )
    world.after(15, die)
    with pytest.raises(LambdaTimeout):
        world.deliver("Update", Fingerprint="newer")
    world.sleep(30)
    asked_before_the_tasks = 3
    world.faults["DescribeStacks"] = [*[None] * asked_before_the_tasks, fault("InternalServerError", status=500)]
    assert world.deliver_again()["Status"] == "FAILED"
    assert world.faults["DescribeStacks"] == []
    assert len(world.tasks) == 2
    assert json.loads(world.recorded)["after"] == "-"


def test_a_task_does_not_go_on_without_a_record_of_what_the_one_before_it_has_done() -> None:
    world = World([Run(exit_code=137, said=None), Run(seconds=600)], recorded=MIGRATED)
    world.after(15, die)
    with pytest.raises(LambdaTimeout):
        world.deliver("Update", Fingerprint="newer")
    world.sleep(30)
    world.faults["PutParameter"] = [None, *[fault("InternalServerError", service="ssm", status=500)] * 99]
    assert world.deliver_again()["Status"] == "FAILED"
    assert len(world.tasks) == 2
    assert not world.running
    assert json.loads(world.recorded)["running"] is True


def test_no_task_is_started_anew_when_the_time_is_up_while_ecs_does_not_answer() -> None:  # C1
    world = World([Run(exit_code=137, said=None)], recorded=MIGRATED)
    world.after(15, die)
    with pytest.raises(LambdaTimeout):
        world.deliver("Update", Fingerprint="newer", Timeout="60")
    world.sleep(40)
    world.faults["RunTask"] = [fault("InternalServerError", status=500)] * 3
    assert "no time left" in world.deliver_again()["Reason"]
    assert len(world.tasks) == 1


REFUSED = {**FAILED, "error": {"kind": "CredentialsRefused", "message": "The database refused the credentials."}}


def test_a_secret_that_was_rotated_between_start_and_login_costs_one_more_task() -> None:  # P11
    world = World([Run(exit_code=6, said=REFUSED), Run(seconds=40)])
    answer = world.deliver("Update")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"]["Duration"] == "60"
    assert len(world.tasks) == 2


def test_credentials_that_are_refused_twice_are_wrong() -> None:  # P11
    world = World([Run(exit_code=6, said=REFUSED)] * 2)
    answer = world.deliver("Update")
    assert answer["Status"] == "FAILED"
    assert "The database refused the credentials" in answer["Reason"]
    assert "Check the user and the password in the secret." in answer["Reason"]
    assert len(world.tasks) == 2


def test_no_task_is_started_again_for_a_deployment_that_is_cancelled_meanwhile() -> None:  # P11, C9
    world = World([Run(exit_code=6, said=REFUSED)])
    world.after(5, lambda: setattr(world, "stack_status", "UPDATE_ROLLBACK_IN_PROGRESS"))
    assert "came too late" in world.deliver("Update")["Reason"]
    assert len(world.tasks) == 1


def test_the_same_event_after_a_success_starts_no_task_whatever_became_of_a_sidecar() -> None:  # C3
    world = World([Run(sidecars=[{"name": "aws-guardduty-agent-4f1c", "exitCode": 137}])])
    assert world.deliver("Update")["Status"] == "SUCCESS"
    assert world.deliver_again()["Status"] == "SUCCESS"
    assert len(world.tasks) == 1


def test_an_event_of_an_operation_that_is_over_starts_nothing_in_the_next_one() -> None:  # C5
    # The record does not tell: the next operation's own event has not been delivered yet.
    world = World([Run(exit_code=1, said=FAILED)])
    world.deliver("Update")
    world.clock += 60
    world.updated_at = world.clock
    world.clock += 60
    assert "came too late" in world.deliver_again()["Reason"]
    assert len(world.tasks) == 1


def test_an_event_that_is_delivered_again_within_its_own_operation_is_not_late() -> None:  # C3, C5
    world = World([Run(exit_code=1, said=FAILED), Run()])
    world.updated_at = world.clock - 1
    world.deliver("Update")
    world.clock += 60
    assert world.deliver_again()["Status"] == "SUCCESS"


def test_a_task_whose_start_was_not_heard_is_looked_for_until_ecs_lists_it() -> None:  # E3
    world = World([Run(seconds=600)], unseen_for=15)
    world.faults["RunTask"] = [LostAnswerError(), *[fault("ServerException", status=500)] * 99]
    assert world.deliver("Update")["Status"] == "FAILED"
    assert len(world.tasks) == 1
    assert not world.running


def test_a_rollback_that_can_not_read_the_record_looks_for_a_task_all_the_same() -> None:  # C8, C9, E3
    world = World([Run(seconds=600)], recorded=MIGRATED, unseen_for=15)
    unreadable = [fault("InternalServerError", service="ssm", status=500)] * 99

    def cancel() -> None:
        world.stack_status = "UPDATE_ROLLBACK_IN_PROGRESS"
        world.faults["GetParameter"] = unreadable.copy()
        answer = world.deliver("Update", "rollback")
        assert answer["Status"] == "SUCCESS"
        assert not world.running
        # A request that is older than the rollback is refused by what it has written.
        assert json.loads(world.recorded)["newest"] > 0
        world.faults["GetParameter"] = []

    world.after(5, cancel)
    world.deliver("Update", Fingerprint="newer")


def test_an_event_that_comes_too_late_starts_nothing() -> None:  # C5
    answer = World(stack_status="UPDATE_ROLLBACK_COMPLETE").deliver("Update")
    assert answer["Status"] == "FAILED"
    assert "came too late" in answer["Reason"]


def test_a_watch_longer_than_an_invocation_goes_on_in_the_next_with_the_same_deadline() -> None:  # C15
    world = World([Run(seconds=2500)])
    answer = world.deliver("Update", Timeout="3300")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"]["Duration"] == "2500"
    assert len(world.tasks) == 1
    assert 2 <= len(world.called("Invoke")) <= 5


def test_at_the_deadline_the_task_is_stopped_and_the_answer_is_in_time() -> None:  # C1
    world = World([Run(seconds=99999, seconds_to_stop=120)])
    began = world.clock
    answer = world.deliver("Update")
    assert answer["Status"] == "FAILED"
    assert "took longer than its timeout of 30 min" in answer["Reason"]
    assert not world.running
    assert world.clock - began < 1800 + 180


def test_a_task_that_can_not_be_stopped_does_not_keep_cloudformation_waiting() -> None:
    world = World([Run(seconds=99999, seconds_to_stop=9999)])
    began = world.clock
    answer = world.deliver("Update")
    assert "unknown" in answer["Reason"]
    assert world.clock - began < 1800 + 180


def test_an_event_that_is_delivered_again_counts_the_deadline_from_when_it_was_sent() -> None:  # C1
    world = World([Run(seconds=99999)])
    began = world.clock
    lose_the_invocation(world, after=300)
    world.deliver_again()
    assert 1800 <= world.clock - began < 1800 + 180


def test_a_request_that_is_delivered_late_counts_the_deadline_from_when_it_was_sent() -> None:  # C1
    world = World([Run(seconds=99999)])
    event = world.request("Update")
    began = world.clock
    world.clock += 600
    world.invoke(event)
    assert 1800 <= world.clock - began < 1800 + 180


def test_a_request_that_is_delivered_past_its_deadline_starts_nothing() -> None:  # C1, C5
    world = World()
    event = world.request("Update")
    world.clock += 1801
    world.invoke(event)
    assert world.answers[-1]["Reason"].startswith("There is no time left to run the migration's task.")


@pytest.mark.parametrize("operation", ["DescribeStacks", "GetParameter", "ListTasks", "RunTask", "DescribeTasks"])
def test_throttling_is_waited_out(operation: str) -> None:  # C16
    world = World([Run()], faults={operation: [fault("ThrottlingException")] * 4})
    assert world.deliver("Update")["Status"] == "SUCCESS"


def test_one_odd_poll_is_not_final() -> None:  # C16
    polls = [fault("InvalidParameterException"), fault("ExpiredTokenException")]
    world = World([Run(seconds=400)], faults={"DescribeTasks": polls})
    assert world.deliver("Update")["Status"] == "SUCCESS"


@pytest.mark.parametrize(
    ("operation", "properties"),
    [("DescribeTasks", {}), ("Invoke", {"Timeout": "3300"})],
    ids=["ECS does not tell", "the watch can not be handed on"],
)
def test_no_task_runs_on_after_an_answer_that_says_nothing_of_it(operation: str, properties: dict[str, str]) -> None:
    world = World([Run(seconds=3000)])
    denied = fault("AccessDeniedException", service="lambda" if operation == "Invoke" else "ecs")
    world.after(50, lambda: world.faults.update({operation: [denied] * 120}))
    answer = world.deliver("Update", "request-1", None, **properties)
    assert answer["Status"] == "FAILED"
    assert "AccessDeniedException" in answer["Reason"]
    assert not world.running


def test_failed_polls_are_never_final() -> None:  # C16
    lost = EndpointConnectionError(endpoint_url="https://ecs.us-west-2.amazonaws.com")
    polls = [fault("ServerException", status=500), lost, fault("ThrottlingException")] * 50
    world = World([Run(seconds=400)], faults={"DescribeTasks": polls})
    assert world.deliver("Update")["Status"] == "SUCCESS"


@pytest.mark.parametrize("operation", ["RunTask", "DescribeTasks", "PutParameter"])
def test_a_permission_may_take_a_while_to_propagate(operation: str) -> None:  # C16
    world = World([Run()], faults={operation: [fault("AccessDeniedException")] * 5})
    assert world.deliver("Update")["Status"] == "SUCCESS"


def test_a_permission_that_is_missing_is_named_after_90_seconds() -> None:
    world = World([Run()], faults={"RunTask": [fault("AccessDeniedException")] * 99})
    began = world.clock
    answer = world.deliver("Update")
    assert "AccessDeniedException" in answer["Reason"]
    assert 90 <= world.clock - began < 120


def test_a_task_without_room_is_tried_again() -> None:  # E1
    world = World([Run()], no_room=3)
    began = world.clock
    assert world.deliver("Update")["Status"] == "SUCCESS"
    assert world.clock - began == 5 + 10 + 20 + 20


def test_a_task_that_finds_no_room_for_five_minutes_fails_with_the_reason_of_ecs() -> None:  # E1
    world = World(no_room=999, recorded=MIGRATED)
    began = world.clock
    answer = world.deliver("Update", Fingerprint="newer")
    assert answer["Status"] == "FAILED"
    assert "RESOURCE:ENI" in answer["Reason"]
    assert 300 <= world.clock - began < 340
    assert fingerprint(world) == "new"


def test_a_conflict_on_the_token_is_our_own_task() -> None:  # E2
    world = World([Run()])
    world.aws().ecs.run_task(cluster="c", taskDefinition="t:6", startedBy="someone", clientToken="other")
    arn = next(iter(world.tasks))
    world.faults["RunTask"] = [fault("ConflictException", resourceIds=[arn])]
    assert world.deliver("Update")["Data"]["TaskArn"] == arn


def test_a_task_that_ecs_does_not_know_yet_is_waited_for() -> None:  # E3
    world = World([Run(seconds=200)], unseen_for=100)
    assert world.deliver("Update")["Status"] == "SUCCESS"


def test_a_task_that_ecs_has_lost_is_a_failure() -> None:  # E7
    world = World([Run(seconds=20)], unseen_for=99999)
    began = world.clock
    answer = world.deliver("Update")
    assert answer["Status"] == "FAILED"
    assert "unknown" in answer["Reason"]
    assert 120 < world.clock - began < 130


def test_a_result_line_that_comes_late_is_read() -> None:  # E8
    world = World([Run(exit_code=1, said=FAILED)], silent_reads=2)
    assert "UndefinedColumn" in world.deliver("Update")["Reason"]
    assert len(world.called("GetLogEvents")) == 3


def test_a_result_line_that_is_there_is_read_once() -> None:
    world = World([Run()])
    began = world.clock
    world.deliver("Update")
    assert len(world.called("GetLogEvents")) == 1
    assert world.clock - began == 20


def test_a_task_that_says_nothing_costs_no_more_than_two_seconds() -> None:  # E8
    world = World([Run(said=None)])
    began = world.clock
    assert world.deliver("Update")["Status"] == "SUCCESS"
    assert world.clock - began == pytest.approx(20 + 2 * 0.3)
    assert len(world.called("GetLogEvents")) == 3


@pytest.mark.parametrize("error", ["AccessDeniedException", "ThrottlingException", "InvalidParameterException"])
def test_a_log_that_can_not_be_read_decides_nothing(error: str, caplog: pytest.LogCaptureFixture) -> None:  # E8
    world = World([Run(), Run(exit_code=1)], faults={"GetLogEvents": [fault(error, service="logs")] * 99})
    began = world.clock
    answer = world.deliver("Update", "first")
    assert (answer["Status"], answer["Data"]["RevisionAfter"]) == ("SUCCESS", "49871d03964c")
    assert world.clock - began <= 20 + 15
    assert error in caplog.text
    failure = world.deliver("Update", "second", Fingerprint="newer")
    assert failure["Reason"].startswith(
        "Migration 49871d03964c failed: its log has the reason. Where the schema is now"
    )


def test_a_log_that_is_throttled_for_a_moment_is_read() -> None:  # E8, C16
    throttled = [fault("ThrottlingException", service="logs")] * 4
    world = World([Run(exit_code=1, said=FAILED)], faults={"GetLogEvents": throttled})
    assert "UndefinedColumn" in world.deliver("Update")["Reason"]


def test_an_older_task_that_still_runs_is_ended_before_the_new_one_starts() -> None:
    world = World([Run(seconds=500), Run()])
    lose_the_invocation(world, after=5)
    older = world.running
    answer = world.deliver("Update", "second", TaskDefinition="arn:aws:ecs:us-west-2:1:task-definition/family:8")
    assert answer["Status"] == "SUCCESS"
    assert [stopped["task"] for stopped in world.called("StopTask")] == older


def test_a_task_of_an_older_family_that_is_being_stopped_is_waited_for() -> None:  # C9
    world = World([Run(seconds=500, seconds_to_stop=60), Run()])
    older = {"TaskDefinition": "arn:aws:ecs:us-west-2:111122223333:task-definition/older-family:3"}
    world.after(5, die)
    with pytest.raises(LambdaTimeout):
        world.deliver("Update", "first", None, **older)
    world.aws().ecs.stop_task(cluster=CLUSTER, task=world.running[0], reason="someone stopped it")
    starts = []
    world.after(30, lambda: starts.append(len(world.tasks)))
    assert world.deliver("Update", "second", older)["Status"] == "SUCCESS"
    assert starts == [1]


def test_a_task_that_is_already_being_stopped_is_not_adopted() -> None:
    world = World([Run(seconds=500, seconds_to_stop=60), Run()])
    lose_the_invocation(world, after=5)
    (dying,) = world.running
    world.aws().ecs.stop_task(cluster="c", task=dying, reason="someone stopped it")
    answer = world.deliver("Update", "second")
    assert answer["Status"] == "SUCCESS"
    assert answer["Data"]["TaskArn"] != dying


def test_a_task_that_is_being_stopped_is_found_among_hundreds_of_stopped_ones_of_the_family() -> None:
    world = World([*[Run(seconds=1)] * 205, Run(seconds=500, seconds_to_stop=60), Run()])
    for number in range(205):
        world.aws().ecs.run_task(
            cluster=CLUSTER, taskDefinition=TASK_DEFINITION, startedBy="someone", clientToken=str(number)
        )
    lose_the_invocation(world, after=5)
    (dying,) = world.running
    world.aws().ecs.stop_task(cluster=CLUSTER, task=dying, reason="someone stopped it")
    assert world.deliver("Update", "second")["Data"]["TaskArn"] != dying
    assert not world.running


def test_a_task_of_someone_else_is_left_alone() -> None:
    world = World([Run(seconds=500, seconds_to_stop=400), Run()])
    world.aws().ecs.run_task(cluster=CLUSTER, taskDefinition=TASK_DEFINITION, startedBy="someone", clientToken="x")
    world.aws().ecs.stop_task(cluster=CLUSTER, task=world.running[0], reason="someone stopped it")
    assert world.deliver("Update")["Status"] == "SUCCESS"
    assert len(world.called("StopTask")) == 1


def test_a_role_that_is_too_new_is_waited_for() -> None:  # E9
    message = "ECS was unable to assume the role 'arn:aws:iam::111122223333:role/new' that was provided for this task."
    world = World([Run()], faults={"RunTask": [fault("ClientException", message)] * 3})
    assert world.deliver("Update")["Status"] == "SUCCESS"


def test_waiting_for_room_does_not_move_the_deadline() -> None:  # C1, E1
    world = World([Run(seconds=99999, seconds_to_stop=120)], no_room=9)
    began = world.clock
    assert world.deliver("Update")["Status"] == "FAILED"
    assert world.clock - began < 1800 + 180


def test_nonsense_gets_an_answer_too() -> None:  # C1
    world = World()
    event = world.request("Update")
    del event["ResourceProperties"]["Cluster"]
    world.invoke(event)
    assert world.answers[0]["Status"] == "FAILED"
    assert "Cluster" in world.answers[0]["Reason"]


def test_the_signed_address_reaches_no_log(caplog: pytest.LogCaptureFixture) -> None:  # C11
    world = World([Run(seconds=1000)], faults={"PutParameter": [ValueError("unexpected")]}, undeliverable=5)
    with pytest.raises(Exception, match="not taken") as failure:
        world.invoke(world.request("Update"))
    assert "request" in caplog.text
    assert "c0ffee" not in caplog.text + str(failure.value)
    assert failure.value.__cause__ is None


def test_the_function_needs_nothing_but_the_standard_library_and_boto3() -> None:
    handler = Path(index.__file__).parent
    program = "import sys, index; sys.exit(any(name in sys.modules for name in ('aws_cdk', 'jsii', 'constructs_lib')))"
    subprocess.run([sys.executable, "-c", program], cwd=handler, check=True, env={"PYTHONPATH": str(handler)})


def test_what_the_runner_says_reaches_the_person_who_deploys() -> None:
    answer = World([Run(exit_code=1, said=FAILED)]).deliver("Update")
    assert answer["Reason"].startswith(
        'Migration 49871d03964c failed: UndefinedColumn: column "name" does not exist. '
        "The transaction was rolled back; the schema is still at 48871d03964b. "
        "Log: /ecs/dev/migration-task, task 00000000000000000000000000000001. "
        "https://us-west-2.console.aws.amazon.com/cloudwatch/home?region=us-west-2#logsV2:log-groups/"
    )


AHEAD = {
    "event": "migration.result",
    "from": "50871d03964d",
    "at": "50871d03964d",
    "applied": [],
    "error": {"kind": "DatabaseAhead", "message": "The database is at 50871d03964d.", "hint": None},
}


def test_a_release_older_than_the_schema_fails_and_the_way_out_is_in_the_sentence() -> None:  # P8
    answer = World([Run(exit_code=5, said=AHEAD)]).deliver("Update", OnDatabaseAhead="fail")
    assert answer["Status"] == "FAILED"
    assert 'on_database_ahead="proceed" would let this release pass.' in answer["Reason"]


def test_a_release_older_than_the_schema_may_be_let_pass() -> None:  # P8
    world = World([Run(exit_code=5, said=AHEAD), Run(exit_code=5, said=AHEAD)])
    answer = world.deliver("Update", "first", OnDatabaseAhead="proceed")
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == "The schema is at 50871d03964d, ahead of this release, which may pass."
    assert (answer["Data"]["RevisionBefore"], answer["Data"]["RevisionAfter"]) == ("50871d03964d", "50871d03964d")


def test_a_release_that_has_passed_is_looked_at_again_by_the_next_deployment() -> None:  # P8
    world = World([Run(exit_code=5, said=AHEAD), Run(exit_code=5, said=AHEAD)])
    assert world.deliver("Update", "first", OnDatabaseAhead="proceed")["Status"] == "SUCCESS"
    assert world.deliver("Update", "second")["Status"] == "FAILED"
    assert len(world.tasks) == 2


def test_to_proceed_forgives_nothing_but_a_database_that_is_ahead() -> None:
    world = World([Run(exit_code=1, said=FAILED)])
    assert world.deliver("Update", OnDatabaseAhead="proceed")["Status"] == "FAILED"


def test_a_request_that_could_not_be_recorded_for_a_while_gives_way_to_a_newer_one() -> None:  # C5
    world = World(recorded=MIGRATED)
    event = world.request("Update", "late", Fingerprint="newer")
    world.clock += 60
    newer = Record().opened_for(Request.parse(world.request("Update", "newer")), world.clock, runs=True)
    world.faults["PutParameter"] = [fault("ThrottlingException", service="ssm")] * 4
    world.after(3, lambda: setattr(world, "recorded", newer.dump()))
    world.invoke(event)
    assert "came too late" in world.answers[-1]["Reason"]
    assert Record.parse(world.recorded) == newer
    assert world.tasks == {}
