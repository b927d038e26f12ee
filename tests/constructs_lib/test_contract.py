"""What ``contract_after`` becomes in a template: its order, its properties, and what its function may do for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import jsii
import pytest
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_sns as sns
from aws_cdk import aws_ssm as ssm
from aws_cdk.assertions import Annotations, Match
from constructs import Construct, IConstruct

from constructs_lib import AlembicMigrations, MigrationTask, OnRollback
from tests.constructs_lib.projects import alembic_project
from tests.constructs_lib.templates import CHAIN, IMAGE, Data, Migrate, Resources, migration_of, only, resources
from tests.constructs_lib.test_ordering import (
    Deployment,
    function,
    load_balanced,
    scheduled,
    stack_beside,
    stage_of,
)
from tests.constructs_lib.test_permissions import (
    CONTINUE,
    EXECUTION_ROLE,
    TRIGGER_ROLE,
    Statement,
    arn,
    statement,
    unhashed,
)

DESCRIBE_STACKS = Statement("cloudformation:DescribeStacks cloudformation:DescribeStackEvents", "${AWS::StackId}")


def contract_of(found: Resources) -> tuple[str, dict[str, Any]]:
    """The contract's logical id, and itself."""
    ((name, one),) = [(name, one) for name, one in found.items() if one["Type"] == "Custom::DatabaseContract"]
    return name, one


def properties_of(stack: cdk.Stack) -> dict[str, Any]:
    properties: dict[str, Any] = contract_of(resources(stack))[1]["Properties"]
    return properties


def policies_of(stack: cdk.Stack) -> dict[str, set[Statement]]:
    """The statements of every policy of the migration and its contract."""
    return {
        unhashed(name): {statement(one) for one in policy["Properties"]["PolicyDocument"]["Statement"]}
        for name, policy in resources(stack).items()
        if name.startswith("Migration") and policy["Type"] == "AWS::IAM::Policy"
    }


def check_that_it_is_the_last(stack: cdk.Stack, *but: str) -> None:
    """Nothing else in the stack is begun or changed after it, but what is named by its type."""
    found = resources(stack)
    name, contract = contract_of(found)
    later = found.keys() - set(contract["DependsOn"]) - {name}
    assert sorted(found[one]["Type"] for one in later) == sorted(but)


def test_a_contract_adds_two_resources_and_their_ids_are_stable(data: Data, migrate: Migrate) -> None:
    migrate().contract_after(data.service(data))
    added = {name: one["Type"] for name, one in resources(data).items() if name.startswith("MigrationContract")}
    assert added == {
        "MigrationContractEF59195A": "Custom::DatabaseContract",
        "MigrationContractPolicy837D92A1": "AWS::IAM::Policy",
    }, "breaking: CHANGELOG + major. Another id makes another resource in every stack of every team."


def test_the_contract_is_the_last_of_its_stack(data: Data, migrate: Migrate) -> None:
    service = data.service(data)
    migration = migrate(failure_topic=sns.Topic(data, "Failures"))
    migration.connections.allow_to_default_port(data.database)
    migration.execute_before(service)
    migration.contract_after(service)
    service.auto_scale_task_count(max_capacity=4).scale_on_cpu_utilization("Cpu", target_utilization_percent=50)
    function(data, "AddedLater")
    migration.metric_failures().create_alarm(data, "Alarm", threshold=1, evaluation_periods=1)
    check_that_it_is_the_last(data)
    Deployment.of(stage_of(data)).fails_on_a_cycle()


@jsii.implements(cdk.IAspect)
class AddsAlarm:
    """What a platform team does to every stack."""

    def visit(self, node: IConstruct) -> None:
        if isinstance(node, cdk.Stack) and not node.node.try_find_child("Added"):
            sns.Topic(node, "Added")


def test_what_an_aspect_adds_is_waited_for_too(data: Data, migrate: Migrate) -> None:
    service = data.service(data)
    migrate().contract_after(service)
    cdk.Aspects.of(data).add(AddsAlarm())
    check_that_it_is_the_last(data)


