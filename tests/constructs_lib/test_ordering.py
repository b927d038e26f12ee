"""The order in which CloudFormation makes what a migration needs, the migration, and what waits for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import aws_cdk as cdk
import pytest
from aws_cdk import aws_applicationautoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_ecs_patterns as ecs_patterns
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct, IConstruct

from constructs_lib import MigrationTask
from tests.constructs_lib.templates import IMAGE, ISOLATED, Data, Migrate, Resources, migration_of, resources


def awaited(found: Resources, kind: str) -> list[str]:
    """The types of what the resources of a kind explicitly depend on."""
    holders = [resource for resource in found.values() if resource["Type"] == kind]
    return [found[name]["Type"] for holder in holders for name in holder.get("DependsOn", [])]


def stage_of(data: Data) -> cdk.Stage:
    stage = cdk.Stage.of(data)
    assert stage
    return stage


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


def test_rules_of_other_security_groups_are_not_waited_for(data: Data, migrate: Migrate) -> None:
    other = ec2.SecurityGroup(data, "Other", vpc=data.vpc)
    data.database.connections.allow_default_port_from(other)
    migrate()
    assert "AWS::EC2::SecurityGroupIngress" not in awaited(resources(data), "Custom::DatabaseMigration")


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


def test_the_migration_waits_for_what_it_must_follow(data: Data, migrate: Migrate) -> None:
    migrate().execute_after(function(data, "Seed"))
    assert awaited(resources(data), "Custom::DatabaseMigration").count("AWS::Lambda::Function") == 2


def test_a_scope_that_holds_the_migration_can_not_wait_for_it(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    for order in (migration.execute_before, migration.execute_after):
        with pytest.raises(ValueError, match="the migration is part of 'Data': name the resources in it instead"):
            order(data)


@dataclass(frozen=True)
class Deployment:
    """All templates of an app as one graph: each resource, and what CloudFormation finishes before it begins with it.

    Resources are named by the path of their stack and their logical id. A stack has a begin, for which other stacks
    are waited, and an end, which is also what a nested stack's resource in its parent stands for.
    """

    resources: Resources
    waits_for: dict[str, set[str]]

    @classmethod
    def of(cls, app: IConstruct) -> Deployment:
        """What the app synthesizes to; a cycle within one template raises here already."""
        stacks = [node for node in app.node.find_all() if isinstance(node, cdk.Stack)]
        nested = {name_of(one.nested_stack_resource): one for one in stacks if one.nested_stack_resource}
        deployment = cls({}, {})
        for stack in stacks:
            path = stack.node.path
            template = resources(stack)
            names = {key: f"{path}/{key}" for key in template}
            for key, resource in template.items():
                needs = {names[other] for other in mentioned(resource) if other in names} | {begin(stack)}
                if child := nested.get(names[key]):
                    deployment.waits_for.update({begin(child): needs, names[key]: {end(child)}})
                else:
                    deployment.waits_for[names[key]] = needs
                    deployment.resources[names[key]] = resource
            deployment.waits_for[end(stack)] = {*names.values(), begin(stack)}
            if not stack.nested_stack_resource:
                deployment.waits_for[begin(stack)] = {end(other) for other in stack.dependencies}
        return deployment

    def before(self, name: str) -> set[str]:
        """Everything that is there when this resource is begun, whether for itself or for another that it needs."""
        found: set[str] = set()
        ahead = [name]
        while ahead:
            new = self.waits_for[ahead.pop()] - found
            found |= new
            ahead += new
        return found

    def of_type(self, *kinds: str) -> set[str]:
        return {name for name, resource in self.resources.items() if resource["Type"] in kinds}

    def types(self, names: set[str]) -> list[str]:
        return sorted(self.resources[name]["Type"] for name in names)

    def fails_on_a_cycle(self) -> None:
        """Also on one through several stacks, which no single template shows."""
        TopologicalSorter(self.waits_for).prepare()


def begin(stack: cdk.Stack) -> str:
    return f"{stack.node.path} begins"


def end(stack: cdk.Stack) -> str:
    return f"{stack.node.path} ends"


def mentioned(value: object) -> Iterator[str]:
    """The logical ids in every way that a template has to name another resource."""
    match value:
        case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), *_]}:
            yield name
        case {"Fn::GetAtt": str(name)}:
            yield name.partition(".")[0]
        case {"Fn::Sub": str(text)} | {"Fn::Sub": [str(text), *_]}:
            yield from re.findall(r"\$\{([^!}.]+)", text)
    if isinstance(value, dict):
        explicit = value.get("DependsOn", [])
        yield from [explicit] if isinstance(explicit, str) else explicit
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from mentioned(part)


def name_of(resource: cdk.CfnElement) -> str:
    return f"{resource.stack.node.path}/{resource.stack.resolve(resource.logical_id)}"


def resource_of(migration: MigrationTask) -> str:
    custom = migration.node.find_child("Resource").node.default_child
    assert isinstance(custom, cdk.CfnResource)
    return name_of(custom)


def needs_of(migration: MigrationTask, deployment: Deployment) -> dict[str, set[str]]:
    """By type, what must be there before the task starts: found in the templates, not told by the construct."""
    stack = cdk.Stack.of(migration).node.path
    properties = deployment.resources[resource_of(migration)]["Properties"]

    def pointed_to(*values: object) -> set[str]:
        return {f"{stack}/{name}" for name in mentioned(list(values))} & deployment.resources.keys()

    (function,) = pointed_to(properties["ServiceToken"])
    (definition,) = pointed_to(properties["TaskDefinition"])
    task = deployment.resources[definition]["Properties"]
    trigger = deployment.resources[function]["Properties"]
    roles = pointed_to(task["TaskRoleArn"], task["ExecutionRoleArn"], trigger["Role"])
    policies = {
        name
        for name in deployment.of_type("AWS::IAM::Policy")
        if name.startswith(f"{stack}/") and roles & pointed_to(deployment.resources[name]["Properties"]["Roles"])
    }
    groups = {group.security_group_id for group in migration.connections.security_groups}
    rules = {
        name_of(node)
        for node in migration.node.root.node.find_all()
        if isinstance(node, ec2.CfnSecurityGroupIngress) and node.source_security_group_id in groups
    }
    return {
        "policies": policies,
        "rules": rules,
        "log groups": pointed_to(task["ContainerDefinitions"][0]["LogConfiguration"], trigger["LoggingConfig"]),
        "attachments": deployment.of_type("AWS::SecretsManager::SecretTargetAttachment"),
        "endpoints": {name for name in deployment.of_type("AWS::EC2::VPCEndpoint") if "Nested" not in name},
        "routes": deployment.of_type("AWS::EC2::Route", "AWS::EC2::SubnetRouteTableAssociation"),
    }


def check_that_the_task_has_what_it_needs(migration: MigrationTask, deployment: Deployment) -> None:
    there = deployment.before(resource_of(migration))
    needs = needs_of(migration, deployment)
    # Two of the trigger's role and one of ECS's.
    assert len(needs["policies"]) == 3
    assert len(needs["rules"]) == 1
    assert len(needs["endpoints"]) == 3
    assert all(needs.values()), needs
    assert {kind: names - there for kind, names in needs.items() if names - there} == {}


def finish(data: Data, migration: MigrationTask) -> Deployment:
    """What users write last: the way to the database, and endpoints that nobody had thought of."""
    migration.connections.allow_to_default_port(data.database)
    data.vpc.add_interface_endpoint("LateLogs", service=ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS)
    data.vpc.add_gateway_endpoint("LateS3", service=ec2.GatewayVpcEndpointAwsService.S3)
    return Deployment.of(stage_of(data))


def stack_beside(data: Data, construct_id: str) -> cdk.Stack:
    return cdk.Stack(stage_of(data), construct_id)


def load_balanced(data: Data, scope: Construct) -> Construct:
    return ecs_patterns.ApplicationLoadBalancedFargateService(
        scope,
        "Web",
        cluster=data.cluster,
        task_image_options=ecs_patterns.ApplicationLoadBalancedTaskImageOptions(image=IMAGE),
        security_groups=[data.clients],
        task_subnets=ISOLATED,
    )


def queue_processing(data: Data, scope: Construct) -> Construct:
    return ecs_patterns.QueueProcessingFargateService(
        scope, "Worker", cluster=data.cluster, image=IMAGE, security_groups=[data.clients], task_subnets=ISOLATED
    )


def scheduled(data: Data, scope: Construct) -> Construct:
    return ecs_patterns.ScheduledFargateTask(
        scope,
        "Nightly",
        cluster=data.cluster,
        scheduled_fargate_task_image_options=ecs_patterns.ScheduledFargateTaskImageOptions(image=IMAGE),
        schedule=autoscaling.Schedule.rate(cdk.Duration.hours(24)),
        security_groups=[data.clients],
        subnet_selection=ISOLATED,
    )


def with_a_group_of_its_own(data: Data, scope: Construct) -> ecs.FargateService:
    task_definition = ecs.FargateTaskDefinition(scope, "OwnTask")
    task_definition.add_container("web", image=IMAGE)
    service = ecs.FargateService(
        scope, "Own", cluster=data.cluster, task_definition=task_definition, vpc_subnets=ISOLATED
    )
    service.connections.allow_to_default_port(data.database)
    return service


def a_fargate_service_beside_the_database(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_before(data.service(data))
    return migration


def a_load_balanced_service(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_before(load_balanced(data, data))
    return migration


def a_service_whose_security_group_the_migration_joins(data: Data, migrate: Migrate) -> MigrationTask:
    pattern = ecs_patterns.ApplicationLoadBalancedFargateService(
        data,
        "Web",
        cluster=data.cluster,
        task_image_options=ecs_patterns.ApplicationLoadBalancedTaskImageOptions(image=IMAGE),
        task_subnets=ISOLATED,
    )
    migration = migrate(security_groups=pattern.service.connections.security_groups)
    migration.execute_before(pattern.service)
    return migration


def a_service_of_a_database_whose_secret_is_attached_later(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate(database_secret=data.node.find_child("Database").node.find_child("Secret"))
    migration.execute_before(data.service(data))
    return migration


def a_queue_processing_service(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_before(queue_processing(data, data))
    return migration


def a_scheduled_task(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_before(scheduled(data, data))
    return migration


def patterns_in_a_stack_beside_that_of_the_database(data: Data, migrate: Migrate) -> MigrationTask:
    services = stack_beside(data, "Services")
    migration = migrate(services, security_groups=None)
    migration.execute_before(queue_processing(data, services), scheduled(data, services))
    return migration


def a_whole_construct_that_grows(data: Data, migrate: Migrate) -> MigrationTask:
    release = Construct(data, "Release")
    data.service(release)
    migration = migrate()
    migration.execute_before(release)
    scheduled(data, release)
    function(release, "Job")
    return migration


def a_whole_construct_with_stacks_of_its_own(data: Data, migrate: Migrate) -> MigrationTask:
    release = Construct(stage_of(data), "Release")
    data.service(cdk.Stack(release, "Web"))
    function(cdk.Stack(release, "Jobs"), "Job")
    migration = migrate()
    migration.execute_before(release)
    return migration


def a_nested_stack(data: Data, migrate: Migrate) -> MigrationTask:
    nested = cdk.NestedStack(data, "Nested")
    data.service(nested)
    migration = migrate()
    migration.execute_before(nested)
    return migration


def a_nested_stack_with_an_endpoint_of_its_own(data: Data, migrate: Migrate) -> MigrationTask:
    nested = cdk.NestedStack(data, "Nested")
    data.service(nested)
    ec2.InterfaceVpcEndpoint(nested, "Sqs", vpc=data.vpc, service=ec2.InterfaceVpcEndpointAwsService.SQS)
    migration = migrate()
    migration.execute_before(nested)
    return migration


def a_service_in_a_nested_stack_with_an_endpoint(data: Data, migrate: Migrate) -> MigrationTask:
    nested = cdk.NestedStack(data, "Nested")
    ec2.InterfaceVpcEndpoint(nested, "Sqs", vpc=data.vpc, service=ec2.InterfaceVpcEndpointAwsService.SQS)
    migration = migrate()
    migration.execute_before(data.service(nested))
    return migration


def a_load_balanced_service_of_the_same_group_in_a_nested_stack(data: Data, migrate: Migrate) -> MigrationTask:
    nested = cdk.NestedStack(data, "Nested")
    load_balanced(data, nested)
    migration = migrate()
    migration.execute_before(nested)
    return migration


def a_whole_construct_with_a_service_called_default(data: Data, migrate: Migrate) -> MigrationTask:
    release = Construct(data, "Release")
    data.service(release, "Default")
    data.service(release, "Worker")
    migration = migrate()
    migration.execute_before(release)
    return migration


def a_migration_in_a_nested_stack(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate(cdk.NestedStack(data, "Nested"))
    migration.execute_before(data.service(data))
    return migration


def a_service_in_a_nested_stack(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_before(with_a_group_of_its_own(data, cdk.NestedStack(data, "Nested")))
    return migration


def another_stack(data: Data, migrate: Migrate) -> MigrationTask:
    services = stack_beside(data, "Services")
    migration = migrate()
    migration.execute_before(services)
    data.service(services)
    function(services, "Job")
    return migration


def a_service_in_another_stack(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_before(data.service(stack_beside(data, "Services")))
    return migration


def a_service_that_is_let_into_the_database_from_its_own_stack(data: Data, migrate: Migrate) -> MigrationTask:
    services = stack_beside(data, "Services")
    migration = migrate(services, security_groups=None)
    migration.execute_before(with_a_group_of_its_own(data, services))
    return migration


def a_service_in_a_third_stack(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate(stack_beside(data, "Migrations"), security_groups=None)
    migration.execute_before(with_a_group_of_its_own(data, stack_beside(data, "Services")))
    return migration


def a_stack_that_needs_no_other(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate(stack_beside(data, "Migrations"))
    jobs = stack_beside(data, "Jobs")
    function(jobs, "Job")
    migration.execute_before(jobs)
    return migration


def another_migration_and_its_service(data: Data, migrate: Migrate) -> MigrationTask:
    migration, second = migrate(), migrate(construct_id="Second")
    migration.execute_before(second)
    second.execute_before(data.service(data))
    return migration


RULE, SERVICE, FUNCTION = "AWS::Events::Rule", "AWS::ECS::Service", "AWS::Lambda::Function"


@pytest.mark.parametrize(
    ("ordered", "held"),
    [
        (a_fargate_service_beside_the_database, [SERVICE]),
        (a_load_balanced_service, [SERVICE]),
        (a_service_whose_security_group_the_migration_joins, [SERVICE]),
        (a_service_of_a_database_whose_secret_is_attached_later, [SERVICE]),
        (a_queue_processing_service, [SERVICE]),
        (a_scheduled_task, [RULE]),
        (patterns_in_a_stack_beside_that_of_the_database, [SERVICE, RULE]),
        (a_whole_construct_that_grows, [SERVICE, RULE, FUNCTION]),
        (a_whole_construct_with_stacks_of_its_own, [SERVICE, FUNCTION]),
        (a_nested_stack, [SERVICE]),
        (a_nested_stack_with_an_endpoint_of_its_own, [SERVICE]),
        (a_service_in_a_nested_stack_with_an_endpoint, [SERVICE]),
        (a_load_balanced_service_of_the_same_group_in_a_nested_stack, [SERVICE]),
        (a_whole_construct_with_a_service_called_default, [SERVICE, SERVICE]),
        (a_migration_in_a_nested_stack, [SERVICE]),
        (a_service_in_a_nested_stack, [SERVICE]),
        (another_stack, [SERVICE, FUNCTION]),
        (a_service_in_another_stack, [SERVICE]),
        (a_service_that_is_let_into_the_database_from_its_own_stack, [SERVICE]),
        (a_service_in_a_third_stack, [SERVICE]),
        (a_stack_that_needs_no_other, [FUNCTION]),
        (another_migration_and_its_service, [SERVICE, "Custom::DatabaseMigration"]),
    ],
)
def test_what_is_named_waits_and_the_task_has_all_that_it_needs(
    data: Data, migrate: Migrate, ordered: Callable[[Data, Migrate], MigrationTask], held: list[str]
) -> None:
    migration = ordered(data, migrate)
    deployment = finish(data, migration)
    deployment.fails_on_a_cycle()
    ours = resource_of(migration)
    check_that_the_task_has_what_it_needs(migration, deployment)
    code = deployment.of_type(SERVICE, RULE, FUNCTION, "Custom::DatabaseMigration") - {ours}
    code -= {name for name in code if "Trigger" in name}
    assert deployment.types(code) == held
    assert [name for name in sorted(code) if ours not in deployment.before(name)] == []


def a_resource(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate()
    migration.execute_after(function(data, "Seed"))
    return migration


def a_construct(data: Data, migrate: Migrate) -> MigrationTask:
    seeds = Construct(data, "Seeds")
    migration = migrate()
    migration.execute_after(seeds)
    function(seeds, "AddedLater")
    return migration


def a_service_in_the_stack_of_the_database(data: Data, migrate: Migrate) -> MigrationTask:
    migration = migrate(stack_beside(data, "Migrations"), security_groups=None)
    migration.execute_after(data.service(data))
    return migration


def a_stack_beside(data: Data, migrate: Migrate) -> MigrationTask:
    before = stack_beside(data, "Before")
    migration = migrate(stack_beside(data, "Migrations"))
    migration.execute_after(before)
    function(before, "Seed")
    return migration


def a_nested_stack_first(data: Data, migrate: Migrate) -> MigrationTask:
    before = cdk.NestedStack(data, "Before")
    function(before, "Seed")
    migration = migrate()
    migration.execute_after(before)
    return migration


@pytest.mark.parametrize(
    ("ordered", "first"),
    [
        (a_resource, [FUNCTION]),
        (a_construct, [FUNCTION]),
        (a_service_in_the_stack_of_the_database, [SERVICE]),
        (a_stack_beside, [FUNCTION]),
        (a_nested_stack_first, [FUNCTION]),
    ],
)
def test_the_migration_waits_for_what_comes_first_and_for_all_that_its_task_needs(
    data: Data, migrate: Migrate, ordered: Callable[[Data, Migrate], MigrationTask], first: list[str]
) -> None:
    migration = ordered(data, migrate)
    deployment = finish(data, migration)
    deployment.fails_on_a_cycle()
    ours = resource_of(migration)
    check_that_the_task_has_what_it_needs(migration, deployment)
    code = {name for name in deployment.of_type(SERVICE, FUNCTION) if "Trigger" not in name}
    assert deployment.types(code) == first
    assert code <= deployment.before(ours)


def test_policies_that_others_attach_to_its_roles_come_before_the_migration(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    role = migration.task_definition.task_role
    statement = iam.PolicyStatement(actions=["s3:GetObject"], resources=["arn:aws:s3:::seeds/*"])
    iam.Policy(data, "Seeds", roles=[role], statements=[statement])
    iam.ManagedPolicy(data, "ManagedSeeds", roles=[role], statements=[statement])
    deployment = Deployment.of(stage_of(data))
    attached = {name for name in deployment.of_type("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy") if "Seeds" in name}
    assert len(attached) == 2
    assert attached <= deployment.before(resource_of(migration))


def test_what_is_not_named_does_not_wait(data: Data, migrate: Migrate) -> None:
    migration = migrate()
    migration.execute_before(data.service(data))
    function(data, "Other")
    deployment = finish(data, migration)
    ours = resource_of(migration)
    (other,) = (name for name in deployment.of_type(FUNCTION) if "Trigger" not in name)
    assert ours not in deployment.before(other)
    assert other not in deployment.before(ours)


@pytest.mark.parametrize(
    "value",
    [
        {"DependsOn": "Queue"},
        {"DependsOn": ["Queue"]},
        {"Properties": {"Name": {"Ref": "Queue"}}},
        {"Properties": {"Names": [{"Fn::GetAtt": ["Queue", "Arn"]}]}},
        {"Properties": {"Name": {"Fn::GetAtt": "Queue.Arn"}}},
        {"Properties": {"Name": {"Fn::Sub": "${!Literal}/${Queue.Arn}"}}},
        {"Properties": {"Name": {"Fn::Sub": ["${Queue}", {}]}}},
        {"Properties": {"Name": {"Fn::Sub": ["literal", {"Name": {"Ref": "Queue"}}]}}},
        {"Properties": {"Name": {"Fn::If": ["Condition", {"Fn::Join": ["", ["x", {"Ref": "Queue"}]]}, "y"]}}},
    ],
)
def test_the_walk_sees_every_way_to_name_a_resource(value: object) -> None:
    assert set(mentioned(value)) == {"Queue"}


def test_the_walk_fails_on_a_cycle_that_no_single_template_shows() -> None:
    circle = Deployment({}, {"Ours begins": {"Theirs ends"}, "Theirs ends": {"Theirs/A"}, "Theirs/A": {"Ours begins"}})
    with pytest.raises(CycleError):
        circle.fails_on_a_cycle()
