"""``make tour``: four deployments that tell what the product does, on a local AWS of its own."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any

from local_aws import release
from local_aws.machine import LocalAws, LocalAwsError

# Of all that the CDK CLI prints, the lines that this story is about; the rest is in the log that is named.
TOLD = re.compile(
    r"Custom::DatabaseMigration|AWS::ECS::Service |DevStack .*AWS::CloudFormation::Stack"
    r"|failed: |Failed resources|✅|❌"
)
MIGRATION = "Custom::DatabaseMigration"
SERVICE = "AWS::ECS::Service"


def run(aws: LocalAws, app: Path) -> None:
    """Tell the story, then remove what it made.

    Raises:
        LocalAwsError: when a deployment ends otherwise than the story says.
    """
    aws.destroy()
    _say("Starting a local AWS and a PostgreSQL for the tour ...")
    try:
        aws.start()
        _first_release(aws, app)
        _rename(aws, app)
        _failing_migration(aws, app)
        _code_only(aws, app)
        print("\nThat was the tour. Next: `make deploy-local`, then README.md.")
    finally:
        aws.destroy()


def _first_release(aws: LocalAws, app: Path) -> None:
    _chapter(1, "Release 1 of the service is deployed; its tables have the column `name`.")
    release.copy_before_the_rename(app)
    _deploy(aws, app)
    parent = _post(aws, "parents", {"name": "PUMP-1"})
    for name, quantity in (("SEAL-7", 4), ("BOLT-3", 120)):
        _post(aws, "children", {"parent_id": parent["id"], "name": name, "quantity": quantity})
    _show_data(aws)


def _rename(aws: LocalAws, app: Path) -> None:
    _chapter(2, "Release 2 renames the column: the service updates only after the migration has succeeded.")
    kept = aws.root / "release-1.template.json"
    kept.write_bytes((aws.root / "cdk.out" / "DevStack.template.json").read_bytes())
    release.copy(app)
    _say("`cdk diff` shows which migration a deployment would run:")
    diff = aws.cdk("diff", "DevStack", f"--template={kept}", "--no-color", app=app, output=subprocess.PIPE)
    _quote([line for line in diff.stdout.splitlines() if "49871d03964c" in line])
    before = _last_event(aws)
    _deploy(aws, app)
    _say("When it happened, by CloudFormation's events and by ECS:")
    task = _last_task(aws)
    container = task["containers"][0]
    steps = [
        (event["Timestamp"], f"{event['ResourceType']} {event['ResourceStatus']}") for event in _events(aws, before)
    ]
    steps.append((task["stoppedAt"], f"the migration's task stopped, exit code {container['exitCode']}"))
    _quote(
        [f"{at.astimezone():%H:%M:%S.%f}"[:12] + f"  {what}" for at, what in sorted(steps, key=lambda step: step[0])]
    )
    _show_data(aws)


def _failing_migration(aws: LocalAws, app: Path) -> None:
    _chapter(3, "A migration that fails stops the deployment: the stack rolls back, the service goes on running.")
    pid = aws.containers("inventory-service")[-1]["pid"]
    release.add_failing_migration(app)
    _deploy(aws, app, succeeds=False)
    _say(f"DevStack is {aws.stack_status('DevStack')}.")
    if [container["pid"] for container in aws.containers("inventory-service")] != [pid]:
        raise LocalAwsError("the service was replaced by a deployment that failed")
    _say(f"The service is still the same process ({pid}) and answers:")
    _show_data(aws)


def _code_only(aws: LocalAws, app: Path) -> None:
    _chapter(4, "A release that changes only code starts no migration task.")
    pid = aws.containers("inventory-service")[-1]["pid"]
    started = aws.tasks_started("dev-migration-task")
    release.copy(app)
    release.change_code_only(app)
    _deploy(aws, app)
    new = aws.containers("inventory-service")[-1]["pid"]
    _say(f"Migration tasks started: {aws.tasks_started('dev-migration-task') - started}.")
    _say(f"The service is a new process ({pid} -> {new}).")


def _deploy(aws: LocalAws, app: Path, *, succeeds: bool = True) -> None:
    log = app.parent / "cdk-deploy.log"
    _say(f"cdk deploy DevStack ... (all of its output: {log.relative_to(app.parents[2])})")
    with log.open("w") as output:
        code = aws.deploy("DevStack", app=app, output=output.fileno()).returncode
    _quote([line for line in log.read_text().splitlines() if TOLD.search(line)])
    if (code == 0) is not succeeds:
        raise LocalAwsError(f"cdk deploy ended with exit code {code}; its output is in {log}")


def _events(aws: LocalAws, after: datetime | None) -> list[dict[str, Any]]:
    pages = aws.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName="DevStack")
    events = [event for page in pages for event in page["StackEvents"]]
    told = [event for event in events if event["ResourceType"] in (MIGRATION, SERVICE)]
    return [event for event in told if after is None or event["Timestamp"] > after]


def _last_event(aws: LocalAws) -> datetime:
    latest: datetime = max(event["Timestamp"] for event in _events(aws, None))
    return latest


def _last_task(aws: LocalAws) -> dict[str, Any]:
    ecs = aws.client("ecs")
    cluster = "dev-inventory-cluster"
    arns = ecs.list_tasks(cluster=cluster, family="dev-migration-task", desiredStatus="STOPPED")["taskArns"]
    tasks: list[dict[str, Any]] = ecs.describe_tasks(cluster=cluster, tasks=arns)["tasks"]
    return max(tasks, key=lambda task: task["stoppedAt"])


def _show_data(aws: LocalAws) -> None:
    for resource in ("parents", "children"):
        with urllib.request.urlopen(f"{aws.service_url()}/{resource}", timeout=10) as answer:  # noqa: S310
            rows = json.load(answer)
        _say(f"GET /{resource}")
        _quote([json.dumps({key: row[key] for key in row if not key.endswith("_at")}) for row in rows])


def _post(aws: LocalAws, resource: str, row: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310  # loopback
        f"{aws.service_url()}/{resource}", json.dumps(row).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        made: dict[str, Any] = json.load(answer)
        return made


def _chapter(number: int, title: str) -> None:
    print(f"\n{number}/4  {title}\n", flush=True)


def _say(line: str) -> None:
    print(line, flush=True)


def _quote(lines: list[str]) -> None:
    for line in lines:
        print(f"    {line}", flush=True)
