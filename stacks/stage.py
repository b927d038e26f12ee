"""What differs between the stages; everything else is the same code for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs

from constructs_lib import OnRollback


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The settings of one stage.

    Args:
        environment: the prefix of every physical name, such as ``dev`` in ``dev-inventory-cluster``.
        availability_zones: how many zones the subnets span; RDS asks for two at least.
        database_instance_type: the size of the PostgreSQL instance.
        backup_retention: how long RDS keeps automatic backups.
        log_retention: how long the log groups keep their events.
        desired_count: how many tasks of the service run.
        on_rollback: what happens to the schema when a deployment rolls back.
        removal_policy: what happens to the data and the logs when the stage is destroyed.
    """

    environment: str
    availability_zones: int
    database_instance_type: ec2.InstanceType
    backup_retention: cdk.Duration
    log_retention: logs.RetentionDays
    desired_count: int
    on_rollback: OnRollback
    removal_policy: cdk.RemovalPolicy

    @property
    def stack_prefix(self) -> str:
        """What the stacks' names begin with: ``Dev`` in ``DevStack``."""
        return self.environment.capitalize()


STAGES = {
    stage.environment: stage
    for stage in [
        Stage(
            environment="dev",
            availability_zones=2,
            database_instance_type=ec2.InstanceType.of(ec2.InstanceClass.T4G, ec2.InstanceSize.MICRO),
            backup_retention=cdk.Duration.days(1),
            log_retention=logs.RetentionDays.ONE_MONTH,
            desired_count=1,
            # A rename is a plain one: the older release must find its column again.
            on_rollback=OnRollback.DOWNGRADE,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        ),
    ]
}


def stage_named(environment: str) -> Stage:
    """The stage of this environment.

    Raises:
        ValueError: when there is no such stage; the message names those that there are.
    """
    if environment not in STAGES:
        raise ValueError(f"unknown stage {environment!r}: use one of {', '.join(STAGES)}")
    return STAGES[environment]
