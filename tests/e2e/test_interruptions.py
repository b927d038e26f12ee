"""What goes wrong while ``cdk deploy`` runs; each fixture is the deployment that follows, on what the last one left."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from local_aws import application, release
from tests.e2e.world import MIGRATION, SERVICE, Deployment, State, World, at

pytestmark = pytest.mark.e2e

REPORTS_FAMILY = "dev-reports-migration"


@dataclass(frozen=True)
class Interruption:
    """A deployment that did not succeed, the first task that it has started, and what it has left."""

    deployment: Deployment
    task: dict[str, Any]
    before: State | None
    after: State
    still_running: list[str]


def interruption(world: World, deploy: Callable[[], Deployment], before: State | None) -> Interruption:
    first = len(application.migration_tasks(world.aws))
    deployment = deploy()
    containers = [container["task"] for container in world.aws.containers("migration")]
    return Interruption(
        deployment=deployment,
        task=application.migration_tasks(world.aws)[first],
        before=before,
        after=world.state(),
        still_running=[*containers, *application.statements(world.aws)],
    )


def deploy_and(world: World, interrupt: Callable[[], object]) -> Deployment:
    """Deploy, and interrupt it in the middle of the migration's statement."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        deploying = pool.submit(world.deploy)
        while not any("pg_sleep" in statement for statement in application.statements(world.aws)):
            assert not deploying.done(), deploying.result().output
            time.sleep(0.1)
        interrupt()
        return deploying.result()


@pytest.fixture(scope="module")
def deleted(world: World) -> Interruption:
    release.copy_before_the_rename(world.app)
    release.add_sleeping_migration(world.app)
    delete = partial(world.aws.client("cloudformation").delete_stack, StackName="DevStack")
    return interruption(world, partial(deploy_and, world, delete), before=None)


@pytest.fixture(scope="module")
def first_release(world: World, deleted: Interruption) -> Deployment:  # noqa: ARG001  # what came before
    return world.deploy_first_release()


@pytest.fixture(scope="module")
def without_image(world: World, first_release: Deployment) -> Interruption:  # noqa: ARG001
    release.copy(world.app)
    release.migrate_with_missing_image(world.app)
    return interruption(world, world.deploy, world.state())


@pytest.fixture(scope="module")
def without_command(world: World, without_image: Interruption) -> Interruption:  # noqa: ARG001
    release.copy(world.app)
    release.migrate_with_missing_command(world.app)
    return interruption(world, world.deploy, world.state())


@pytest.fixture(scope="module")
def timed_out(world: World, without_command: Interruption) -> Interruption:  # noqa: ARG001
    release.copy_before_the_rename(world.app)
    release.add_sleeping_migration(world.app)
    release.shorten_timeout(world.app)
    return interruption(world, world.deploy, world.state())


@pytest.fixture(scope="module")
def cancelled(world: World, timed_out: Interruption) -> Interruption:  # noqa: ARG001
    release.copy_before_the_rename(world.app)
    release.add_sleeping_migration(world.app)
    cancel = partial(world.aws.client("cloudformation").cancel_update_stack, StackName="DevStack")
    return interruption(world, partial(deploy_and, world, cancel), world.state())


@pytest.fixture(scope="module")
def side_by_side(world: World, cancelled: Interruption) -> Deployment:  # noqa: ARG001
    release.copy(world.app)
    release.add_reports_stack(world.app)
    return world.deploy_beside("ReportsStack", REPORTS_FAMILY)


@pytest.fixture(scope="module")
def outdated(world: World, side_by_side: Deployment) -> Interruption:  # noqa: ARG001
    release.copy_before_the_rename(world.app)
    return interruption(world, world.deploy, world.state())


def test_a_stack_that_is_deleted_during_its_first_migration_is_gone_with_the_task(deleted: Interruption) -> None:
    assert deleted.deployment.exit_code == 1
    assert deleted.deployment.stack_status is None
    assert deleted.task["stopCode"] == "UserInitiated"
    assert deleted.task["stoppedReason"] == "its resource is being deleted."
    assert deleted.still_running == []
    assert deleted.after.service_pids == []


def test_a_deleted_stack_leaves_the_schema_at_the_last_migration_that_had_finished(deleted: Interruption) -> None:
    assert deleted.after.revision == "48871d03964b"
    assert deleted.after.columns["parent_items"] == ["id", "name", "created_at", "updated_at"]


