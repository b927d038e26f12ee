"""What the tests of the construct share: a network with a database, and what a template of it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk.assertions import Template
from constructs import Construct

from constructs_lib import MigrationTask

CHAIN = {"48871d03964b": None, "49871d03964c": "48871d03964b"}
ISOLATED = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)
IMAGE = ecs.ContainerImage.from_registry("inventory:1")
Resources = dict[str, dict[str, Any]]


class Data(cdk.Stack):
    """A network, a cluster, a database and the security group of its clients."""

    def __init__(self, scope: Construct, construct_id: str = "Data") -> None:
        super().__init__(scope, construct_id)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            nat_gateways=0,
            max_azs=2,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="public", subnet_type=ec2.SubnetType.PUBLIC),
                ec2.SubnetConfiguration(name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED),
            ],
        )
        self.vpc.add_interface_endpoint("Ecr", service=ec2.InterfaceVpcEndpointAwsService.ECR)
        self.cluster = ecs.Cluster(self, "Cluster", vpc=self.vpc)
        engine = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17)
        self.database = rds.DatabaseInstance(self, "Database", engine=engine, vpc=self.vpc, vpc_subnets=ISOLATED)
        assert self.database.secret
        self.secret: secretsmanager.ISecret = self.database.secret
        self.clients = ec2.SecurityGroup(self, "Clients", vpc=self.vpc)

    def service(self, scope: Construct, construct_id: str = "Service") -> ecs.FargateService:
        """A service of the clients."""
        task_definition = ecs.FargateTaskDefinition(scope, f"{construct_id}Task")
        task_definition.add_container("web", image=IMAGE, port_mappings=[ecs.PortMapping(container_port=80)])
        return ecs.FargateService(
            scope,
            construct_id,
            cluster=self.cluster,
            task_definition=task_definition,
            security_groups=[self.clients],
            vpc_subnets=ISOLATED,
        )


Migrate = Callable[..., MigrationTask]


def resources(stack: cdk.Stack) -> Resources:
    """The stack's resources; a cycle among them raises."""
    found: Resources = Template.from_stack(stack).to_json()["Resources"]
    return found


def only(found: Resources, kind: str) -> dict[str, Any]:
    (one,) = [resource for resource in found.values() if resource["Type"] == kind]
    return one


def migration_of(stack: cdk.Stack) -> dict[str, Any]:
    return only(resources(stack), "Custom::DatabaseMigration")
