"""What a MigrationTask becomes in a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk import aws_sns as sns
from aws_cdk.assertions import Match, Template
from ministack.services.cloudformation.provisioners import _RESOURCE_HANDLERS

from constructs_lib import AlembicMigrations, MigrationTask, OnRollback
from tests.constructs_lib.projects import alembic_project
from tests.constructs_lib.templates import IMAGE, Data, Migrate, migration_of, only, resources
from tests.constructs_lib.world import Run, World


def test_one_migration_adds_fourteen_resources_at_most_and_their_ids_are_stable(data: Data, migrate: Migrate) -> None:
    migrate(security_groups=None)
    added = {name: resource["Type"] for name, resource in resources(data).items() if name.startswith("Migration")}
    assert added == {
        "MigrationC13A4580": "Custom::DatabaseMigration",
        "MigrationLogF7A864BD": "AWS::Logs::LogGroup",
        "MigrationSecurityGroupA23AF9FD": "AWS::EC2::SecurityGroup",
        "MigrationExecutionRole1547E116": "AWS::IAM::Role",
        "MigrationExecutionRoleDefaultPolicy95458350": "AWS::IAM::Policy",
        "MigrationTaskDefinitionF6B23059": "AWS::ECS::TaskDefinition",
        "MigrationTaskRole07ED7A2E": "AWS::IAM::Role",
        "MigrationTriggerContinue65E30F25": "AWS::IAM::Policy",
        "MigrationTriggerFunction06DCFE64": "AWS::Lambda::Function",
        "MigrationTriggerFunctionEventInvokeConfig5F5BB19E": "AWS::Lambda::EventInvokeConfig",
        "MigrationTriggerLog74C4AE05": "AWS::Logs::LogGroup",
        "MigrationTriggerRecord84E2D583": "AWS::SSM::Parameter",
        "MigrationTriggerRoleCDCBB2E8": "AWS::IAM::Role",
        "MigrationTriggerRoleDefaultPolicyD759B0B3": "AWS::IAM::Policy",
    }, "breaking: CHANGELOG + major. Another id makes another resource in every stack of every team."


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
                            {"Name": "MIGRATION_TIMEOUT", "Value": "1740"},
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


@pytest.mark.parametrize(("minutes", "seconds"), [(1, "30"), (2, "60"), (55, "3240")])
def test_of_the_timeout_a_minute_is_fargates_to_start_the_task(
    data: Data, migrate: Migrate, minutes: int, seconds: str
) -> None:
    migrate(timeout=cdk.Duration.minutes(minutes))
    Template.from_stack(data).has_resource_properties(
        "AWS::ECS::TaskDefinition",
        {
            "ContainerDefinitions": [
                Match.object_like({"Environment": Match.array_with([{"Name": "MIGRATION_TIMEOUT", "Value": seconds}])})
            ]
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


def test_a_rollback_keeps_the_schema_and_a_database_that_is_ahead_fails_unless_told_otherwise(
    data: Data, migrate: Migrate
) -> None:
    migrate()
    properties = migration_of(data)["Properties"]
    assert (properties["OnRollback"], properties["OnDatabaseAhead"]) == ("KEEP", "fail")


def test_what_a_rollback_does_reaches_the_trigger(data: Data, migrate: Migrate) -> None:
    migrate(on_rollback=OnRollback.DOWNGRADE, on_database_ahead="proceed")
    properties = migration_of(data)["Properties"]
    assert (properties["OnRollback"], properties["OnDatabaseAhead"]) == ("DOWNGRADE", "proceed")


def test_the_services_secret_reaches_the_container_and_only_there(data: Data, migrate: Migrate) -> None:
    # given a secret that knows the database once it is attached to it
    secret = rds.DatabaseSecret(data, "Own", username="inventory_service", master_secret=data.secret)
    attached = secret.attach(data.database)
    migrate(service_secret=attached)
    found, arn = resources(data), data.resolve(attached.secret_arn)
    # then the container gets it, ECS may read it, and the migration waits for the attachment
    container = only(found, "AWS::ECS::TaskDefinition")["Properties"]["ContainerDefinitions"][0]
    assert {"Name": "SERVICE_SECRET", "ValueFrom": arn} in container["Secrets"]
    assert [one["Name"] for one in container["Secrets"]] == ["DATABASE_SECRET", "SERVICE_SECRET"]
    policy = found["MigrationExecutionRoleDefaultPolicy95458350"]["Properties"]["PolicyDocument"]
    readable = [one["Resource"] for one in policy["Statement"] if "secretsmanager:GetSecretValue" in one["Action"]]
    assert arn in readable
    migration = migration_of(data)
    assert arn["Ref"] in migration["DependsOn"]
    assert arn in migration["Properties"]["Fingerprint"]["Fn::Join"][1]


def test_the_migration_waits_for_an_attachment_that_is_not_what_was_given(data: Data, migrate: Migrate) -> None:
    secret = rds.DatabaseSecret(data, "Own", username="inventory_service")
    attached = secret.attach(data.database)
    migrate(service_secret=secret)
    assert data.resolve(attached.secret_arn)["Ref"] in migration_of(data)["DependsOn"]


def test_a_rotation_begins_when_there_is_a_role_to_rotate(data: Data, migrate: Migrate) -> None:
    attached = rds.DatabaseSecret(data, "Own", username="inventory_service", master_secret=data.secret).attach(
        data.database
    )
    migrate(service_secret=attached)
    data.database.add_rotation_multi_user("Rotation", secret=attached)
    found = resources(data)
    (migration,) = [name for name, one in found.items() if one["Type"] == "Custom::DatabaseMigration"]
    assert migration in only(found, "AWS::SecretsManager::RotationSchedule")["DependsOn"]


def test_the_services_role_must_not_be_the_owners(data: Data, migrate: Migrate) -> None:
    with pytest.raises(ValueError, match="service_secret is database_secret, but must be another one"):
        migrate(service_secret=data.secret)


def test_a_services_secret_that_is_none_is_refused(migrate: Migrate) -> None:
    with pytest.raises(ValueError, match=r"^service_secret is str, but must be a secret of Secrets Manager"):
        migrate(service_secret="arn:aws:secretsmanager:us-west-2:111122223333:secret:shop-AbCdEf")


@pytest.mark.parametrize(
    "tool",
    [
        {"command": ["python", "-m", "migration_runner", "upgrade"]},
        {"migrations": None, "command": ["flyway", "migrate"], "version": "V7"},
    ],
)
def test_another_command_looks_after_no_role(data: Data, migrate: Migrate, tool: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="service_secret is for the role that `python -m migration_runner` looks"):
        migrate(service_secret=secretsmanager.Secret(data, "Own"), **tool)


def test_what_a_rollback_does_and_who_is_told_runs_no_migration_again(data: Data, migrate: Migrate) -> None:
    migrate()
    migrate(
        construct_id="Other",
        on_rollback=OnRollback.DOWNGRADE,
        on_database_ahead="proceed",
        failure_topic=sns.Topic(data, "Failures"),
    )
    both = [one["Properties"] for one in resources(data).values() if one["Type"] == "Custom::DatabaseMigration"]
    assert both[0]["Fingerprint"] == both[1]["Fingerprint"]


def test_a_topic_is_known_to_the_trigger_and_open_to_it(data: Data, migrate: Migrate) -> None:
    topic = sns.Topic(data, "Failures")
    migrate(failure_topic=topic)
    assert migration_of(data)["Properties"]["FailureTopic"] == data.resolve(topic.topic_arn)
    Template.from_stack(data).has_resource_properties(
        "AWS::IAM::Policy",
        {
            "PolicyDocument": {
                "Statement": Match.array_with(
                    [{"Action": "sns:Publish", "Effect": "Allow", "Resource": data.resolve(topic.topic_arn)}]
                )
            }
        },
    )


@pytest.mark.parametrize("name", ["Failures", "Duration"])
def test_the_metrics_are_those_that_the_trigger_writes(
    data: Data, migrate: Migrate, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migration = migrate()
    metric = {"Failures": migration.metric_failures, "Duration": migration.metric_duration}[name]()
    metric.create_alarm(data, "Alarm", threshold=1, evaluation_periods=1)
    found = resources(data)
    alarm = only(found, "AWS::CloudWatch::Alarm")["Properties"]
    (logical_id,) = [key for key, one in found.items() if one["Type"] == "Custom::DatabaseMigration"]
    # given the event that CloudFormation sends for this resource of this stack
    world = World([Run()])
    event = world.request("Update")
    stack = f"arn:aws:cloudformation:us-west-2:111122223333:stack/{data.stack_name}/4f1c"
    world.invoke({**event, "StackId": stack, "LogicalResourceId": logical_id})
    # when the trigger has answered, then the alarm's metric is the one in its log
    line = json.loads(capsys.readouterr().out)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == alarm["Namespace"]
    assert name in [one["Name"] for one in directive["Metrics"]]
    assert alarm["MetricName"] == name
    assert {one["Name"]: one["Value"] for one in alarm["Dimensions"]} == {
        key: line[key] for key in directive["Dimensions"][0]
    }


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
        (
            {"on_rollback": OnRollback.DOWNGRADE, "command": ["python", "-m", "migration_runner", "upgrade"]},
            "on_rollback=DOWNGRADE runs `python -m migration_runner downgrade`: give migrations, and no command.",
        ),
        (
            {"on_rollback": OnRollback.DOWNGRADE, "migrations": None, "command": ["flyway"], "version": "V7"},
            "on_rollback=DOWNGRADE runs `python -m migration_runner downgrade`: give migrations, and no command.",
        ),
        (
            {"on_rollback": "DOWNGRADE"},
            "on_rollback is 'DOWNGRADE', but must be OnRollback.KEEP or OnRollback.DOWNGRADE.",
        ),
        ({"on_database_ahead": "pass"}, "on_database_ahead is 'pass', but must be 'fail' or 'proceed'."),
        (
            {"on_database_ahead": "proceed", "migrations": None, "command": ["flyway"], "version": "V7"},
            "on_database_ahead='proceed' goes by what `python -m migration_runner` tells: give migrations, and no",
        ),
        (
            {"on_database_ahead": "proceed", "command": ["python", "-m", "migration_runner", "upgrade"]},
            "on_database_ahead='proceed' goes by what `python -m migration_runner` tells: give migrations, and no",
        ),
        (
            {"on_rollback": OnRollback.DOWNGRADE, "timeout": cdk.Duration.minutes(4)},
            "timeout is 4 minutes, but must be from 5 to 55 minutes for on_rollback=DOWNGRADE",
        ),
        ({"failure_topic": "arn:aws:sns:x"}, r"failure_topic is 'arn:aws:sns:x', but must be a topic: sns.Topic\("),
        ({"failure_topic": ""}, r"failure_topic is '', but must be a topic: sns.Topic\("),
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
    "MIGRATION_TIMEOUT": "timeout",
}
OTHER_TOOL = {"migrations": None, "command": ["flyway", "migrate"], "version": "V7"}


@pytest.mark.parametrize(
    ("tool", "name", "parameter"),
    [
        *[(tool, name, parameter) for tool in ({}, OTHER_TOOL) for name, parameter in OWN_VARIABLES.items()],
        ({}, "DATABASE_URL", "database_secret"),
        ({}, "SERVICE_SECRET", "service_secret"),
        ({}, "MIGRATION_CONTRACT_FOLLOWS", "contract_after"),
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


def test_a_fifo_topic_is_refused(data: Data, migrate: Migrate) -> None:
    with pytest.raises(ValueError, match="failure_topic is a FIFO topic"):
        migrate(failure_topic=sns.Topic(data, "Failures", fifo=True))


def test_two_log_groups_are_refused(data: Data, migrate: Migrate) -> None:
    with pytest.raises(ValueError, match="log_group and log_group_name='/mine' exclude each other"):
        migrate(log_group=logs.LogGroup(data, "Own"), log_group_name="/mine")


def test_a_parameter_that_does_not_exist_is_refused(migrate: Migrate) -> None:
    with pytest.raises(TypeError, match="memory"):
        migrate(memory=512)
