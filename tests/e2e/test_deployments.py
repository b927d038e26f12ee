"""The real CDK CLI deploys release after release to the local AWS; each fixture is the deployment that follows."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from local_aws import application, release
from local_aws.machine import LocalAws

pytestmark = pytest.mark.e2e

MIGRATION = "Custom::DatabaseMigration"
SERVICE = "AWS::ECS::Service"


@dataclass(frozen=True)
class Deployment:
    """What was seen of one ``cdk deploy``."""

    exit_code: int
    output: str
    events: list[dict[str, Any]]
    tasks_started: int
    service_pids: list[int]
    revision: str
    stack_status: str | None

    def at(self, kind: str, status: str) -> datetime:
        """When the last event of this kind and status happened."""
        times: list[datetime] = [
            event["Timestamp"]
            for event in self.events
            if event["ResourceType"] == kind and event["ResourceStatus"] == status
        ]
        return max(times)


class World:
    """A local AWS, the application that is deployed to it, and what is looked at after a deployment."""

    def __init__(self, folder: Path) -> None:
        self.aws = LocalAws(folder / "aws")
        self.app = folder / "app"

    def deploy(self) -> Deployment:
        seen, started = {event["EventId"] for event in self.events()}, len(application.migration_tasks(self.aws))
        said = list[str]()
        code = self.aws.deploy("DevStack", app=self.app, tell=said.append)
        (self.app.parent / "deploy.log").write_text("\n".join(said))
        return Deployment(
            exit_code=code,
            output="\n".join(said),
            events=[event for event in self.events() if event["EventId"] not in seen],
            tasks_started=len(application.migration_tasks(self.aws)) - started,
            service_pids=[container["pid"] for container in self.aws.containers("inventory-service")],
            revision=application.revision(self.aws),
            stack_status=self.aws.stack_status("DevStack"),
        )

    def events(self) -> list[dict[str, Any]]:
        if self.aws.stack_status("DevStack") is None:
            return []
        pages = self.aws.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName="DevStack")
        return [event for page in pages for event in page["StackEvents"]]

    def get(self, resource: str) -> Any:
        with urllib.request.urlopen(f"{application.service_url(self.aws)}/{resource}", timeout=10) as answer:
            return json.load(answer)

    def post(self, resource: str, row: dict[str, object]) -> Any:
        url = f"{application.service_url(self.aws)}/{resource}"
        request = urllib.request.Request(url, json.dumps(row).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    made.aws.start()
    yield made
    made.aws.destroy()


@pytest.fixture(scope="module")
def first_release(world: World) -> Deployment:
    release.copy_before_the_rename(world.app)
    deployment = world.deploy()
    assert deployment.exit_code == 0, deployment.output
    parent = world.post("parents", {"name": "PUMP-1"})
    world.post("children", {"parent_id": parent["id"], "name": "SEAL-7", "quantity": 4})
    return deployment


@pytest.fixture(scope="module")
def renamed(world: World, first_release: Deployment) -> Deployment:  # noqa: ARG001  # what came before
    release.copy(world.app)
    deployment = world.deploy()
    assert deployment.exit_code == 0, deployment.output
    return deployment


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
    (world.app / "inventory_service" / "__main__.py").write_text("raise SystemExit('this release can not start')\n")
    return world.deploy()


def test_the_first_deployment_migrates_an_empty_database_before_it_makes_the_service(first_release: Deployment) -> None:
    assert first_release.tasks_started == 1
    assert first_release.revision == "48871d03964b"
    migrated = first_release.at(MIGRATION, "CREATE_COMPLETE")
    assert migrated <= first_release.at(SERVICE, "CREATE_IN_PROGRESS")


def test_the_rename_keeps_the_data_and_the_service_updates_only_after_the_migration(
    world: World, first_release: Deployment, renamed: Deployment
) -> None:
    assert renamed.tasks_started == 1
    assert renamed.revision == "49871d03964c"
    assert renamed.at(MIGRATION, "UPDATE_COMPLETE") <= renamed.at(SERVICE, "UPDATE_IN_PROGRESS")
    assert renamed.service_pids != first_release.service_pids
    assert [parent["sku"] for parent in world.get("parents")] == ["PUMP-1"]
    assert [child["sku"] for child in world.get("children")] == ["SEAL-7"]


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