def test_a_stack_that_was_deleted_during_its_creation_can_be_created_anew(first_release: Deployment) -> None:
    assert first_release.stack_status == "CREATE_COMPLETE"
    assert first_release.tasks_started == 1
    assert len(first_release.service_pids) == 1


@pytest.mark.parametrize(
    ("story", "stopped_reason", "sentence"),
    [
        (
            "without_image",
            "CannotPullContainerError: registry.example/inventory:gone: not found",
            "The migration's image could not be pulled. Either it does not exist, or the task's subnets have no route",
        ),
        (
            "without_command",
            'CannotStartContainerError: exec: "migrate-inventory": executable file not found in $PATH',
            "The migration's command is not in the image: check the command.",
        ),
    ],
    ids=["image", "command"],
)
def test_a_migration_that_can_not_start_says_why_and_nothing_is_touched(
    request: pytest.FixtureRequest, story: str, stopped_reason: str, sentence: str
) -> None:
    seen: Interruption = request.getfixturevalue(story)
    assert seen.deployment.tasks_started == 1
    # What ECS tells of such a task is all that the sentence is made of.
    assert (seen.task["stopCode"], seen.task["stoppedReason"]) == ("TaskFailedToStart", stopped_reason)
    assert "startedAt" not in seen.task
    assert "exitCode" not in seen.task["containers"][0]
    assert sentence in seen.deployment.output
    assert f"ECS said: {stopped_reason}" in seen.deployment.output
    assert_untouched(seen)


def test_a_migration_that_takes_longer_than_its_timeout_is_stopped_and_rolled_back(timed_out: Interruption) -> None:
    assert timed_out.task["stopCode"] == "UserInitiated"
    assert "The migration was stopped: it took longer than its timeout of 0.1 min." in timed_out.deployment.output
    assert "The transaction was rolled back; the schema is still at 48871d03964b." in timed_out.deployment.output
    assert (timed_out.task["stoppedAt"] - timed_out.task["createdAt"]).total_seconds() >= 6
    assert_untouched(timed_out)


def test_a_cancelled_update_ends_its_migration_and_the_stack_is_as_before(cancelled: Interruption) -> None:
    assert cancelled.task["stopCode"] == "UserInitiated"
    assert cancelled.task["stoppedReason"] == "its deployment is being rolled back."
    assert_untouched(cancelled)


def test_two_stacks_at_once_each_wait_for_their_own_migration(world: World, side_by_side: Deployment) -> None:
    assert side_by_side.exit_code == 0, side_by_side.output
    [reports] = application.migration_tasks(world.aws, REPORTS_FAMILY)
    service, contract = application.migration_tasks(world.aws)[-side_by_side.tasks_started :]
    assert reports["startedAt"] < service["createdAt"]
    assert [task["containers"][0].get("exitCode") for task in (reports, service, contract)] == [0, 0, 0]
    assert side_by_side.revision == "49871d03964c"
    assert side_by_side.at(MIGRATION, "UPDATE_COMPLETE") <= side_by_side.at(SERVICE, "UPDATE_IN_PROGRESS")
    events = world.events("ReportsStack")
    assert reports["stoppedAt"] <= at(events, MIGRATION, "CREATE_COMPLETE")
    assert at(events, MIGRATION, "CREATE_COMPLETE") <= at(events, "AWS::SSM::Parameter", "CREATE_COMPLETE")


def test_an_older_release_over_a_newer_schema_is_refused_with_the_way_out(outdated: Interruption) -> None:
    for words in (
        "The database is ahead of this image: DatabaseAhead: The database is at 49871d03964c, which this image "
        "(newest: 48871d03964b) does not have.",
        "Let a task of the newer image run: python -m migration_runner reopen 48871d03964b.",
    ):
        assert words in outdated.deployment.output
    assert outdated.task["containers"][0]["exitCode"] == 5
    assert [parent["sku"] for parent in outdated.after.answers["parents"]] == ["PUMP-1"]
    assert_untouched(outdated)


def assert_untouched(seen: Interruption) -> None:
    assert seen.deployment.exit_code == 1
    assert seen.deployment.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    assert seen.after == seen.before
    assert seen.after.answers["parents"]
    assert seen.after.answers["children"]
    assert seen.still_running == []
