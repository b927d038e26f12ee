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
        super().__init__(scope, construct_id, termination_protection=stage.protected, **kwargs)  # type: ignore[arg-type]  # jsii types each keyword by itself

        image = ecs.ContainerImage.from_docker_image_asset(
            ecr_assets.DockerImageAsset(
                self,
                "Image",
                directory=str(ROOT),
                platform=ecr_assets.Platform.LINUX_AMD64,
                ignore_mode=cdk.IgnoreMode.DOCKER,
            )
        )

        ecs_tasks = iam.ServicePrincipal("ecs-tasks.amazonaws.com", conditions=OF_THIS_ACCOUNT)

        migration_execution_role = iam.Role(
            self,
            "MigrationExecutionRole",
            role_name=f"{stage.environment}-migration-task-execution-role",
            assumed_by=ecs_tasks,
        )
        self.migration = MigrationTask(
            self,
            "Migration",
            family=f"{stage.environment}-migration-task",
            cluster=data.cluster,
            image=image,
            migrations=AlembicMigrations(ROOT / "alembic.ini"),
            database_secret=data.database_secret,
            service_secret=data.service_secret,
            security_groups=[data.database_clients],
            log_group=stage.log_group(self, "MigrationLogs", f"/ecs/{stage.environment}/migration-task", data.key),
            log_encryption_key=data.key,
            execution_role=migration_execution_role,
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

        task_role = iam.Role(self, "InventoryTaskRole", assumed_by=ecs_tasks)
        execution_role = iam.Role(self, "InventoryExecutionRole", assumed_by=ecs_tasks)
        for role in (task_role, execution_role):
            data.service_secret.grant_read(role)
            data.key.grant_decrypt(role)
        task_definition = ecs.FargateTaskDefinition(
            self,
            "InventoryTask",
            family=f"{stage.environment}-inventory-service",
            cpu=256,
            memory_limit_mib=512,
            task_role=task_role,
            execution_role=execution_role,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.X86_64,
                operating_system_family=ecs.OperatingSystemFamily.LINUX,
            ),
        )
        task_definition.add_volume(name="tmp")
        without_capabilities = ecs.LinuxParameters(self, "LinuxParameters", init_process_enabled=True)
        without_capabilities.drop_capabilities(ecs.Capability.ALL)
        container = task_definition.add_container(
            "inventory-service",
            image=image,
            port_mappings=[ecs.PortMapping(container_port=PORT)],
            # The value as of the start; by its ARN the service reads it anew when it has been rotated since.
            secrets={"DATABASE_SECRET": ecs.Secret.from_secrets_manager(data.service_secret)},
            environment={"DATABASE_SECRET_ARN": data.service_secret.secret_arn},
            linux_parameters=without_capabilities,
            logging=ecs.LogDriver.aws_logs(
                stream_prefix="service",
                log_group=stage.log_group(
                    self, "InventoryLogs", f"/ecs/{stage.environment}/inventory-service", data.key
                ),
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
            vpc_subnets=ISOLATED,
            assign_public_ip=False,
        )
        # Two users in turn: the one that the tasks have read stays valid until the next rotation.
        alternating = partial(secretsmanager.HostedRotation.postgre_sql_multi_user, master_secret=data.database_secret)
        rotation = data.rotate(self, "Service", data.service_secret, alternating)
        # The migration makes the role that is rotated.
        self.migration.execute_before(self.service, rotation)

        self._acknowledge(data, stage, task_definition, migration_execution_role, execution_role)

        cdk.CfnOutput(self, "SchemaRevisionBefore", value=self.migration.revision_before)
        cdk.CfnOutput(self, "SchemaRevisionAfter", value=self.migration.revision_after)
        cdk.CfnOutput(self, "MigrationTaskArn", value=self.migration.task_arn)
        cdk.CfnOutput(self, "MigrationSeconds", value=self.migration.duration)
        cdk.Tags.of(self).add("environment", stage.environment)
        cdk.Tags.of(self).add("application", "inventory")

    def _acknowledge(
        self,
        data: DataStack,
        stage: Stage,
        task_definition: ecs.FargateTaskDefinition,
        *execution_roles: iam.Role,
    ) -> None:
        for role in execution_roles:
            acknowledge(
                role,
                "ecr:GetAuthorizationToken, the only action on every resource, knows no resource.",
                "AwsSolutions-IAM5[Resource::*]",
            )
        for definition in (self.migration.task_definition, task_definition):
            acknowledge(
                definition,
                "The variables are a revision, a time and an ARN. Every secret comes from Secrets Manager.",
                "AwsSolutions-ECS2",
            )
        trigger = self.migration.node.find_child("Trigger")
        here = "<AWS::Region>:<AWS::AccountId>"
        acknowledge(
            trigger.node.find_child("Role"),
            "ecs:ListTasks, the only action on every resource, knows no resource; a condition names the cluster.",
            "AwsSolutions-IAM5[Resource::*]",
        )
        acknowledge(
            trigger.node.find_child("Role"),
            "What stands for the star is known only when it is made: the number of a task definition of this family, "
            "the id of a task in this cluster, the log stream of such a task.",
            f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:ecs:{here}:task-definition/"
            f"{stage.environment}-migration-task:*]",
            f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:ecs:{here}:task/{data.stack_name}:"
            "ExportsOutputRefClusterEB0386A796A0E3FE/*]",
            f"AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:logs:{here}:log-group:<MigrationLogs670D4322>:"
            "log-stream:migration/*]",
        )
        function = trigger.node.find_child("Function")
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
        for construct in (function, self.migration.node.find_child("Resource")):
            acknowledge(
                construct,
                "CDK lets a resource wait for whole constructs, and so for what it refers to anyway: harmless.",
                "W3005",
            )
