"""What differs between the stages; everything else is the same code for all of them.

A stage more is one more ``Stage(...)`` in STAGES: ``cdk ls`` then shows its two stacks.
"""

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
        multi_az: whether RDS keeps a standby in another zone.
        backup_retention: how long RDS keeps automatic backups.
        log_retention: how long the log groups keep their events.
        desired_count: how many tasks of the service run.
        on_rollback: what happens to the schema when a deployment rolls back.
        protected: whether stacks and database refuse to be deleted until that is switched off by hand.
        removal_policy: what happens to the logs and the key when the stage is destroyed, but not when its creation
            fails: their names would be taken. Unless it is DESTROY, a snapshot of the database is kept.
    """

    environment: str
    availability_zones: int
    database_instance_type: ec2.InstanceType
    multi_az: bool
    backup_retention: cdk.Duration
    log_retention: logs.RetentionDays
    desired_count: int
    on_rollback: OnRollback
    protected: bool
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
            multi_az=False,
            backup_retention=cdk.Duration.days(1),
            log_retention=logs.RetentionDays.ONE_MONTH,
            desired_count=1,
            # As in production, or what is rehearsed here would be something else; renames keep the older names anyway.
            on_rollback=OnRollback.KEEP,
            protected=False,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        ),
        Stage(
            environment="staging",
            availability_zones=2,
            database_instance_type=ec2.InstanceType.of(ec2.InstanceClass.T4G, ec2.InstanceSize.SMALL),
            multi_az=False,
            backup_retention=cdk.Duration.days(7),
            log_retention=logs.RetentionDays.THREE_MONTHS,
            desired_count=2,
            on_rollback=OnRollback.KEEP,
            protected=True,
            removal_policy=cdk.RemovalPolicy.DESTROY,
        ),
        Stage(
            environment="prod",
            availability_zones=3,
            database_instance_type=ec2.InstanceType.of(ec2.InstanceClass.M7G, ec2.InstanceSize.LARGE),
            multi_az=True,
            backup_retention=cdk.Duration.days(35),
            log_retention=logs.RetentionDays.ONE_YEAR,
            desired_count=3,
            # A downgrade drops what customers have written since; here a person decides that, never a rollback.
            on_rollback=OnRollback.KEEP,
            protected=True,
            removal_policy=cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
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
