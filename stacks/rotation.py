"""A new password for a role of the database, each month."""

from __future__ import annotations

from collections.abc import Callable

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_kms as kms
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.stage import Stage
from stacks.stage_log import StageLog


class Rotation(Construct):
    """Rotates a secret every 30 days with the function that Secrets Manager hosts for PostgreSQL, not at once.

    Args:
        scope: the stack of the rotation.
        construct_id: in that stack.
        function_name: of the function; its log is made before it.
        secret: of an RDS database.
        rotation: how: ``HostedRotation.postgre_sql_single_user`` changes the password in place;
            ``postgre_sql_multi_user`` alternates between two users, so that the one in use stays valid.
        vpc: with the database; the function runs in ``vpc_subnets`` of it as a member of ``security_groups``.
        vpc_subnets: they lead to the database and to Secrets Manager.
        security_groups: they let the function out, and into the database.
        stage: whose settings the log has.
        key: of the stage.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        function_name: str,
        secret: secretsmanager.ISecret,
        rotation: Callable[..., secretsmanager.HostedRotation],
        vpc: ec2.IVpc,
        vpc_subnets: ec2.SubnetSelection,
        security_groups: list[ec2.ISecurityGroup],
        stage: Stage,
        key: kms.IKey,
    ) -> None:
        super().__init__(scope, construct_id)
        log = StageLog(self, "Log", name=f"/aws/lambda/{function_name}", stage=stage, key=key)
        schedule = secretsmanager.RotationSchedule(
            self,
            "Resource",
            secret=secret,
            hosted_rotation=rotation(
                function_name=function_name, vpc=vpc, vpc_subnets=vpc_subnets, security_groups=security_groups
            ),
            automatically_after=cdk.Duration.days(30),
            rotate_immediately_on_update=False,
        )
        schedule.node.add_dependency(log)
