"""The long-lived half of a stage: network, database, cluster."""

from __future__ import annotations

import aws_cdk as cdk
import jsii
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from stacks.acknowledgments import acknowledge
from stacks.rotation import Rotation
from stacks.stage import Stage
from stacks.stage_log import StageLog

# Of the services that assume a role: none on behalf of somebody else's account.
OF_THIS_ACCOUNT = {"StringEquals": {"aws:SourceAccount": cdk.Aws.ACCOUNT_ID}}
ISOLATED = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_ISOLATED)


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
        super().__init__(scope, construct_id, termination_protection=stage.protected, **kwargs)  # type: ignore[arg-type]  # jsii types each keyword by itself
        self._stage = stage
        self.key = self._encryption_key()
        self.vpc = self._network()
        self.database_clients = ec2.SecurityGroup(
            self,
            "DatabaseClients",
            vpc=self.vpc,
            description="ECS tasks that may connect to the database and to the AWS endpoints of this VPC",
            allow_all_outbound=False,
        )
        # S3's gateway endpoint has addresses of its own in each region; no route leads to any others.
        self.database_clients.add_egress_rule(
            ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS, through the endpoints of this VPC"
        )
        self._endpoints()
        self.database = self._database()
        self.database.connections.allow_default_port_from(self.database_clients)
        secret = self.database.secret
        if secret is None:  # only for a database that was made from a snapshot
            raise ValueError("the database has no generated secret")
        self.database_secret = secret
        self.service_secret = self._service_secret(secret)
        self._rotation()
        self.cluster = self._cluster()
        cdk.Tags.of(self).add("environment", stage.environment)
        cdk.Tags.of(self).add("application", "inventory")

    @property
    @jsii.member(jsii_name="availabilityZones")
    def availability_zones(self) -> list[str]:
        """As many of the region's zones as the stage asks for.

        A stack that is bound to no region otherwise offers two, whatever the region has.
        https://docs.aws.amazon.com/cdk/api/v2/docs/aws-cdk-lib.Stack.html#availabilityzones
        """
        return [cdk.Fn.select(index, cdk.Fn.get_azs()) for index in range(self._stage.availability_zones)]

    def _encryption_key(self) -> kms.Key:
        key = kms.Key(
            self,
            "Key",
            alias=f"alias/{self._stage.environment}-inventory",
            description=f"The database, secrets and logs of the stage {self._stage.environment}",
            enable_key_rotation=True,
            removal_policy=self._stage.removal_policy,
        )
        # https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
        log_groups = self.format_arn(
            service="logs", resource="log-group", resource_name="*", arn_format=cdk.ArnFormat.COLON_RESOURCE_NAME
        )
        key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal(f"logs.{self.region}.amazonaws.com")],
                actions=["kms:Encrypt*", "kms:Decrypt*", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:Describe*"],
                resources=["*"],
                conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": log_groups}},
            )
        )
        return key

    def _key_as_imported(self, construct_id: str) -> kms.IKey:
        """The key, for a secret that roles of other stacks read.

        What may use an imported key stands in those roles. Of a key of its own, CDK would write every reader into the
        key's policy, and this stack would depend on theirs.
        """
        return kms.Key.from_key_arn(self, construct_id, self.key.key_arn)

    def _network(self) -> ec2.Vpc:
        vpc = ec2.Vpc(
            self,
            "Vpc",
            max_azs=self._stage.availability_zones,
            nat_gateways=0,
            # It is done by a Lambda function in Node that CDK brings along; no resource here uses that group.
            restrict_default_security_group=False,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="isolated", subnet_type=ec2.SubnetType.PRIVATE_ISOLATED, cidr_mask=24)
            ],
        )
        role = iam.Role(
            self,
            "FlowLogRole",
            assumed_by=iam.ServicePrincipal("vpc-flow-logs.amazonaws.com", conditions=OF_THIS_ACCOUNT),
        )
        log = self._log("FlowLogs", f"/vpc/{self._stage.environment}/flow-logs")
        vpc.add_flow_log("FlowLog", destination=ec2.FlowLogDestination.to_cloud_watch_logs(log, role))
        return vpc

    def _endpoints(self) -> None:
        """Without NAT a Fargate task starts only if it reaches these: its image (two of ECR and S3), secret and log.

        They are also the only way out for data, so what does not need to leave by them can't.
        """
        layers = self.vpc.add_gateway_endpoint("S3", service=ec2.GatewayVpcEndpointAwsService.S3)
        # https://docs.aws.amazon.com/AmazonECR/latest/userguide/vpc-endpoints.html
        bucket = f"arn:{self.partition}:s3:::prod-{self.region}-starport-layer-bucket/*"
        layers.add_to_policy(
            iam.PolicyStatement(principals=[iam.AnyPrincipal()], actions=["s3:GetObject"], resources=[bucket])
        )
        group = ec2.SecurityGroup(
            self, "Endpoints", vpc=self.vpc, description="The AWS endpoints of this VPC", allow_all_outbound=False
        )
        group.add_ingress_rule(self.database_clients, ec2.Port.tcp(443))
        services = ec2.InterfaceVpcEndpointAwsService
        # To pull an image, not to push one elsewhere; and nothing with the credentials of another account.
        pull = {
            "actions": [
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:GetAuthorizationToken",
                "ecr:GetDownloadUrlForLayer",
            ]
        }
        own = {"conditions": {"StringEquals": {"aws:PrincipalAccount": self.account}}}
        for endpoint_id, service, allowed in (
            ("EcrApi", services.ECR, pull),
            ("EcrDocker", services.ECR_DOCKER, pull),
            ("Logs", services.CLOUDWATCH_LOGS, own | {"actions": ["logs:*"]}),
            ("SecretsManager", services.SECRETS_MANAGER, own | {"actions": ["secretsmanager:*"]}),
        ):
            endpoint = self.vpc.add_interface_endpoint(
                endpoint_id, service=service, security_groups=[group], open=False
            )
            endpoint.add_to_policy(iam.PolicyStatement(principals=[iam.AnyPrincipal()], resources=["*"], **allowed))

    def _database(self) -> rds.DatabaseInstance:
        stage = self._stage
        identifier = f"{stage.environment}-inventory"
        destroyed = stage.removal_policy is cdk.RemovalPolicy.DESTROY
        log = self._log("DatabaseLogs", f"/aws/rds/instance/{identifier}/postgresql")
        database = rds.DatabaseInstance(
            self,
            "Database",
            # With a name of its own, CloudFormation refuses to replace it, data and all.
            instance_identifier=identifier,
            # Complete with its minor version: the template says what runs, until RDS withdraws that version.
            engine=rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.VER_17_9),
            auto_minor_version_upgrade=False,
            # No connection without TLS; the tasks check the server's certificate too (PGSSLMODE in the image).
            # And no row of anybody in its log: not the statement that fails, nor the key that is taken already.
            parameters={"rds.force_ssl": "1", "log_min_error_statement": "panic", "log_error_verbosity": "terse"},
            instance_type=stage.database_instance_type,
            multi_az=stage.multi_az,
            vpc=self.vpc,
            vpc_subnets=ISOLATED,
            publicly_accessible=False,
            security_groups=[
                ec2.SecurityGroup(
                    self, "DatabaseAccess", vpc=self.vpc, description="The database", allow_all_outbound=False
                )
            ],
            credentials=rds.Credentials.from_generated_secret(
                "inventory",
                secret_name=f"{stage.environment}/inventory-management/database",
                encryption_key=self._key_as_imported("DatabaseSecretKey"),
            ),
            database_name="inventory",
            allocated_storage=20,
            storage_type=rds.StorageType.GP3,
            storage_encryption_key=self.key,
            backup_retention=stage.backup_retention,
            deletion_protection=stage.protected,
            removal_policy=stage.removal_policy if destroyed else cdk.RemovalPolicy.SNAPSHOT,
            cloudwatch_logs_exports=["postgresql"],
            monitoring_interval=cdk.Duration.seconds(60),
            monitoring_role=self._monitoring_role(),
            enable_performance_insights=True,
            performance_insight_encryption_key=self.key,
        )
        database.node.add_dependency(log)
        self._acknowledge_database(database)
        return database

    def _monitoring_role(self) -> iam.Role:
        role = iam.Role(
            self,
            "MonitoringRole",
            assumed_by=iam.ServicePrincipal("monitoring.rds.amazonaws.com", conditions=OF_THIS_ACCOUNT),
            managed_policies=[
                iam.ManagedPolicy.from_aws_managed_policy_name("service-role/AmazonRDSEnhancedMonitoringRole")
            ],
        )
        acknowledge(
            role,
            "The policy that RDS documents for enhanced monitoring: it may write to log groups named RDS*, no more.",
            "AwsSolutions-IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole]",
        )
        return role

    def _acknowledge_database(self, database: rds.DatabaseInstance) -> None:
        acknowledge(
            database,
            "The port is no secret: only members of database_clients can connect to it.",
            "AwsSolutions-RDS11",
        )
        acknowledge(
            database,
            "Every login is one of two roles, whose passwords Secrets Manager rotates. A second way in, for whomever "
            "IAM lets, stays closed.",
            "CKV_AWS_161",
        )
        if not self._stage.multi_az:
            acknowledge(
                database,
                "No customer depends on this stage: when its zone fails, it waits for the zone.",
                "AwsSolutions-RDS3",
                "CKV_AWS_157",
            )
        if not self._stage.protected:
            acknowledge(
                database,
                "This stage is made to be thrown away with `cdk destroy`; it holds no data that anybody misses.",
                "AwsSolutions-RDS10",
            )

    def _service_secret(self, master: secretsmanager.ISecret) -> secretsmanager.ISecret:
        """What the services connect with: a role that reads and writes rows, and can't change the schema."""
        secret = rds.DatabaseSecret(
            self,
            "ServiceSecret",
            username="inventory_service",
            secret_name=f"{self._stage.environment}/inventory-management/service",
            encryption_key=self._key_as_imported("ServiceSecretKey"),
            master_secret=master,
        )
        acknowledge(
            secret,
            "It is rotated: the schedule is in the stack of the migration, which makes the role first.",
            "AwsSolutions-SMG4",
        )
        return secret.attach(self.database)

    def let_decrypt_secrets(self, role: iam.IRole) -> None:
        """Let a role use the key, and only for the secrets that it may read."""
        role.add_to_principal_policy(
            iam.PolicyStatement(
                actions=["kms:Decrypt"],
                resources=[self.key.key_arn],
                conditions={"StringEquals": {"kms:ViaService": f"secretsmanager.{self.region}.amazonaws.com"}},
            )
        )

    def _rotation(self) -> None:
        # Changed in place: only migrations use it, and one that is refused because of it starts over.
        Rotation(
            self,
            "DatabaseRotation",
            function_name=f"{self._stage.environment}-rotate-database-secret",
            secret=self.database_secret,
            rotation=secretsmanager.HostedRotation.postgre_sql_single_user,
            vpc=self.vpc,
            vpc_subnets=ISOLATED,
            security_groups=[self.database_clients],
            stage=self._stage,
            key=self.key,
        )

    def _cluster(self) -> ecs.Cluster:
        name = f"{self._stage.environment}-inventory-cluster"
        cluster = ecs.Cluster(
            self,
            "Cluster",
            cluster_name=name,
            vpc=self.vpc,
            container_insights_v2=ecs.ContainerInsights.ENABLED,
        )
        log_name = f"/aws/ecs/containerinsights/{name}/performance"
        cluster.node.add_dependency(self._log("ClusterLogs", log_name))
        return cluster

    def _log(self, construct_id: str, name: str) -> StageLog:
        return StageLog(self, construct_id, name=name, stage=self._stage, key=self.key)
