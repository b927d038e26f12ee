"""What the stacks promise, one assertion for each promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from aws_cdk import assertions
from aws_cdk.assertions import Match

from stacks.stage import stage_named

Templates = dict[str, assertions.Template]


def resources(template: assertions.Template, kind: str) -> list[Mapping[str, Any]]:
    return list(template.find_resources(kind).values())


def test_the_migration_task_has_the_name_and_the_size_of_the_original_system(dev: Templates) -> None:
    dev["DevStack"].has_resource_properties(
        "AWS::ECS::TaskDefinition", {"Family": "dev-migration-task", "Cpu": "256", "Memory": "512"}
    )
    dev["DevStack"].has_resource_properties("AWS::IAM::Role", {"RoleName": "dev-migration-task-execution-role"})


@pytest.mark.parametrize("name", ["/ecs/dev/migration-task", "/ecs/dev/inventory-service"])
def test_each_log_group_has_its_name_and_a_retention(dev: Templates, name: str) -> None:
    dev["DevStack"].has_resource_properties(
        "AWS::Logs::LogGroup", {"LogGroupName": name, "RetentionInDays": Match.any_value()}
    )


def test_cluster_and_secret_have_the_names_of_the_original_system(dev: Templates) -> None:
    dev["DevDataStack"].has_resource_properties("AWS::ECS::Cluster", {"ClusterName": "dev-inventory-cluster"})
    dev["DevDataStack"].has_resource_properties(
        "AWS::SecretsManager::Secret", {"Name": "dev/inventory-management/database"}
    )


def test_the_service_waits_for_the_migration(dev: Templates) -> None:
    migration = next(iter(dev["DevStack"].find_resources("Custom::DatabaseMigration")))
    (service,) = resources(dev["DevStack"], "AWS::ECS::Service")
    assert migration in service["DependsOn"]


def test_migration_and_service_run_the_same_image(dev: Templates) -> None:
    definitions = resources(dev["DevStack"], "AWS::ECS::TaskDefinition")
    images = [container["Image"] for one in definitions for container in one["Properties"]["ContainerDefinitions"]]
    assert len(images) == 2
    assert images[0] == images[1]


def test_every_container_gets_the_database_from_the_secret_and_has_a_read_only_root(dev: Templates) -> None:
    for definition in resources(dev["DevStack"], "AWS::ECS::TaskDefinition"):
        for container in definition["Properties"]["ContainerDefinitions"]:
            assert [secret["Name"] for secret in container["Secrets"]] == ["DATABASE_SECRET"]
            assert container["ReadonlyRootFilesystem"] is True


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
    with pytest.raises(ValueError, match=r"^unknown stage 'qa': use one of dev$"):
        stage_named("qa")
