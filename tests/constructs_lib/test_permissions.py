"""What a migration's roles may do, statement by statement, and that no deployment changes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_sns as sns

from constructs_lib import AlembicMigrations, MigrationTask, OnRollback
from tests.constructs_lib.projects import alembic_project
from tests.constructs_lib.templates import CHAIN, IMAGE, Data, Migrate, Resources, migration_of, resources


class Statement(NamedTuple):
    """One statement that allows something; texts as in ``Fn::Sub``, without the hashes of the logical ids."""

    actions: str
    resources: str
    condition: str = ""


def arn(service: str, resource: str) -> str:
    return "arn:${AWS::Partition}:" + service + ":${AWS::Region}:${AWS::AccountId}:" + resource


IN_THE_CLUSTER = "ArnEquals ecs:cluster ${Cluster.Arn}"
TO_ECS = "StringEquals iam:PassedToService ecs-tasks.amazonaws.com"
BOTH_ROLES = "${MigrationTaskRole.Arn} ${MigrationExecutionRole.Arn}"
TRIGGER_ROLE = {
    Statement("ecs:RunTask", arn("ecs", "task-definition/dev-migration-task:*"), IN_THE_CLUSTER),
    Statement("ecs:ListTasks", "*", IN_THE_CLUSTER),
    Statement("ecs:DescribeTasks ecs:StopTask", arn("ecs", "task/${Cluster}/*")),
    Statement("iam:PassRole", BOTH_ROLES, TO_ECS),
    Statement("logs:GetLogEvents", arn("logs", "log-group:${MigrationLog}:log-stream:migration/*")),
    Statement("logs:CreateLogStream logs:PutLogEvents", "${MigrationTriggerLog.Arn}"),
    Statement("cloudformation:DescribeStacks cloudformation:DescribeStackEvents", "${AWS::StackId}"),
    Statement("ssm:GetParameter ssm:PutParameter", arn("ssm", "parameter/${MigrationTriggerRecord}")),
}
CONTINUE = {Statement("lambda:InvokeFunction", "${MigrationTriggerFunction.Arn}")}
EXECUTION_ROLE = {
    Statement("secretsmanager:GetSecretValue secretsmanager:DescribeSecret", "${DatabaseSecretAttachment}"),
    Statement("logs:CreateLogStream logs:PutLogEvents", "${MigrationLog.Arn}"),
}


def unhashed(name: str) -> str:
    return re.sub(r"[0-9A-F]{8}$", "", name)


def text(value: Any) -> str:
    match value:
        case {"Ref": name}:
            return "${" + unhashed(name) + "}"
        case {"Fn::GetAtt": [name, attribute]}:
            return "${" + unhashed(name) + f".{attribute}}}"
        case {"Fn::Join": ["", parts]}:
            return "".join(text(part) for part in parts)
        case [*several]:
            return " ".join(text(one) for one in several)
        case dict():
            return " ".join(f"{key} {text(one)}" for key, one in value.items())
    assert isinstance(value, str)
    return value


def statement(document: dict[str, Any]) -> Statement:
    assert document["Effect"] == "Allow"
    assert document.keys() <= {"Effect", "Action", "Resource", "Condition"}
    return Statement(text(document["Action"]), text(document["Resource"]), text(document.get("Condition", "")))


def ours(found: Resources, *kinds: str) -> Resources:
    return {name: one for name, one in found.items() if name.startswith("Migration") and one["Type"] in kinds}


def allowed(found: Resources) -> dict[str, set[Statement]]:
    """The statements of each policy of the migration's roles."""
    return {
        unhashed(name): {statement(one) for one in policy["Properties"]["PolicyDocument"]["Statement"]}
        for name, policy in ours(found, "AWS::IAM::Policy", "AWS::IAM::ManagedPolicy").items()
    }


def test_every_statement_is_one_of_these_and_names_what_it_is_for(data: Data, migrate: Migrate) -> None:
    migrate(family="dev-migration-task")
    assert allowed(resources(data)) == {
        "MigrationTriggerRoleDefaultPolicy": TRIGGER_ROLE,
        "MigrationTriggerContinue": CONTINUE,
        "MigrationExecutionRoleDefaultPolicy": EXECUTION_ROLE,
    }


def test_each_policy_is_of_one_role_and_what_runs_in_the_container_may_do_nothing(data: Data, migrate: Migrate) -> None:
    migrate()
    policies = ours(resources(data), "AWS::IAM::Policy")
    assert sorted(text(policy["Properties"]["Roles"]) for policy in policies.values()) == [
        "${MigrationExecutionRole}",
        "${MigrationTriggerRole}",
        "${MigrationTriggerRole}",
    ]


