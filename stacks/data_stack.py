"""The long-lived half of a stage: network, database, cluster."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_rds as rds
from constructs import Construct

from stacks.stage import Stage


class DataStack(cdk.Stack):
    """A VPC without a way out, a PostgreSQL in it, and an ECS cluster.

    Whoever talks to the database joins ``database_clients``. No rule in here points to another stack, so a
    service stack may come and go without this one being deployed.

    Args:
        scope: the app.
        construct_id: the name of the stack.
        stage: the settings of the stage.
        kwargs: those of ``aws_cdk.Stack``.
    """

    def __init__(self, scope: Construct, construct_id: str, *, stage: Stage, **kwargs: object) -> None:
        super().__init__(scope, construct_id, **kwargs)  # type: ignore[arg-type]  # jsii types each keyword by itself

        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            max_azs=stage.availability_zones,
            nat_gateways=0,
            # It is done by a Lambda function in Node that CDK brings along; no resource here uses that group.
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24)
            ],
        )

        self.database_clients = ec2.SecurityGroup(
            self,
            "DatabaseClients",
            vpc=self.vpc,
            description="ECS tasks that may connect to the database and to the AWS endpoints of this VPC",
        )

        endpoints = ec2.SecurityGroup(
            self, "Endpoints", vpc=self.vpc, description="The AWS endpoints of this VPC", allow_all_outbound=False
        )
        endpoints.add_ingress_rule(self.database_clients, ec2.Port.tcp(443))
        # Without NAT a Fargate task starts only if it reaches these: its image (two of ECR and S3), secret and log.
        self.vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        for endpoint_id, service in {
            "EcrApi": ec2.InterfaceVpcEndpointAwsService.ECR,
            "EcrDocker": ec2.InterfaceVpcEndpointAwsService.ECR_DOCKER,
            "Logs": ec2.InterfaceVpcEndpointAwsService.CLOUDWATCH_LOGS,
            "SecretsManager": ec2.InterfaceVpcEndpointAwsService.SECRETS_MANAGER,
        }.items():
            self.vpc.add_interface_endpoint(endpoint_id, service=service, security_groups=[endpoints], open=False)

        self.database = rds.DatabaseInstance(
            self,
            "Database",
            # Complete with its minor version, and never upgraded by RDS itself: the template says what runs.
            engine=rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9),
            auto_minor_version_upgrade=False,
            instance_type=stage.database_instance_type,
            vpc=self.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            publicly_accessible=False,
            credentials=rds.Credentials.from_generated_secret(
                "inventory", secret_name=f"{stage.environment}/inventory-management/database"
            ),
            database_name="inventory",
            allocated_storage=20,
            storage_type=rds.StorageType.GP3,
            storage_encrypted=True,
            backup_retention=stage.backup_retention,
            removal_policy=stage.removal_policy,
        )
        self.database.connections.allow_default_port_from(self.database_clients)
        secret = self.database.secret
        if secret is None:  # only for a database that was made from a snapshot
            raise ValueError("the database has no generated secret")
        self.database_secret = secret

        self.cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=f"{stage.environment}-inventory-cluster",
            vpc=self.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
        )
