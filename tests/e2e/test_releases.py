"""A rename from one release to the next, with everything that can come between; each fixture is a deployment."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import pytest

from local_aws import application, release
from local_aws.load import Count
from tests.e2e.world import CONTRACT, MIGRATION, Deployment, World

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OLD, NEW = "48871d03964b", "49871d03964c"
BOTH = ["id", "sku", "created_at", "updated_at", "name"]
ONLY_NEW = ["id", "sku", "created_at", "updated_at"]


@dataclass(frozen=True)
class Story:
    """A deployment, what the clients of each release have seen meanwhile, and the columns it has left."""

    deployment: Deployment
    counts: dict[str, Count]
    columns: list[str]

    @property
    def errors(self) -> dict[str, str]:
        """What has failed first, by release."""
        return {name: count.first_error for name, count in self.counts.items() if count.errors}


def deploy(world: World) -> Story:
    deployment, counts = world.deploy_under_load()
    return Story(deployment, counts, application.columns(world.aws, "parent_items"))


@pytest.fixture(scope="module")
def first_release(world: World) -> Deployment:
    return world.deploy_first_release()


@pytest.fixture(scope="module")
def failing_service(world: World, first_release: Deployment) -> Story:  # noqa: ARG001  # what came before
    release.copy(world.app)
    release.break_service(world.app)
    return deploy(world)


@pytest.fixture(scope="module")
def reverted(world: World, failing_service: Story) -> Story:  # noqa: ARG001
    release.copy_before_the_rename(world.app)
    release.change_code_only(world.app)
    return deploy(world)


@pytest.fixture(scope="module")
def failing_later(world: World, reverted: Story) -> Story:  # noqa: ARG001
    release.copy(world.app)
    release.fail_after_contract(world.app)
    return deploy(world)


@pytest.fixture(scope="module")
def failing_contract(world: World, failing_later: Story) -> Story:  # noqa: ARG001
    release.copy(world.app)
    release.break_contract(world.app)
    return deploy(world)


@pytest.fixture(scope="module")
def code_only(world: World, failing_contract: Story) -> Story:  # noqa: ARG001
    with closing(world.aws.postgres.connect("inventory")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE legacy (); ALTER TABLE legacy OWNER TO inventory")
        connection.commit()
    release.change_code_only(world.app)
    return deploy(world)


# P16
def test_a_service_that_fails_after_the_migration_rolls_back_and_both_names_go_on_working(
    failing_service: Story,
) -> None:
    assert failing_service.deployment.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    assert (failing_service.deployment.revision, failing_service.columns) == (NEW, BOTH)
    assert failing_service.errors == {}
    assert failing_service.counts["name"].requests > 20


def test_the_older_release_may_be_deployed_over_open_renames_and_leaves_them_open(reverted: Story) -> None:
    assert reverted.deployment.exit_code == 0, reverted.deployment.output
    assert (reverted.deployment.revision, reverted.columns) == (NEW, BOTH)
    assert reverted.errors == {}
    assert "DevStack.Contract = open" in reverted.deployment.output


def test_a_rollback_after_the_contract_opens_the_renames_again_before_the_service_goes_back(
    world: World, failing_later: Story
) -> None:
    assert failing_later.deployment.stack_status == "UPDATE_ROLLBACK_COMPLETE"
    commands = [
        command
        for task in application.migration_tasks(world.aws)[-failing_later.deployment.tasks_started :]
        for container in task["overrides"]["containerOverrides"]
        for command in [" ".join(container["command"])]
    ]
    assert commands[-2:] == ["python -m migration_runner contract", f"python -m migration_runner reopen {OLD}"]
    assert (failing_later.deployment.revision, failing_later.columns) == (NEW, BOTH)
    assert failing_later.errors == {}
    assert set(failing_later.counts) == {"name", "sku"}


def test_a_contract_that_fails_does_not_roll_back_a_healthy_release_and_is_told_loudly(
    world: World, failing_contract: Story
) -> None:
    assert failing_contract.deployment.stack_status == "UPDATE_COMPLETE"
    said = " ".join(failing_contract.deployment.output.split())
    assert 'open: Migration 51871d03964a failed: UndefinedTable: table "legacy" does not exist.' in said
    assert failing_contract.errors == {}
    assert [row["sku"] for row in world.get("parents")] == ["PUMP-1"]


def test_the_next_deployment_finishes_the_contract_though_it_changes_only_code(world: World, code_only: Story) -> None:
    assert code_only.deployment.exit_code == 0, code_only.deployment.output
    assert code_only.deployment.tasks_started == 1
    assert "DevStack.Contract = closed" in code_only.deployment.output
    assert (code_only.deployment.revision, code_only.columns) == ("51871d03964a", ONLY_NEW)
    assert code_only.deployment.at(MIGRATION, "UPDATE_COMPLETE") <= code_only.deployment.at(CONTRACT, "UPDATE_COMPLETE")
    assert code_only.errors == {}
    assert [row["sku"] for row in world.get("children")] == ["SEAL-7"]
