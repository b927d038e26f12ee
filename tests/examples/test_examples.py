"""Each example is synthesized as its file says, and does what its first line promises."""

from __future__ import annotations

import json
import re
import runpy
from contextlib import chdir
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import aws_cdk as cdk
import pytest

from local_aws.machine import CLONE
from tests.constructs_lib.templates import Resources, only, resources
from tests.constructs_lib.test_ordering import Deployment, resource_of

EXAMPLES = CLONE / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@cache
def run(name: str) -> dict[str, Any]:
    """What the names in an example stand for once it has run."""
    with chdir(CLONE):
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_every_example_is_in_the_table_and_says_how_it_is_run() -> None:
    listed = re.findall(r"^\| \[(\w+)\.py\]\(\1\.py\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES
    for name in NAMES:
        assert f'cdk synth --app "python -m examples.{name}"' in (EXAMPLES / f"{name}.py").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_services_wait_for_the_migration_and_nothing_waits_for_itself(name: str) -> None:
    names = run(name)
    deployment = Deployment.of(names["app"])
    deployment.fails_on_a_cycle()
    services = deployment.of_type("AWS::ECS::Service")
    assert len(services) == (2 if name == "several_services" else 1)
    for service in services:
        assert resource_of(names["migration"]) in deployment.before(service)


@pytest.mark.parametrize("name", NAMES)
def test_the_migration_waits_for_its_way_to_the_database(name: str) -> None:
    names = run(name)
    deployment = Deployment.of(names["app"])
    there = deployment.before(resource_of(names["migration"]))
    assert deployment.of_type("AWS::RDS::DBInstance", "AWS::EC2::NatGateway", "AWS::EC2::Route") <= there
    rules = {
        one
        for one in deployment.of_type("AWS::EC2::SecurityGroupIngress")
        if "Migration" in json.dumps(deployment.resources[one]["Properties"]["SourceSecurityGroupId"])
    }
    assert len(rules) == 1
    assert rules <= there


def test_a_stack_of_its_own_is_deployed_after_the_one_with_the_migration() -> None:
    names = run("service_in_its_own_stack")
    assert names["shop"] in names["storefront"].dependencies
    assert "AWS::ECS::Service" not in {one["Type"] for one in resources(names["shop"]).values()}


def container(found: Resources, family: str) -> dict[str, Any]:
    """The container of the task definition whose logical id begins like this."""
    (definition,) = (
        one for name, one in found.items() if name.startswith(family) and one["Type"] == "AWS::ECS::TaskDefinition"
    )
    (one,) = definition["Properties"]["ContainerDefinitions"]
    assert isinstance(one, dict)
    return one


def test_flyway_gets_its_command_its_url_and_its_credentials_as_it_names_them() -> None:
    flyway = container(resources(run("flyway")["stack"]), "Migration")
    assert flyway["Command"] == ["migrate"]
    assert "EntryPoint" not in flyway
    variables = {one["Name"]: json.dumps(one["Value"]) for one in flyway["Environment"]}
    assert "jdbc:postgresql://" in variables["FLYWAY_URL"]
    assert "/prices?sslmode=verify-full&sslrootcert=/flyway/rds.pem" in variables["FLYWAY_URL"]
    secrets = {one["Name"]: json.dumps(one["ValueFrom"]) for one in flyway["Secrets"]}
    assert secrets.keys() == {"DATABASE_SECRET", "FLYWAY_USER", "FLYWAY_PASSWORD"}
    assert ":username::" in secrets["FLYWAY_USER"]
    assert ":password::" in secrets["FLYWAY_PASSWORD"]


def test_flyways_task_runs_again_when_a_script_is_added_or_edited_and_only_then(tmp_path: Path) -> None:
    copytree(EXAMPLES, tmp_path / "examples")
    image = tmp_path / "examples" / "flyway_image"

    def target() -> str:
        stack = runpy.run_path(str(tmp_path / "examples" / "flyway.py"))["stack"]
        version: str = only(resources(stack), "Custom::DatabaseMigration")["Properties"]["Target"]
        return version

    first = target()
    (image / "Dockerfile").write_text("FROM flyway/flyway:12\n")
    assert target() == first
    (image / "sql" / "V3__drop_currency.sql").write_text("ALTER TABLE prices DROP COLUMN currency;\n")
    added = target()
    assert added != first
    (image / "sql" / "V3__drop_currency.sql").write_text("SELECT 1;\n")
    assert target() not in (first, added)


def test_ecs_deploys_blue_and_green_and_goes_back_on_an_alarm_in_the_bake_time() -> None:
    found = resources(run("blue_green")["stack"])
    service = only(found, "AWS::ECS::Service")["Properties"]
    alarm = {name for name, one in found.items() if one["Type"] == "AWS::CloudWatch::Alarm"}
    configuration = service["DeploymentConfiguration"]
    assert (configuration["Strategy"], configuration["BakeTimeInMinutes"]) == ("BLUE_GREEN", 10)
    assert configuration["Alarms"] == {"AlarmNames": [{"Ref": alarm.pop()}], "Enable": True, "Rollback": True}
    # ECS refuses it with any other strategy than a rolling update.
    assert "DeploymentCircuitBreaker" not in configuration
    (target,) = service["LoadBalancers"]
    assert target["ContainerPort"] == 8080
    groups = [target["TargetGroupArn"]["Ref"], target["AdvancedConfiguration"]["AlternateTargetGroupArn"]["Ref"]]
    assert [name[:4] for name in groups] == ["Blue", "Gree"]
    for rule, port in (("ProductionListenerRule", 80), ("TestListenerRule", 9000)):
        shifted = found[target["AdvancedConfiguration"][rule]["Ref"]]["Properties"]
        assert found[shifted["ListenerArn"]["Ref"]]["Properties"]["Port"] == port
        (action,) = shifted["Actions"]
        assert [one["TargetGroupArn"]["Ref"] for one in action["ForwardConfig"]["TargetGroups"]] == groups
        assert [one["Weight"] for one in action["ForwardConfig"]["TargetGroups"]] == [100, 0]


def test_ecs_may_shift_the_traffic_and_the_balancer_is_inside_the_vpc() -> None:
    found = resources(run("blue_green")["stack"])
    (target,) = only(found, "AWS::ECS::Service")["Properties"]["LoadBalancers"]
    role = found[target["AdvancedConfiguration"]["RoleArn"]["Fn::GetAtt"][0]]["Properties"]
    (trust,) = role["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "ecs.amazonaws.com"}
    assert json.dumps(role["ManagedPolicyArns"]).endswith(
        'policy/AmazonECSInfrastructureRolePolicyForLoadBalancers"]]}]'
    )
    assert only(found, "AWS::ElasticLoadBalancingV2::LoadBalancer")["Properties"]["Scheme"] == "internal"
    groups = [one["Properties"] for one in found.values() if one["Type"] == "AWS::EC2::SecurityGroup"]
    sources = [rule["CidrIp"] for one in groups for rule in one.get("SecurityGroupIngress", [])]
    assert sources == [{"Fn::GetAtt": [name_of_the_vpc(found), "CidrBlock"]}] * 2
    # and its way to the tasks
    rules = [one["Properties"] for one in found.values() if one["Type"] == "AWS::EC2::SecurityGroupIngress"]
    (ports,) = (
        (one["FromPort"], one["ToPort"]) for one in rules if "Balancer" in json.dumps(one["SourceSecurityGroupId"])
    )
    assert ports == (8080, 8080)


def name_of_the_vpc(found: Resources) -> str:
    (name,) = (name for name, one in found.items() if one["Type"] == "AWS::EC2::VPC")
    return name


def test_blue_and_green_both_live_with_the_new_schema_so_a_rollback_keeps_it() -> None:
    stack: cdk.Stack = run("blue_green")["stack"]
    assert only(resources(stack), "Custom::DatabaseMigration")["Properties"]["OnRollback"] == "KEEP"
