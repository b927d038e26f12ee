"""A log as a stage keeps it."""

from __future__ import annotations

from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct

from stacks.stage import Stage


class StageLog(logs.LogGroup):
    """A log group with the retention of its stage, encrypted with the stage's key.

    Also made for logs that AWS would open by itself: those keep everything for ever.

    Args:
        scope: what writes it, or its stack.
        construct_id: in that scope.
        name: of the log group, such as ``/ecs/dev/migration-task``.
        stage: whose settings it has.
        key: of the stage.
    """

    def __init__(self, scope: Construct, construct_id: str, *, name: str, stage: Stage, key: kms.IKey) -> None:
        super().__init__(
            scope,
            construct_id,
            log_group_name=name,
            retention=stage.log_retention,
            encryption_key=key,
            removal_policy=stage.removal_policy,
        )
