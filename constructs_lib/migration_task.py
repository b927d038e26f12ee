"""The construct that other teams use: a database migration that runs before the services update."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Literal, cast

import jsii
from aws_cdk import Aspects, CfnResource, CustomResource, Duration, IAspect, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk import aws_sns as sns
from constructs import Construct, IConstruct, IValidation

from constructs_lib.alembic_migrations import AlembicMigrations
from constructs_lib.migration_contract import MigrationContract, scope_for, services_of
from constructs_lib.migration_trigger import MigrationTrigger
from constructs_lib.ordering import FollowNeeds, HoldBack, main_resource, outermost_stack, runs_code

CONTAINER = "migration"
LOG_STREAM_PREFIX = "migration"
# CloudFormation waits for an hour at most, and the answer needs three minutes after the deadline.
MIN_TIMEOUT, MAX_TIMEOUT = Duration.minutes(1), Duration.minutes(55)
MIN_DOWNGRADE_TIMEOUT = Duration.minutes(5)
ANSWER_MARGIN = Duration.minutes(3)
# Of the timeout, Fargate needs so much to start a task; the rest is the migration's own, half a minute at least.
STARTING_SECONDS = 60
# What the construct sets in the container, and the parameter for it.
OWN_VARIABLES = {
    "DATABASE_SECRET": "database_secret",
    "DATABASE_HOST": "database_host",
    "DATABASE_PORT": "database_port",
    "DATABASE_NAME": "database_name",
    "MIGRATION_TARGET": "migrations or version",
    "MIGRATION_TIMEOUT": "timeout",
}
CONTRACT_FOLLOWS = "MIGRATION_CONTRACT_FOLLOWS"
# Another tool may need these: the runner refuses a URL beside the secret, looks after the services' role, and leaves
# older names to the contract.
RUNNERS_VARIABLES = {
    "DATABASE_URL": "database_secret",
    "SERVICE_SECRET": "service_secret",
    CONTRACT_FOLLOWS: "contract_after",
}


class OnRollback(Enum):
    """What happens to the schema when the stack rolls back after its migration.

    Attributes:
        KEEP: it stays: every migration is one that the release before can live with.
        DOWNGRADE: the ``downgrade()`` of what this deployment has applied is run. It can lose data: what the new
            release has written into columns and tables that a downgrade drops is gone.
    """

    KEEP = "KEEP"
    DOWNGRADE = "DOWNGRADE"


@jsii.implements(ec2.IConnectable, iam.IGrantable)
class MigrationTask(Construct):
    """Migrates a database with a one-off Fargate task, and holds back what must wait until it has succeeded.

    A deployment that changes no migration starts no task. One whose migration fails fails with the reason, and
    rolls back before anything that ``execute_before`` names has been touched. The schema itself is rolled back only
    when ``on_rollback`` says so, and never touched when the stack is deleted.

    What is agreed with the container: it runs to completion, and exit code 0 means migrated. One migration adds 14
    resources at most, each numbered here and in MigrationTrigger with its reason.

    Args:
        scope: the stack of the services, so that a migration and its services deploy and roll back together.
        construct_id: in that scope. Changing it makes another resource, and so runs the migration again.
        cluster: where the task runs; its VPC is the task's.
        image: holds the migrations and the tool that runs them: the service's own image, as a rule. It runs without
            Linux capabilities, so root in it is a user as any other.
        database_secret: as RDS writes it: a JSON object with username and password, and host, port and dbname
            unless given beside it. The container gets it as DATABASE_SECRET. An imported one that a customer managed
            key encrypts is imported with its ``encryption_key``, which ECS may then use.
        migrations: an Alembic project, whose head is the target. None for any other tool; then give ``command``
            and ``version``.
        command: of the container. Default: ``python -m migration_runner upgrade``.
        version: names the state to migrate to when there are no ``migrations``: the task runs when it changes.
        environment: more environment variables of the container, none that other parameters are for.
        security_groups: of the task. Default: one of its own, see ``connections``.
        vpc_subnets: where the task runs. Default: the VPC's private subnets. Public ones give it a public address.
        database_host: for a secret that has none, as DATABASE_HOST. With it in place the migration also runs when
            the database is replaced by another one with the same secret.
        database_port: for a secret that has none, as DATABASE_PORT.
        database_name: for a secret that has none, as DATABASE_NAME.
        database_secret_fields: variables of the container and the field of the secret that each gets, for a tool that
            can't read DATABASE_SECRET: ``{"FLYWAY_USER": "username", "FLYWAY_PASSWORD": "password"}``.
        service_secret: of the services' own role, with username and password as RDS writes them; none by default. The
            container gets it as SERVICE_SECRET, and each run sees to it that this role is there, reads and writes the
            data, and can't change the schema: give the services this secret instead of ``database_secret``. It may be
            rotated, also with alternating users. Only for the default ``command``. The migration runs again when
            another secret is given. The role that migrates must be allowed to make roles, as RDS's master user is.
        cpu: in units of 1/1024 vCPU; 256 by default.
        memory_limit_mib: in MiB, one that Fargate offers for ``cpu``; 512 by default.
        runtime_platform: of the image. Default: Linux on X86_64.
        readonly_root_filesystem: true by default; /tmp is a volume of its own all the same. On Fargate a user other
            than root can write to it only if the image declares ``VOLUME /tmp``: it then has the permissions that the
            folder has in the image, otherwise root's.
            https://docs.aws.amazon.com/AmazonECS/latest/developerguide/bind-mounts.html
        timeout: how long the task may run, from 1 to 55 minutes, 30 by default; then it is stopped. No token. From 5
            minutes with OnRollback.DOWNGRADE. Of the contract's, four fifths are for waiting until older tasks have
            stopped: more than the services take to deploy and to drain.
        on_rollback: OnRollback.KEEP by default. OnRollback.DOWNGRADE is for Alembic with the default ``command``. The
            release that rolls back decides: its image has the files. It undoes only what its own deployment has
            applied, and keeps anything else, with an alarm. It counts from the deployment after the one that brings a
            first trigger that knows of it: the rollback of that one puts back the older trigger before it.
        on_database_ahead: ``"fail"`` by default: a release that is older than the schema is not deployed.
            ``"proceed"`` lets it pass, for migrations that it can live with. For Alembic only.
        failure_topic: gets a message when a migration has failed, or a rollback has kept what it should have undone.
            In this region and no FIFO topic; the policy of another account's topic, and the key of an imported one,
            must let the trigger publish. See also ``metric_failures``.
        family: of the task definition. Default: generated.
        execution_role: which ECS uses to pull the image and read the secret; it gets these permissions. Default:
            one of its own.
        log_group: of the task; not together with ``log_group_name``. Default: one of its own, which stays when the
            migration is deleted.
        log_group_name: of the log group that is made. Default: generated.
        log_retention: of the log groups that are made; three months by default.
        log_encryption_key: of the log groups that are made, whose policy must let CloudWatch Logs use it. Default:
            that of CloudWatch. https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
        force: a text; the migration runs again when it changes.

    Attributes:
        log_group: of the task: the one given, or the one that was made.
        task_definition: of the task, for what no parameter is for, such as a sidecar or a policy of the task's role.

    Raises:
        ValueError: the timeout is out of bounds, two parameters exclude each other, the command is one text, the
            environment or a field of the secret sets a variable that another parameter is for, no subnet is selected,
            or something is asked for that only Alembic can do.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        cluster: ecs.ICluster,
        image: ecs.ContainerImage,
        database_secret: secretsmanager.ISecret,
        migrations: AlembicMigrations | None = None,
        command: Sequence[str] | None = None,
        version: str | None = None,
        environment: Mapping[str, str] | None = None,
        security_groups: Sequence[ec2.ISecurityGroup] | None = None,
        vpc_subnets: ec2.SubnetSelection | None = None,
        database_host: str | None = None,
        database_port: int | None = None,
        database_name: str | None = None,
        database_secret_fields: Mapping[str, str] | None = None,
        service_secret: secretsmanager.ISecret | None = None,
        cpu: int = 256,
        memory_limit_mib: int = 512,
        runtime_platform: ecs.RuntimePlatform | None = None,
        readonly_root_filesystem: bool = True,
        timeout: Duration | None = None,
        on_rollback: OnRollback = OnRollback.KEEP,
        on_database_ahead: Literal["fail", "proceed"] = "fail",
        failure_topic: sns.ITopic | None = None,
        family: str | None = None,
        execution_role: iam.IRole | None = None,
        log_group: logs.ILogGroup | None = None,
        log_group_name: str | None = None,
        log_retention: logs.RetentionDays = logs.RetentionDays.THREE_MONTHS,
        log_encryption_key: kms.IKey | None = None,
        force: str = "",
    ) -> None:
        super().__init__(scope, construct_id)
        timeout = timeout or Duration.minutes(30)
        environment = environment or {}
        fields = dict(database_secret_fields or {})
        default_command = bool(migrations) and not command
        self._migrations = migrations if default_command else None
        self._contract: MigrationContract | None = None
        self._cluster = cluster
        _refuse_tool(migrations=migrations, command=command, version=version)
        _refuse_two_log_groups(log_group=log_group, log_group_name=log_group_name)
        _refuse_variables(environment=environment, fields=fields, alembic=bool(migrations))
        _refuse_policies(on_rollback=on_rollback, on_database_ahead=on_database_ahead, default_command=default_command)
        _refuse_timeout(timeout=timeout, on_rollback=on_rollback)
        _refuse_service_secret(
            service_secret=service_secret, database_secret=database_secret, default_command=default_command
        )
        _refuse_topic(failure_topic)
        command = list(command or ["python", "-m", "migration_runner", "upgrade"])
        target = migrations.target if migrations else str(version)
        given = {"DATABASE_HOST": database_host, "DATABASE_PORT": database_port, "DATABASE_NAME": database_name}
        database = {name: str(value) for name, value in given.items() if value is not None}

        # 8: kept for whoever looks into a failure later, but not after a failed creation, or its name would be taken.
        self.log_group: logs.ILogGroup = log_group or logs.LogGroup(
            self,
            "Log",
            log_group_name=log_group_name,
            retention=log_retention,
            encryption_key=log_encryption_key,
            removal_policy=RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE,
        )
        # 9 to 12: the task definition, the role of what runs in the container, the role with which ECS pulls the
        # image, reads the secret and writes the log, and that role's policy.
        self.task_definition = self._make_task_definition(
            family=family,
            cpu=cpu,
            memory_limit_mib=memory_limit_mib,
            runtime_platform=runtime_platform,
            execution_role=execution_role,
        )
        self._add_container(
            image=image,
            command=command,
            environment={
                **environment,
                **database,
                "MIGRATION_TARGET": target,
                "MIGRATION_TIMEOUT": f"{max(timeout.to_seconds() - STARTING_SECONDS, STARTING_SECONDS / 2):g}",
            },
            secrets=self._container_secrets(
                database_secret=database_secret, fields=fields, service_secret=service_secret
            ),
            readonly_root_filesystem=readonly_root_filesystem,
        )

        # 13: only when none is given.
        groups = list(security_groups or [ec2.SecurityGroup(self, "SecurityGroup", vpc=cluster.vpc)])
        self._connections = ec2.Connections(security_groups=groups)
        subnets = _selected(cluster.vpc, vpc_subnets or ec2.SubnetSelection())
        service_timeout = self._service_timeout = timeout.plus(ANSWER_MARGIN)
        trigger = self._trigger = MigrationTrigger(
            self,
            "Trigger",
            cluster=cluster,
            task_definition=self.task_definition,
            log_group=self.log_group,
            log_stream_prefix=LOG_STREAM_PREFIX,
            service_timeout=service_timeout,
            log_retention=log_retention,
            log_encryption_key=log_encryption_key,
        )
        if failure_topic is not None:
            failure_topic.grant_publish(trigger.function)
        targets = migrations.targets if migrations else [target]
        self._properties = {
            "Revisions": _window(migrations.descriptions if migrations else [target]),
            "Fingerprint": _fingerprint(
                facts=[migrations.fingerprint if migrations else version, command, force],
                secrets=[secret for secret in (database_secret, service_secret) if secret is not None],
                database=database,
            ),
            "Target": target,
            **({"Targets": targets} if len(targets) > 1 else {}),
            "Cluster": cluster.cluster_arn,
            "TaskDefinition": self.task_definition.task_definition_arn,
            "Container": CONTAINER,
            "Subnets": subnets.subnet_ids,
            "SecurityGroups": [group.security_group_id for group in groups],
            "AssignPublicIp": "ENABLED" if subnets.has_public else "DISABLED",
            "LogGroup": self.log_group.log_group_name,
            "LogStreamPrefix": LOG_STREAM_PREFIX,
            "MemoryLimitMiB": memory_limit_mib,
            "Timeout": timeout.to_seconds(),
            "RecordParameter": trigger.record.parameter_name,
            "OnRollback": on_rollback.value,
            "OnDatabaseAhead": on_database_ahead,
            **({"FailureTopic": failure_topic.topic_arn} if failure_topic is not None else {}),
        }
        # 14: the migration itself, as CloudFormation sees it.
        self._resource = CustomResource(
            self,
            "Resource",
            resource_type="Custom::DatabaseMigration",
            service_token=trigger.function.function_arn,
            service_timeout=service_timeout,
            properties=self._properties,
        )
        self.node.add_validation(cast(IValidation, _ContractIsCalled(self)))
        self._held: list[IConstruct] = []
        self._wait_for_needs(
            trigger=trigger,
            security_groups=groups,
            database_secret=database_secret,
            database=list(database.values()),
            service_secret=service_secret,
        )

    @property
    def connections(self) -> ec2.Connections:
        """The task's network connections: ``migration.connections.allow_to_default_port(database)``."""
        return self._connections

    @property
    def grant_principal(self) -> iam.IPrincipal:
        """What runs in the container; ECS's own permissions are the execution role's."""
        return self.task_definition.task_role

    @property
    def revision_before(self) -> str:
        """The revision of the schema before the last deployment; "-" when unknown."""
        return self._resource.get_att_string("RevisionBefore")

    @property
    def revision_after(self) -> str:
        """The revision of the schema after the last deployment; "-" when unknown."""
        return self._resource.get_att_string("RevisionAfter")

    @property
    def task_arn(self) -> str:
        """The task of the last deployment; "-" when it started none."""
        return self._resource.get_att_string("TaskArn")

    @property
    def duration(self) -> str:
        """How long the migration took, in seconds; "-" when no task was started."""
        return self._resource.get_att_string("Duration")

    @property
    def contract_status(self) -> str:
        """What the last deployment has left of the contract: ``closed``, or ``open`` and why; "-" when unknown.

        Raises:
            ValueError: ``contract_after`` has not been called.
        """
        if self._contract is None:
            raise ValueError("there is no contract_status without a contract: call contract_after first.")
        return self._contract.resource.get_att_string("Contract")

    def metric_failures(self, period: Duration | None = None) -> cloudwatch.Metric:
        """How many deployments a migration has failed, and how many rollbacks have kept what they should have undone.

        Args:
            period: over which they are added up; five minutes by default.
        """
        return self._metric("Failures", "Sum", period)

    def metric_duration(self, period: Duration | None = None) -> cloudwatch.Metric:
        """How long migrations that succeeded took, in seconds: the longest.

        Args:
            period: in which; five minutes by default.
        """
        return self._metric("Duration", "Maximum", period)

    def metric_open_contracts(self, period: Duration | None = None) -> cloudwatch.Metric:
        """Whether the contract is open: 1, or 0 once it is closed; each answer of a deployment or a rollback tells.

        An upgrade that opens names tells 1, and the contract of the same deployment 0. So what was left open is where
        the lowest of a longer period is 1.

        Args:
            period: of which the lowest counts, longer than a deployment takes; an hour by default.
        """
        return self._metric("OpenContracts", "Minimum", period or Duration.hours(1))

    def _metric(self, name: str, statistic: str, period: Duration | None) -> cloudwatch.Metric:
        resource = cast(CfnResource, self._resource.node.default_child)
        return cloudwatch.Metric(
            namespace="DatabaseMigration",
            metric_name=name,
            dimensions_map={"Stack": Stack.of(self).stack_name, "Migration": resource.logical_id},
            statistic=statistic,
            period=period,
        )

    def execute_before(self, *scopes: Construct) -> None:
        """Let what is given be created and updated only after the migration has succeeded.

        Args:
            scopes: a service or another resource; another stack, also a nested one; or a whole construct, of which
                what runs code or starts it waits: ECS services and task sets, Lambda functions, EC2 instances, auto
                scaling groups, App Runner services, Elastic Beanstalk environments, Batch, EventBridge rules,
                schedules and pipes, state machines, and the manifests and charts of EKS. The rest does not, such as
                networks, repositories and databases, since the migration may need it itself: name such a resource
                if it must wait, for example a custom resource that reads the database.

        Raises:
            ValueError: the migration is itself a part of a scope, or nothing in a whole construct runs code.
        """
        for scope in scopes:
            self._refuse_own(scope)
            self._held.append(scope)
            whole = scope if isinstance(scope, Stack) else main_resource(scope)
            holds_code = not isinstance(scope, Stack) and any(runs_code(node) for node in scope.node.find_all())
            if whole:
                whole.node.add_dependency(self._resource)
            # Also beside a main resource: any construct may have called one of its services "Default" or "Resource".
            if holds_code:
                Aspects.of(scope).add(cast(IAspect, HoldBack(self._resource)))
            if not whole and not holds_code:
                raise ValueError(
                    f"nothing in {scope.node.path!r} runs code, so nothing would wait for the migration: name what "
                    "must wait, once it is there."
                )

    def execute_after(self, *scopes: Construct) -> None:
        """Run the migration only after everything that is given has been created and updated.

        Args:
            scopes: resources, whole constructs, or other stacks.

        Raises:
            ValueError: the migration is itself a part of a scope.
        """
        for scope in scopes:
            self._refuse_own(scope)
            self._resource.node.add_dependency(scope)

    def contract_after(self, *services: Construct, required: bool = False, scope: Construct | None = None) -> None:
        """Rename without a failed request: older names go on working until no task of an older release is left.

        With it, a revision of renames alone gives a column or a table both names, and the revisions at the end of the
        chain that are marked ``phase = "contract"`` wait. A second custom resource, the last in its stack, waits until
        each service has finished its deployment and its older tasks have stopped, and then takes the older names away
        and applies these revisions. When that can't be done, both names go on working, the deployment succeeds, the
        metrics and the topic tell, and the next deployment does it. A rollback opens the names again.

        The wait and the contract's task share the migration's ``timeout``, of which the last fifth is the task's. A
        deployment that removes or replaces a service leaves the contract open, also a required one: CloudFormation
        deletes that service only after it. So does one with other migrations that changes the task definition of no
        service: then older code may still run. A service in another stack than the contract is not looked at for that.

        Args:
            services: all ECS services that use the database, or constructs that hold them, also those that are added
                to them later, with the rolling or the blue/green deployments of ECS itself. What else runs code in
                such a construct is not waited for, of which a warning tells.
            required: whether a contract that stays open fails the deployment; false by default.
            scope: where the contract's resource is made, as ``NAMEContract`` with the migration's NAME. Default:
                beside the migration, or in the stack of the services. Needed for services in several stacks, in the
                one that is deployed last.

        Raises:
            ValueError: it has been called before, there is no service, a construct holds none or one that CodeDeploy
                or another controller deploys, services stand in several stacks and no scope is given, or the
                migration is not that of Alembic with the default ``command``.
        """
        _refuse_contract(migrations=self._migrations, made=self._contract is not None, required=required)
        found = services_of(services)
        resource = cast(CfnResource, self._resource.node.default_child)
        self._contract = MigrationContract(
            scope or scope_for(found, self),
            f"{self.node.id}Contract",
            function=self._trigger.function,
            migration=self._resource,
            properties={
                **self._properties,
                "Revisions": _window(self._migrations.contract_descriptions if self._migrations else []),
                "OnDatabaseAhead": "fail",
                "Migration": {"StackId": Stack.of(self).stack_id, "LogicalId": resource.logical_id},
            },
            cluster=self._cluster,
            family=self.task_definition.family,
            constructs=services,
            required=required,
            service_timeout=self._service_timeout,
        )
        container = cast(ecs.ContainerDefinition, self.task_definition.find_container(CONTAINER))
        container.add_environment(CONTRACT_FOLLOWS, "true")

    def _unapplied(self) -> list[str]:
        """The contract revisions at the end of the chain, when nothing applies them."""
        if self._migrations is None or self._contract is not None:
            return []
        return self._migrations.contract_descriptions[: len(self._migrations.targets) - 1]

    def _make_task_definition(
        self,
        *,
        family: str | None,
        cpu: int,
        memory_limit_mib: int,
        runtime_platform: ecs.RuntimePlatform | None,
        execution_role: iam.IRole | None,
    ) -> ecs.FargateTaskDefinition:
        here = {"StringEquals": {"aws:SourceAccount": Stack.of(self).account}}
        ecs_tasks = iam.ServicePrincipal("ecs-tasks.amazonaws.com", conditions=here)
        return ecs.FargateTaskDefinition(
            self,
            "TaskDefinition",
            family=family,
            cpu=cpu,
            memory_limit_mib=memory_limit_mib,
            task_role=iam.Role(self, "TaskRole", assumed_by=ecs_tasks),
            execution_role=execution_role or iam.Role(self, "ExecutionRole", assumed_by=ecs_tasks),
            # Explicit, or an image of the other processor fails only when it runs.
            runtime_platform=runtime_platform
            or ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
            volumes=[ecs.Volume(name="tmp")],
        )

    def _add_container(
        self,
        *,
        image: ecs.ContainerImage,
        command: list[str],
        environment: Mapping[str, str],
        secrets: Mapping[str, ecs.Secret],
        readonly_root_filesystem: bool,
    ) -> None:
        linux_parameters = ecs.LinuxParameters(self, "LinuxParameters", init_process_enabled=True)
        linux_parameters.drop_capabilities(ecs.Capability.ALL)
        container = self.task_definition.add_container(
            CONTAINER,
            container_name=CONTAINER,
            image=image,
            command=command,
            environment=environment,
            secrets=secrets,
            # The default mode drops lines when CloudWatch is slow; the last line is the one that counts.
            logging=ecs.LogDrivers.aws_logs(
                stream_prefix=LOG_STREAM_PREFIX, log_group=self.log_group, mode=ecs.AwsLogDriverMode.BLOCKING
            ),
            readonly_root_filesystem=readonly_root_filesystem,
            # Signals reach the migration, and it has the longest time that Fargate grants to roll back.
            linux_parameters=linux_parameters,
            stop_timeout=Duration.seconds(120),
        )
        container.add_mount_points(ecs.MountPoint(container_path="/tmp", source_volume="tmp", read_only=False))  # noqa: S108

    def _container_secrets(
        self,
        *,
        database_secret: secretsmanager.ISecret,
        fields: Mapping[str, str],
        service_secret: secretsmanager.ISecret | None,
    ) -> dict[str, ecs.Secret]:
        """The variables of the container that ECS reads from the secrets, which it may then do."""
        service = {}
        if service_secret is not None:
            readable = self._decryptable("ServiceSecret", service_secret)
            service["SERVICE_SECRET"] = ecs.Secret.from_secrets_manager(readable)
        secret = self._decryptable("DatabaseSecret", database_secret)
        return {
            "DATABASE_SECRET": ecs.Secret.from_secrets_manager(secret),
            **{name: ecs.Secret.from_secrets_manager(secret, field) for name, field in fields.items()},
            **service,
        }

    def _decryptable(self, construct_id: str, secret: secretsmanager.ISecret) -> secretsmanager.ISecret:
        """The secret, for ECS, which may also use the key that encrypts it.

        CDK would let it by that key's policy alone: the one of an imported key it can't change, and the one of a key
        in another stack would wait for this stack. https://github.com/aws/aws-cdk/issues/20087
        """
        key = secret.encryption_key
        if key is None:
            return secret
        stack = Stack.of(self)
        via = {"kms:ViaService": f"secretsmanager.{stack.region}.amazonaws.com"}
        for statement in key.grant_decrypt(self.task_definition.obtain_execution_role()).principal_statements:
            statement.add_condition("StringEquals", via)
        if Stack.of(key).node.path == stack.node.path:
            return secret
        if secret.secret_full_arn is None:
            return secretsmanager.Secret.from_secret_partial_arn(self, construct_id, secret.secret_arn)
        return secretsmanager.Secret.from_secret_complete_arn(self, construct_id, secret.secret_full_arn)

    def _wait_for_needs(
        self,
        *,
        trigger: MigrationTrigger,
        security_groups: Sequence[ec2.ISecurityGroup],
        database_secret: secretsmanager.ISecret,
        database: Sequence[str],
        service_secret: secretsmanager.ISecret | None,
    ) -> None:
        """What a task needs and CloudFormation can't see: it knows the task definition, not that a task will run."""
        roles = [self.task_definition.task_role, self.task_definition.obtain_execution_role()]
        self._resource.node.add_dependency(trigger, *roles, self.log_group, database_secret)
        needs = FollowNeeds(
            migration=self._resource,
            security_groups=security_groups,
            roles=roles,
            held=self._held,
            database_secret=database_secret,
            database=database,
            service_secret=service_secret,
        )
        Aspects.of(outermost_stack(self)).add(cast(IAspect, needs))

    def _refuse_own(self, scope: IConstruct) -> None:
        if scope.node.path in [own.node.path for own in self.node.scopes]:
            raise ValueError(f"the migration is part of {scope.node.path!r}: name the resources in it instead.")


