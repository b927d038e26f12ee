"""What a MigrationTask becomes in a template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_ecs_patterns as ecs_patterns
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk.assertions import Match, Template
from constructs import Construct
from ministack.services.cloudformation.provisioners import _RESOURCE_HANDLERS

from constructs_lib import AlembicMigrations, MigrationTask
from tests.constructs_lib.projects import alembic_project

CHAIN = {"48871d03964b": None, "49871d03964c": "48871d03964b"}
ISOLATED = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
IMAGE = ecs.ContainerImage.from_registry("inventory:1")
Resources = dict[str, dict[str, Any]]


class Data(cdk.Stack):
    """A network, a cluster, a database and the security group of its clients."""

    def __init__(self, scope: Construct, construct_id: str = "Data") -> None:
        super().__init__(scope, construct_id)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            nat_gateways=0,
            max_azs=2,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="public", subnet_type=ec2.SubnetType.PUBLIC),
                ec2.SubnetConfiguration(name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            ],
        )
        self.vpc.add_interface_endpoint("Ecr", service=ec2.InterfaceVpcEndpointAwsService.ECR)
        self.cluster = ecs.Cluster(self, "Cluster", vpc=self.vpc)
        engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17)
        self.database = rds.DatabaseInstance(self, "Database", engine=engine, vpc=self.vpc, vpc_subnets=ISOLATED)
        assert self.database.secret
        self.secret: secretsmanager.ISecret = self.database.secret
        self.clients = ec2.SecurityGroup(self, "Clients", vpc=self.vpc)

    def service(self, scope: Construct, construct_id: str = "Service") -> ecs.FargateService:
        """A service of the clients."""
        task_definition = ecs.FargateTaskDefinition(scope, f"{construct_id}Task")
        task_definition.add_container("web", image=IMAGE, port_mappings=[ecs.PortMapping(container_port=80)])
        return ecs.FargateService(
            scope,
            construct_id,
            cluster=self.cluster,
            task_definition=task_definition,
            security_groups=[self.clients],
            vpc_subnets=ISOLATED,
        )


@pytest.fixture
def data() -> Data:
    return Data(cdk.App())


@pytest.fixture
def migrations(tmp_path: Path) -> AlembicMigrations:
    return AlembicMigrations(alembic_project(tmp_path, CHAIN, message="rename name to sku"))


Migrate = Callable[..., MigrationTask]


@pytest.fixture
def migrate(data: Data, migrations: AlembicMigrations) -> Migrate:
    """Make a migration, in the data stack unless another scope is given."""

    def make(scope: Construct = data, construct_id: str = "Migration", **arguments: Any) -> MigrationTask:
        given = {"migrations": migrations, "image": IMAGE, "security_groups": [data.clients], **arguments}
        return MigrationTask(scope, construct_id, cluster=data.cluster, database_secret=data.secret, **given)

    return make


def resources(stack: cdk.Stack) -> Resources:
    """The stack's resources; a cycle among them raises."""
    found: Resources = Template.from_stack(stack).to_json()["Resources"]
    return found


def only(found: Resources, kind: str) -> dict[str, Any]:
    (one,) = [resource for resource in found.values() if resource["Type"] == kind]
    return one


def migration_of(stack: cdk.Stack) -> dict[str, Any]:
    return only(resources(stack), "Custom::DatabaseMigration")


def awaited(found: Resources, kind: str) -> list[str]:
    """The types of what the resources of a kind explicitly depend on."""
    holders = [resource for resource in found.values() if resource["Type"] == kind]
    return [found[name]["Type"] for holder in holders for name in holder.get("DependsOn", [])]


def trigger_statements(found: Resources) -> list[dict[str, Any]]:
    policies = [
        resource["Properties"]["PolicyDocument"]["Statement"]
        for name, resource in found.items()
        if name.startswith("MigrationTrigger") and resource["Type"] == "AWS::IAM::Policy"
    ]
    return [statement for statements in policies for statement in statements]


def stage_of(data: Data) -> cdk.Stage:
    stage = cdk.Stage.of(data)
    assert stage
    return stage


