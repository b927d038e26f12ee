"""The contract of a migration: what takes the older names away once no task of an older release is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jsii
from aws_cdk import (
    Annotations,
    Aspects,
    CfnResource,
    CustomResource,
    Duration,
    IAspect,
    IStableAnyProducer,
    Lazy,
    Reference,
    Stack,
    Tokenization,
)
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct, IConstruct

from constructs_lib.migration_trigger import MigrationTrigger
from constructs_lib.ordering import FollowAll, outermost_stack, runs_code

# After the aspects that add something to the stack: what they add is waited for too.
LAST = 999
NOT_WAITED_FOR = "constructs_lib:the-contract-does-not-wait"


class MigrationContract(Construct):
    """The custom resource of a contract, the last of its stack, with what its function may do for it.

    Args:
        scope: in the stack of the services, as a rule.
        construct_id: in that scope.
        function: of the migration's trigger.
        migration: the migration's own resource.
        properties: of the migration's request, as far as they are the contract's too.
        cluster: of the migration.
        family: of the migration's task definition.
        constructs: the services of which no older task may be left, or what holds them; it may get more of them later.
        required: whether a contract that stays open fails the deployment.
        service_timeout: how long CloudFormation waits for an answer.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        function: lambda_.Function,
        migration: CustomResource,
        properties: Mapping[str, Any],
        cluster: ecs.ICluster,
        family: str,
        constructs: Sequence[Construct],
        required: bool,
        service_timeout: Duration,
    ) -> None:
        super().__init__(scope, construct_id)
        apart = Stack.of(self).node.path != Stack.of(migration).node.path
        # The value of an export must not change as long as another stack uses it, and the ARN does with each release.
        # The newest of the family is that of the release: its stack is deployed before this one.
        own = {"TaskDefinition": family} if apart else {}
        if apart and properties["OnRollback"] == "DOWNGRADE":
            # The migration's stack does not roll back with this one.
            own["OnRollback"] = "KEEP"
        self.resource = CustomResource(
            self,
            "Resource",
            resource_type="Custom::DatabaseContract",
            service_token=function.function_arn,
            service_timeout=service_timeout,
            properties={
                **properties,
                **own,
                "Command": ["python", "-m", "migration_runner", "contract"],
                "Services": Lazy.any(cast(IStableAnyProducer, _Services(self, constructs))),
                "Required": required,
            },
        )
        # In the role's own policy, on which the migration depends and so the services, they would be a cycle.
        policy = iam.Policy(self, "Policy", roles=[cast(iam.IRole, function.role)])
        if apart:
            policy.add_statements(
                iam.PolicyStatement(
                    actions=["cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents"],
                    resources=[Stack.of(self).stack_id],
                )
            )
        self.resource.node.add_dependency(migration, policy)

        def when_all_is_there() -> None:
            policy.add_statements(*_statements(services_of(constructs), cluster=cluster))
            _warn_of_what_is_not_waited_for(constructs)

        Aspects.of(Stack.of(self)).add(cast(IAspect, FollowAll(self.resource, when_all_is_there)), priority=LAST)


@jsii.implements(IStableAnyProducer)
class _Services:
    """What the contract's function is told of the services that are there at synth."""

    def __init__(self, contract: Construct, constructs: Sequence[Construct]) -> None:
        self._stack = outermost_stack(contract).node.path
        self._constructs = constructs

    def produce(self) -> list[dict[str, Any]]:
        """The property of the contract, as CDK asks for it."""
        return [
            {"Cluster": _cluster_arn(one), "Service": one.ref, **self._task_definition(one)}
            for one in services_of(self._constructs)
        ]

    def _task_definition(self, service: ecs.CfnService) -> dict[str, Any]:
        # It changes with each release, so no other stack may import it; one that is nested is only given it.
        beside = outermost_stack(service).node.path == self._stack
        return {"TaskDefinition": service.task_definition} if beside else {}