@jsii.implements(IValidation)
class _ContractIsCalled:
    """At synth: a release with contract revisions says when they may be applied."""

    def __init__(self, migration: MigrationTask) -> None:
        self._migration = migration

    def validate(self) -> list[str]:
        """The error, if it is one."""
        unapplied = self._migration._unapplied()
        if not unapplied:
            return []
        return [
            f"migrations ends with contract revisions, {', '.join(unapplied)}, which nothing would apply: call "
            "contract_after with the services that use the database."
        ]


def _selected(vpc: ec2.IVpc, wanted: ec2.SubnetSelection) -> ec2.SelectedSubnets:
    selected = vpc.select_subnets(
        availability_zones=wanted.availability_zones,
        one_per_az=wanted.one_per_az,
        subnet_filters=wanted.subnet_filters,
        subnet_group_name=wanted.subnet_group_name,
        subnets=wanted.subnets,
        subnet_type=wanted.subnet_type,
    )
    # Before a VPC has been looked up, CDK knows none of its subnets' names.
    if not selected.subnet_ids and not selected.is_pending_lookup:
        raise ValueError(f"vpc_subnets selects no subnet of {vpc.node.path!r}: name subnets that this VPC has.")
    return selected


def _window(lines: list[str]) -> list[str]:
    """The newest lines. Their oldest end moves at every 25th line only, or each diff would show one removed."""
    return lines[: 25 + len(lines) % 25]


