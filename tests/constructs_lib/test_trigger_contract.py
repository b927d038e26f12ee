"""The contract of a release, as stories: what it waits for, what keeps it open, and what a rollback gives back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from record import Record
from request import Request, Service, resource_id
from services import deployment_obstacle

from tests.constructs_lib.test_trigger_notices import metrics
from tests.constructs_lib.world import (
    CLUSTER,
    CONTRACT,
    FAILED,
    NEWER_WEB,
    OLDER_WEB,
    SERVICE,
    STACK,
    SUCCEEDED,
    LambdaTimeout,
    Run,
    Web,
    World,
    fault,
)

OLD, NEW = "48871d03964b", "49871d03964c"
OLDER_IMAGE, NEWER_IMAGE = (
    f"arn:aws:ecs:us-west-2:111122223333:task-definition/dev-migration-task:{n}" for n in (6, 7)
)
OLDER = {"Target": OLD, "Fingerprint": "old", "TaskDefinition": OLDER_IMAGE}
NEWER = {"Target": NEW, "Fingerprint": "new", "TaskDefinition": NEWER_IMAGE}
OLDER_SERVICES = [{"Cluster": CLUSTER, "Service": SERVICE, "TaskDefinition": OLDER_WEB}]
OLDER_CONTRACT = {**CONTRACT, **OLDER, "Services": OLDER_SERVICES}
NEWER_CONTRACT = {**CONTRACT, **NEWER}
RENAME = "parent_items.name -> sku"
BRIDGED = {**SUCCEEDED, "target": NEW, "open": [RENAME]}
CLOSED = {"event": "migration.result", "command": "contract", "from": NEW, "at": NEW, "applied": [], "open": []}
REOPENED = {**CLOSED, "command": "reopen", "open": [RENAME]}
BUSY = {
    **CLOSED,
    "open": [RENAME],
    "error": {"kind": "LockTimeout", "message": "the table items is in use", "revision": None, "hint": None},
}
AT_OLD = json.dumps({"fingerprint": "old", "before": "-", "after": OLD})
ATTRIBUTES = {"RevisionBefore", "RevisionAfter", "TaskArn", "Duration", "Contract"}
TOPIC = "arn:aws:sns:us-west-2:111122223333:failures"
STEPS = {"contract": CONTRACT["Command"], "reopen": ["python", "-m", "migration_runner", "reopen", OLD]}
NAME = "dev-inventory-service"


def world_with(*runs: Run, web: Web | None = None, recorded: str = AT_OLD, **fields: Any) -> World:
    return World(list(runs), recorded=recorded, services={NAME: web or Web()}, **fields)


def upgrade(world: World, request_id: str = "upgrade", **newer: Any) -> dict[str, Any]:
    world.stack_status = "UPDATE_IN_PROGRESS"
    return world.deliver("Update", request_id, OLDER, **{**NEWER, **newer})


def close(world: World, request_id: str = "contract", **newer: Any) -> dict[str, Any]:
    world.clock += 1
    world.stack_status = "UPDATE_IN_PROGRESS"
    return world.deliver("Update", request_id, OLDER_CONTRACT, **{**NEWER_CONTRACT, **newer})


def begin_rollback(world: World) -> None:
    world.clock += 1
    world.stack_status, world.rolled_back_at = "UPDATE_ROLLBACK_IN_PROGRESS", world.clock


def migration_back(world: World, request_id: str = "migration back", **newer: Any) -> dict[str, Any]:
    return world.deliver("Update", request_id, {**NEWER, **newer}, **OLDER)


def contract_back(world: World, request_id: str = "contract back", **newer: Any) -> dict[str, Any]:
    return world.deliver("Update", request_id, {**NEWER_CONTRACT, **newer}, **OLDER_CONTRACT)


def steps(world: World) -> list[str]:
    """What was run, in words: the image, and what it was told to do."""
    told = []
    for run in world.called("RunTask"):
        commands = run["overrides"]["containerOverrides"]
        told.append(" ".join(commands[0]["command"][3:]) if commands else "upgrade")
        assert run["taskDefinition"] == NEWER_IMAGE
    return told


def record(world: World) -> Record:
    return Record.parse(world.recorded)


def die() -> None:
    raise LambdaTimeout


def lose(world: World, after: float, event: Mapping[str, Any]) -> None:
    """Let the invocation of an event die."""
    world.after(after, die)
    with pytest.raises(LambdaTimeout):
        world.invoke(dict(event))


def contract_event(world: World, request_id: str = "contract", **newer: Any) -> dict[str, Any]:
    world.clock += 1
    return world.request("Update", request_id, OLDER_CONTRACT, **{**NEWER_CONTRACT, **newer})


# --- closing


def test_after_the_services_the_contract_is_closed_by_a_task_of_the_release() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=7, said=CLOSED))
    assert upgrade(world)["Data"]["Contract"].startswith("open")
    answer = close(world)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == f"The contract is closed: only the new names are left. The schema is at {NEW}."
    assert answer["Data"] | {"TaskArn": ""} == {
        "RevisionBefore": NEW,
        "RevisionAfter": NEW,
        "TaskArn": "",
        "Duration": "7",
        "Contract": "closed",
    }
    assert steps(world) == ["upgrade", "contract"]
    assert record(world).contract == "closed"
    assert answer["PhysicalResourceId"] == resource_id(STACK, "MigrationContract5D1B0206")


def test_the_tasks_of_a_contract_are_found_as_those_of_its_migration() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    close(world)
    assert len({run["startedBy"] for run in world.called("RunTask")}) == 1


def test_a_contract_that_is_closed_costs_no_task_and_no_look_at_the_services() -> None:
    world = world_with(Run(said={**BRIDGED, "open": []}))
    assert upgrade(world)["Data"]["Contract"] == "closed"
    answer = close(world)
    assert answer["Reason"] == "The contract is closed already."
    assert answer["Data"] == {
        "RevisionBefore": NEW,
        "RevisionAfter": NEW,
        "TaskArn": "-",
        "Duration": "-",
        "Contract": "closed",
    }
    assert steps(world) == ["upgrade"]
    assert world.called("DescribeServices") == []


@pytest.mark.parametrize("said", [None, {**SUCCEEDED, "open": None}, SUCCEEDED], ids=["nothing", "null", "no word"])
def test_what_an_upgrade_has_not_told_of_its_contract_is_unknown_and_looked_after(said: Any) -> None:
    world = world_with(Run(said=said), Run(said=CLOSED))
    assert upgrade(world)["Data"]["Contract"] == "-"
    assert close(world)["Data"]["Contract"] == "closed"


def test_a_contract_of_which_nothing_was_heard_may_have_left_something() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=None), Run(said=CLOSED))
    upgrade(world)
    answer = close(world)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == "The contract has been run; whether anything is left of it is unknown."
    assert (answer["Data"]["Contract"], answer["Data"]["RevisionAfter"]) == ("-", "-")
    assert close(world, "next")["Data"]["Contract"] == "closed"


def test_a_deployment_of_code_alone_closes_what_is_open() -> None:
    world = world_with(Run(said=BRIDGED), Run(exit_code=4, said=BUSY), Run(said=CLOSED))
    upgrade(world)
    assert close(world)["Data"]["Contract"].startswith("open")
    newer_web = [{**OLDER_SERVICES[0], "TaskDefinition": NEWER_WEB.replace(":4", ":5")}]
    world.services[NAME] = Web(newer_web[0]["TaskDefinition"])
    assert close(world, "code only", Services=newer_web)["Data"]["Contract"] == "closed"


def test_what_an_older_release_finds_of_a_newer_one_stays_open_and_fails_nothing() -> None:
    world = world_with(Run(said=BRIDGED), Run(said={**CLOSED, "open": [RENAME, "items -> parts"]}))
    upgrade(world)
    answer = close(world, FailureTopic=TOPIC)
    assert answer["Reason"].startswith(
        "The contract of this release is done. Still open, for a newer release: parent_items.name -> sku, items -> "
        "parts. The schema is at"
    )
    assert answer["Data"]["Contract"].startswith("open")
    assert world.messages == []


# --- waiting


def test_it_waits_for_the_deployment_and_for_tasks_that_drain() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    began = world.clock
    world.services[NAME] = Web(done_at=began + 60, drained_at=began + 200)
    starts = []
    world.after(199, lambda: starts.append(len(world.tasks)))
    assert close(world)["Data"]["Contract"] == "closed"
    assert starts == [1]
    assert world.clock - began < 200 + 20 + 10


def test_a_service_behind_a_classic_load_balancer_has_no_rollout_and_is_counted() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.services[NAME] = Web(done_at=world.clock + 60, rollout=None)
    began = world.clock
    assert close(world)["Data"]["Contract"] == "closed"
    assert world.clock - began >= 60


def test_a_task_definition_may_be_known_by_its_family_alone() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    services = [{**OLDER_SERVICES[0], "TaskDefinition": "dev-inventory-service"}]
    assert close(world, Services=services)["Data"]["Contract"] == "closed"


def test_older_tasks_of_a_family_that_drain_are_waited_for() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    began = world.clock
    world.services[NAME] = Web(drained_at=began + 90)
    services = [{**OLDER_SERVICES[0], "TaskDefinition": "dev-inventory-service"}]
    assert close(world, Services=services)["Data"]["Contract"] == "closed"
    assert world.clock - began >= 90


def test_a_wait_asks_less_and_less_often_and_not_again_for_what_has_stopped() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.services[NAME] = Web(drained_at=world.clock + 30)
    world.services["slow"] = Web(drained_at=world.clock + 1200)
    world.clock += 1
    slow = other_service("slow")
    older = {**OLDER_CONTRACT, "Services": [*OLDER_SERVICES, slow]}
    newer = {**NEWER_CONTRACT, "Services": [*NEWER_CONTRACT["Services"], {**slow, "TaskDefinition": NEWER_WEB}]}
    assert world.deliver("Update", "contract", older, **newer)["Data"]["Contract"] == "closed"
    assert len(world.called("DescribeServices")) < 60 + 110 + 5
    drained = [one for one in world.called("DescribeTasks") if f"{NAME}-old" in one["tasks"][0]]
    # Every two seconds until it has stopped, and then once in each invocation.
    assert len(drained) <= 15 + len(world.called("Invoke")) + 2


def test_the_wait_leaves_the_task_a_fifth_of_the_timeout() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=340, said=CLOSED))
    upgrade(world)
    world.services[NAME] = Web(drained_at=world.clock + 1420)
    assert close(world)["Data"]["Contract"] == "closed"


def test_the_task_of_a_contract_refuses_an_image_of_another_release() -> None:
    # given the newest of a family, which may be another release's when the contract's stack is deployed alone
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    contract_back(world)
    overrides = [run["overrides"]["containerOverrides"] for run in world.called("RunTask")]
    told = [one.get("environment") for (one,) in overrides[1:]]
    # Whereas names are given back by any image that is new enough.
    assert told == [[{"name": "MIGRATION_TARGET", "value": NEW}], None]


def described(*deployments: dict[str, Any]) -> dict[str, Any]:
    return {"status": "ACTIVE", "deployments": list(deployments)}


DONE = {"status": "PRIMARY", "taskDefinition": NEWER_WEB, "rolloutState": "COMPLETED"}
BLUE = {"status": "ACTIVE", "taskDefinition": OLDER_WEB, "rolloutState": "COMPLETED"}


@pytest.mark.parametrize(
    ("deployments", "begins"),
    [
        ([DONE], None),
        ([BLUE, {**DONE, "status": "ACTIVE"}], "still goes on."),
        ([DONE, BLUE], "still goes on."),
        ([DONE, {**BLUE, "status": "INACTIVE"}], None),
        ([DONE, {**BLUE, "rolloutState": "FAILED", "runningCount": 0, "pendingCount": 0}], None),
        ([DONE, {**BLUE, "rolloutState": "FAILED", "runningCount": 1, "pendingCount": 0}], "still goes on."),
        ([{**DONE, "rolloutState": "IN_PROGRESS"}], "still goes on."),
        ([{**DONE, "rolloutState": "FAILED"}], "has failed: ECS gives no reason."),
        ([{**DONE, "rolloutState": "FAILED", "rolloutStateReason": "no luck."}], "has failed: no luck."),
        ([], "still goes on."),
    ],
)
def test_a_service_is_ready_when_the_releases_deployment_is_its_only_one(
    deployments: list[dict[str, Any]], begins: str | None
) -> None:
    service = Service(CLUSTER, SERVICE, NEWER_WEB)
    obstacle = deployment_obstacle(service, described(*deployments))
    told = begins and f"The deployment of the service dev-inventory-service {begins}"
    assert (obstacle and obstacle.sentence) == told


def test_many_services_are_asked_for_ten_at_a_time() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.services = {f"web-{n}": Web() for n in range(23)}
    services = [
        {"Cluster": CLUSTER, "Service": SERVICE.replace(NAME, name), "TaskDefinition": NEWER_WEB}
        for name in world.services
    ]
    world.clock += 1
    older = {**OLDER_CONTRACT, "Services": [{**one, "TaskDefinition": OLDER_WEB} for one in services]}
    answer = world.deliver("Update", "contract", older, **{**NEWER_CONTRACT, "Services": services})
    assert answer["Data"]["Contract"] == "closed"
    assert [len(call["services"]) for call in world.called("DescribeServices")] == [10, 10, 3]


def test_a_wait_longer_than_an_invocation_goes_on_in_the_next_with_the_same_deadline() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=100, said=CLOSED))
    upgrade(world)
    began = world.clock
    world.services[NAME] = Web(done_at=began + 1300, drained_at=began + 1360)
    assert close(world)["Data"]["Contract"] == "closed"
    assert 2 <= len(world.called("Invoke")) <= 4
    assert steps(world) == ["upgrade", "contract"]


def test_a_contract_longer_than_an_invocation_goes_on_in_the_next() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=1500, said=CLOSED))
    upgrade(world)
    answer = close(world)
    assert (answer["Data"]["Contract"], answer["Data"]["Duration"]) == ("closed", "1500")


def test_throttling_and_a_permission_that_has_yet_to_propagate_are_waited_out() -> None:
    lost = EndpointConnectionError(endpoint_url="https://ecs.us-west-2.amazonaws.com")
    denied, throttled = fault("AccessDeniedException"), fault("ThrottlingException")
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.faults["DescribeServices"] = [*[denied] * 10, *[throttled] * 40, lost]
    assert close(world)["Data"]["Contract"] == "closed"


def test_a_permission_that_is_missing_leaves_the_contract_open_and_is_named() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.faults["DescribeServices"] = [fault("AccessDeniedException")] * 999
    began = world.clock
    answer = close(world)
    assert (answer["Status"], answer["Data"]["Contract"][:6]) == ("SUCCESS", "open: ")
    assert "AccessDeniedException" in answer["Reason"]
    assert 90 <= world.clock - began < 120
    assert steps(world) == ["upgrade"]


# --- what keeps it open

MEANING = (
    "Nothing is broken: what is open works under its old and its new name. The next deployment that changes the image "
    "or a service closes it; at once: a task of this release with the command python -m migration_runner contract."
)


def check_that_it_is_open(world: World, answer: Mapping[str, Any], why: str) -> None:
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"].startswith(f"The contract is still open: {why}")
    assert answer["Reason"].endswith(MEANING)
    assert len(answer["Reason"]) <= 1000
    assert set(answer["Data"]) == ATTRIBUTES
    assert all(answer["Data"].values())
    assert answer["Data"]["Contract"].startswith("open")
    assert [one["Subject"] for one in world.messages] == ["DevStack: the database migration needs attention"]
    assert world.messages[0]["Message"] == answer["Reason"]


def test_a_task_that_fails_leaves_the_contract_open_loudly_and_the_release_in_place(capsys: Any) -> None:
    world = world_with(Run(said=BRIDGED), Run(exit_code=4, said=BUSY))
    upgrade(world)
    capsys.readouterr()
    answer = close(world, FailureTopic=TOPIC)
    check_that_it_is_open(world, answer, "The migration has not got a lock in time: LockTimeout: the table items is")
    assert "Log: /ecs/dev/migration-task, task " in answer["Reason"]
    (line,) = metrics(capsys)
    assert (line["Failures"], line["OpenContracts"], line["Migration"]) == (1, 1, "Migration8F2B1C3D")
    assert (record(world).contract, record(world).fingerprint) == ("open", "new")


def test_a_contract_revision_that_fails_is_named() -> None:
    failed = {**FAILED, "from": NEW, "at": NEW, "open": ["50871d03964d drop legacy"]}
    failed["error"] = {"kind": "DependentObjects", "message": "a view needs it", "revision": "50871d03964d"}
    world = world_with(Run(said=BRIDGED), Run(exit_code=1, said=failed))
    upgrade(world)
    answer = close(world, FailureTopic=TOPIC)
    check_that_it_is_open(world, answer, "Migration 50871d03964d failed: DependentObjects: a view needs it.")


@pytest.mark.parametrize(
    ("web", "why"),
    [
        (Web(status="INACTIVE"), "The service dev-inventory-service is gone."),
        (
            Web(OLDER_WEB),
            "The service dev-inventory-service runs dev-inventory-service:3, not dev-inventory-service:4 of this "
            "release: it was taken back, or changed by hand.",
        ),
        (
            Web(rollout="FAILED"),
            "The deployment of the service dev-inventory-service has failed: ECS deployment circuit breaker: tasks "
            "failed to start.",
        ),
    ],
    ids=["deleted", "taken back", "failed"],
)
def test_a_service_that_will_not_be_ready_is_not_waited_for_until_the_deadline(web: Web, why: str) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    began, world.services[NAME] = world.clock, web
    check_that_it_is_open(world, close(world, FailureTopic=TOPIC), why)
    assert 120 <= world.clock - began < 130
    assert steps(world) == ["upgrade"]


def test_a_service_that_ecs_describes_late_is_no_obstacle() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.services[NAME] = Web(OLDER_WEB)
    world.after(60, lambda: world.services.update({NAME: Web()}))
    assert close(world)["Data"]["Contract"] == "closed"


def test_a_service_that_is_deleted_while_it_is_waited_for_leaves_the_contract_open() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.services[NAME] = Web(done_at=world.clock + 9999)
    world.after(300, lambda: world.services.clear())
    check_that_it_is_open(world, close(world, FailureTopic=TOPIC), "The service dev-inventory-service is gone.")


@pytest.mark.parametrize(
    ("web", "why"),
    [
        ({"done_at": 9e9}, "The deployment of the service dev-inventory-service still goes on."),
        ({"drained_at": 9e9}, "Of the service dev-inventory-service, tasks of another release have not stopped: 1."),
    ],
)
def test_services_that_are_not_ready_in_time_leave_the_contract_open_in_time(web: dict[str, Any], why: str) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    began, world.services[NAME] = world.clock, Web(**web)
    answer = close(world, FailureTopic=TOPIC)
    check_that_it_is_open(world, answer, f"The services have not been ready within 24 min. {why}")
    assert 1440 <= world.clock - began < 1440 + 60


def test_a_contract_that_takes_too_long_is_stopped_in_time() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=99999, seconds_to_stop=120))
    upgrade(world)
    began = world.clock
    answer = close(world, FailureTopic=TOPIC)
    check_that_it_is_open(world, answer, "The migration was stopped: it took longer than its timeout of 30 min.")
    assert world.clock - began < 1800 + 180
    assert not world.running


def test_a_task_that_finds_no_room_leaves_the_contract_open() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.no_room = 999
    answer = close(world, FailureTopic=TOPIC)
    check_that_it_is_open(world, answer, "ECS did not start the migration's task: RESOURCE:ENI. Nothing has changed.")
    assert not record(world).has_closed


@pytest.mark.parametrize("operation", ["GetParameter", "PutParameter", "DescribeStacks", "RunTask", "ListTasks"])
def test_whatever_fails_the_answer_is_that_the_contract_is_open(operation: str) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    service = {"DescribeStacks": "cloudformation", "RunTask": "ecs", "ListTasks": "ecs"}.get(operation, "ssm")
    world.faults[operation] = [fault("AccessDeniedException", service=service)] * 999
    answer = close(world, FailureTopic=TOPIC)
    assert "AccessDeniedException" in answer["Reason"]
    check_that_it_is_open(world, answer, "")
    assert not world.running


def test_a_request_that_makes_no_sense_fails_no_deployment() -> None:
    world = world_with()
    event = contract_event(world)
    del event["ResourceProperties"]["Container"]
    world.invoke(event)
    assert world.answers[0]["Status"] == "SUCCESS"
    assert "KeyError: 'Container'" in world.answers[0]["Reason"]


def test_a_contract_that_is_required_fails_its_deployment() -> None:
    world = world_with(Run(said=BRIDGED), Run(exit_code=4, said=BUSY))
    upgrade(world)
    answer = close(world, Required="true", FailureTopic=TOPIC)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith(
        "The contract is still open, and this deployment requires it: The migration has not got a lock in time: "
    )
    assert [one["Subject"] for one in world.messages] == ["DevStack: the database migration failed"]


def test_a_required_contract_whose_services_are_not_ready_fails_its_deployment() -> None:
    world = world_with(Run(said=BRIDGED), web=Web(OLDER_WEB))
    upgrade(world)
    answer = close(world, Required="true")
    assert answer["Status"] == "FAILED"
    assert "runs dev-inventory-service:3, not dev-inventory-service:4" in answer["Reason"]


def test_the_metric_tells_that_names_are_open_until_the_contract_is_closed(capsys: Any) -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    assert [line["OpenContracts"] for line in metrics(capsys)] == [1]
    close(world)
    (line,) = metrics(capsys)
    assert (line["Failures"], line["OpenContracts"]) == (0, 0)
    names = [one["Name"] for one in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]]
    assert sorted(names) == ["Duration", "Failures", "OpenContracts"]


def test_the_metric_tells_what_a_service_that_has_failed_leaves_open(capsys: Any) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    begin_rollback(world)
    capsys.readouterr()
    migration_back(world)
    assert [(line["Failures"], line["OpenContracts"]) for line in metrics(capsys)] == [(0, 1)]


def test_an_upgrade_that_fails_tells_the_metric_nothing_that_it_does_not_know(capsys: Any) -> None:
    world = world_with(Run(exit_code=1, said=FAILED))
    upgrade(world)
    assert ["OpenContracts" in line for line in metrics(capsys)] == [False]


def other_service(name: str, task_definition: str = OLDER_WEB) -> dict[str, str]:
    return {"Cluster": CLUSTER, "Service": SERVICE.replace(NAME, name), "TaskDefinition": task_definition}


@pytest.mark.parametrize("required", ["false", "true"])
@pytest.mark.parametrize(
    "older", [[other_service("renamed")], [*OLDER_SERVICES, other_service("removed")]], ids=["renamed", "removed"]
)
def test_a_service_that_is_deleted_after_the_contract_keeps_it_open_until_the_next_deployment(
    older: list[dict[str, str]], required: str
) -> None:
    # CloudFormation deletes it in its cleanup, so failing a deployment that requires the contract would never end
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.clock += 1
    newer = {**NEWER_CONTRACT, "FailureTopic": TOPIC, "Required": required}
    answer = world.deliver("Update", "contract", {**OLDER_CONTRACT, "Services": older}, **newer)
    name = older[-1]["Service"].rpartition("/")[2]
    why = f"The service {name} is deleted only after this deployment; the next one closes the contract."
    check_that_it_is_open(world, answer, why)
    assert steps(world) == ["upgrade"]
    world.clock += 1
    assert world.deliver("Update", "next", newer, **newer, Memory="more")["Data"]["Contract"] == "closed"


@pytest.mark.parametrize("required", ["false", "true"])
def test_a_release_that_changes_no_service_keeps_the_contract_open(required: str) -> None:
    # given services with a tag such as :latest, or with an image of their own
    world = world_with(Run(said=BRIDGED), web=Web(OLDER_WEB))
    upgrade(world)
    answer = close(world, Services=OLDER_SERVICES, FailureTopic=TOPIC, Required=required)
    why = "The migrations have changed, but the task definition of no service, so what runs may be the code of an older"
    check_that_it_is_open(world, answer, why)
    assert steps(world) == ["upgrade"]


def test_one_service_that_changes_is_enough_for_those_with_an_image_of_their_own() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    world.clock += 1
    world.services["own"] = Web(OLDER_WEB)
    own = other_service("own")
    older, newer = ({**one, "Services": [*one["Services"], own]} for one in (OLDER_CONTRACT, NEWER_CONTRACT))
    assert world.deliver("Update", "contract", older, **newer)["Data"]["Contract"] == "closed"


def test_a_service_in_another_stack_is_taken_as_ecs_has_it() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    began = world.clock
    world.services[NAME] = Web(done_at=began + 60, drained_at=began + 200)
    abroad = [{"Cluster": CLUSTER, "Service": SERVICE}]
    older, newer = ({**one, "Services": abroad} for one in (OLDER_CONTRACT, NEWER_CONTRACT))
    world.clock += 1
    assert world.deliver("Update", "contract", older, **newer)["Data"]["Contract"] == "closed"
    assert world.clock - began >= 200


# --- what comes twice, late or in between


def test_the_same_request_twice_while_it_waits_gives_one_task() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=60, said=CLOSED))
    upgrade(world)
    world.services[NAME] = Web(done_at=world.clock + 100)
    event = contract_event(world)
    world.after(30, lambda: world.invoke(event))
    world.invoke(event)
    mine = [one for one in world.answers if one["RequestId"] == "contract"]
    assert [(one["Status"], one["Data"]["Contract"]) for one in mine] == [("SUCCESS", "closed")] * 2
    assert len(world.tasks) == 2


def test_a_request_whose_invocation_was_lost_adopts_its_task() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=60, said=CLOSED))
    upgrade(world)
    event = contract_event(world)
    lose(world, 20, event)
    world.invoke(event)
    assert world.answers[-1]["Data"]["Contract"] == "closed"
    assert len(world.tasks) == 2


def test_a_task_of_the_family_is_adopted_by_a_contract_that_knows_no_more_of_it() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=60, said=CLOSED))
    upgrade(world)
    event = contract_event(world, TaskDefinition="dev-migration-task")
    lose(world, 20, event)
    for _, task in world.tasks.values():
        # ECS tells which of the family it has taken.
        task["taskDefinitionArn"] = NEWER_IMAGE
    world.invoke(event)
    assert world.answers[-1]["Data"]["Contract"] == "closed"
    assert world.called("StopTask") == []


def test_a_request_whose_first_task_failed_unheard_gets_another_one() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=30, exit_code=4, said=BUSY), Run(said=CLOSED))
    upgrade(world)
    event = contract_event(world)
    lose(world, 20, event)
    world.clock += 60
    world.invoke(event)
    assert world.answers[-1]["Data"]["Contract"] == "closed"
    assert steps(world)[1:] == ["contract"] * 3  # the second one was given the first one's task
    assert len(world.tasks) == 3


def test_a_cancelled_deployment_ends_the_wait_and_starts_nothing() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.services[NAME] = Web(done_at=world.clock + 9999)
    began = world.clock
    world.after(60, lambda: begin_rollback(world))
    assert "came too late" in close(world)["Reason"]
    assert steps(world) == ["upgrade"]
    assert world.clock - began < 70


def test_a_cancelled_deployment_stops_the_task_and_opens_the_names_again() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=600, said=None), Run(said=REOPENED))
    upgrade(world)

    def cancel() -> None:
        begin_rollback(world)
        world.invoke(world.request("Update", "migration back", NEWER, **OLDER))

    world.after(60, cancel)
    world.invoke(contract_event(world))
    assert [(one["RequestId"], one["Status"]) for one in world.answers[1:]] == [
        ("migration back", "SUCCESS"),
        ("contract", "SUCCESS"),
    ]
    assert steps(world) == ["upgrade", "contract", f"reopen {OLD}"]
    assert not world.running
    assert (record(world).contract, record(world).has_closed) == ("open", False)


def test_a_contract_that_comes_after_its_deployment_starts_nothing() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    event = contract_event(world)
    world.stack_status = "UPDATE_COMPLETE"
    world.invoke(event)
    assert world.answers[-1]["Status"] == "FAILED"
    assert "came too late" in world.answers[-1]["Reason"]
    assert steps(world) == ["upgrade"]


def test_a_contract_of_an_earlier_operation_starts_nothing_in_the_next_one() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    event = contract_event(world)
    world.clock += 60
    world.updated_at = world.clock
    world.clock += 60
    world.invoke(event)
    assert "came too late" in world.answers[-1]["Reason"]


def test_the_next_migration_ends_a_contract_that_still_runs() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=900, said=None), Run(said={**SUCCEEDED, "open": []}))
    upgrade(world)
    event = contract_event(world)
    lose(world, 30, event)
    assert upgrade(world, "next", Fingerprint="newer")["Status"] == "SUCCESS"
    assert len(world.called("StopTask")) == 1


# --- rolling back


@pytest.mark.parametrize("first", ["migration", "contract"])
def test_a_rollback_opens_the_names_again_in_the_newer_image_whichever_comes_first(first: str) -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(seconds=9, said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    orders = [migration_back, contract_back] if first == "migration" else [contract_back, migration_back]
    answers = [order(world) for order in orders]
    assert [one["Status"] for one in answers] == ["SUCCESS", "SUCCESS"]
    assert answers[0]["Reason"] == (
        "The stack rolls back; the schema is kept, and the names that the contract took away are back."
    )
    assert answers[0]["Data"]["Duration"] == "9"
    assert answers[1]["Reason"] == f"The stack rolls back; the schema is kept, last seen at {NEW}."
    assert [one["Data"]["Contract"][:4] for one in answers] == ["open", "open"]
    assert steps(world) == ["upgrade", "contract", f"reopen {OLD}"]


def test_after_a_rollback_the_release_is_closed_again_when_it_is_deployed_again() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=REOPENED), Run(said=CLOSED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    migration_back(world)
    contract_back(world)
    assert "No migration has changed" in upgrade(world, "again")["Reason"]
    assert close(world, "contract again")["Data"]["Contract"] == "closed"


@pytest.mark.parametrize("back", [migration_back, contract_back])
def test_a_rollback_before_the_contract_has_begun_opens_nothing(back: Any) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    begin_rollback(world)
    assert back(world)["Reason"] == f"The stack rolls back; the schema is kept, last seen at {NEW}."
    assert steps(world) == ["upgrade"]


def test_a_contract_that_had_nothing_to_do_is_not_undone() -> None:
    world = world_with(Run(said={**BRIDGED, "open": []}))
    upgrade(world)
    close(world)
    begin_rollback(world)
    migration_back(world)
    contract_back(world)
    assert steps(world) == ["upgrade"]


def test_a_contract_that_only_waited_is_not_undone() -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.services[NAME] = Web(done_at=world.clock + 9999)
    world.after(60, lambda: begin_rollback(world))
    close(world)
    migration_back(world)
    contract_back(world)
    assert steps(world) == ["upgrade"]


def test_a_contract_whose_task_never_started_is_not_undone() -> None:
    never = Run(exit_code=None, stop_code="TaskFailedToStart", said=None)
    world = world_with(Run(said=BRIDGED), never)
    upgrade(world)
    close(world)
    begin_rollback(world)
    migration_back(world)
    assert steps(world) == ["upgrade", "contract"]


def test_what_an_earlier_deployment_has_closed_is_not_opened() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    close(world)
    # A release whose upgrade never reaches the trigger, and one of code alone.
    third = {"Target": "50871d03964d", "Fingerprint": "newest"}
    begin_rollback(world)
    world.deliver("Update", "lost", {**NEWER, **third}, **NEWER)
    world.deliver("Update", "lost too", {**NEWER_CONTRACT, **third}, **NEWER_CONTRACT)
    world.deliver("Update", "code only", {**NEWER_CONTRACT}, **{**NEWER_CONTRACT, "Services": OLDER_SERVICES})
    assert steps(world) == ["upgrade", "contract"]


def test_the_next_deployment_does_not_undo_what_this_one_has_closed() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said={**CLOSED, "at": "50871d03964d"}))
    upgrade(world)
    close(world)
    third = {**NEWER, "Target": "50871d03964d", "Fingerprint": "newest"}
    world.clock += 1
    assert world.deliver("Update", "third", NEWER, **third)["Status"] == "SUCCESS"
    begin_rollback(world)
    assert world.deliver("Update", "third back", third, **NEWER)["Reason"].endswith("last seen at 50871d03964d.")
    assert len(world.tasks) == 3


def test_a_contract_that_failed_half_way_is_undone_too() -> None:
    world = world_with(Run(said=BRIDGED), Run(exit_code=137, said=None), Run(said=REOPENED))
    upgrade(world)
    assert close(world, Required="true")["Status"] == "FAILED"
    begin_rollback(world)
    migration_back(world)
    assert steps(world) == ["upgrade", "contract", f"reopen {OLD}"]


def test_a_contract_whose_end_was_not_heard_is_undone() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=30, said=CLOSED), Run(said=REOPENED))
    upgrade(world)
    lose(world, 10, contract_event(world))
    world.clock += 60
    begin_rollback(world)
    migration_back(world)
    assert steps(world) == ["upgrade", "contract", f"reopen {OLD}"]


def test_a_contract_that_was_created_by_the_deployment_is_undone_by_the_migration_and_then_deleted() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=REOPENED))
    upgrade(world)
    world.clock += 1
    assert world.deliver("Create", "contract", None, **NEWER_CONTRACT)["Data"]["Contract"] == "closed"
    begin_rollback(world)
    assert migration_back(world)["Data"]["Contract"].startswith("open")
    world.stack_status = "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"
    answer = world.deliver("Delete", "delete", None, **NEWER_CONTRACT, FailureTopic=TOPIC)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"].startswith("The contract is still open while its resource is being deleted: ")
    assert len(world.messages) == 1
    assert steps(world) == ["upgrade", "contract", f"reopen {OLD}"]


@pytest.mark.parametrize("order", [migration_back, contract_back])
def test_names_that_can_not_be_opened_again_fail_no_rollback_and_alarm(order: Any) -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(exit_code=4, said={**BUSY, "open": []}))
    upgrade(world)
    close(world)
    begin_rollback(world)
    topic = {"FailureTopic": TOPIC}
    old, new = (OLDER, NEWER) if order is migration_back else (OLDER_CONTRACT, NEWER_CONTRACT)
    answer = world.deliver("Update", "back", new, **old, **topic)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"].startswith(
        "The stack rolls back, but the names that the older release needs could not be opened again: The migration "
        "has not got a lock in time: LockTimeout: the table items is in use. "
    )
    assert answer["Reason"].endswith(f"run in the newer image: python -m migration_runner reopen {OLD}.")
    assert set(answer["Data"]) == ATTRIBUTES
    assert len(world.messages) == 1


def test_whoever_comes_second_tries_again_when_the_first_has_failed() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(exit_code=4, said=BUSY), Run(said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    assert "could not be opened again" in migration_back(world)["Reason"]
    assert "are back" in contract_back(world)["Reason"]


def test_a_contracts_rollback_that_comes_again_does_not_disturb_the_migrations() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(exit_code=4, said=BUSY), Run(seconds=60, said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    contract_back(world)
    again = world.requests[-1]
    world.clock += 1
    world.after(30, lambda: world.invoke(again))
    assert "are back" in migration_back(world)["Reason"]
    assert "came too late" in next(one for one in world.answers[3:] if one["RequestId"] == "contract back")["Reason"]
    assert len(world.tasks) == 4


@pytest.mark.parametrize("operation", ["RunTask", "DescribeTasks"])
def test_nothing_that_is_in_the_way_of_the_names_fails_a_rollback(operation: str) -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    world.faults[operation] = [fault("AccessDeniedException")] * 999
    answer = migration_back(world)
    assert answer["Status"] == "SUCCESS"
    assert "AccessDeniedException" in answer["Reason"]


def test_the_same_rollback_twice_opens_the_names_once() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(seconds=60, said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    event = world.request("Update", "migration back", NEWER, **OLDER)
    world.after(20, lambda: world.invoke(event))
    world.invoke(event)
    assert [one["Reason"].endswith("are back.") for one in world.answers[2:]] == [True, True]
    assert len(world.tasks) == 3
    assert world.called("StopTask") == []


def test_opening_names_that_takes_longer_than_an_invocation_goes_on_in_the_next() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(seconds=1500, said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    assert migration_back(world)["Data"]["Duration"] == "1500"
    assert len(world.called("Invoke")) >= 2


def test_an_update_that_arrives_while_the_stack_rolls_back_opens_nothing() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    close(world)
    world.clock += 10
    late = world.request("Update", "late", NEWER, **{**NEWER, "Target": "50871d03964d", "Fingerprint": "newest"})
    world.clock += 4
    begin_rollback(world)
    world.invoke(late)
    assert "came too late" in world.answers[-1]["Reason"]
    assert steps(world) == ["upgrade", "contract"]


def test_a_rollback_that_can_not_read_the_record_opens_the_names_and_leaves_what_is_known() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=REOPENED))
    upgrade(world)
    close(world)
    begin_rollback(world)
    tries = 4
    world.faults["GetParameter"] = [fault("InternalServerError", service="ssm", status=500)] * tries
    assert "are back" in contract_back(world)["Reason"]
    assert world.faults["GetParameter"] == []
    assert (record(world).fingerprint, record(world).before, record(world).contract) == ("new", OLD, "open")


@pytest.mark.parametrize("kind", ["Create", "Update"])
def test_a_contract_that_arrives_while_the_stack_rolls_back_changes_nothing(kind: str) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.clock += 1
    old = OLDER_CONTRACT if kind == "Update" else None
    late = world.request(kind, "late", old, **NEWER_CONTRACT)
    begin_rollback(world)
    # Its address tells the second alone; that of a Create need not tell even that.
    world.rolled_back_at -= kind == "Create"
    before = world.recorded
    world.invoke(late)
    assert "came too late" in world.answers[-1]["Reason"]
    assert world.recorded == before


def test_a_way_back_is_recorded_although_a_contract_has_written_what_it_had_read_before() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=60, said=WENT_BACK))
    upgrade(world, **DOWNGRADE)
    before = world.recorded
    begin_rollback(world)
    world.after(30, lambda: setattr(world, "recorded", before))
    assert migration_back(world, **DOWNGRADE)["Data"]["RevisionAfter"] == OLD
    assert (record(world).fingerprint, record(world).after) == ("old", OLD)
    assert record(world).refuses(Request.parse(world.requests[0]))


WENT_BACK = {"event": "migration.result", "command": "downgrade", "from": NEW, "at": OLD, "applied": [NEW], "open": []}
DOWNGRADE = {"OnRollback": "DOWNGRADE"}


@pytest.mark.parametrize("first", ["migration", "contract"])
def test_a_downgrade_undoes_the_contract_too(first: str) -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=WENT_BACK))
    upgrade(world, **DOWNGRADE)
    close(world, **DOWNGRADE)
    begin_rollback(world)
    orders = [migration_back, contract_back] if first == "migration" else [contract_back, migration_back]
    assert [order(world, f"{n}", **DOWNGRADE)["Status"] for n, order in enumerate(orders)] == ["SUCCESS", "SUCCESS"]
    assert steps(world) == ["upgrade", "contract", f"downgrade {OLD}"]
    assert (record(world).after, record(world).contract, record(world).has_closed) == (OLD, "closed", False)


def test_a_downgrade_ends_where_its_deployment_has_begun_when_the_older_contract_was_open() -> None:
    # given an older release whose head is a contract revision that was never applied
    older = {**OLDER, "Target": "48c", "Targets": [OLD, "48c"]}
    world = world_with(Run(said={**BRIDGED, "from": OLD}), Run(seconds=9, said=WENT_BACK))
    world.stack_status = "UPDATE_IN_PROGRESS"
    world.deliver("Update", "upgrade", older, **NEWER, **DOWNGRADE)
    begin_rollback(world)
    answer = world.deliver("Update", "back", {**NEWER, **DOWNGRADE}, **older)
    assert (answer["Status"], answer["Data"]["RevisionAfter"]) == ("SUCCESS", OLD)
    assert steps(world) == ["upgrade", f"downgrade {OLD}"]
    assert record(world).fingerprint == "old"


def test_a_downgrade_longer_than_an_invocation_still_ends_where_its_deployment_has_begun() -> None:
    older = {**OLDER, "Target": "48c", "Targets": [OLD, "48c"]}
    world = world_with(Run(said=BRIDGED), Run(seconds=1500, said=WENT_BACK))
    world.deliver("Update", "upgrade", older, **NEWER, **DOWNGRADE)
    begin_rollback(world)
    assert world.deliver("Update", "back", {**NEWER, **DOWNGRADE}, **older)["Data"]["RevisionAfter"] == OLD
    assert steps(world) == ["upgrade", f"downgrade {OLD}"]


def test_a_schema_that_a_downgrade_keeps_gets_its_names_back_and_people_are_told() -> None:
    by_hand = {**BRIDGED, "from": NEW, "at": NEW, "applied": []}
    world = world_with(Run(said=by_hand), Run(said=CLOSED), Run(said=REOPENED))
    upgrade(world, **DOWNGRADE)
    close(world, **DOWNGRADE)
    begin_rollback(world)
    answer = world.deliver("Update", "back", {**NEWER, **DOWNGRADE}, **OLDER, FailureTopic=TOPIC)
    assert "are back" in answer["Reason"]
    assert len(world.messages) == 1
    assert steps(world) == ["upgrade", "contract", f"reopen {OLD}"]


def test_a_service_stack_of_its_own_opens_the_names_itself_in_the_newest_image_of_the_family() -> None:
    # given a contract in another stack than its migration, which knows the task definition by its family
    family = {"TaskDefinition": "dev-migration-task"}
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED), Run(said=REOPENED))
    upgrade(world)
    world.clock += 1
    closed = world.deliver("Update", "c", {**OLDER_CONTRACT, **family}, **{**NEWER_CONTRACT, **family})
    assert closed["Data"]["Contract"] == "closed"
    begin_rollback(world)
    back = world.deliver("Update", "back", {**NEWER_CONTRACT, **family}, **{**OLDER_CONTRACT, **family})
    assert "are back" in back["Reason"]
    assert [run["taskDefinition"] for run in world.called("RunTask")] == [NEWER_IMAGE, *["dev-migration-task"] * 2]


# --- deleting


def test_a_delete_stops_a_contract_that_runs_and_leaves_other_tasks_alone() -> None:
    world = world_with(Run(said=BRIDGED), Run(seconds=900, said=None), Run(seconds=900))
    upgrade(world)
    lose(world, 30, contract_event(world))
    closing = world.running
    world.aws().ecs.run_task(
        cluster=CLUSTER,
        taskDefinition=NEWER_IMAGE,
        startedBy=resource_id(STACK, "Migration8F2B1C3D"),
        clientToken="an upgrade",
    )
    world.stack_status = "DELETE_IN_PROGRESS"
    answer = world.deliver("Delete", "delete", None, **NEWER_CONTRACT)
    assert answer["Status"] == "SUCCESS"
    assert set(answer["Data"]) == ATTRIBUTES
    assert [one["task"] for one in world.called("StopTask")] == closing


def test_a_delete_of_a_contract_that_is_open_says_so_and_alarms() -> None:
    world = world_with(Run(said=BRIDGED), Run(exit_code=4, said=BUSY))
    upgrade(world)
    close(world)
    world.stack_status = "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"
    answer = world.deliver("Delete", "delete", None, **NEWER_CONTRACT, FailureTopic=TOPIC)
    assert answer["Reason"].startswith("The contract is still open while its resource is being deleted: what is open")
    assert (answer["Status"], answer["Data"]["Contract"], len(world.messages)) == ("SUCCESS", "open", 1)


def test_a_delete_of_a_contract_that_is_closed_alarms_nobody() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    upgrade(world)
    close(world)
    world.stack_status = "DELETE_IN_PROGRESS"
    answer = world.deliver("Delete", "delete", None, **NEWER_CONTRACT, FailureTopic=TOPIC)
    assert (answer["Reason"], world.messages) == ("The schema stays as it is.", [])


def test_a_contract_that_was_created_in_a_stack_that_rolls_back_alone_says_how_the_names_are_opened() -> None:
    world = world_with(Run(said=BRIDGED), Run(said=CLOSED))
    half_way = {**CLOSED, "at": "50871d03964d", "applied": ["50871d03964d"]}
    world.runs[1] = Run(said=half_way)
    upgrade(world)
    world.clock += 1
    world.deliver("Create", "contract", None, **NEWER_CONTRACT)
    world.stack_status = "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"
    answer = world.deliver("Delete", "delete", None, **NEWER_CONTRACT, FailureTopic=TOPIC)
    assert answer["Reason"].endswith(f"run in the newer image: python -m migration_runner reopen {OLD}.")
    assert len(world.messages) == 1


@pytest.mark.parametrize("operation", ["GetParameter", "ListTasks", "DescribeStacks"])
def test_nothing_fails_the_delete_of_a_contract(operation: str) -> None:
    world = world_with(Run(said=BRIDGED))
    upgrade(world)
    world.faults[operation] = [fault("AccessDeniedException")] * 999
    answer = world.deliver("Delete", "delete", None, **NEWER_CONTRACT)
    assert answer["Status"] == "SUCCESS"
    assert set(answer["Data"]) == ATTRIBUTES


# --- the migration itself


def test_an_older_release_that_passes_beside_open_names_makes_the_next_newer_one_run_again() -> None:
    # given a newer release that was deployed, and whose contract is open
    world = world_with(Run(said=BRIDGED), Run(said={**BRIDGED, "from": NEW, "at": NEW, "target": OLD}), Run())
    upgrade(world)
    # when the older one is deployed again, it passes
    answer = world.deliver("Update", "older", NEWER, **OLDER)
    assert answer["Status"] == "SUCCESS"
    assert answer["Reason"] == f"The schema is at {NEW}, ahead of this release, which may pass."
    assert record(world).fingerprint == "-"
    # then both run a task again
    assert upgrade(world, "newer")["Status"] == "SUCCESS"
    assert len(world.tasks) == 3


def test_a_release_that_stops_before_its_own_contract_revisions_is_at_its_target() -> None:
    newer = {**NEWER, "Target": "50871d03964d", "Targets": [NEW, "50871d03964d"]}
    world = world_with(Run(said={**BRIDGED, "open": ["50871d03964d drop legacy"]}))
    assert world.deliver("Update", "first", OLDER, **newer)["Reason"] == f"The schema is at {NEW}."
    assert record(world).fingerprint == "new"
    assert "No migration has changed" in world.deliver("Update", "second", newer, **newer)["Reason"]


def test_a_contract_that_finds_the_schema_elsewhere_makes_the_next_deployment_look() -> None:
    # given somebody who has taken the schema back by hand
    world = world_with(Run(said=BRIDGED), Run(said={**CLOSED, "from": OLD, "at": OLD}), Run())
    upgrade(world)
    close(world)
    assert record(world).fingerprint == "-"
    assert upgrade(world, "next")["Status"] == "SUCCESS"
    assert len(world.tasks) == 3
