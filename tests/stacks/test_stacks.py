"""What the stacks promise, one assertion for each promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import assertions
from aws_cdk.assertions import Match

from stacks.stage import STAGES, stage_named

KINDS = ("DataStack", "Stack")
Templates = dict[str, assertions.Template]


def resources(template: assertions.Template, kind: str) -> list[Mapping[str, Any]]:
    return list(template.find_resources(kind).values())


def test_the_migration_task_has_the_name_and_the_size_of_the_original_system(dev: Templates) -> None:
    dev["DevStack"].has_resource_properties(
        "AWS::ECS::TaskDefinition", {"Family": "dev-migration-task", "Cpu": "256", "Memory": "512"}
    )
    dev["DevStack"].has_resource_properties("AWS::IAM::Role", {"RoleName": "dev-migration-task-execution-role"})


def test_the_service_waits_for_the_migration(dev: Templates) -> None:
    migration = next(iter(dev["DevStack"].find_resources("Custom::DatabaseMigration")))
    (service,) = resources(dev["DevStack"], "AWS::ECS::Service")
    assert migration in service["DependsOn"]


def test_migration_and_service_run_the_same_image(dev: Templates) -> None:
    definitions = resources(dev["DevStack"], "AWS::ECS::TaskDefinition")
    images = [container["Image"] for one in definitions for container in one["Properties"]["ContainerDefinitions"]]
    assert len(images) == 2
    assert images[0] == images[1]


def test_the_migration_owns_the_schema_and_the_service_has_a_role_of_its_own(dev: Templates) -> None:
    owner, service = "DatabaseSecretAttachment", "ServiceSecretAttachment"
    expected = {
        "dev-migration-task": {"DATABASE_SECRET": owner, "SERVICE_SECRET": service},
        "dev-inventory-service": {"DATABASE_SECRET": service},
    }
    for definition in resources(dev["DevStack"], "AWS::ECS::TaskDefinition"):
        (container,) = definition["Properties"]["ContainerDefinitions"]
        secrets = {secret["Name"]: secret["ValueFrom"]["Fn::ImportValue"] for secret in container["Secrets"]}
        wanted = expected[definition["Properties"]["Family"]]
        assert secrets.keys() == wanted.keys()
        assert all(wanted[name] in secrets[name] for name in wanted)
        assert container["ReadonlyRootFilesystem"] is True


def test_what_opens_the_secrets_is_granted_to_the_tasks_that_read_them(dev: Templates) -> None:
    policies = [
        statement
        for policy in resources(dev["DevStack"], "AWS::IAM::Policy")
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        if "kms:Decrypt" in statement["Action"]
    ]
    assert len(policies) == 3  # of the migration's execution role, and of both roles of the service
    assert all("Key961B73FD" in str(statement["Resource"]) for statement in policies)


def test_no_data_leaves_the_network_by_way_of_an_endpoint_to_another_account(dev: Templates) -> None:
    policies = {
        str(one["Properties"]["ServiceName"]): one["Properties"].get("PolicyDocument", {}).get("Statement", [])
        for one in resources(dev["DevDataStack"], "AWS::EC2::VPCEndpoint")
    }
    (s3,) = (statements for service, statements in policies.items() if ".s3" in service)
    assert [one["Action"] for one in s3] == ["s3:GetObject"]
    assert "starport-layer-bucket" in str(s3[0]["Resource"])
    for name in (".ecr.api", ".ecr.dkr"):
        ((statement,),) = (found for service, found in policies.items() if name in service)
        assert all(action.startswith(("ecr:Get", "ecr:BatchGet", "ecr:BatchCheck")) for action in statement["Action"])
    for name in (".logs", ".secretsmanager"):
        (statements,) = (found for service, found in policies.items() if name in service)
        assert statements[0]["Condition"] == {"StringEquals": {"aws:PrincipalAccount": {"Ref": "AWS::AccountId"}}}


def test_the_service_has_a_circuit_breaker_a_health_check_and_no_public_address(dev: Templates) -> None:
    (service,) = resources(dev["DevStack"], "AWS::ECS::Service")
    breaker = service["Properties"]["DeploymentConfiguration"]["DeploymentCircuitBreaker"]
    assert breaker == {"Enable": True, "Rollback": True}
    network = service["Properties"]["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["AssignPublicIp"] == "DISABLED"
    dev["DevStack"].has_resource_properties(
        "AWS::ECS::TaskDefinition",
        {
            "Family": "dev-inventory-service",
            "ContainerDefinitions": [Match.object_like({"HealthCheck": Match.any_value()})],
        },
    )


def test_the_database_is_encrypted_private_and_of_one_full_version(dev: Templates) -> None:
    (database,) = resources(dev["DevDataStack"], "AWS::RDS::DBInstance")
    properties = database["Properties"]
    assert properties["StorageEncrypted"] is True
    assert properties["PubliclyAccessible"] is False
    assert properties["EngineVersion"].count(".") == 1
    assert properties["AutoMinorVersionUpgrade"] is False


def test_there_is_no_way_out_of_the_network_but_the_endpoints(dev: Templates) -> None:
    template = dev["DevDataStack"]
    for kind in ("AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route"):
        template.resource_count_is(kind, 0)
    template.resource_count_is("AWS::EC2::VPCEndpoint", 5)


def test_only_members_of_database_clients_reach_the_database_and_the_endpoints(dev: Templates) -> None:
    template = dev["DevDataStack"]
    rules = resources(template, "AWS::EC2::SecurityGroupIngress")
    rules += [
        {"Properties": rule}
        for group in resources(template, "AWS::EC2::SecurityGroup")
        for rule in group["Properties"].get("SecurityGroupIngress", [])
    ]
    (clients,) = (key for key in template.find_resources("AWS::EC2::SecurityGroup") if "DatabaseClients" in key)
    assert len(rules) == 2
    assert all(rule["Properties"]["SourceSecurityGroupId"] == {"Fn::GetAtt": [clients, "GroupId"]} for rule in rules)


def test_nothing_in_the_data_stack_points_to_the_service_stack(dev: Templates) -> None:
    assert "DevStack." not in str(dev["DevDataStack"].to_json())


def test_an_unknown_stage_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"^unknown stage 'qa': use one of dev, staging, prod$"):
        stage_named("qa")


def of_stage(templates: Templates, environment: str) -> tuple[assertions.Template, assertions.Template]:
    prefix = STAGES[environment].stack_prefix
    return templates[f"{prefix}DataStack"], templates[f"{prefix}Stack"]


@pytest.mark.parametrize("environment", STAGES)
def test_every_stage_has_the_names_of_the_original_system_under_its_own_prefix(
    templates: Templates, environment: str
) -> None:
    data, service = of_stage(templates, environment)
    data.has_resource_properties("AWS::ECS::Cluster", {"ClusterName": f"{environment}-inventory-cluster"})
    data.has_resource_properties(
        "AWS::SecretsManager::Secret", {"Name": f"{environment}/inventory-management/database"}
    )
    service.has_resource_properties("AWS::ECS::TaskDefinition", {"Family": f"{environment}-migration-task"})
    service.has_resource_properties("AWS::Logs::LogGroup", {"LogGroupName": f"/ecs/{environment}/migration-task"})
    service.has_resource_properties("AWS::Logs::LogGroup", {"LogGroupName": f"/ecs/{environment}/inventory-service"})
    service.has_resource_properties("AWS::ECS::Service", {"ServiceName": f"{environment}-inventory-service"})


@pytest.mark.parametrize(
    ("environment", "zones", "kind", "multi_az", "backups", "protected", "rollback", "kept"),
    [
        ("dev", 2, "db.t4g.micro", False, 1, False, "KEEP", "Delete"),
        ("staging", 2, "db.t4g.small", False, 7, True, "KEEP", "Delete"),
        ("prod", 3, "db.m7g.large", True, 35, True, "KEEP", "RetainExceptOnCreate"),
    ],
)
def test_what_a_stage_sets_is_what_its_stacks_have(
    templates: Templates,
    stacks: dict[str, cdk.Stack],
    environment: str,
    zones: int,
    kind: str,
    multi_az: bool,
    backups: int,
    protected: bool,
    rollback: str,
    kept: str,
) -> None:
    data, service = of_stage(templates, environment)
    (database,) = resources(data, "AWS::RDS::DBInstance")
    properties = database["Properties"]
    data.resource_count_is("AWS::EC2::Subnet", zones)
    assert (properties["DBInstanceClass"], properties["MultiAZ"]) == (kind, multi_az)
    assert (properties["BackupRetentionPeriod"], properties["DeletionProtection"]) == (backups, protected)
    service.has_resource_properties("Custom::DatabaseMigration", {"OnRollback": rollback})
    prefix = STAGES[environment].stack_prefix
    assert {bool(stacks[f"{prefix}{name}"].termination_protection) for name in ("DataStack", "Stack")} == {protected}
    assert database["DeletionPolicy"] == ("Delete" if kept == "Delete" else "Snapshot")
    # A snapshot opens with this key; and after a creation that has failed no name may be left taken.
    assert [one["DeletionPolicy"] for one in resources(data, "AWS::KMS::Key")] == [kept]
    assert {one["DeletionPolicy"] for one in resources(data, "AWS::Logs::LogGroup")} == {kept}


@pytest.mark.parametrize("name", [f"{stage.stack_prefix}{kind}" for stage in STAGES.values() for kind in KINDS])
def test_every_log_has_a_retention_and_the_key_of_its_stage(templates: Templates, name: str) -> None:
    logs = resources(templates[name], "AWS::Logs::LogGroup")
    assert logs
    assert all({"RetentionInDays", "KmsKeyId"} <= log["Properties"].keys() for log in logs)


@pytest.mark.parametrize("environment", STAGES)
def test_every_taggable_resource_tells_its_stage(templates: Templates, environment: str) -> None:
    data, service = of_stage(templates, environment)
    for kind in ("AWS::RDS::DBInstance", "AWS::KMS::Key", "AWS::EC2::VPC"):
        data.has_resource_properties(kind, {"Tags": Match.array_with([{"Key": "environment", "Value": environment}])})
    service.has_resource_properties(
        "AWS::ECS::Service", {"Tags": Match.array_with([{"Key": "application", "Value": "inventory"}])}
    )


def test_the_database_refuses_a_connection_without_tls(dev: Templates) -> None:
    dev["DevDataStack"].has_resource_properties(
        "AWS::RDS::DBParameterGroup", {"Parameters": Match.object_like({"rds.force_ssl": "1"}), "Family": "postgres17"}
    )


def test_every_secret_is_rotated_and_not_before_the_migration_has_made_its_role(dev: Templates) -> None:
    kind = "AWS::SecretsManager::RotationSchedule"
    (owner,), (service,) = resources(dev["DevDataStack"], kind), resources(dev["DevStack"], kind)
    rotations = {
        one["Properties"]["HostedRotationLambda"]["RotationType"]: one["Properties"]["SecretId"]
        for one in (owner, service)
    }
    assert "DatabaseSecretAttachment" in str(rotations["PostgreSQLSingleUser"])
    assert "ServiceSecretAttachment" in str(rotations["PostgreSQLMultiUser"])
    assert {one["Properties"]["RotateImmediatelyOnUpdate"] for one in (owner, service)} == {False}
    assert set(dev["DevStack"].find_resources("Custom::DatabaseMigration")) <= set(service["DependsOn"])


def test_nothing_runs_with_capabilities_and_all_traffic_of_the_network_is_logged(dev: Templates) -> None:
    for definition in resources(dev["DevStack"], "AWS::ECS::TaskDefinition"):
        for container in definition["Properties"]["ContainerDefinitions"]:
            assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    dev["DevDataStack"].has_resource_properties("AWS::EC2::FlowLog", {"TrafficType": "ALL", "ResourceType": "VPC"})


def test_what_leaves_a_task_goes_to_the_database_and_to_the_endpoints(dev: Templates) -> None:
    template = dev["DevDataStack"]
    groups = template.find_resources("AWS::EC2::SecurityGroup")
    out = {name: group["Properties"]["SecurityGroupEgress"] for name, group in groups.items()}
    (clients,) = (name for name in out if "DatabaseClients" in name)
    assert [rule["ToPort"] for rule in out.pop(clients)] == [443]
    assert all(rule["Description"] == "Disallow all traffic" for rules in out.values() for rule in rules)
    (rule,) = resources(template, "AWS::EC2::SecurityGroupEgress")
    assert rule["Properties"]["GroupId"] == {"Fn::GetAtt": [clients, "GroupId"]}


def test_every_role_is_only_for_services_of_this_account(templates: Templates) -> None:
    for template in templates.values():
        for role in resources(template, "AWS::IAM::Role"):
            (trusted,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
            assert trusted["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}
