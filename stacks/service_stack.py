"""The half of a stage that every release deploys: the migration, and the service that waits for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from constructs_lib import AlembicMigrations, MigrationTask
from stacks.acknowledgments import acknowledge
from stacks.data_stack import ISOLATED, OF_THIS_ACCOUNT, DataStack
from stacks.rotation import Rotation
from stacks.stage import Stage
from stacks.stage_log import StageLog

ROOT = Path(__file__).parent.parent
PORT = 8080


class ServiceStack(cdk.Stack):
    """The migration and the inventory service, from one image.

    Args:
        scope: the app.
        construct_id: the name of the stack.
        stage: the settings of the stage.
        data: the stack with the network, the database and the cluster.
        kwargs: those of ``aws_cdk.Stack``.

    Raises:
        ValueError: when the migrations can't be read: none, two heads, or a broken chain.
    """

    def __init__(self, scope: Construct, construct_id: str, *, stage: Stage, data: DataStack, **kwargs: object) -> None:
        super().__init__(scope, construct_id, termination_protection=stage.protected, **kwargs)  # type: ignore[arg-type]  # jsii types each keyword by itself
        self._stage = stage
        self._data = data
        self._image = ecs.ContainerImage.from_docker_image_asset(
            ecr_assets.DockerImageAsset(
                self,
                "Image",
                directory=str(ROOT),
                platform=ecr_assets.Platform.LINUX_AMD64,
                ignore_mode=cdk.IgnoreMode.DOCKER,
            )
        )
        self.migration = self._migration()
        self.service = self._inventory_service()
        # The migration makes the role that is rotated.
        self.migration.execute_before(self.service, self._rotation())
        self._contract()

        cdk.CfnOutput(self, "SchemaRevisionBefore", value=self.migration.revision_before)
        cdk.CfnOutput(self, "SchemaRevisionAfter", value=self.migration.revision_after)
        cdk.CfnOutput(self, "MigrationTaskArn", value=self.migration.task_arn)
        cdk.CfnOutput(self, "MigrationSeconds", value=self.migration.duration)
        cdk.CfnOutput(self, "Contract", value=self.migration.contract_status)
        cdk.Tags.of(self).add("environment", stage.environment)
        cdk.Tags.of(self).add("application", "inventory")

    def _migration(self) -> MigrationTask:
        environment = self._stage.environment
        execution_role = self._role("MigrationExecutionRole", name=f"{environment}-migration-task-execution-role")
        _acknowledge_registry_token(execution_role)
        migration = MigrationTask(
            self,
            "Migration",
            family=f"{environment}-migration-task",
            cluster=self._data.cluster,
            image=self._image,
            migrations=AlembicMigrations(ROOT / "alembic.ini"),
            database_secret=self._data.database_secret,
            service_secret=self._data.service_secret,
            security_groups=[self._data.database_clients],
            log_group=self._log("MigrationLogs", "migration-task"),
            log_encryption_key=self._data.key,
            execution_role=execution_role,
            on_rollback=self._stage.on_rollback,
        )
        _acknowledge_variables(migration.task_definition)
        self._acknowledge_trigger(migration)
        migration.metric_failures().create_alarm(
            self,
            "MigrationFailed",
            alarm_description=f"The database migration of {self.stack_name} has failed, or needs attention.",
            threshold=1,
            evaluation_periods=1,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        return migration

    def _contract(self) -> None:
        """Once no task of the older release is left, the older names go away."""
        self.migration.contract_after(self.service)
        acknowledge(
            self.node.find_child("MigrationContract").node.find_child("Resource"),
            "The contract is the last of its stack: it waits for everything, and so for what it refers to anyway.",
            "W3005",
        )

    def _inventory_service(self) -> ecs.FargateService:
        environment, secret = self._stage.environment, self._data.service_secret
        task_role, execution_role = self._role("InventoryTaskRole"), self._role("InventoryExecutionRole")
        for role in (task_role, execution_role):
            secret.grant_read(role)
            self._data.let_decrypt_secrets(role)
        _acknowledge_registry_token(execution_role)
        task_definition = ecs.FargateTaskDefinition(
            self,
            "InventoryTask",
            family=f"{environment}-inventory-service",
            cpu=256,
            memory_limit_mib=512,
            task_role=task_role,
            execution_role=execution_role,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        _acknowledge_variables(task_definition)
        task_definition.add_volume(name="tmp")
        without_capabilities = ecs.LinuxParameters(self, "LinuxParameters", init_process_enabled=True)
        without_capabilities.drop_capabilities(ecs.Capability.ALL)
        container = task_definition.add_container(
            "inventory-service",
            image=self._image,
            port_mappings=[ecs.PortMapping(container_port=PORT)],
            # The value as of the start; by its ARN the service reads it anew when it has been rotated since.
            secrets={"DATABASE_SECRET": ecs.Secret.from_secrets_manager(secret)},
            environment={"DATABASE_SECRET_ARN": secret.secret_arn},
            linux_parameters=without_capabilities,
            logging=ecs.LogDriver.aws_logs(
                stream_prefix="service",
                log_group=self._log("InventoryLogs", "inventory-service"),
                mode=ecs.AwsLogDriverMode.NON_BLOCKING,
            ),
            health_check=ecs.HealthCheck(
                command=["CMD", "python", "-m", "inventory_service.ready"],
                interval=cdk.Duration.seconds(10),
                timeout=cdk.Duration.seconds(5),
                retries=3,
                start_period=cdk.Duration.seconds(30),
            ),
            readonly_root_filesystem=True,
            stop_timeout=cdk.Duration.seconds(30),
        )
        container.add_mount_points(ecs.MountPoint(container_path="/tmp", source_volume="tmp", read_only=False))  # noqa: S108  # the only writable path in the container
        return ecs.FargateService(
            self,
            "InventoryService",
            service_name=f"{environment}-inventory-service",
            cluster=self._data.cluster,
            task_definition=task_definition,
            desired_count=self._stage.desired_count,
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            security_groups=[self._data.database_clients],
            vpc_subnets=ISOLATED,
            assign_public_ip=False,
        )

    def _rotation(self) -> Rotation:
        owner = self._data.database_secret
        return Rotation(
            self,
            "ServiceRotation",
            function_name=f"{self._stage.environment}-rotate-service-secret",
            secret=self._data.service_secret,
            rotation=partial(secretsmanager.HostedRotation.postgre_sql_multi_user, master_secret=owner),
            vpc=self._data.vpc,
            vpc_subnets=ISOLATED,
            security_groups=[self._data.database_clients],
            stage=self._stage,
            key=self._data.key,
        )

    def _role(self, construct_id: str, name: str | None = None) -> iam.Role:
        ecs_tasks = iam.ServicePrincipal("ecs-tasks.amazonaws.com", conditions=OF_THIS_ACCOUNT)
        return iam.Role(self, construct_id, role_name=name, assumed_by=ecs_tasks)

    def _log(self, construct_id: str, component: str) -> StageLog:
        name = f"/ecs/{self._stage.environment}/{component}"
        return StageLog(self, construct_id, name=name, stage=self._stage, key=self._data.key)

    def _acknowledge_trigger(self, migration: MigrationTask) -> None:
        trigger = migration.node.find_child("Trigger")
        role, function = trigger.node.find_child("Role"), trigger.node.find_child("Function")
        here = "<AWS::Region>:<AWS::AccountId>"
        acknowledge(
            role,
            "ecs:ListTasks, the only action on every resource, knows no resource; a condition names the cluster.",
            "AwsSolutions-IAM5[Resource::*]",
        )
        acknowledge(
            role,
            "What stands for the star is known only when it is made: the number of a task definition of this family, "
            "the id of a task in this cluster, the log stream of such a task.",
            f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:ecs:{here}:task-definition/"
            f"{self._stage.environment}-migration-task:*]",
            f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:ecs:{here}:task/{self._data.stack_name}:"
            "ExportsOutputRefClusterEB0386A796A0E3FE/*]",
            f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:logs:{here}:log-group:<MigrationLogs670D4322>:"
            "log-stream:migration/*]",
        )
        acknowledge(
            function,
            "CloudFormation calls it once for each deployment; a reserved concurrency would be taken from the "
            "account's other functions.",
            "CKV_AWS_115",
        )
        acknowledge(
            function,
            "An event that Lambda can't deliver is a request that CloudFormation reports as failed after the timeout. "
            "A queue would only keep it, with the signed URL that it holds.",
            "CKV_AWS_116",
        )
        acknowledge(
            function,
            "It talks to the APIs of AWS and never to the database: the task does that. In this VPC, which has no way "
            "out, it could not reach them.",
            "CKV_AWS_117",
        )
        for construct in (function, migration.node.find_child("Resource")):
            acknowledge(
                construct,
                "CDK lets a resource wait for whole constructs, and so for what it refers to anyway: harmless.",
                "W3005",
            )


def _acknowledge_registry_token(execution_role: iam.Role) -> None:
    acknowledge(
        execution_role,
        "ecr:GetAuthorizationToken, the only action on every resource, knows no resource.",
        "AwsSolutions-IAM5[Resource::*]",
    )


def _acknowledge_variables(task_definition: ecs.FargateTaskDefinition) -> None:
    acknowledge(
        task_definition,
        "The variables are a revision, a time and an ARN. Every secret comes from Secrets Manager.",
        "AwsSolutions-ECS2",
    )
