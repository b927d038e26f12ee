"""What is looked at after a deployment of this application."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from typing import Any

from local_aws.machine import LocalAws, LocalAwsError
from local_aws.postgres import HOST

STACKS = ("DevDataStack", "DevStack")
TABLES = ("parent_items", "child_items")
CLUSTER = "dev-inventory-cluster"
# What the local AWS accepts and does not do; neither the migration nor the service depends on it.
NOT_EMULATED = (
    "AWS::EC2::FlowLog",
    "AWS::SecretsManager::ResourcePolicy",
    "AWS::SecretsManager::RotationSchedule",
)
MIGRATION_FAMILY = "dev-migration-task"


def service(aws: LocalAws) -> dict[str, Any]:
    """The newest running task of the inventory service: its pid and port.

    Raises:
        LocalAwsError: when none runs.
    """
    running = aws.containers("inventory-service")
    if not running:
        raise LocalAwsError("No task of the inventory service runs.")
    return running[-1]


def service_url(aws: LocalAws) -> str:
    """Where the inventory service answers; raises LocalAwsError when it does not run."""
    return f"http://{HOST}:{service(aws)['port']}"


def migration_tasks(aws: LocalAws, family: str = MIGRATION_FAMILY) -> list[dict[str, Any]]:
    """Every task of the migration that was ever started here, as ECS describes it, the oldest first."""
    ecs = aws.client("ecs")
    arns = [
        arn
        for status in ("RUNNING", "STOPPED")
        for arn in ecs.list_tasks(cluster=CLUSTER, family=family, desiredStatus=status)["taskArns"]
    ]
    tasks: list[dict[str, Any]] = ecs.describe_tasks(cluster=CLUSTER, tasks=arns)["tasks"] if arns else []
    return sorted(tasks, key=lambda task: task["createdAt"])


def last_change(aws: LocalAws) -> datetime | None:
    """When DevStack was made or last changed; None when there is none."""
    stack = aws.stack("DevStack") or {}
    return stack.get("LastUpdatedTime", stack.get("CreationTime"))


def not_emulated(aws: LocalAws) -> list[str]:
    """The kinds of resources in the stacks that the local AWS has only accepted."""
    cloudformation = aws.client("cloudformation")
    kinds = {
        resource["ResourceType"]
        for stack in STACKS
        for resource in cloudformation.describe_stack_resources(StackName=stack)["StackResources"]
    }
    return sorted(kinds.intersection(NOT_EMULATED))


def revision(aws: LocalAws) -> str:
    """Where the schema is."""
    return ", ".join(_column(aws, "SELECT version_num FROM alembic_version"))


def columns(aws: LocalAws, table: str) -> list[str]:
    """The columns of a table in their order."""
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    return _column(aws, f"{query} ORDER BY attnum", table)


def statements(aws: LocalAws) -> list[str]:
    """The statement that each session of the application's database is in, or is in a transaction after."""
    query = "SELECT query FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
    return _column(aws, f"{query} AND state <> 'idle'", "inventory", database="postgres")


def _column(aws: LocalAws, query: str, *parameters: str, database: str = "inventory") -> list[str]:
    with closing(aws.postgres.connect(database)) as connection, connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return [row[0] for row in cursor.fetchall()]
