"""What the end-to-end tests deploy to, and what they look at."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from local_aws import application, release
from local_aws.load import Count, Load
from local_aws.machine import LocalAws

MIGRATION = "Custom::DatabaseMigration"
CONTRACT = "Custom::DatabaseContract"
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
        return at(self.events, kind, status)


@dataclass(frozen=True)
class State:
    """The schema, and the service with all its data."""

    revision: str
    columns: dict[str, list[str]]
    service_pids: list[int]
    answers: dict[str, Any]


def at(events: list[dict[str, Any]], kind: str, status: str) -> datetime:
    """When the last event of this kind and status happened."""
    times: list[datetime] = [
        event["Timestamp"] for event in events if event["ResourceType"] == kind and event["ResourceStatus"] == status
    ]
    return max(times)


class World:
    """A local AWS, the application that is deployed to it, and what is looked at after a deployment."""

    def __init__(self, folder: Path) -> None:
        self.aws = LocalAws(folder / "aws")
        self.app = folder / "app"

    def deploy(self) -> Deployment:
        """``cdk deploy DevStack``."""
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

    def deploy_under_load(self) -> tuple[Deployment, dict[str, Count]]:
        """The same, and what the clients of each release have seen meanwhile, by its name of the column."""
        with Load(self.aws).working() as load:
            deployment = self.deploy()
        return deployment, load.counts

    def deploy_first_release(self, prepare: Callable[[Path], None] | None = None) -> Deployment:
        """Deploy the release before the rename, and give it a row in each table.

        Args:
            prepare: changes the release first.
        """
        release.copy_before_the_rename(self.app)
        if prepare:
            prepare(self.app)
        deployment = self.deploy()
        assert deployment.exit_code == 0, deployment.output
        parent = self.post("parents", {"name": "PUMP-1"})
        self.post("children", {"parent_id": parent["id"], "name": "SEAL-7", "quantity": 4})
        return deployment

    def deploy_beside(self, stack: str, family: str) -> Deployment:
        """``cdk deploy DevStack`` while a ``cdk deploy`` of another stack waits for its migration.

        Args:
            stack: the other one.
            family: of its migration's tasks.
        """
        said = list[str]()
        out = f"--output={self.aws.root / 'cdk.out.beside'}"
        options = ["--require-approval=never", "--progress=events", out]
        with ThreadPoolExecutor(max_workers=1) as pool:
            beside = pool.submit(self.aws.cdk, "deploy", stack, *options, app=self.app, tell=said.append)
            while not any(task["lastStatus"] == "RUNNING" for task in application.migration_tasks(self.aws, family)):
                assert not beside.done(), said
                time.sleep(0.1)
            deployment = self.deploy()
            assert beside.result() == 0, said
        return deployment

    def state(self) -> State:
        """What a deployment that fails has to leave as it was."""
        running = self.aws.containers("inventory-service")
        return State(
            revision=application.revision(self.aws),
            columns={table: application.columns(self.aws, table) for table in application.TABLES},
            service_pids=[container["pid"] for container in running],
            answers={name: self.get(name) for name in ("parents", "children")} if running else {},
        )

    def events(self, stack: str = "DevStack") -> list[dict[str, Any]]:
        if self.aws.stack_status(stack) is None:
            return []
        pages = self.aws.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName=stack)
        return [event for page in pages for event in page["StackEvents"]]

    def get(self, resource: str) -> Any:
        with urllib.request.urlopen(f"{application.service_url(self.aws)}/{resource}", timeout=10) as answer:
            return json.load(answer)

    def post(self, resource: str, row: dict[str, object]) -> Any:
        url = f"{application.service_url(self.aws)}/{resource}"
        request = urllib.request.Request(url, json.dumps(row).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