def test_one_migration_adds_fourteen_resources_at_most_and_their_ids_are_stable(data: Data, migrate: Migrate) -> None:
    migrate(security_groups=None)
    added = {name: resource["Type"] for name, resource in resources(data).items() if name.startswith("Migration")}
    assert added == {
        "MigrationC13A4580": "Custom::DatabaseMigration",
        "MigrationLogF7A864BD": "AWS::Logs::LogGroup",
        "MigrationSecurityGroupA23AF9FD": "AWS::EC2::SecurityGroup",
        "MigrationTaskDefinitionExecutionRole1DA332F4": "AWS::IAM::Role",
        "MigrationTaskDefinitionExecutionRoleDefaultPolicyA8400FA9": "AWS::IAM::Policy",
        "MigrationTaskDefinitionF6B23059": "AWS::ECS::TaskDefinition",
        "MigrationTaskDefinitionTaskRole415EAA1A": "AWS::IAM::Role",
        "MigrationTriggerContinue65E30F25": "AWS::IAM::Policy",
        "MigrationTriggerFunction06DCFE64": "AWS::Lambda::Function",
        "MigrationTriggerFunctionEventInvokeConfig5F5BB19E": "AWS::Lambda::EventInvokeConfig",
        "MigrationTriggerLog74C4AE05": "AWS::Logs::LogGroup",
        "MigrationTriggerRecord84E2D583": "AWS::SSM::Parameter",
        "MigrationTriggerRoleCDCBB2E8": "AWS::IAM::Role",
        "MigrationTriggerRoleDefaultPolicyD759B0B3": "AWS::IAM::Policy",
    }


def test_the_local_aws_can_make_every_resource(data: Data, migrate: Migrate) -> None:
    migrate(security_groups=None)
    added = {resource["Type"] for name, resource in resources(data).items() if name.startswith("Migration")}
    assert added - {"Custom::DatabaseMigration"} <= set(_RESOURCE_HANDLERS)


def test_a_diff_shows_which_migrations_will_run(data: Data, migrate: Migrate) -> None:
    migrate()
    assert migration_of(data)["Properties"]["Revisions"] == [
        "49871d03964c rename name to sku",
        "48871d03964b rename name to sku",
    ]


def test_a_new_revision_only_adds_a_line_to_the_diff_however_many_there_are(tmp_path: Path) -> None:
    def lines(count: int) -> list[str]:
        chain = {f"r{n:03}": f"r{n - 1:03}" if n else None for n in range(count)}
        data = Data(cdk.App())
        migrations = AlembicMigrations(alembic_project(tmp_path / str(count), chain))
        MigrationTask(
            data, "Migration", cluster=data.cluster, image=IMAGE, database_secret=data.secret, migrations=migrations
        )
        shown: list[str] = migration_of(data)["Properties"]["Revisions"]
        return shown

    assert lines(62)[1:] == lines(61)
    assert 25 <= len(lines(61)) < 50


def test_long_messages_make_no_large_template(tmp_path: Path, migrate: Migrate, data: Data) -> None:
    chain = {f"r{n:03}": f"r{n - 1:03}" if n else None for n in range(49)}
    migrate(migrations=AlembicMigrations(alembic_project(tmp_path / "long", chain, message="ü" * 20_000)))
    properties = json.dumps(migration_of(data)["Properties"], ensure_ascii=False)
    assert len(properties) < 49 * 110 + 3000
    assert properties.isascii()


def test_the_version_of_another_tool_reaches_it_as_it_is(data: Data, migrate: Migrate) -> None:
    migrate(migrations=None, command=["flyway", "migrate"], version="V7 größer")
    assert migration_of(data)["Properties"]["Target"] == "V7 größer"


def test_the_migration_is_told_everything_that_its_task_needs(data: Data, migrate: Migrate) -> None:
    migrate(log_group_name="/ecs/dev/migration-task")
    properties = migration_of(data)["Properties"]
    assert properties["Target"] == "49871d03964c"
    assert properties["Timeout"] == 1800
    assert properties["ServiceTimeout"] == "1980"
    assert properties["AssignPublicIp"] == "DISABLED"
    assert len(properties["Subnets"]) == 2
    assert "isolated" in json.dumps(properties["Subnets"])
    assert properties["SecurityGroups"] == [data.resolve(data.clients.security_group_id)]


def test_public_subnets_give_the_task_the_address_without_which_it_reaches_nothing(
    data: Data, migrate: Migrate
) -> None:
    migrate(vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC))
    assert migration_of(data)["Properties"]["AssignPublicIp"] == "ENABLED"


