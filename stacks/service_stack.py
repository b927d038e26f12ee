"""The half of a stage that every release deploys: the migration, and the service that waits for it."""

from __future__ import annotations

from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from constructs_lib import AlembicMigrations, MigrationTask
from stacks.data_stack import DataStack
from stacks.stage import Stage

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
        super().__init__(scope, construct_id, **kwargs)  # type: ignore[arg-type]  # jsii types each keyword by itself

        image = ecs.ContainerImage.from_docker_image_asset(
            ecr_assets.DockerImageAsset(
                self,
                "Image",
                directory=str(ROOT),
                platform=ecr_assets.Platform.LINUX_AMD64,
                ignore_mode=cdk.IgnoreMode.DOCKER,
            )
        )

        self.migration = MigrationTask(
            self,
            "Migration",
            family=f"{stage.environment}-migration-task",
            cluster=data.cluster,
            image=image,
            migrations=AlembicMigrations(ROOT / "alembic.ini"),
            database_secret=data.database_secret,
            security_groups=[data.database_clients],
            log_group=self._log_group("MigrationLogs", "migration-task", stage),
            execution_role=iam.Role(
                self,
                "MigrationExecutionRole",
                role_name=f"{stage.environment}-migration-task-execution-role",
                assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"),
            ),
            on_rollback=stage.on_rollback,
        )
        self.migration.metric_failures().create_alarm(
            self,
            "MigrationFailed",
            alarm_description=f"The database migration of {self.stack_name} has failed, or needs attention.",
            threshold=1,
            evaluation_periods=1,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )

        task_definition = ecs.FargateTaskDefinition(
            self,
            "InventoryTask",
            family=f"{stage.environment}-inventory-service",
            cpu=256,
            memory_limit_mib=512,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        task_definition.add_volume(name="tmp")
        container = task_definition.add_container(
            "inventory-service",
            image=image,
            port_mappings=[ecs.PortMapping(container_port=PORT)],
            secrets={"DATABASE_SECRET": ecs.Secret.from_secrets_manager(data.database_secret)},
            logging=ecs.LogDriver.aws_logs(
                stream_prefix="service",
                log_group=self._log_group("InventoryLogs", "inventory-service", stage),
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

        self.service = ecs.FargateService(
            self,
            "InventoryService",
            service_name=f"{stage.environment}-inventory-service",
            cluster=data.cluster,
            task_definition=task_definition,
            desired_count=stage.desired_count,
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            security_groups=[data.database_clients],
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            assign_public_ip=False,
        )
        self.migration.execute_before(self.service)

        cdk.CfnOutput(self, "SchemaRevisionBefore", value=self.migration.revision_before)
        cdk.CfnOutput(self, "SchemaRevisionAfter", value=self.migration.revision_after)
        cdk.CfnOutput(self, "MigrationTaskArn", value=self.migration.task_arn)
        cdk.CfnOutput(self, "MigrationSeconds", value=self.migration.duration)

    def _log_group(self, construct_id: str, component: str, stage: Stage) -> logs.LogGroup:
        return logs.LogGroup(
            self,
            construct_id,
            log_group_name=f"/ecs/{stage.environment}/{component}",
            retention=stage.log_retention,
            removal_policy=stage.removal_policy,
        )