def _fingerprint(
    *, facts: Sequence[object], secrets: Sequence[secretsmanager.ISecret], database: Mapping[str, str]
) -> str:
    """Changes when a task would have something to do.

    Another database, or another secret to reach it, has not been migrated by the last task, and another role of the
    services has no rights yet.
    """
    known_at_synth = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return " ".join([known_at_synth, *(secret.secret_arn for secret in secrets), *database.values()])


def _refuse_tool(*, migrations: AlembicMigrations | None, command: Sequence[str] | None, version: str | None) -> None:
    if migrations and version is not None:
        raise ValueError(
            f"migrations and version={version!r} exclude each other: the revisions are the version. Drop one."
        )
    if not migrations and not (command and version):
        raise ValueError("without migrations, give both command and version, such as version='V7'.")
    if isinstance(command, str):
        sentence = f"command is the text {command!r}, but must be a list, such as {command.split()!r}."
        raise ValueError(sentence)  # noqa: TRY004  # as for all that is refused at synth


def _refuse_two_log_groups(*, log_group: logs.ILogGroup | None, log_group_name: str | None) -> None:
    if log_group and log_group_name:
        raise ValueError(f"log_group and log_group_name={log_group_name!r} exclude each other: drop one.")


def _refuse_variables(*, environment: Mapping[str, str], fields: Mapping[str, str], alembic: bool) -> None:
    """A variable that is set twice; its value may be a password, and is not shown."""
    own = OWN_VARIABLES | (RUNNERS_VARIABLES if alembic else {})
    if taken := sorted(own.keys() & environment.keys()):
        raise ValueError(f"environment must not set {taken[0]}: that is what {own[taken[0]]} is for.")
    own |= dict.fromkeys(environment, "environment")
    if taken := sorted(own.keys() & fields.keys()):
        raise ValueError(f"database_secret_fields must not set {taken[0]}: that is what {own[taken[0]]} is for.")
    for name, field in fields.items():
        # ECS takes what stands behind a colon for a version, and an empty field for the whole secret.
        is_variable = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)
        if not is_variable or not isinstance(field, str) or not re.fullmatch(r"[^:]+", field):
            raise ValueError(
                f"database_secret_fields has {name!r}: {field!r}, but must have variables and the name of a field "
                "without a colon for each, such as {'FLYWAY_USER': 'username'}."
            )