def test_the_task_is_small_named_read_only_and_ends_gracefully(data: Data, migrate: Migrate) -> None:
    migrate(family="dev-migration-task", database_host="db.example", database_port=5432, environment={"STAGE": "dev"})
    Template.from_stack(data).has_resource_properties(
        "AWS::ECS::TaskDefinition",
        {
            "Family": "dev-migration-task",
            "Cpu": "256",
            "Memory": "512",
            "RuntimePlatform": {"CpuArchitecture": "X86_64", "OperatingSystemFamily": "LINUX"},
            "Volumes": [{"Name": "tmp"}],
            "ContainerDefinitions": [
                Match.object_like(
                    {
                        "Name": "migration",
                        "Command": ["python", "-m", "migration_runner", "upgrade"],
                        "Environment": [
                            {"Name": "STAGE", "Value": "dev"},
                            {"Name": "DATABASE_HOST", "Value": "db.example"},
                            {"Name": "DATABASE_PORT", "Value": "5432"},
                            {"Name": "MIGRATION_TARGET", "Value": "49871d03964c"},
                        ],
                        "Secrets": [{"Name": "DATABASE_SECRET", "ValueFrom": Match.any_value()}],
                        "ReadonlyRootFilesystem": True,
                        "MountPoints": [{"ContainerPath": "/tmp", "ReadOnly": False, "SourceVolume": "tmp"}],
                        "LinuxParameters": Match.object_like({"InitProcessEnabled": True}),
                        "StopTimeout": 120,
                        "LogConfiguration": Match.object_like(
                            {"Options": Match.object_like({"mode": "blocking", "awslogs-stream-prefix": "migration"})}
                        ),
                    }
                )
            ],
        },
    )


def test_the_image_decides_the_processor(data: Data, migrate: Migrate) -> None:  # E10
    migrate(runtime_platform=ecs.RuntimePlatform(cpu_architecture=ecs.CpuArchitecture.ARM64))
    task_definition = only(resources(data), "AWS::ECS::TaskDefinition")
    assert task_definition["Properties"]["RuntimePlatform"]["CpuArchitecture"] == "ARM64"


def test_the_log_outlives_the_migration_but_does_not_block_the_next_try(data: Data, migrate: Migrate) -> None:
    migrate(log_group_name="/ecs/dev/migration-task", log_retention=logs.RetentionDays.ONE_WEEK)
    log = resources(data)["MigrationLogF7A864BD"]
    assert log["Properties"] == {"LogGroupName": "/ecs/dev/migration-task", "RetentionInDays": 7}
    assert log["DeletionPolicy"] == "RetainExceptOnCreate"


def test_every_log_group_has_a_retention(data: Data, migrate: Migrate) -> None:
    migrate()
    groups = [one for one in resources(data).values() if one["Type"] == "AWS::Logs::LogGroup"]
    assert [group["Properties"]["RetentionInDays"] for group in groups] == [90, 90]


def test_a_log_group_and_an_execution_role_may_be_the_callers_own(data: Data, migrate: Migrate) -> None:
    log_group = logs.LogGroup(data, "Own")
    role = iam.Role(
        data,
        "OwnRole",
        role_name="dev-migration-task-execution-role",
        assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"),
    )
    migration = migrate(log_group=log_group, execution_role=role)
    found = resources(data)
    assert migration.log_group is log_group
    assert not any(name.startswith(("MigrationLog", "MigrationTaskDefinitionExecutionRole")) for name in found)
    assert any(name.startswith("OwnRoleDefaultPolicy") for name in migration_of(data)["DependsOn"])


@pytest.mark.parametrize(
    "kind",
    [
        "AWS::IAM::Policy",
        "AWS::EC2::SecurityGroupIngress",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::Route",
        "AWS::EC2::VPCEndpoint",
        "AWS::Logs::LogGroup",
        "AWS::SecretsManager::SecretTargetAttachment",
        "AWS::SSM::Parameter",
        "AWS::Lambda::EventInvokeConfig",
    ],
)
def test_the_task_starts_only_when_what_it_needs_is_there(data: Data, migrate: Migrate, kind: str) -> None:  # E9
    migration = migrate()
    migration.connections.allow_to_default_port(data.database)
    migration.execute_before(data.service(data))
    assert kind in awaited(resources(data), "Custom::DatabaseMigration")


