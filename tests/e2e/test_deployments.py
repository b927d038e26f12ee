"""The real CDK CLI deploys release after release to the local AWS; each fixture is the deployment that follows."""

from __future__ import annotations

import json
import subprocess

import pytest

from local_aws import application, release
from local_aws.load import Count
from tests.e2e.world import CONTRACT, MIGRATION, SERVICE, Deployment, World

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def first_release(world: World) -> Deployment:
    return world.deploy_first_release()


@pytest.fixture(scope="module")
def renamed_under_load(world: World, first_release: Deployment) -> tuple[Deployment, dict[str, Count]]:  # noqa: ARG001  # what came before
    release.copy(world.app)
    deployment, counts = world.deploy_under_load()
    assert deployment.exit_code == 0, deployment.output
    return deployment, counts


@pytest.fixture(scope="module")
def renamed(renamed_under_load: tuple[Deployment, dict[str, Count]]) -> Deployment:
    return renamed_under_load[0]


@pytest.fixture(scope="module")
def failed_migration(world: World, renamed: Deployment) -> Deployment:  # noqa: ARG001
    release.add_failing_migration(world.app)
    return world.deploy()


@pytest.fixture(scope="module")
def code_only(world: World, failed_migration: Deployment) -> Deployment:  # noqa: ARG001
    release.copy(world.app)
    release.change_code_only(world.app)
    return world.deploy()


@pytest.fixture(scope="module")
def failed_service(world: World, code_only: Deployment) -> Deployment:  # noqa: ARG001
    release.copy(world.app)
    release.break_service(world.app)
    return world.deploy()


def test_the_first_deployment_migrates_an_empty_database_before_it_makes_the_service(first_release: Deployment) -> None:
    assert first_release.tasks_started == 1
    assert first_release.revision == "48871d03964b"
    migrated = first_release.at(MIGRATION, "CREATE_COMPLETE")
    assert migrated <= first_release.at(SERVICE, "CREATE_IN_PROGRESS")


def test_the_rename_keeps_the_data_and_the_service_updates_only_after_the_migration(
    world: World, first_release: Deployment, renamed: Deployment
) -> None:
    assert renamed.tasks_started == 2
    assert renamed.revision == "49871d03964c"
    assert renamed.at(MIGRATION, "UPDATE_COMPLETE") <= renamed.at(SERVICE, "UPDATE_IN_PROGRESS")
    assert renamed.service_pids != first_release.service_pids
    assert [parent["sku"] for parent in world.get("parents")] == ["PUMP-1"]
    assert [child["sku"] for child in world.get("children")] == ["SEAL-7"]


def test_the_rename_costs_no_request_of_either_release(
    renamed_under_load: tuple[Deployment, dict[str, Count]],
) -> None:
    _, counts = renamed_under_load
    print({name: (count.requests, count.errors, round(count.longest, 3)) for name, count in counts.items()})
    assert {name: (count.errors, count.first_error) for name, count in counts.items()} == {
        "name": (0, ""),
        "sku": (0, ""),
    }
    assert min(count.requests for count in counts.values()) > 20


def test_the_older_name_goes_once_the_service_has_been_updated(world: World, renamed: Deployment) -> None:
    assert renamed.at(SERVICE, "UPDATE_COMPLETE") <= renamed.at(CONTRACT, "UPDATE_IN_PROGRESS")
    assert "DevStack.Contract = closed" in renamed.output
    times = ["created_at", "updated_at"]
    assert application.columns(world.aws, "parent_items") == ["id", "sku", *times]
    assert application.columns(world.aws, "child_items") == ["id", "parent_id", "sku", "quantity", *times]


def test_cloudformation_knows_within_two_seconds_that_the_task_has_ended(world: World, renamed: Deployment) -> None:
    task = application.migration_tasks(world.aws)[1]
    delay = renamed.at(MIGRATION, "UPDATE_COMPLETE") - task["stoppedAt"]
    print(f"from the task's stop to the answer: {delay.total_seconds():.2f} s")
    assert 0 <= delay.total_seconds() <= 2


def test_the_migration_keeps_its_id_through_every_update(renamed: Deployment, first_release: Deployment) -> None:  # C6
    ids = {
        event["PhysicalResourceId"]
        for deployment in (first_release, renamed)
        for event in deployment.events
        if event["ResourceType"] == MIGRATION and event["ResourceStatus"].endswith("_COMPLETE")
    }
    assert len(ids) == 1


def test_a_failing_migration_rolls_the_stack_back_says_why_and_leaves_the_service_alone(
    renamed: Deployment, failed_migration: Deployment
) -> None:
    assert failed_migration.exit_code == 1
    assert failed_migration.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    assert 'Migration 50871d03964d failed: UndefinedColumn: column "name" does not exist' in failed_migration.output
    assert "49871d03964c" in failed_migration.output
    assert failed_migration.revision == "49871d03964c"
    assert failed_migration.service_pids == renamed.service_pids
    assert failed_migration.tasks_started == 1


def test_a_code_only_release_after_a_failed_one_starts_no_task_and_updates_the_service(
    renamed: Deployment, code_only: Deployment
) -> None:
    assert code_only.exit_code == 0, code_only.output
    assert code_only.tasks_started == 0
    assert code_only.service_pids != renamed.service_pids


def test_a_service_that_can_not_start_rolls_back_to_the_running_one_and_keeps_the_schema(
    world: World, code_only: Deployment, failed_service: Deployment
) -> None:
    assert failed_service.exit_code == 1
    assert failed_service.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    assert failed_service.revision == "49871d03964c"
    assert failed_service.tasks_started == 0
    assert failed_service.service_pids == code_only.service_pids
    assert world.get("ready")


def test_nothing_secret_is_in_what_a_deployment_left_behind(world: World, failed_service: Deployment) -> None:  # noqa: ARG001
    secret = world.aws.client("secretsmanager").get_secret_value(SecretId="dev/inventory-management/database")
    password = json.loads(secret["SecretString"])["password"]
    leaking = subprocess.run(
        ["grep", "-rlF", "--exclude-dir=data", "--", password, str(world.app.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert leaking.stdout == ""


def test_a_destroyed_stack_is_gone_with_its_service_and_leaves_the_database_alone(
    world: World, failed_service: Deployment
) -> None:
    out = f"--output={world.aws.root / 'cdk.out'}"
    said = list[str]()
    assert world.aws.cdk("destroy", "DevStack", "--force", out, app=world.app, tell=said.append) == 0, said
    assert world.aws.stack_status("DevStack") is None
    assert world.aws.containers("inventory-service") == []
    assert application.revision(world.aws) == failed_service.revision