def test_a_tag_that_is_added_everywhere_reaches_everything(data: Data, migrate: Migrate) -> None:
    service = data.service(data)
    migrate().contract_after(service)
    cdk.Tags.of(stage_of(data)).add("stage", "dev")
    found = resources(data)
    for kind in ("AWS::ECS::Service", "AWS::EC2::SecurityGroup", "AWS::Lambda::Function"):
        for one in found.values():
            if one["Type"] == kind:
                assert {"Key": "stage", "Value": "dev"} in one["Properties"]["Tags"]


def test_the_order_is_migration_then_service_then_contract(data: Data, migrate: Migrate) -> None:
    service, migration = data.service(data), migrate()
    migration.execute_before(service)
    migration.contract_after(service)
    deployment = Deployment.of(stage_of(data))
    (contract,) = deployment.of_type("Custom::DatabaseContract")
    (web,) = deployment.of_type("AWS::ECS::Service")
    assert web in deployment.before(contract)
    assert deployment.of_type("Custom::DatabaseMigration") < deployment.before(web)


def test_what_waits_for_the_contract_is_no_cycle(data: Data, migrate: Migrate) -> None:
    service, migration = data.service(data), migrate()
    migration.contract_after(service)
    # by a reference, by a reference to that, by an order of its own, of a construct around it, and in a nested stack
    told = ssm.StringParameter(data, "Told", string_value=migration.contract_status)
    ssm.StringParameter(data, "ToldAgain", string_value=told.parameter_arn)
    sns.Topic(data, "After").node.add_dependency(data.node.find_child("MigrationContract"))
    group = Construct(data, "Group")
    sns.Subscription(
        group, "Inner", topic=sns.Topic(group, "Topic"), endpoint="+1", protocol=sns.SubscriptionProtocol.SMS
    )
    group.node.add_dependency(data.node.find_child("MigrationContract"))
    nested = cdk.NestedStack(data, "Nested")
    ssm.StringParameter(nested, "Deep", string_value=migration.contract_status)
    check_that_it_is_the_last(
        data,
        "AWS::CloudFormation::Stack",
        "AWS::SNS::Subscription",
        "AWS::SNS::Topic",
        "AWS::SNS::Topic",
        "AWS::SSM::Parameter",
        "AWS::SSM::Parameter",
    )
    Deployment.of(stage_of(data)).fails_on_a_cycle()


@pytest.mark.parametrize(
    "text",
    [
        cdk.Fn.sub("It is ${MigrationContractEF59195A.Contract}."),
        cdk.Fn.sub("It is ${it}.", {"it": cdk.Fn.ref("MigrationContractEF59195A")}),
        cdk.Fn.sub("${!Literal} ${MigrationContractEF59195A} ${it}", {"it": "there"}),
    ],
    ids=["attribute", "variable", "resource"],
)
def test_a_reference_in_a_text_is_no_cycle_either(text: str, data: Data, migrate: Migrate) -> None:
    migrate().contract_after(data.service(data))
    ssm.StringParameter(data, "Told", string_value=text)
    check_that_it_is_the_last(data, "AWS::SSM::Parameter")
    Deployment.of(stage_of(data)).fails_on_a_cycle()


def test_an_attribute_that_is_written_as_text_is_no_cycle_either(data: Data, migrate: Migrate) -> None:
    migrate().contract_after(data.service(data))
    told = {"Type": "String", "Value": {"Fn::GetAtt": "MigrationContractEF59195A.Contract"}}
    cdk.CfnResource(data, "Told", type="AWS::SSM::Parameter", properties=told)
    check_that_it_is_the_last(data, "AWS::SSM::Parameter")