def test_every_policy_of_the_migration_comes_before_it(data: Data, migrate: Migrate) -> None:  # E9
    migrate().grant_principal.add_to_principal_policy(
        iam.PolicyStatement(actions=["s3:ListAllMyBuckets"], resources=["*"])
    )
    found = resources(data)
    policies = {name for name in found if name.startswith("Migration") and found[name]["Type"] == "AWS::IAM::Policy"}
    assert len(policies) == 4
    assert policies <= set(migration_of(data)["DependsOn"])


def test_a_raw_secret_brings_its_attachment(migrations: AlembicMigrations) -> None:
    data = Data(cdk.App())
    secret = data.node.find_child("Database").node.find_child("Secret")
    MigrationTask(
        data,
        "Migration",
        cluster=data.cluster,
        image=IMAGE,
        migrations=migrations,
        database_secret=secret,  # type: ignore[arg-type]
    )
    assert "AWS::SecretsManager::SecretTargetAttachment" in awaited(resources(data), "Custom::DatabaseMigration")


def test_rules_of_other_security_groups_are_not_waited_for(data: Data, migrate: Migrate) -> None:
    other = ec2.SecurityGroup(data, "Other", vpc=data.vpc)
    data.database.connections.allow_default_port_from(other)
    migrate()
    assert "AWS::EC2::SecurityGroupIngress" not in awaited(resources(data), "Custom::DatabaseMigration")