def test_a_role_has_nothing_but_its_policies_and_is_for_one_service_of_this_account(
    data: Data, migrate: Migrate
) -> None:
    migrate()

    def trust(service: str) -> dict[str, Any]:
        one = {
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
            "Effect": "Allow",
            "Principal": {"Service": service},
        }
        return {"AssumeRolePolicyDocument": {"Statement": [one], "Version": "2012-10-17"}}

    roles = ours(resources(data), "AWS::IAM::Role")
    assert {unhashed(name): role["Properties"] for name, role in roles.items()} == {
        "MigrationTriggerRole": trust("lambda.amazonaws.com"),
        "MigrationTaskRole": trust("ecs-tasks.amazonaws.com"),
        "MigrationExecutionRole": trust("ecs-tasks.amazonaws.com"),
    }


def everywhere(found: Resources) -> set[str]:
    """The actions that are allowed on every resource."""
    return {one.actions for statements in allowed(found).values() for one in statements if "*" in one.resources.split()}


def test_nothing_but_list_tasks_is_allowed_on_every_resource(data: Data, migrate: Migrate) -> None:
    migrate()
    assert everywhere(resources(data)) == {"ecs:ListTasks"}


def test_an_image_from_ecr_adds_only_the_token_which_has_no_resource(data: Data, migrate: Migrate) -> None:
    repository = ecr.Repository(data, "Repository")
    migrate(image=ecs.ContainerImage.from_ecr_repository(repository))
    added = allowed(resources(data))["MigrationExecutionRoleDefaultPolicy"] - EXECUTION_ROLE
    assert added == {
        Statement("ecr:BatchCheckLayerAvailability ecr:GetDownloadUrlForLayer ecr:BatchGetImage", "${Repository.Arn}"),
        Statement("ecr:GetAuthorizationToken", "*"),
    }


def test_a_topic_for_failures_adds_only_the_right_to_publish_to_it(data: Data, migrate: Migrate) -> None:
    migrate(family="dev-migration-task", failure_topic=sns.Topic(data, "Failures"))
    found = allowed(resources(data))
    assert found.pop("MigrationTriggerRoleDefaultPolicy") - TRIGGER_ROLE == {Statement("sns:Publish", "${Failures}")}
    assert found == {
        "MigrationTriggerContinue": CONTINUE,
        "MigrationExecutionRoleDefaultPolicy": EXECUTION_ROLE,
    }


def rights(found: Resources) -> str:
    """The text of every policy and role, as CloudFormation compares it."""
    return json.dumps(ours(found, "AWS::IAM::Policy", "AWS::IAM::ManagedPolicy", "AWS::IAM::Role"))


@pytest.mark.parametrize(
    "change",
    [
        {"image": ecs.ContainerImage.from_registry("inventory:2")},
        {"migrations": {**CHAIN, "50871d03964d": "49871d03964c"}},
        {"cpu": 1024, "memory_limit_mib": 2048},
        {"timeout": cdk.Duration.minutes(55)},
        {"command": ["alembic", "upgrade", "head"]},
        {"environment": {"STAGE": "dev"}},
        {"on_rollback": OnRollback.DOWNGRADE},
        {"on_database_ahead": "proceed"},
        {"force": "once more"},
        {"database_host": "other.example"},
    ],
    ids=lambda change: " ".join(change),
)
def test_a_deployment_changes_no_permission_whatever_it_brings(tmp_path: Path, change: dict[str, Any]) -> None:
    def deployed(folder: str, **arguments: Any) -> Resources:
        data = Data(cdk.App())
        migrations = AlembicMigrations(alembic_project(tmp_path / folder, arguments.pop("migrations", CHAIN)))
        given = {"image": IMAGE, "migrations": migrations, **arguments}
        MigrationTask(data, "Migration", cluster=data.cluster, database_secret=data.secret, **given)
        return resources(data)

    old, new = deployed("old"), deployed("new", **change)
    assert old != new
    assert rights(old) == rights(new)


def test_a_new_image_and_a_new_migration_change_no_permission_and_no_function(tmp_path: Path) -> None:
    def deployed(image: str, chain: dict[str, str | None]) -> tuple[str, dict[str, Any], dict[str, Any]]:
        data = Data(cdk.App())
        MigrationTask(
            data,
            "Migration",
            cluster=data.cluster,
            image=ecs.ContainerImage.from_registry(image),
            migrations=AlembicMigrations(alembic_project(tmp_path / image, chain)),
            database_secret=data.secret,
        )
        found = resources(data)
        return rights(found), found["MigrationTriggerFunction06DCFE64"], migration_of(data)

    old_rights, old_function, old = deployed("v1", {"48871d03964b": None})
    new_rights, new_function, new = deployed("v2", CHAIN)
    assert (old_rights, old_function) == (new_rights, new_function)
    assert old["Properties"]["Fingerprint"] != new["Properties"]["Fingerprint"]
