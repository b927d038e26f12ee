"""``make tour``: four deployments that tell what the product does, on a local AWS of its own."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

from local_aws import application, release
from local_aws.load import Load
from local_aws.machine import LocalAws, LocalAwsError

# Of all that the CDK CLI prints, the lines that this story is about; the rest is in the log that is named.
TOLD = re.compile(r"Custom::Database|AWS::ECS::Service |DevStack .*AWS::CloudFormation::Stack|✅|❌|^  \S")
MIGRATION = "Custom::DatabaseMigration"
CONTRACT = "Custom::DatabaseContract"
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
    _chapter(2, "Release 2 renames the column, while clients of both releases go on working: not one request fails.")
    kept = aws.root / "release-1.template.json"
    kept.write_bytes((aws.root / "cdk.out" / "DevStack.template.json").read_bytes())
    release.copy(app)
    _say("`cdk diff` shows which migration a deployment would run:")
    diff = list[str]()
    aws.cdk("diff", "DevStack", "--exclusively", f"--template={kept}", "--no-color", app=app, tell=diff.append)
    _quote([line for line in diff if MIGRATION in line or "Revisions" in line or '"49871d03964c ' in line])
    seen, started = len(_events(aws)), len(application.migration_tasks(aws))
    with Load(aws).working() as load:
        _deploy(aws, app)
    _say("When it happened, by CloudFormation's events and by ECS:")
    steps = [
        (event["Timestamp"], f"{event['ResourceType']} {event['ResourceStatus']}") for event in _events(aws)[seen:]
    ]
    for task, command in zip(application.migration_tasks(aws)[started:], ("upgrade", "contract"), strict=True):
        exit_code = task["containers"][0]["exitCode"]
        steps.append((task["stoppedAt"], f"the task `{command}` has stopped, exit code {exit_code}"))
    steps.sort(key=lambda step: step[0])
    _quote([f"{at.astimezone():%H:%M:%S}.{at.microsecond // 1000:03}  {what}" for at, what in steps])
    _say("Between `upgrade` and `contract` both names worked. What the clients have seen during the deployment:")
    _quote(["release  says  requests  failed  slowest"])
    for number, name in enumerate(("name", "sku"), 1):
        count = load.counts[name]
        _quote([f"{number:<7}  {name:<4}  {count.requests:>8}  {count.errors:>6}  {count.longest:>5.2f} s"])
        if count.errors:
            raise LocalAwsError(f"A request of release {number} has failed: {count.first_error}")
    _show_data(aws)


def _failing_migration(aws: LocalAws, app: Path) -> None:
    _chapter(3, "A migration that fails stops the deployment: the stack rolls back, the service goes on running.")
    pid = application.service(aws)["pid"]
    release.add_failing_migration(app)
    _deploy(aws, app, succeeds=False)
    _say(f"DevStack is {aws.stack_status('DevStack')}.")
    if application.service(aws)["pid"] != pid:
        raise LocalAwsError("The service was replaced by a deployment that failed.")
    _say(f"The service is still the same process ({pid}) and answers:")
    _show_data(aws)


def _code_only(aws: LocalAws, app: Path) -> None:
    _chapter(4, "A release that changes only code starts no migration task.")
    pid = application.service(aws)["pid"]
    started = len(application.migration_tasks(aws))
    release.copy(app)
    release.change_code_only(app)
    _deploy(aws, app)
    new = application.service(aws)["pid"]
    _say(f"Migration tasks started: {len(application.migration_tasks(aws)) - started}.")
    _say(f"The service is a new process ({pid} -> {new}).")


def _deploy(aws: LocalAws, app: Path, *, succeeds: bool = True) -> None:
    log = app.parent / "cdk-deploy.log"
    _say(f"cdk deploy DevStack ... (all that it prints: {log.relative_to(app.parents[2])})")
    with log.open("w") as output:

        def tell(line: str) -> None:
            print(line, file=output)
            if TOLD.search(line):
                _quote([line])

        code = aws.deploy("DevStack", app=app, tell=tell)
    if (code == 0) is not succeeds:
        raise LocalAwsError(f"cdk deploy ended with exit code {code}; its output is in {log}.")


def _events(aws: LocalAws) -> list[dict[str, Any]]:
    """The events of the migration, of the service and of the contract, the oldest first."""
    pages = aws.client("cloudformation").get_paginator("describe_stack_events").paginate(StackName="DevStack")
    events = [event for page in pages for event in page["StackEvents"]]
    return [event for event in reversed(events) if event["ResourceType"] in (MIGRATION, SERVICE, CONTRACT)]


def _show_data(aws: LocalAws) -> None:
    for resource in ("parents", "children"):
        with urllib.request.urlopen(f"{application.service_url(aws)}/{resource}", timeout=10) as answer:  # noqa: S310
            rows = json.load(answer)
        _say(f"GET /{resource}")
        _quote([json.dumps({key: row[key] for key in row if not key.endswith("_at")}) for row in rows])


def _post(aws: LocalAws, resource: str, row: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310  # loopback
        f"{application.service_url(aws)}/{resource}", json.dumps(row).encode(), {"Content-Type": "application/json"}
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
