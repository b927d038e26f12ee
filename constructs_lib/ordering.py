"""The order of a deployment: what waits for the migration, and what the migration waits for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import jsii
from aws_cdk import CfnResource, CustomResource, IAspect, Reference, Stack, Tokenization
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct, IConstruct

ROUTES = (
    ec2.CfnNatGateway,
    ec2.CfnNetworkAclEntry,
    ec2.CfnRoute,
    ec2.CfnSubnetNetworkAclAssociation,
    ec2.CfnSubnetRouteTableAssociation,
    ec2.CfnVPCEndpoint,
)
# ${Name} and ${Name.Attribute}, but not ${!Literal}.
SUBSTITUTED = re.compile(r"\$\{([^!.}][^.}]*)")
RUNS_CODE = (
    "AWS::AppRunner::Service",
    "AWS::AutoScaling::AutoScalingGroup",
    "AWS::Batch::ComputeEnvironment",
    "AWS::Batch::JobDefinition",
    "AWS::Batch::JobQueue",
    "AWS::EC2::Instance",
    "AWS::ECS::ExpressGatewayService",
    "AWS::ECS::Service",
    "AWS::ECS::TaskSet",
    "AWS::ElasticBeanstalk::Environment",
    "AWS::Events::Rule",
    "AWS::Lambda::Function",
    "AWS::Pipes::Pipe",
    "AWS::Scheduler::Schedule",
    "AWS::StepFunctions::StateMachine",
    "Custom::AWSCDK-EKS-HelmChart",
    "Custom::AWSCDK-EKS-KubernetesResource",
)


@jsii.implements(IAspect)
class HoldBack:
    """Lets what runs code in a construct wait for the migration."""

    def __init__(self, migration: CustomResource) -> None:
        self._migration = migration

    def visit(self, node: IConstruct) -> None:
        """Called for each construct of the scope, also for those that are added later."""
        if runs_code(node):
            node.node.add_dependency(self._migration)


@jsii.implements(IAspect)
class FollowNeeds:
    """Lets the migration wait for its network, its roles' policies, and the instances of its database's cluster.

    CloudFormation would make them at the same time as the task. A rule belongs to whichever construct has allowed the
    connection, and a policy to whoever wrote it, so they can only be found when all of them are there.
    """

    def __init__(
        self,
        *,
        migration: CustomResource,
        security_groups: Sequence[ec2.ISecurityGroup],
        roles: Sequence[iam.IRole],
        held: Sequence[IConstruct],
        database_secret: secretsmanager.ISecret,
        database: Sequence[str],
        service_secret: secretsmanager.ISecret | None,
    ) -> None:
        self._migration = migration
        self._stack = Stack.of(migration)
        self._group_ids = [self._stack.resolve(group.security_group_id) for group in security_groups]
        self._role_names = [self._stack.resolve(role.role_name) for role in roles]
        self._held = held
        self._database_secret = database_secret
        self._database = database
        self._service_secret = service_secret

    def visit(self, node: IConstruct) -> None:
        """Called for each construct of the stack."""
        needed = (
            isinstance(node, ROUTES)
            or self._is_rule(node)
            or self._is_policy(node)
            or self._is_cluster_instance(node)
            or self._is_of_service_secret(node)
        )
        if needed and not self._waits(Stack.of(node)):
            self._migration.node.add_dependency(node)

    def _waits(self, stack: Stack) -> bool:
        """A nested stack waits as a whole: with what it holds, the migration would wait for itself."""
        if stack.node.path in [scope.node.path for scope in self._migration.node.scopes]:
            return False
        above = [scope.node.path for scope in stack.node.scopes]
        return any(
            held.node.path in above or stack.node.path in [scope.node.path for scope in held.node.scopes]
            for held in self._held
        )

    def _is_rule(self, node: IConstruct) -> bool:
        """A rule that lets the task out, or into something: nobody connects to the task."""
        match node:
            case ec2.CfnSecurityGroupIngress():
                end = node.source_security_group_id or node.group_id
            case ec2.CfnSecurityGroupEgress():
                end = node.group_id
            case _:
                return False
        return self._stack.resolve(end) in self._group_ids

    def _is_policy(self, node: IConstruct) -> bool:
        if not isinstance(node, (iam.CfnPolicy, iam.CfnManagedPolicy)):
            return False
        return any(role in self._role_names for role in self._stack.resolve(node.roles) or [])

    def _is_of_service_secret(self, node: IConstruct) -> bool:
        """The secret, its policy, and what lets it know the database; but not its rotation.

        That begins at once, by logging in as the role that the migration makes: it waits for the migration, as far as
        it is in the same stack.
        """
        secret = self._service_secret
        if secret is None or secret.node.path not in [scope.node.path for scope in node.node.scopes]:
            return False
        if isinstance(node, secretsmanager.CfnRotationSchedule):
            if Stack.of(node).node.path == self._stack.node.path:
                node.node.add_dependency(self._migration)
            return False
        return CfnResource.is_cfn_resource(node)

    def _is_cluster_instance(self, node: IConstruct) -> bool:
        """An instance of the database's cluster, whose endpoint and secret are there before anything answers."""
        if not isinstance(node, rds.CfnDBInstance) or node.db_cluster_identifier is None:
            return False
        attachments = [
            part.target_id
            for part in self._database_secret.node.find_all()
            if isinstance(part, secretsmanager.CfnSecretTargetAttachment)
        ]
        told = _referred_to(self._database_secret.secret_arn, *attachments, *self._database)
        return bool(told & _referred_to(node.db_cluster_identifier))