def services_of(constructs: Sequence[Construct]) -> list[ecs.CfnService]:
    """The ECS services in the constructs, each once; raises ValueError when one holds none that can be waited for."""
    if not constructs:
        raise ValueError("contract_after has no service: name those that use the database.")
    found: dict[str, ecs.CfnService] = {}
    for construct in constructs:
        services = [node for node in construct.node.find_all() if isinstance(node, ecs.CfnService)]
        if not services:
            raise ValueError(
                f"there is no ECS service in {construct.node.path!r}, so the contract can't tell when older tasks are "
                "gone: name the construct that makes the service."
            )
        found.update({service.node.path: service for service in services})
    for service in found.values():
        controller = _controller(service)
        if controller != "ECS":
            raise ValueError(
                f"the service {service.node.path!r} has the deployment controller {controller}, but contract_after "
                "needs ECS: only then does ECS tell when a deployment has finished."
            )
    return list(found.values())


def scope_for(services: Sequence[ecs.CfnService], migration: Construct) -> Construct:
    """Where the contract stands: beside the migration, or in the one other stack that has the services."""
    stacks: dict[str, IConstruct] = {Stack.of(service).node.path: Stack.of(service) for service in services}
    if len(stacks) > 1:
        raise ValueError(
            f"the services stand in several stacks, {' and '.join(map(repr, stacks))}: give contract_after a scope in "
            "the one that is deployed last."
        )
    (stack,) = stacks.values()
    beside = stack.node.path == Stack.of(migration).node.path
    return cast(Construct, migration.node.scope if beside else stack)


def _controller(service: ecs.CfnService) -> str:
    controller = service.deployment_controller
    if isinstance(controller, ecs.CfnService.DeploymentControllerProperty):
        return controller.type or "ECS"
    return "ECS" if controller is None else "that is a token"


def _cluster_arn(service: ecs.CfnService) -> str:
    name = service.cluster or "default"
    tokens = Tokenization.reverse_string(name).tokens
    if name.startswith("arn:") or any(isinstance(one, Reference) and one.display_name == "Arn" for one in tokens):
        return name
    return Stack.of(service).format_arn(service="ecs", resource="cluster", resource_name=name)


def _warn_of_what_is_not_waited_for(constructs: Sequence[Construct]) -> None:
    for node in [node for construct in constructs for node in construct.node.find_all()]:
        ours = any(isinstance(scope, MigrationTrigger) for scope in node.node.scopes)
        if runs_code(node) and not isinstance(node, ecs.CfnService) and not ours:
            Annotations.of(node).add_warning_v2(
                NOT_WAITED_FOR,
                f"the contract does not wait for {node.node.path!r}, {cast(CfnResource, node).cfn_resource_type}: what "
                "it runs may still ask for older names. Let it use none of them, or see that it rests until the "
                "deployment is done.",
            )


def _statements(services: Sequence[ecs.CfnService], *, cluster: ecs.ICluster) -> list[iam.PolicyStatement]:
    statements = [iam.PolicyStatement(actions=["ecs:DescribeServices"], resources=[one.ref for one in services])]
    others = {_cluster_arn(one): one for one in services if not _runs_in(one, cluster)}
    for arn, service in others.items():
        name = service.cluster or "default"
        tasks = Stack.of(service).format_arn(service="ecs", resource="task", resource_name=f"{name}/*")
        if arn == name:
            tasks = Stack.of(service).format_arn(service="ecs", resource="task", resource_name="*")
        in_cluster = {"ArnEquals": {"ecs:cluster": arn}}
        statements += [
            iam.PolicyStatement(actions=["ecs:ListTasks"], resources=["*"], conditions=in_cluster),
            iam.PolicyStatement(actions=["ecs:DescribeTasks"], resources=[tasks], conditions=in_cluster),
        ]
    return statements


def _runs_in(service: ecs.CfnService, cluster: ecs.ICluster) -> bool:
    """Whether it is the same cluster, also when one is told by its name and the other by its ARN."""
    name = service.cluster or "default"
    here, there = ({one.target.node.path for one in _references(text)} for text in (name, cluster.cluster_arn))
    return here == there if here or there else name in (cluster.cluster_name, cluster.cluster_arn)


def _references(text: str) -> list[Reference]:
    return [one for one in Tokenization.reverse_string(text).tokens if isinstance(one, Reference)]