def test_a_service_waits_for_the_migration(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    migration.connections.allow_to_default_port(data.database)
    migration.execute_before(data.service(data))
    assert "Custom::DatabaseMigration" in awaited(resources(data), "AWS::ECS::Service")


def test_the_service_and_the_migration_may_live_apart_from_the_database(data: Data, migrate: Migrate) -> None:
    services = cdk.Stack(stage_of(data), "Services")
    migration = migrate(services)
    migration.connections.allow_to_default_port(data.database)
    migration.execute_before(data.service(services))
    found = resources(services)
    assert "Custom::DatabaseMigration" in awaited(found, "AWS::ECS::Service")
    assert "AWS::EC2::SecurityGroupIngress" not in {one["Type"] for one in found.values()}


def test_a_rule_for_a_migration_with_a_security_group_of_its_own_is_made_beside_it(
    data: Data, migrate: Migrate
) -> None:
    services = cdk.Stack(stage_of(data), "Services")
    migrate(services, security_groups=None).connections.allow_to_default_port(data.database)
    assert "AWS::EC2::SecurityGroupIngress" in awaited(resources(services), "Custom::DatabaseMigration")


def function(scope: Construct, construct_id: str) -> lambda_.Function:
    return lambda_.Function(
        scope,
        construct_id,
        runtime=lambda_.Runtime.PYTHON_3_13,
        handler="index.handler",
        code=lambda_.Code.from_inline("def handler(event, context): pass"),
    )


def held_back(stack: cdk.Stack) -> list[str]:
    """The types of what explicitly waits for the migration."""
    found = resources(stack)
    (migration,) = (name for name, one in found.items() if one["Type"] == "Custom::DatabaseMigration")
    return sorted(one["Type"] for one in found.values() if migration in one.get("DependsOn", []))


def test_a_pattern_waits_with_its_service_alone(data: Data, migrate: Migrate) -> None:
    pattern = ecs_patterns.ApplicationLoadBalancedFargateService(
        data,
        "Web",
        cluster=data.cluster,
        task_image_options=ecs_patterns.ApplicationLoadBalancedTaskImageOptions(image=IMAGE),
        security_groups=[data.clients],
        task_subnets=ISOLATED,
    )
    migrate().execute_before(pattern)
    assert held_back(data) == ["AWS::ECS::Service"]


def test_a_whole_construct_waits_with_all_that_runs_code_also_what_is_added_later(data: Data, migrate: Migrate) -> None:
    release = Construct(data, "Release")
    data.service(release)
    migrate().execute_before(release)
    function(release, "Job")
    assert held_back(data) == ["AWS::ECS::Service", "AWS::Lambda::Function"]


@pytest.mark.parametrize(
    "nat",
    [
        ec2.NatProvider.gateway(),
        ec2.NatProvider.instance_v2(
            instance_type=ec2.InstanceType("t4g.nano"),
            machine_image=ec2.MachineImage.latest_amazon_linux2023(cpu_type=ec2.AmazonLinuxCpuType.ARM_64),
        ),
    ],
    ids=["gateway", "instance"],
)
def test_a_construct_may_hold_all_that_the_migration_itself_needs(nat: ec2.NatProvider) -> None:
    stack = cdk.Stack(cdk.App(), "All")
    system = Construct(stack, "System")
    vpc = ec2.Vpc(system, "Vpc", max_azs=1, nat_gateway_provider=nat)
    image = ecs.ContainerImage.from_ecr_repository(ecr.Repository(system, "Repository"))
    pattern = ecs_patterns.ApplicationLoadBalancedFargateService(
        system,
        "Web",
        cluster=ecs.Cluster(system, "Cluster", vpc=vpc),
        task_image_options=ecs_patterns.ApplicationLoadBalancedTaskImageOptions(image=image),
    )
    migration = MigrationTask(
        stack,
        "Migration",
        cluster=pattern.cluster,
        image=image,
        command=["flyway", "migrate"],
        version="V7",
        database_secret=secretsmanager.Secret(system, "Secret"),
    )
    migration.execute_before(system)
    assert held_back(stack) == ["AWS::ECS::Service"]


def test_a_construct_in_which_nothing_can_wait_is_refused(data: Data, migrate: Migrate) -> None:
    storage = Construct(data, "Storage")
    ecr.Repository(storage, "Images")
    ec2.Vpc(storage, "Vpc")
    sentence = "nothing in 'Data/Storage' runs code, so nothing would wait for the migration: name what must wait"
    with pytest.raises(ValueError, match=sentence):
        migrate().execute_before(storage)


def test_what_is_named_itself_waits_whatever_it_is(data: Data, migrate: Migrate) -> None:
    migrate().execute_before(ecr.Repository(data, "Images"))
    assert held_back(data) == ["AWS::ECR::Repository"]


def test_another_migration_can_wait_for_this_one(data: Data, migrate: Migrate) -> None:
    first, second = migrate(), migrate(construct_id="Second")
    first.execute_before(second)
    assert awaited(resources(data), "Custom::DatabaseMigration").count("Custom::DatabaseMigration") == 1


def test_other_stacks_can_wait_and_be_waited_for(data: Data, migrate: Migrate) -> None:
    before, services, after = (cdk.Stack(stage_of(data), name) for name in ("Before", "Now", "After"))
    migration = migrate(services)
    function(before, "Seed")
    migration.execute_after(before)
    migration.execute_before(after)
    function(after, "Job")
    stage_of(data).synth()
    assert before.stack_name in {one.stack_name for one in services.dependencies}
    assert services.stack_name in {one.stack_name for one in after.dependencies}


def test_nested_stacks_can_wait_and_be_waited_for(data: Data, migrate: Migrate) -> None:
    before, after = (cdk.NestedStack(data, name) for name in ("Before", "After"))
    function(before, "Seed")
    function(after, "Job")
    migration = migrate()
    migration.execute_after(before)
    migration.execute_before(after)
    assert held_back(data) == ["AWS::CloudFormation::Stack"]
    assert "AWS::CloudFormation::Stack" in awaited(resources(data), "Custom::DatabaseMigration")


def test_a_nested_stack_in_a_construct_waits_when_it_runs_code(data: Data, migrate: Migrate) -> None:
    release = Construct(data, "Release")
    function(cdk.NestedStack(release, "Jobs"), "Job")
    migrate().execute_before(release)
    assert held_back(data) == ["AWS::CloudFormation::Stack"]


def test_nothing_deprecated_is_used() -> None:
    story = f"{__file__}::{test_other_stacks_can_wait_and_be_waited_for.__name__}"
    # jsii prints its warnings past Python's; they are errors only to a process that is started like this.
    environment = {**os.environ, "JSII_DEPRECATED": "fail"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", story], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.returncode == 0, run.stdout


def test_a_service_in_another_stack_makes_its_stack_wait(data: Data, migrate: Migrate) -> None:
    ours, other = (cdk.Stack(stage_of(data), name) for name in ("Ours", "Other"))
    migrate(ours).execute_before(data.service(other))
    stage_of(data).synth()
    assert ours.stack_name in {one.stack_name for one in other.dependencies}


def test_the_migration_waits_for_what_it_must_follow(data: Data, migrate: Migrate) -> None:
    migrate().execute_after(function(data, "Seed"))
    assert awaited(resources(data), "Custom::DatabaseMigration").count("AWS::Lambda::Function") == 2


def test_a_scope_that_holds_the_migration_can_not_wait_for_it(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    for order in (migration.execute_before, migration.execute_after):
        with pytest.raises(ValueError, match="the migration is part of 'Data': name the resources in it instead"):
            order(data)


def test_the_trigger_may_do_what_it_does_and_nothing_else(data: Data, migrate: Migrate) -> None:
    migrate(family="dev-migration-task", log_group_name="/ecs/dev/migration-task")
    statements = {json.dumps(one["Action"]): one for one in trigger_statements(resources(data))}
    assert set(statements) == {
        '"ecs:RunTask"',
        '"ecs:ListTasks"',
        '["ecs:DescribeTasks", "ecs:StopTask"]',
        '"iam:PassRole"',
        '"logs:GetLogEvents"',
        '"cloudformation:DescribeStacks"',
        '["ssm:GetParameter", "ssm:PutParameter"]',
        '["logs:CreateLogStream", "logs:PutLogEvents"]',
        '"lambda:InvokeFunction"',
    }
    assert [action for action, one in statements.items() if one["Resource"] == "*"] == ['"ecs:ListTasks"']
    cluster = data.resolve(data.cluster.cluster_arn)
    for action in ('"ecs:RunTask"', '"ecs:ListTasks"'):
        assert statements[action]["Condition"] == {"ArnEquals": {"ecs:cluster": cluster}}
    assert json.dumps(statements['"ecs:RunTask"']["Resource"]).endswith(':task-definition/dev-migration-task:*"]]}')
    assert json.dumps(statements['"logs:GetLogEvents"']["Resource"]).endswith(':log-stream:migration/*"]]}')
    assert statements['"cloudformation:DescribeStacks"']["Resource"] == {"Ref": "AWS::StackId"}
    assert len(statements['"iam:PassRole"']["Resource"]) == 2
    assert statements['"iam:PassRole"']["Condition"] == {
        "StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
    }


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
        return json.dumps(trigger_statements(found)), found["MigrationTriggerFunction06DCFE64"], migration_of(data)

    old_rights, old_function, old = deployed("v1", {"48871d03964b": None})
    new_rights, new_function, new = deployed("v2", CHAIN)
    assert (old_rights, old_function) == (new_rights, new_function)
    assert old["Properties"]["Fingerprint"] != new["Properties"]["Fingerprint"]


def test_the_function_retries_but_not_after_cloudformation_has_stopped_listening(data: Data, migrate: Migrate) -> None:
    migrate(timeout=cdk.Duration.minutes(55))
    found = resources(data)
    assert only(found, "AWS::Lambda::EventInvokeConfig")["Properties"]["MaximumEventAgeInSeconds"] == 58 * 60
    assert migration_of(data)["Properties"]["ServiceTimeout"] == str(58 * 60)


@pytest.mark.parametrize(
    "change",
    [
        {"force": "once more"},
        {"command": ["alembic", "upgrade", "head"]},
        {"database_host": "other.example"},
    ],
)
def test_the_migration_runs_again_when_something_else_would_be_migrated(
    migrations: AlembicMigrations, change: dict[str, Any]
) -> None:
    def fingerprint(**arguments: Any) -> object:
        data = Data(cdk.App())
        given = {"migrations": migrations, "image": IMAGE, "database_secret": data.secret, **arguments}
        MigrationTask(data, "Migration", cluster=data.cluster, **given)
        return migration_of(data)["Properties"]["Fingerprint"]

    assert fingerprint(**change) != fingerprint()
    assert fingerprint(environment={"STAGE": "dev"}, cpu=512, memory_limit_mib=1024) == fingerprint()


def test_any_tool_can_migrate(data: Data, migrate: Migrate) -> None:
    migrate(migrations=None, command=["flyway", "migrate"], version="V7")
    assert migration_of(data)["Properties"]["Target"] == "V7"
    container = only(resources(data), "AWS::ECS::TaskDefinition")["Properties"]["ContainerDefinitions"][0]
    assert container["Command"] == ["flyway", "migrate"]


def test_outputs_can_tell_what_the_deployment_did(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    told = [migration.revision_before, migration.revision_after, migration.task_arn, migration.duration]
    assert [data.resolve(one)["Fn::GetAtt"][1] for one in told] == [
        "RevisionBefore",
        "RevisionAfter",
        "TaskArn",
        "Duration",
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"timeout": cdk.Duration.hours(2)}, "timeout is 120 minutes, but must be from 1 to 55 minutes"),
        ({"timeout": cdk.Duration.seconds(30)}, "timeout is 0.5 minutes, but must be from 1 to 55 minutes"),
        ({"version": "V7"}, "migrations and version='V7' exclude each other"),
        ({"migrations": None}, "without migrations, give both command and version"),
        ({"migrations": None, "command": ["flyway"]}, "without migrations, give both command and version"),
        ({"migrations": None, "version": "V7"}, "without migrations, give both command and version"),
        (
            {"timeout": cdk.Duration.minutes(cdk.Token.as_number("soon"))},
            "timeout is a token, but must be known at synth",
        ),
        (
            {"command": "python -m x"},
            r"command is the text 'python -m x', but must be a list, such as \['python', '-m', 'x'\]\.",
        ),
        ({"vpc_subnets": ec2.SubnetSelection(subnets=[])}, "vpc_subnets selects no subnet of 'Data/Vpc': name subnets"),
        (
            {"vpc_subnets": ec2.SubnetSelection(availability_zones=["nowhere"])},
            "vpc_subnets selects no subnet of 'Data/Vpc': name subnets",
        ),
    ],
)
def test_what_can_not_work_is_refused_at_synth_in_one_sentence(
    migrate: Migrate, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        migrate(**arguments)
    assert "\n" not in str(refusal.value)


OWN_VARIABLES = {
    "DATABASE_SECRET": "database_secret",
    "DATABASE_HOST": "database_host",
    "DATABASE_PORT": "database_port",
    "DATABASE_NAME": "database_name",
    "MIGRATION_TARGET": "migrations or version",
}
OTHER_TOOL = {"migrations": None, "command": ["flyway", "migrate"], "version": "V7"}


@pytest.mark.parametrize(
    ("tool", "name", "parameter"),
    [
        *[(tool, name, parameter) for tool in ({}, OTHER_TOOL) for name, parameter in OWN_VARIABLES.items()],
        ({}, "DATABASE_URL", "database_secret"),
    ],
)
def test_a_variable_that_a_parameter_is_for_is_refused_and_its_value_not_shown(
    migrate: Migrate, tool: dict[str, Any], name: str, parameter: str
) -> None:
    with pytest.raises(ValueError, match="environment must not set") as refusal:
        migrate(environment={"STAGE": "dev", name: "canary"}, **tool)
    assert str(refusal.value) == f"environment must not set {name}: that is what {parameter} is for."


def test_another_tool_may_be_given_a_url(data: Data, migrate: Migrate) -> None:
    migrate(environment={"DATABASE_URL": "jdbc:postgresql://db.example/inventory"}, **OTHER_TOOL)
    assert "jdbc:postgresql" in json.dumps(resources(data))


def test_subnets_that_are_yet_to_be_looked_up_are_not_refused(migrations: AlembicMigrations) -> None:
    environment = cdk.Environment(account="111122223333", region="us-west-2")
    stack = cdk.Stack(cdk.App(), "Stack", env=environment)
    vpc = ec2.Vpc.from_lookup(stack, "Vpc", vpc_id="vpc-1")
    MigrationTask(
        stack,
        "Migration",
        cluster=ecs.Cluster(stack, "Cluster", vpc=vpc),
        image=IMAGE,
        migrations=migrations,
        database_secret=secretsmanager.Secret(stack, "Secret"),
        vpc_subnets=ec2.SubnetSelection(subnet_group_name="isolated"),
    )


def test_two_log_groups_are_refused(data: Data, migrate: Migrate) -> None:
    with pytest.raises(ValueError, match="log_group and log_group_name='/mine' exclude each other"):
        migrate(log_group=logs.LogGroup(data, "Own"), log_group_name="/mine")


def test_a_parameter_that_does_not_exist_is_refused(migrate: Migrate) -> None:
    with pytest.raises(TypeError, match="memory"):
        migrate(memory=512)
