"""The order of a deployment: what waits for the migration, and what the migration waits for."""

from __future__ import annotations

from collections.abc import Sequence

import jsii
from aws_cdk import CfnResource, CustomResource, IAspect, Reference, Stack, Tokenization
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import IConstruct

ROUTES = (
    ec2.CfnNatGateway,
    ec2.CfnNetworkAclEntry,
    ec2.CfnRoute,
    ec2.CfnSubnetNetworkAclAssociation,
    ec2.CfnSubnetRouteTableAssociation,
    ec2.CfnVPCEndpoint,
)
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
