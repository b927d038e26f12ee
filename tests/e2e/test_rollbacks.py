"""What a rollback leaves of the schema: KEEP, DOWNGRADE, and a downgrade that fails; each fixture is a deployment."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local_aws import application, release
from tests.e2e.world import MIGRATION, Deployment, State, World

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OLD, NEW = "48871d03964b", "49871d03964c"


@dataclass(frozen=True)
class Rollback:
    """A deployment that was rolled back, the state before it, and the schema after it."""

    deployment: Deployment
    before: State
    revision: str
    columns: dict[str, list[str]]


def roll_back(world: World) -> Rollback:
    before = world.state()
    deployment = world.deploy()
    columns = {table: application.columns(world.aws, table) for table in application.TABLES}
    return Rollback(deployment, before, application.revision(world.aws), columns)


def columns(name: str) -> dict[str, list[str]]:
    times = ["created_at", "updated_at"]
    return {"parent_items": ["id", name, *times], "child_items": ["id", "parent_id", name, "quantity", *times]}


def command_of(task: dict[str, Any]) -> list[str]:
    (container,) = task["overrides"]["containerOverrides"]
    command: list[str] = container["command"]
    return command


def continue_rollback(world: World, **options: Any) -> str | None:
    """What the trigger's reason tells a person to run; the stack's status when that has ended."""
    world.aws.client("cloudformation").continue_update_rollback(StackName="DevStack", **options)
    deadline = time.monotonic() + 60
    while (status := world.aws.stack_status("DevStack") or "").endswith("IN_PROGRESS") and time.monotonic() < deadline:
        time.sleep(0.2)
    return status


def execute(world: World, statement: str) -> None:
    with closing(world.aws.postgres.connect("inventory")) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


def take_back(app: Path) -> None:
    """A plain rename, which the release before can't live with."""
    release.rename_plainly(app)
    release.take_schema_back(app)


@pytest.fixture(scope="module")
def first_release(world: World) -> Deployment:
    return world.deploy_first_release(take_back)


@pytest.fixture(scope="module")
def taken_back(world: World, first_release: Deployment) -> tuple[Rollback, State]:  # noqa: ARG001  # what came before
    release.copy(world.app)
    take_back(world.app)
    release.break_service(world.app)
    return roll_back(world), world.state()


@pytest.fixture(scope="module")
def stuck(world: World, taken_back: tuple[Rollback, State]) -> Rollback:  # noqa: ARG001
    release.copy(world.app)
    take_back(world.app)
    release.break_service(world.app)
    release.break_downgrade(world.app)
    return roll_back(world)


@pytest.fixture(scope="module")
def freed(world: World, stuck: Rollback) -> str | None:  # noqa: ARG001
    execute(world, "CREATE TABLE way_back ()")
    execute(world, "ALTER TABLE way_back OWNER TO inventory")
    return continue_rollback(world)


@pytest.fixture(scope="module")
def skipped(world: World, freed: str | None) -> tuple[Rollback, str | None]:  # noqa: ARG001
    release.copy(world.app)
    take_back(world.app)
    release.break_service(world.app)
    release.break_downgrade(world.app)
    failed = roll_back(world)
    resources = world.aws.client("cloudformation").describe_stack_resources(StackName="DevStack")["StackResources"]
    (migration,) = [one["LogicalResourceId"] for one in resources if one["ResourceType"] == MIGRATION]
    return failed, continue_rollback(world, ResourcesToSkip=[migration])


@pytest.fixture(scope="module")
def renamed(world: World, skipped: tuple[Rollback, str | None]) -> Deployment:  # noqa: ARG001
    release.copy(world.app)
    take_back(world.app)
    return world.deploy()


@pytest.fixture(scope="module")
def kept(world: World, renamed: Deployment) -> tuple[Rollback, State]:  # noqa: ARG001
    release.copy(world.app)
    release.rename_plainly(world.app)
    release.add_column(world.app)
    release.break_service(world.app)
    return roll_back(world), world.state()


@pytest.fixture(scope="module")
def proceeded(world: World, kept: tuple[Rollback, State]) -> Deployment:  # noqa: ARG001
    release.copy(world.app)
    release.rename_plainly(world.app)
    release.change_code_only(world.app)
    release.proceed_when_database_is_ahead(world.app)
    # Unchanged since the last recorded success it is not: that was the migration of the release that was rolled back.
    return world.deploy()


def test_a_rollback_takes_the_schema_back_to_where_the_running_service_expects_it(
    world: World, taken_back: tuple[Rollback, State]
) -> None:
    rollback, after = taken_back
    assert rollback.deployment.exit_code == 1
    assert rollback.deployment.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    assert rollback.before == after
    assert (after.revision, after.columns) == (OLD, columns("name"))
    assert [row["name"] for row in after.answers["children"]] == ["SEAL-7"]
    assert rollback.deployment.tasks_started == 2
    upgrade, downgrade = application.migration_tasks(world.aws)[1:3]
    assert command_of(downgrade) == ["python", "-m", "migration_runner", "downgrade", OLD]
    assert downgrade["taskDefinitionArn"] == upgrade["taskDefinitionArn"]


def test_a_downgrade_that_fails_stops_the_rollback_and_names_two_commands(stuck: Rollback) -> None:
    assert stuck.deployment.exit_code == 1
    assert stuck.deployment.stack_status == "UPDATE_ROLLBACK_FAILED"
    said = " ".join(stuck.deployment.output.split())
    assert f"The schema could not be taken back to {OLD}: Migration {NEW} failed: UndefinedTable" in said
    assert f"the schema is still at {NEW}." in said
    command = "aws cloudformation continue-update-rollback --stack-name DevStack"
    assert f"To try again: {command}. To keep the schema: {command} --resources-to-skip Migration" in said
    assert (stuck.revision, stuck.columns) == (NEW, columns("sku"))


def test_the_first_command_brings_stack_and_schema_back_once_the_downgrade_can_succeed(
    freed: str | None, skipped: tuple[Rollback, str | None]
) -> None:
    assert freed == "UPDATE_ROLLBACK_COMPLETE"
    then = skipped[0].before
    assert (then.revision, then.columns) == (OLD, columns("name"))
    assert [row["name"] for row in then.answers["parents"]] == ["PUMP-1"]


def test_the_second_command_brings_the_stack_back_and_keeps_the_schema(
    skipped: tuple[Rollback, str | None], renamed: Deployment
) -> None:
    rollback, status = skipped
    assert status == "UPDATE_ROLLBACK_COMPLETE"
    assert (rollback.revision, rollback.columns) == (NEW, columns("sku"))
    assert renamed.exit_code == 0, renamed.output
    assert (renamed.tasks_started, renamed.revision) == (1, NEW)


def test_a_rollback_that_keeps_the_schema_starts_no_task_and_leaves_the_service_alone(
    kept: tuple[Rollback, State],
) -> None:
    rollback, after = kept
    assert rollback.deployment.exit_code == 1
    assert rollback.deployment.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    assert rollback.deployment.tasks_started == 1
    assert after.revision == "51871d03964f"
    assert "colour" in after.columns["parent_items"]
    assert (after.service_pids, after.answers) == (rollback.before.service_pids, rollback.before.answers)


def test_a_release_older_than_the_schema_may_be_let_pass(kept: tuple[Rollback, State], proceeded: Deployment) -> None:
    assert proceeded.exit_code == 0, proceeded.output
    assert proceeded.tasks_started == 1
    assert proceeded.revision == "51871d03964f"
    assert proceeded.service_pids != kept[1].service_pids
    assert "SchemaRevisionAfter = 51871d03964f" in proceeded.output