def _refuse_policies(*, on_rollback: OnRollback, on_database_ahead: str, default_command: bool) -> None:
    if not isinstance(on_rollback, OnRollback):
        sentence = f"on_rollback is {on_rollback!r}, but must be OnRollback.KEEP or OnRollback.DOWNGRADE."
        raise ValueError(sentence)  # noqa: TRY004  # as for all that is refused at synth
    if on_rollback is OnRollback.DOWNGRADE and not default_command:
        raise ValueError(
            "on_rollback=DOWNGRADE runs `python -m migration_runner downgrade`: give migrations, and no command."
        )
    if on_database_ahead not in ("fail", "proceed"):
        raise ValueError(f"on_database_ahead is {on_database_ahead!r}, but must be 'fail' or 'proceed'.")
    if on_database_ahead == "proceed" and not default_command:
        raise ValueError(
            "on_database_ahead='proceed' goes by what `python -m migration_runner` tells: give migrations, and no "
            "command."
        )


def _refuse_timeout(*, timeout: Duration, on_rollback: OnRollback) -> None:
    if timeout.is_unresolved():
        raise ValueError("timeout is a token, but must be known at synth: give a number, from 1 to 55 minutes.")
    if not MIN_TIMEOUT.to_seconds() <= timeout.to_seconds() <= MAX_TIMEOUT.to_seconds():
        raise ValueError(
            f"timeout is {timeout.to_seconds() / 60:g} minutes, but must be from 1 to 55 minutes: CloudFormation "
            "waits for an hour."
        )
    if on_rollback is OnRollback.DOWNGRADE and timeout.to_seconds() < MIN_DOWNGRADE_TIMEOUT.to_seconds():
        raise ValueError(
            f"timeout is {timeout.to_seconds() / 60:g} minutes, but must be from 5 to 55 minutes for "
            "on_rollback=DOWNGRADE: an upgrade that is cancelled may take two of them to stop."
        )