@jsii.implements(IAspect)
class FollowAll:
    """Lets a contract wait for everything else in its stack, so that nothing can fail after it.

    What waits for the contract itself is left out, whether it says so or refers to it: that would be a cycle.
    """

    def __init__(self, contract: CustomResource, when_all_is_there: Callable[[], None]) -> None:
        self._contract = contract
        self._when_all_is_there = when_all_is_there
        self._stack = Stack.of(contract)
        self._stack_path = self._stack.node.path
        self._last = ""

    def visit(self, node: IConstruct) -> None:
        """Called for each construct of the stack, the stack itself first."""
        path = _path(node)
        if path == self._stack_path:
            last: IConstruct = self._stack
            while children := last.node.children:
                last = children[-1]
            self._last = _path(last)
        # Not before: CDK keeps what a value is resolved to, and aspects may still change what comes after this one.
        if path == self._last:
            self._when_all_is_there()
            self._follow()

    def _follow(self) -> None:
        constructs = {_path(node): node for node in self._stack.node.find_all()}
        stacks = {path: node for path, node in constructs.items() if isinstance(node, Stack)}
        inner = {path: stack for path, stack in stacks.items() if path != self._stack_path}
        resources = {path: node for path, node in constructs.items() if isinstance(node, CfnResource)}
        waiting = self._waiting(constructs, resources, inner)
        own = [path for path in resources if not any(_holds(stack, path) for stack in inner)]
        self._contract.node.add_dependency(*[resources[path] for path in own if path not in waiting])

    def _waiting(
        self,
        constructs: Mapping[str, IConstruct],
        resources: Mapping[str, CfnResource],
        inner: Mapping[str, Stack],
    ) -> set[str]:
        """The paths of the contract, and of what waits for it; of a nested stack that holds such a resource, too.

        Args:
            constructs: all of the stack, by their paths.
            resources: those among them.
            inner: the stacks among them, nested ones as a rule.
        """
        contract = _path(cast(IConstruct, self._contract.node.default_child))
        told, mentioned = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for path, node in constructs.items():
            for need in node.node.dependencies:
                told[_path(need)].add(path)
        for path, resource in resources.items():
            for other in resource.obtain_dependencies():
                told[_path(other)].add(path)
            if path != contract:
                for name in _mentioned(self._stack.resolve(resource._cfn_properties)):
                    mentioned[name].add(path)
        around = {path: _path(nested) for path, stack in inner.items() if (nested := stack.nested_stack_resource)}
        waiting: set[str] = set()
        reached = [contract]
        while reached:
            path = reached.pop()
            if path in waiting:
                continue
            waiting.add(path)
            holders = {follower for scope in _scopes(path) for follower in told.get(scope, ())}
            reached += [one for one in resources if any(_holds(holder, one) for holder in holders)]
            reached += mentioned.get(self._stack.resolve(resources[path].logical_id), ())
            reached += [resource for stack, resource in around.items() if _holds(stack, path)]
        return waiting


def _path(node: IConstruct) -> str:
    # One call to CDK's process, where node.path is two; there are some for each construct of the stack.
    return cast(Construct, node).to_string()


def _scopes(path: str) -> list[str]:
    """The paths of the construct and of those around it."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _holds(scope: str, path: str) -> bool:
    return f"{path}/".startswith(f"{scope}/")


def _mentioned(value: object) -> Iterator[str]:
    """The logical ids that resolved properties refer to."""
    match value:
        case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), *_]}:
            yield name
        case {"Fn::GetAtt": str(name)}:
            yield name.partition(".")[0]
        case {"Fn::Sub": str(text)}:
            yield from SUBSTITUTED.findall(text)
        case {"Fn::Sub": [str(text), *variables]}:
            yield from SUBSTITUTED.findall(text)
            yield from _mentioned(variables)
        case dict():
            for part in value.values():
                yield from _mentioned(part)
        case list():
            for part in value:
                yield from _mentioned(part)


def runs_code(node: IConstruct) -> bool:
    """Whether it is a resource that runs code, or starts what does."""
    if not isinstance(node, CfnResource) or node.cfn_resource_type not in RUNS_CODE:
        return False
    # A VPC's NAT instances run code too, but are a part of the routes that the migration needs.
    return not any(isinstance(scope, ec2.Vpc) for scope in node.node.scopes)


def main_resource(scope: IConstruct) -> IConstruct | None:
    """The one resource that the construct stands for, such as that of a Fargate service; None for a composite."""
    while child := scope.node.default_child:
        scope = child
    return scope if CfnResource.is_cfn_resource(scope) else None


def outermost_stack(construct: IConstruct) -> Stack:
    """The stack of the construct; of a nested stack, the one around it, whose network it may use."""
    stack = Stack.of(construct)
    while around := stack.nested_stack_parent:
        stack = around
    return stack


def _referred_to(*texts: str) -> set[str]:
    """The paths of the resources of which the texts hold an attribute."""
    tokens = [token for text in texts for token in Tokenization.reverse_string(text).tokens]
    return {token.target.node.path for token in tokens if isinstance(token, Reference)}