def test_a_large_stack_costs_few_calls_to_cdk_for_each_construct(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [0]
    for name in ("get", "invoke", "sinvoke"):
        call = getattr(jsii, name)

        def counted(*arguments: Any, _call: Any = call, **named: Any) -> Any:
            calls[0] += 1
            return _call(*arguments, **named)

        monkeypatch.setattr(jsii, name, counted)

    def calls_with(parameters: int) -> int:
        data = Data(cdk.App())
        for number in range(parameters):
            ssm.StringParameter(data, f"Parameter{number}", string_value="x")
        migration = MigrationTask(
            data,
            "Migration",
            cluster=data.cluster,
            image=IMAGE,
            database_secret=data.secret,
            migrations=AlembicMigrations("alembic.ini"),
        )
        migration.contract_after(data.service(data))
        calls[0] = 0
        resources(data)
        return calls[0]

    # A parameter is two constructs, one of them a resource.
    assert (calls_with(60) - calls_with(20)) / 40 / 2 < 8


def test_two_contracts_in_one_stack_are_one_after_the_other(data: Data, migrate: Migrate) -> None:
    services = [data.service(data, name) for name in ("One", "Two")]
    for name, service in zip(("First", "Second"), services, strict=True):
        migrate(construct_id=name).contract_after(service)
    Deployment.of(stage_of(data)).fails_on_a_cycle()


def test_a_nested_stack_is_waited_for_as_a_whole(data: Data, migrate: Migrate) -> None:
    service, migration = data.service(data), migrate()
    function(cdk.NestedStack(data, "Jobs"), "Job")
    migration.contract_after(service)
    check_that_it_is_the_last(data)
    assert "Custom::DatabaseContract" in {one["Type"] for one in resources(data).values()}


def test_the_contract_is_told_what_the_migration_is_and_what_it_waits_for(data: Data, migrate: Migrate) -> None:
    service, migration = data.service(data), migrate(on_rollback=OnRollback.DOWNGRADE, on_database_ahead="proceed")
    migration.contract_after(service)
    properties, of_migration = properties_of(data), migration_of(data)["Properties"]
    cluster = data.resolve(data.format_arn(service="ecs", resource="cluster", resource_name=data.cluster.cluster_name))
    own = {
        "Revisions": [],
        "OnDatabaseAhead": "fail",
        "Command": ["python", "-m", "migration_runner", "contract"],
        "Services": [
            {
                "Cluster": cluster,
                "Service": data.resolve(service.service_arn),
                "TaskDefinition": data.resolve(service.task_definition.task_definition_arn),
            }
        ],
        "Required": False,
        "Migration": {"StackId": {"Ref": "AWS::StackId"}, "LogicalId": "MigrationC13A4580"},
    }
    assert properties == {**of_migration, **own}


def test_required_reaches_the_trigger(data: Data, migrate: Migrate) -> None:
    migrate().contract_after(data.service(data), required=True)
    assert properties_of(data)["Required"] is True


def variables(stack: cdk.Stack) -> dict[str, str]:
    (definition,) = [
        one
        for name, one in resources(stack).items()
        if one["Type"] == "AWS::ECS::TaskDefinition" and name.startswith("Migration")
    ]
    return {one["Name"]: one["Value"] for one in definition["Properties"]["ContainerDefinitions"][0]["Environment"]}


def test_the_task_is_told_that_a_contract_follows_and_only_then(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    assert "MIGRATION_CONTRACT_FOLLOWS" not in variables(data)
    other = Data(cdk.App())
    migration = MigrationTask(
        other,
        "Migration",
        cluster=other.cluster,
        image=IMAGE,
        database_secret=other.secret,
        migrations=migration._migrations,
    )
    migration.contract_after(other.service(other))
    assert variables(other)["MIGRATION_CONTRACT_FOLLOWS"] == "true"


def test_a_diff_shows_the_revisions_of_both_steps(data: Data, migrate: Migrate, tmp_path: Path) -> None:
    chain = {**CHAIN, "50871d03964d": "49871d03964c"}
    project = alembic_project(tmp_path / "contract", chain, message="change", contract=["50871d03964d"])
    migration = migrate(migrations=AlembicMigrations(project))
    migration.contract_after(data.service(data))
    of_migration, properties = migration_of(data)["Properties"], properties_of(data)
    assert of_migration["Revisions"] == ["49871d03964c change", "48871d03964b change"]
    assert properties["Revisions"] == ["50871d03964d change"]
    for one in (of_migration, properties):
        assert one["Target"] == "50871d03964d"
        assert one["Targets"] == ["49871d03964c", "50871d03964d"]
    assert variables(data)["MIGRATION_TARGET"] == "50871d03964d"


def test_contract_revisions_that_nothing_would_apply_are_an_error_at_synth(
    data: Data, migrate: Migrate, tmp_path: Path
) -> None:
    chain = {**CHAIN, "50871d03964d": "49871d03964c", "51871d03964e": "50871d03964d"}
    contract = ["50871d03964d", "51871d03964e"]
    project = alembic_project(tmp_path / "contract", chain, message="drop legacy", contract=contract)
    migrate(migrations=AlembicMigrations(project))
    sentence = (
        "migrations ends with contract revisions, 51871d03964e drop legacy, 50871d03964d drop legacy, which nothing "
        "would apply: call contract_after with the services that use the database."
    )
    with pytest.raises(RuntimeError, match=sentence):
        stage_of(data).synth()


def test_contract_revisions_of_the_past_need_no_contract(data: Data, migrate: Migrate, tmp_path: Path) -> None:
    chain = {**CHAIN, "50871d03964d": "49871d03964c"}
    project = alembic_project(tmp_path / "past", chain, contract=["49871d03964c"])
    migrate(migrations=AlembicMigrations(project))
    assert "Targets" not in migration_of(data)["Properties"]


def test_another_command_knows_no_contract_and_needs_none(data: Data, migrate: Migrate, tmp_path: Path) -> None:
    project = alembic_project(tmp_path / "own", CHAIN, contract=["49871d03964c"])
    migrate(migrations=AlembicMigrations(project), command=["alembic", "upgrade", "head"])
    stage_of(data).synth()


def test_the_function_may_look_at_these_services_in_a_policy_of_the_contract(data: Data, migrate: Migrate) -> None:
    service, migration = data.service(data), migrate(family="dev-migration-task")
    migration.execute_before(service)
    migration.contract_after(service)
    assert policies_of(data) == {
        "MigrationTriggerRoleDefaultPolicy": TRIGGER_ROLE,
        "MigrationTriggerContinue": CONTINUE,
        "MigrationExecutionRoleDefaultPolicy": EXECUTION_ROLE,
        "MigrationContractPolicy": {Statement("ecs:DescribeServices", "${Service}")},
    }
    found = resources(data)
    (policy,) = [name for name in found if name.startswith("MigrationContractPolicy")]
    assert [one["Type"] for one in found.values() if policy in one.get("DependsOn", [])] == ["Custom::DatabaseContract"]


def test_a_cluster_of_their_own_lets_the_function_look_at_its_tasks(data: Data, migrate: Migrate) -> None:
    other = ecs.Cluster(data, "Other", vpc=data.vpc)
    task_definition = ecs.FargateTaskDefinition(data, "OtherTask")
    task_definition.add_container("web", image=IMAGE)
    apart = ecs.FargateService(data, "Apart", cluster=other, task_definition=task_definition)
    migrate().contract_after(data.service(data), apart)
    there = arn("ecs", "cluster/${Other}")
    assert policies_of(data)["MigrationContractPolicy"] == {
        Statement("ecs:DescribeServices", "${Service} ${ApartService}"),
        Statement("ecs:ListTasks", "*", f"ArnEquals ecs:cluster {there}"),
        Statement("ecs:DescribeTasks", arn("ecs", "task/${Other}/*"), f"ArnEquals ecs:cluster {there}"),
    }


@pytest.mark.parametrize("attribute", ["cluster_name", "cluster_arn"])
def test_a_service_of_the_first_level_may_name_its_cluster_either_way(
    data: Data, migrate: Migrate, attribute: str
) -> None:
    service = ecs.CfnService(data, "Raw", cluster=getattr(data.cluster, attribute), task_definition="web:3")
    migrate().contract_after(service)
    (told,) = properties_of(data)["Services"]
    assert told["Service"] == {"Ref": "Raw"}
    assert told["TaskDefinition"] == "web:3"
    assert len(policies_of(data)["MigrationContractPolicy"]) == 1
    assert ":cluster/" in json.dumps(told["Cluster"]) or told["Cluster"] == data.resolve(data.cluster.cluster_arn)


def test_a_composite_is_taken_for_the_service_in_it_and_each_counts_once(data: Data, migrate: Migrate) -> None:
    web = load_balanced(data, data)
    inner: Any = web.node.find_child("Service")
    migrate().contract_after(web, inner, data)
    assert len(properties_of(data)["Services"]) == 1
    check_that_it_is_the_last(data)


def test_services_in_another_stack_take_the_contract_there(data: Data, migrate: Migrate) -> None:
    services, migration = stack_beside(data, "Services"), migrate(family="dev-migration-task")
    service = data.service(services)
    migration.execute_before(services)
    migration.contract_after(service)
    properties = properties_of(services)
    check_that_it_is_the_last(services)
    assert "Custom::DatabaseContract" not in {one["Type"] for one in resources(data).values()}
    assert properties["TaskDefinition"] == "dev-migration-task"
    assert properties["Migration"]["LogicalId"] == "MigrationC13A4580"
    found = policies_of(services)["MigrationContractPolicy"]
    assert {(one.actions, one.resources) for one in found} == {
        ("ecs:DescribeServices", "${Service}"),
        (DESCRIBE_STACKS.actions, DESCRIBE_STACKS.resources),
    }
    Deployment.of(stage_of(data)).fails_on_a_cycle()


def test_no_other_stack_imports_what_changes_with_each_release(tmp_path: Path) -> None:
    # CloudFormation does not change the value of an export as long as another stack uses it.
    def exported(image: str, chain: dict[str, str | None]) -> object:
        data = Data(cdk.App())
        services, contracts = stack_beside(data, "Services"), stack_beside(data, "Contracts")
        migration = MigrationTask(
            data,
            "Migration",
            cluster=data.cluster,
            image=ecs.ContainerImage.from_registry(image),
            database_secret=data.secret,
            migrations=AlembicMigrations(alembic_project(tmp_path / image, chain)),
        )
        migration.contract_after(data.service(services), data.service(data, "Beside"), scope=contracts)
        (told,) = [one for one in resources(contracts).values() if one["Type"] == "Custom::DatabaseContract"]
        assert [one.keys() for one in told["Properties"]["Services"]] == [{"Cluster", "Service"}] * 2
        stacks = [stage_of(data).synth().get_stack_by_name(name).template for name in ("Data", "Services")]
        exported = [output["Value"] for stack in stacks for output in stack["Outputs"].values()]
        changing = [
            name for stack in stacks for name, one in stack["Resources"].items() if "TaskDefinition" in one["Type"]
        ]
        assert changing
        assert not [value for value in exported if value.get("Ref") in changing]
        return exported

    assert exported("v1", {"48871d03964b": None}) == exported("v2", CHAIN)


def test_a_contract_in_another_stack_gives_names_back_itself_for_its_migration_stays(
    data: Data, migrate: Migrate
) -> None:
    services = stack_beside(data, "Services")
    migrate(on_rollback=OnRollback.DOWNGRADE).contract_after(data.service(services))
    assert properties_of(services)["OnRollback"] == "KEEP"


def test_services_in_a_nested_stack_take_the_contract_there_or_where_it_is_said(data: Data, migrate: Migrate) -> None:
    nested = cdk.NestedStack(data, "Nested")
    service, migration = data.service(nested), migrate()
    migration.execute_before(service)
    migration.contract_after(service)
    check_that_it_is_the_last(nested)
    Deployment.of(stage_of(data)).fails_on_a_cycle()


def test_the_scope_may_be_the_stack_around_a_nested_one(data: Data, migrate: Migrate) -> None:
    nested = cdk.NestedStack(data, "Nested")
    services, migration = [data.service(nested), data.service(data, "Beside")], migrate()
    migration.execute_before(*services)
    migration.contract_after(*services, scope=data)
    check_that_it_is_the_last(data)
    told = properties_of(data)["Services"]
    assert [one["TaskDefinition"].keys() for one in told] == [{"Fn::GetAtt"}, {"Ref"}]
    Deployment.of(stage_of(data)).fails_on_a_cycle()


def test_a_service_that_is_added_to_a_construct_later_is_waited_for_too(data: Data, migrate: Migrate) -> None:
    platform, migration = Construct(data, "Platform"), migrate()
    data.service(platform, "One")
    migration.contract_after(platform)
    other = ecs.Cluster(data, "Other", vpc=data.vpc)
    task_definition = ecs.FargateTaskDefinition(platform, "TwoTask")
    task_definition.add_container("web", image=IMAGE)
    ecs.FargateService(platform, "Two", cluster=other, task_definition=task_definition)
    told = [one["Service"]["Ref"] for one in properties_of(data)["Services"]]
    assert [unhashed(name) for name in told] == ["PlatformOneService", "PlatformTwoService"]
    assert {one.actions for one in policies_of(data)["MigrationContractPolicy"]} == {
        "ecs:DescribeServices",
        "ecs:ListTasks",
        "ecs:DescribeTasks",
    }
    check_that_it_is_the_last(data)


def test_a_service_that_is_added_later_must_be_one_that_can_be_waited_for(data: Data, migrate: Migrate) -> None:
    data.service(data)
    migrate().contract_after(data)
    controlled(data, ecs.DeploymentControllerType.EXTERNAL)
    with pytest.raises(RuntimeError, match="has the deployment controller EXTERNAL, but contract_after needs ECS"):
        resources(data)


def test_a_warning_tells_of_what_runs_code_and_is_not_waited_for(data: Data, migrate: Migrate) -> None:
    platform = Construct(data, "Platform")
    data.service(platform)
    # The function of the migration's own trigger is no reason for a warning.
    migrate(platform).contract_after(platform)
    scheduled(data, platform)
    warnings = Annotations.from_stack(data).find_warning("*", Match.string_like_regexp("the contract does not wait"))
    (warning,) = [str(one.entry.data) for one in warnings]
    assert warning.startswith(
        "the contract does not wait for 'Data/Platform/Nightly/ScheduledEventRule/Resource', AWS::Events::Rule: what "
        "it runs may still ask for older names. Let it use none of them, or see that it rests until the deployment is "
        "done."
    )


def test_what_the_contract_is_can_be_an_output(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    with pytest.raises(ValueError, match="there is no contract_status without a contract: call contract_after first"):
        assert migration.contract_status
    migration.contract_after(data.service(data))
    name, _ = contract_of(resources(data))
    assert data.resolve(migration.contract_status) == {"Fn::GetAtt": [name, "Contract"]}


def test_an_open_contract_is_a_metric_of_the_migration(migrate: Migrate) -> None:
    metric = migrate().metric_open_contracts()
    assert (metric.namespace, metric.metric_name, metric.statistic) == ("DatabaseMigration", "OpenContracts", "Minimum")
    assert metric.period.to_minutes() == 60


def test_the_function_and_its_role_are_the_same_with_a_contract_and_without() -> None:
    def ours(follows: bool) -> dict[str, Any]:
        data = Data(cdk.App())
        service = data.service(data)
        migration = MigrationTask(
            data,
            "Migration",
            cluster=data.cluster,
            image=IMAGE,
            database_secret=data.secret,
            migrations=AlembicMigrations("alembic.ini"),
        )
        if follows:
            migration.contract_after(service)
        return {name: one for name, one in resources(data).items() if "Contract" not in name}

    without, with_it = ours(False), ours(True)
    assert without.keys() == with_it.keys()
    changed = {name for name in without if without[name] != with_it[name]}
    assert {without[name]["Type"] for name in changed} == {"AWS::ECS::TaskDefinition"}


def controlled(data: Data, kind: ecs.DeploymentControllerType) -> ecs.FargateService:
    task_definition = ecs.FargateTaskDefinition(data, "ControlledTask")
    task_definition.add_container("web", image=IMAGE)
    return ecs.FargateService(
        data,
        "Controlled",
        cluster=data.cluster,
        task_definition=task_definition,
        deployment_controller=ecs.DeploymentController(type=kind),
    )


@pytest.mark.parametrize(
    "kind", [ecs.DeploymentControllerType.CODE_DEPLOY, ecs.DeploymentControllerType.EXTERNAL], ids=lambda one: one.name
)
def test_a_service_that_ecs_itself_does_not_deploy_is_refused(
    data: Data, migrate: Migrate, kind: ecs.DeploymentControllerType
) -> None:
    sentence = (
        f"^the service 'Data/Controlled/Service' has the deployment controller {kind.name}, but contract_after needs "
        "ECS: only then does ECS tell when a deployment has finished.$"
    )
    with pytest.raises(ValueError, match=sentence):
        migrate().contract_after(controlled(data, kind))


def test_the_controller_of_ecs_may_be_named(data: Data, migrate: Migrate) -> None:
    migrate().contract_after(controlled(data, ecs.DeploymentControllerType.ECS))
    only(resources(data), "Custom::DatabaseContract")


def test_a_contract_without_a_service_is_refused(migrate: Migrate) -> None:
    with pytest.raises(ValueError, match=r"^contract_after has no service: name those that use the database\.$"):
        migrate().contract_after()


def test_a_construct_without_a_service_is_refused(data: Data, migrate: Migrate) -> None:
    known: Any = ecs.FargateService.from_fargate_service_arn(
        data, "Known", "arn:aws:ecs:us-west-2:111122223333:service/a/b"
    )
    with pytest.raises(ValueError, match="there is no ECS service in 'Data/Known', so the contract can't tell when"):
        migrate().contract_after(data.service(data), known)


def test_a_second_contract_is_refused(data: Data, migrate: Migrate) -> None:
    service, migration = data.service(data), migrate()
    migration.contract_after(service)
    with pytest.raises(ValueError, match="contract_after has been called before: name all services in one call"):
        migration.contract_after(service)


def test_services_of_several_stacks_need_a_scope(data: Data, migrate: Migrate) -> None:
    other, migration = stack_beside(data, "Services"), migrate()
    services = [data.service(data), data.service(other, "Other")]
    with pytest.raises(ValueError, match="the services stand in several stacks, 'Data' and 'Services': give contract"):
        migration.contract_after(*services)
    migration.contract_after(*services, scope=other)
    assert len(properties_of(other)["Services"]) == 2
    Deployment.of(stage_of(data)).fails_on_a_cycle()


@pytest.mark.parametrize(
    "tool",
    [
        {"command": ["python", "-m", "migration_runner", "upgrade"]},
        {"migrations": None, "command": ["flyway", "migrate"], "version": "V7"},
    ],
)
def test_only_the_runner_knows_a_contract(data: Data, migrate: Migrate, tool: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="contract_after runs `python -m migration_runner contract`: give migrations"):
        migrate(**tool).contract_after(data.service(data))


def test_required_is_yes_or_no(data: Data, migrate: Migrate) -> None:
    required: Any = "no"
    with pytest.raises(ValueError, match=r"^required is 'no', but must be True or False\.$"):
        migrate().contract_after(data.service(data), required=required)


def test_blue_green_by_ecs_itself_can_be_waited_for(data: Data, migrate: Migrate) -> None:
    task_definition = ecs.FargateTaskDefinition(data, "GreenTask")
    task_definition.add_container("web", image=IMAGE)
    service = ecs.FargateService(
        data,
        "Green",
        cluster=data.cluster,
        task_definition=task_definition,
        deployment_strategy=ecs.DeploymentStrategy.BLUE_GREEN,
        security_groups=[ec2.SecurityGroup(data, "Own", vpc=data.vpc)],
    )
    migrate().contract_after(service)
    check_that_it_is_the_last(data)


def test_nothing_deprecated_is_used() -> None:
    story = f"{__file__}::{test_what_waits_for_the_contract_is_no_cycle.__name__}"
    environment = {**os.environ, "JSII_DEPRECATED": "fail"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", story], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert run.returncode == 0, run.stdout