def _refuse_service_secret(
    *, service_secret: secretsmanager.ISecret | None, database_secret: secretsmanager.ISecret, default_command: bool
) -> None:
    if service_secret is None:
        return
    if not default_command:
        raise ValueError(
            "service_secret is for the role that `python -m migration_runner` looks after: give migrations, and no "
            "command."
        )
    if not hasattr(service_secret, "secret_arn"):
        raise ValueError(f"service_secret is {type(service_secret).__name__}, but must be a secret of Secrets Manager.")
    if service_secret.secret_arn == database_secret.secret_arn:
        raise ValueError(
            "service_secret is database_secret, but must be another one: who owns the schema can change it."
        )


def _refuse_contract(*, migrations: AlembicMigrations | None, made: bool, required: bool) -> None:
    if migrations is None:
        raise ValueError("contract_after runs `python -m migration_runner contract`: give migrations, and no command.")
    if made:
        raise ValueError("contract_after has been called before: name all services in one call.")
    if not isinstance(required, bool):
        sentence = f"required is {required!r}, but must be True or False."
        raise ValueError(sentence)  # noqa: TRY004  # as for all that is refused at synth


def _refuse_topic(failure_topic: sns.ITopic | None) -> None:
    if failure_topic is None:
        return
    if not hasattr(failure_topic, "grant_publish"):
        raise ValueError(f"failure_topic is {failure_topic!r}, but must be a topic: sns.Topic(self, 'Failures').")
    if failure_topic.fifo:
        raise ValueError("failure_topic is a FIFO topic, which takes no message without a group: give another one.")
