"""The function that CloudFormation calls: it runs the migration's task and answers with what became of it."""

from __future__ import annotations

from pathlib import Path

from aws_cdk import ArnFormat, Duration, RemovalPolicy, Stack
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_ssm as ssm
from constructs import Construct


class MigrationTrigger(Construct):
    """The function behind the custom resource, with what it may do and where it keeps its record.

    What it may do names the task definition's family, never a revision of it, so that no permission has to
    propagate when a deployment brings a new image or a new migration.

    Args:
        scope: the migration.
        construct_id: in that scope.
        cluster: where the task runs.
        task_definition: of the task.
        log_group: of the task.
        log_stream_prefix: of the task's container.
        service_timeout: how long CloudFormation waits for an answer.
        log_retention: how long the function's own log is kept.
        log_encryption_key: of that log.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster: ecs.ICluster,
        task_definition: ecs.FargateTaskDefinition,
        log_group: logs.ILogGroup,
        log_stream_prefix: str,
        service_timeout: Duration,
        log_retention: logs.RetentionDays,
        log_encryption_key: kms.IKey | None,
    ) -> None:
        super().__init__(scope, construct_id)
        # 1 to 7 of the resources that one migration adds; the other 7 are in MigrationTask.
        # 1: the record of the last migration, without which an unchanged deployment would have to start a task to find
        # out. The function writes it. When a property of it changes here, CloudFormation writes "none" back, which
        # costs one task that finds nothing to do.
        self.record = ssm.StringParameter(
            self, "Record", string_value="none", description="The record of the last database migration"
        )
        # 2: or Lambda would make one that keeps everything for ever.
        log = logs.LogGroup(
            self,
            "Log",
            retention=log_retention,
            encryption_key=log_encryption_key,
            removal_policy=RemovalPolicy.DESTROY,
        )
        # 3 and 4: the function's role, and what it may do. Lambda may take on the role for this account only: this
        # condition is one that AWS offers for the trust of an execution role.
        # https://docs.aws.amazon.com/lambda/latest/dg/permissions-managed-policies.html
        here = {"StringEquals": {"aws:SourceAccount": Stack.of(self).account}}
        role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("lambda.amazonaws.com", conditions=here))
        log.grant_write(role)
        for statement in self._statements(cluster, task_definition, log_group, log_stream_prefix):
            role.add_to_policy(statement)
        # 5 and 6: the function, and how often and how late Lambda may deliver an event to it.
        self.function = lambda_.Function(
            self,
            "Function",
            description="Runs the database migration for CloudFormation",
            runtime=lambda_.Runtime.PYTHON_3_14,
            handler="index.handler",
            # What Python leaves behind differs between a clone and an install, and so would the asset's hash.
            code=lambda_.Code.from_asset(str(Path(__file__).parent / "trigger_handler"), exclude=["__pycache__"]),
            role=role,
            timeout=Duration.minutes(15),
            memory_size=256,
            log_group=log,
            retry_attempts=2,
            max_event_age=service_timeout,
        )
        # 7: a watch longer than 15 minutes goes on in another invocation. In the role's own policy, on which the
        # function depends, its ARN would be a cycle.
        self_invocation = iam.PolicyStatement(actions=["lambda:InvokeFunction"], resources=[self.function.function_arn])
        iam.Policy(self, "Continue", roles=[role], statements=[self_invocation])

    def _statements(
        self,
        cluster: ecs.ICluster,
        task_definition: ecs.FargateTaskDefinition,
        log_group: logs.ILogGroup,
        log_stream_prefix: str,
    ) -> list[iam.PolicyStatement]:
        stack = Stack.of(self)
        in_cluster = {"ArnEquals": {"ecs:cluster": cluster.cluster_arn}}
        family = stack.format_arn(
            service="ecs", resource="task-definition", resource_name=f"{task_definition.family}:*"
        )
        tasks = stack.format_arn(service="ecs", resource="task", resource_name=f"{cluster.cluster_name}/*")
        streams = stack.format_arn(
            service="logs",
            resource="log-group",
            resource_name=f"{log_group.log_group_name}:log-stream:{log_stream_prefix}/*",
            arn_format=ArnFormat.COLON_RESOURCE_NAME,
        )
        roles = [task_definition.task_role.role_arn, task_definition.obtain_execution_role().role_arn]
        to_ecs = {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
        return [
            iam.PolicyStatement(actions=["ecs:RunTask"], resources=[family], conditions=in_cluster),
            # ECS has no resource for ListTasks but the condition.
            iam.PolicyStatement(actions=["ecs:ListTasks"], resources=["*"], conditions=in_cluster),
            iam.PolicyStatement(actions=["ecs:DescribeTasks", "ecs:StopTask"], resources=[tasks]),
            iam.PolicyStatement(actions=["iam:PassRole"], resources=roles, conditions=to_ecs),
            iam.PolicyStatement(actions=["logs:GetLogEvents"], resources=[streams]),
            iam.PolicyStatement(
                actions=["cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents"],
                resources=[stack.stack_id],
            ),
            iam.PolicyStatement(
                actions=["ssm:GetParameter", "ssm:PutParameter"], resources=[self.record.parameter_arn]
            ),
        ]
