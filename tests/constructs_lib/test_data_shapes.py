"""A migration beside every kind of network, cluster, database and secret that other teams have."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_rds as rds
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct, IConstruct

from constructs_lib import MigrationTask
from tests.constructs_lib.templates import IMAGE, Data, Resources, migration_of, only, resources
from tests.constructs_lib.test_ordering import Deployment, name_of, resource_of

ENVIRONMENT = cdk.Environment(account="111122223333", region="us-west-2")
SECRET = "arn:aws:secretsmanager:us-west-2:111122223333:secret:prod/db-AbCdEf"
PARTIAL = SECRET.removesuffix("-AbCdEf")
VPC, GROUP = "vpc-0123456789abcdef0", "sg-0123456789abcdef0"
SUBNETS = {
    "private": ["subnet-0123456789abcdef1", "subnet-0123456789abcdef2"],
    "public": ["subnet-0123456789abcdef3", "subnet-0123456789abcdef4"],
}
KEY = "arn:aws:kms:us-west-2:111122223333:key/1234"
AURORA = rds.DatabaseClusterEngine.aurora_postgres(version=rds.AuroraPostgresEngineVersion.of("17.7", "17"))
POSTGRES = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.of("17.9", "17"))
Secret = secretsmanager.Secret


class Network(cdk.Stack):
    """A VPC with NAT and an ECS cluster."""

    def __init__(self, scope: Construct, construct_id: str = "Network", **kwargs: Any) -> None:
        super().__init__(scope, construct_id, **kwargs)
        self.vpc = ec2.Vpc(self, "Vpc", max_azs=2, nat_gateways=1)
        self.cluster = ecs.Cluster(self, "Cluster", vpc=self.vpc)

    def aurora(self, construct_id: str = "Database", **options: Any) -> rds.DatabaseCluster:
        given = {"engine": AURORA, "vpc": self.vpc, "writer": rds.ClusterInstance.serverless_v2("Writer"), **options}
        return rds.DatabaseCluster(self, construct_id, **given)


@pytest.fixture
def network() -> Network:
    return Network(cdk.App())


def migration(
    scope: Construct,
    cluster: ecs.ICluster,
    secret: secretsmanager.ISecret | None,
    construct_id: str = "Migration",
    **options: Any,
) -> MigrationTask:
    """A migration by another tool: what it migrates is of no matter here."""
    assert secret
    given = {"image": IMAGE, "command": ["migrate"], "version": "1", **options}
    return MigrationTask(scope, construct_id, cluster=cluster, database_secret=secret, **given)


def service(scope: Construct, cluster: ecs.ICluster, construct_id: str = "Service") -> ecs.FargateService:
    task_definition = ecs.FargateTaskDefinition(scope, f"{construct_id}Task")
    task_definition.add_container("web", image=IMAGE)
    return ecs.FargateService(scope, construct_id, cluster=cluster, task_definition=task_definition)


def task_definition(found: Resources, construct_id: str = "Migration") -> dict[str, Any]:
    definition: dict[str, Any]
    (definition,) = (
        one["Properties"]
        for name, one in found.items()
        if one["Type"] == "AWS::ECS::TaskDefinition" and name.startswith(construct_id)
    )
    return definition


def execution_role(found: Resources, construct_id: str = "Migration") -> dict[str, dict[str, Any]]:
    """What ECS may do to start the task, by the first action of each statement."""
    role = task_definition(found, construct_id)["ExecutionRoleArn"]["Fn::GetAtt"][0]
    policies = [one["Properties"] for one in found.values() if one["Type"] == "AWS::IAM::Policy"]
    (document,) = (one["PolicyDocument"] for one in policies if one["Roles"] == [{"Ref": role}])
    first = [one["Action"] if isinstance(one["Action"], str) else one["Action"][0] for one in document["Statement"]]
    return dict(zip(first, document["Statement"], strict=True))


def container(found: Resources, construct_id: str = "Migration") -> dict[str, Any]:
    (one,) = task_definition(found, construct_id)["ContainerDefinitions"]
    assert isinstance(one, dict)
    return one


def names(nodes: Sequence[IConstruct]) -> set[str]:
    return {name_of(node) for node in nodes if isinstance(node, cdk.CfnElement)}


def test_in_a_vpc_with_nat_the_task_runs_in_the_private_subnets_and_waits_for_their_way_out(network: Network) -> None:
    ours = migration(network, network.cluster, Secret(network, "Secret"))
    properties = migration_of(network)["Properties"]
    assert properties["Subnets"] == [network.resolve(one.subnet_id) for one in network.vpc.private_subnets]
    assert properties["AssignPublicIp"] == "DISABLED"
    deployment = Deployment.of(network)
    way_out = deployment.of_type("AWS::EC2::NatGateway", "AWS::EC2::Route", "AWS::EC2::SubnetRouteTableAssociation")
    assert len(way_out) == 1 + 4 + 4
    assert way_out <= deployment.before(resource_of(ours))


def test_the_task_waits_for_the_rules_of_its_subnets_network_acl(network: Network) -> None:
    acl = ec2.NetworkAcl(network, "Acl", vpc=network.vpc, subnet_selection=ec2.SubnetSelection())
    for direction in (ec2.TrafficDirection.EGRESS, ec2.TrafficDirection.INGRESS):
        acl.add_entry(
            direction.name,
            cidr=ec2.AclCidr.any_ipv4(),
            direction=direction,
            rule_number=100,
            traffic=ec2.AclTraffic.all_traffic(),
        )
    ours = migration(network, network.cluster, Secret(network, "Secret"))
    deployment = Deployment.of(network)
    rules = deployment.of_type("AWS::EC2::NetworkAclEntry", "AWS::EC2::SubnetNetworkAclAssociation")
    assert len(rules) == 2 + 2
    assert rules <= deployment.before(resource_of(ours))


def attached(network: Network) -> tuple[rds.DatabaseCluster, MigrationTask]:
    database = network.aurora(readers=[rds.ClusterInstance.serverless_v2("Reader")])
    return database, migration(network, network.cluster, database.secret)


def of_the_older_kind(network: Network) -> tuple[rds.DatabaseCluster, MigrationTask]:
    database = network.aurora(writer=None, vpc=None, instance_props=rds.InstanceProps(vpc=network.vpc))
    return database, migration(network, network.cluster, database.secret)


def attached_later(network: Network) -> tuple[rds.DatabaseCluster, MigrationTask]:
    secret = rds.DatabaseSecret(network, "Own", username="shop")
    ours = migration(network, network.cluster, secret)
    return network.aurora(credentials=rds.Credentials.from_secret(secret)), ours


def managed(network: Network) -> tuple[rds.DatabaseCluster, MigrationTask]:
    database = network.aurora()
    resource = database.node.default_child
    assert isinstance(resource, rds.CfnDBCluster)
    resource.manage_master_user_password = True
    resource.master_user_password = None
    secret = Secret.from_secret_complete_arn(network, "Managed", resource.attr_master_user_secret_secret_arn)
    return database, migration(network, network.cluster, secret)


def named_by_its_host(network: Network) -> tuple[rds.DatabaseCluster, MigrationTask]:
    database = network.aurora()
    secret = Secret.from_secret_complete_arn(network, "Imported", SECRET)
    host = database.cluster_endpoint.hostname
    return database, migration(network, network.cluster, secret, database_host=host)


@pytest.mark.parametrize("made", [attached, of_the_older_kind, attached_later, managed, named_by_its_host])
def test_an_aurora_cluster_is_migrated_only_when_its_instances_are_there(
    network: Network, made: Callable[[Network], tuple[rds.DatabaseCluster, MigrationTask]]
) -> None:
    database, ours = made(network)
    ours.connections.allow_to_default_port(database)
    deployment = Deployment.of(network)
    deployment.fails_on_a_cycle()
    there = deployment.before(resource_of(ours))
    instances = deployment.of_type("AWS::RDS::DBInstance")
    assert len(instances) == (1 if made in (attached_later, managed, named_by_its_host) else 2)
    assert instances <= there
    assert deployment.of_type("AWS::EC2::SecurityGroupIngress") <= there


def test_the_instances_of_another_cluster_are_not_waited_for(network: Network) -> None:
    database, other = network.aurora(), network.aurora("Other")
    ours = migration(network, network.cluster, database.secret)
    there = Deployment.of(network).before(resource_of(ours))
    assert names(database.node.find_child("Writer").node.find_all()) <= there
    assert not names(other.node.find_child("Writer").node.find_all()) & there


def test_a_cluster_in_a_stack_of_its_own_is_there_before_the_migration_begins(network: Network) -> None:
    database = network.aurora()
    app = network.node.root
    assert isinstance(app, cdk.App)
    ours = migration(cdk.Stack(app, "Services"), network.cluster, database.secret)
    ours.connections.allow_to_default_port(database)
    deployment = Deployment.of(app)
    deployment.fails_on_a_cycle()
    assert deployment.of_type("AWS::RDS::DBInstance") <= deployment.before(resource_of(ours))


def managed_by_rds(stack: Network, key: kms.IKey | None) -> tuple[rds.CfnDBInstance, secretsmanager.ISecret]:
    instance = rds.CfnDBInstance(
        stack,
        "Database",
        db_instance_class="db.t4g.micro",
        engine="postgres",
        allocated_storage="20",
        db_name="shop",
        master_username="shop",
        manage_master_user_password=True,
        master_user_secret=rds.CfnDBInstance.MasterUserSecretProperty(kms_key_id=key.key_arn) if key else None,
    )
    arn = instance.attr_master_user_secret_secret_arn
    return instance, Secret.from_secret_attributes(stack, "Managed", secret_complete_arn=arn, encryption_key=key)


def test_a_password_that_rds_manages_has_its_host_from_the_instance(network: Network) -> None:
    instance, secret = managed_by_rds(network, None)
    migration(
        network,
        network.cluster,
        secret,
        database_host=instance.attr_endpoint_address,
        database_port=cdk.Token.as_number(instance.attr_endpoint_port),
        database_name="shop",
    )
    found = resources(network)
    arn = {"Fn::GetAtt": ["Database", "MasterUserSecret.SecretArn"]}
    told = {one["Name"]: one["Value"] for one in container(found)["Environment"]}
    assert told["DATABASE_HOST"] == {"Fn::GetAtt": ["Database", "Endpoint.Address"]}
    assert told["DATABASE_PORT"] == {"Fn::GetAtt": ["Database", "Endpoint.Port"]}
    assert told["DATABASE_NAME"] == "shop"
    assert container(found)["Secrets"] == [{"Name": "DATABASE_SECRET", "ValueFrom": arn}]
    assert execution_role(found)["secretsmanager:GetSecretValue"]["Resource"] == arn
    assert "kms:Decrypt" not in execution_role(found)


@pytest.mark.skipif(
    not hasattr(rds.DatabaseInstanceProps, "manage_master_user_password"), reason="this aws-cdk-lib has no such option"
)
def test_cdks_own_option_for_a_password_that_rds_manages_will_do(network: Network) -> None:
    key = kms.Key(network, "Key")
    database = rds.DatabaseInstance(
        network,
        "Database",
        engine=POSTGRES,
        vpc=network.vpc,
        manage_master_user_password=True,
        credentials=rds.Credentials.from_username("shop", encryption_key=key),
    )
    ours = migration(network, network.cluster, database.secret, database_host=database.db_instance_endpoint_address)
    ours.connections.allow_to_default_port(database)
    deployment = Deployment.of(network)
    assert deployment.of_type("AWS::RDS::DBInstance") <= deployment.before(resource_of(ours))
    assert execution_role(resources(network))["kms:Decrypt"]["Resource"] == network.resolve(key.key_arn)


THROUGH_SECRETS_MANAGER = {
    "StringEquals": {
        "kms:ViaService": {"Fn::Join": ["", ["secretsmanager.", {"Ref": "AWS::Region"}, ".amazonaws.com"]]}
    }
}


def own_secret_and_key(stack: Network) -> secretsmanager.ISecret:
    return Secret(stack, "Secret", encryption_key=kms.Key(stack, "Key"))


def own_database_and_key(stack: Network) -> secretsmanager.ISecret | None:
    credentials = rds.Credentials.from_generated_secret("shop", encryption_key=kms.Key(stack, "Key"))
    return rds.DatabaseInstance(stack, "Database", engine=POSTGRES, vpc=stack.vpc, credentials=credentials).secret


def managed_secret_and_own_key(stack: Network) -> secretsmanager.ISecret:
    return managed_by_rds(stack, kms.Key(stack, "Key"))[1]


def imported_secret_and_own_key(stack: Network) -> secretsmanager.ISecret:
    return Secret.from_secret_attributes(
        stack, "Secret", secret_partial_arn=PARTIAL, encryption_key=kms.Key(stack, "Key")
    )


def imported_secret_and_key(stack: Network) -> secretsmanager.ISecret:
    key = kms.Key.from_key_arn(stack, "Key", KEY)
    return Secret.from_secret_attributes(stack, "Secret", secret_complete_arn=SECRET, encryption_key=key)


@pytest.mark.parametrize("in_a_stack_of_its_own", [False, True], ids=["in one stack", "in two stacks"])
@pytest.mark.parametrize(
    "made",
    [
        own_secret_and_key,
        own_database_and_key,
        managed_secret_and_own_key,
        imported_secret_and_own_key,
        imported_secret_and_key,
    ],
)
def test_ecs_may_use_the_key_of_the_secret_and_only_for_secrets(
    made: Callable[[Network], secretsmanager.ISecret], *, in_a_stack_of_its_own: bool
) -> None:
    app = cdk.App()
    network = Network(app, env=ENVIRONMENT)
    secret = made(network)
    stack = cdk.Stack(app, "Services", env=ENVIRONMENT) if in_a_stack_of_its_own else network
    ours = migration(stack, network.cluster, secret, database_host="db.example")
    ours.execute_before(service(stack, network.cluster))
    deployment = Deployment.of(app)
    deployment.fails_on_a_cycle()
    found = resources(stack)
    allowed = execution_role(found)
    # what it reads and what it decrypts with, as the templates name them
    assert secret.encryption_key
    decrypt = allowed["kms:Decrypt"]
    assert decrypt["Condition"] == {"StringEquals": {"kms:ViaService": "secretsmanager.us-west-2.amazonaws.com"}}
    if made is imported_secret_and_key:
        assert decrypt["Resource"] == KEY
    elif in_a_stack_of_its_own:
        assert "GetAttKey" in decrypt["Resource"]["Fn::ImportValue"]
    else:
        assert decrypt["Resource"] == stack.resolve(secret.encryption_key.key_arn)
    read = allowed["secretsmanager:GetSecretValue"]["Resource"]
    (given,) = (one["ValueFrom"] for one in container(found)["Secrets"])
    assert (given, read) == ((PARTIAL, f"{PARTIAL}-??????") if made is imported_secret_and_own_key else (read, read))
    with_decrypt = {
        name for name in deployment.of_type("AWS::IAM::Policy") if "kms:Decrypt" in str(deployment.resources[name])
    }
    assert len(with_decrypt) == 1
    assert with_decrypt <= deployment.before(resource_of(ours))


def test_a_key_is_allowed_also_where_the_stack_knows_no_account(network: Network) -> None:
    migration(network, network.cluster, own_secret_and_key(network))
    decrypt = execution_role(resources(network))["kms:Decrypt"]
    assert decrypt["Condition"] == THROUGH_SECRETS_MANAGER


def test_an_alias_of_a_key_is_allowed_by_its_name() -> None:
    app = cdk.App(context={"@aws-cdk/aws-kms:applyImportedAliasPermissionsToPrincipal": True})
    network = Network(app)
    key = kms.Alias.from_alias_name(network, "Key", "alias/shop")
    migration(network, network.cluster, Secret(network, "Secret", encryption_key=key))
    decrypt = execution_role(resources(network))["kms:Decrypt"]
    assert decrypt["Condition"]["ForAnyValue:StringEquals"] == {"kms:ResourceAliases": "alias/shop"}


@pytest.mark.parametrize(
    ("made", "read"),
    [
        (lambda stack: Secret.from_secret_complete_arn(stack, "Secret", SECRET), SECRET),
        (lambda stack: Secret.from_secret_partial_arn(stack, "Secret", PARTIAL), f"{PARTIAL}-??????"),
        (lambda stack: Secret.from_secret_name_v2(stack, "Secret", "prod/db"), f"{PARTIAL}-??????"),
    ],
    ids=["complete ARN", "partial ARN", "name"],
)
def test_of_an_imported_secret_ecs_may_read_that_one(
    made: Callable[[cdk.Stack], secretsmanager.ISecret], read: str
) -> None:
    network = Network(cdk.App(), env=ENVIRONMENT)
    migration(network, network.cluster, made(network))
    found = resources(network)
    resource = execution_role(found)["secretsmanager:GetSecretValue"]["Resource"]
    assert network.resolve(cdk.Fn.join("", [flat(resource)])) == read
    (given,) = container(found)["Secrets"]
    assert flat(given["ValueFrom"]) == read.removesuffix("-??????")


def flat(value: Any) -> str:
    """A text of the template whose only unknown is the partition."""
    match value:
        case {"Fn::Join": ["", parts]}:
            return "".join(flat(part) for part in parts)
        case {"Ref": "AWS::Partition"}:
            return "aws"
    assert isinstance(value, str)
    return value


def test_a_tool_gets_the_fields_that_it_asks_for_and_no_further_right(network: Network) -> None:
    fields = {"FLYWAY_USER": "username", "FLYWAY_PASSWORD": "password"}
    secret = Secret(network, "Secret")
    migration(network, network.cluster, secret)
    migration(network, network.cluster, secret, "Flyway", database_secret_fields=fields)
    found = resources(network)
    arn = network.resolve(secret.secret_arn)
    assert container(found, "Flyway")["Secrets"] == [
        {"Name": "DATABASE_SECRET", "ValueFrom": arn},
        *[{"Name": name, "ValueFrom": {"Fn::Join": ["", [arn, f":{field}::"]]}} for name, field in fields.items()],
    ]
    plain, flyway = (execution_role(found, one)["secretsmanager:GetSecretValue"] for one in ("Migration", "Flyway"))
    assert plain == flyway


@pytest.mark.parametrize(
    ("options", "name", "parameter"),
    [
        ({}, "DATABASE_SECRET", "database_secret"),
        ({}, "DATABASE_HOST", "database_host"),
        ({"environment": {"FLYWAY_USER": "shop"}}, "FLYWAY_USER", "environment"),
    ],
)
def test_a_field_for_a_variable_that_another_parameter_sets_is_refused(
    network: Network, options: dict[str, Any], name: str, parameter: str
) -> None:
    with pytest.raises(ValueError, match="database_secret_fields must not set") as refusal:
        migration(
            network, network.cluster, Secret(network, "Secret"), database_secret_fields={name: "username"}, **options
        )
    assert str(refusal.value) == f"database_secret_fields must not set {name}: that is what {parameter} is for."


@pytest.mark.parametrize("fields", [{"": "username"}, {"A B": "username"}, {"USER": ""}, {"USER": "user:name"}])
def test_a_field_that_ecs_would_read_otherwise_is_refused(network: Network, fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^database_secret_fields has .* without a colon for each"):
        migration(network, network.cluster, Secret(network, "Secret"), database_secret_fields=fields)


def vpc_of_attributes(stack: cdk.Stack) -> ec2.IVpc:
    return ec2.Vpc.from_vpc_attributes(
        stack,
        "Vpc",
        vpc_id=VPC,
        availability_zones=["us-west-2a", "us-west-2b"],
        public_subnet_ids=SUBNETS["public"],
        private_subnet_ids=SUBNETS["private"],
        private_subnet_route_table_ids=["rtb-1", "rtb-2"],
        public_subnet_route_table_ids=["rtb-3", "rtb-4"],
    )


def vpc_of_a_lookup(stack: cdk.Stack) -> ec2.IVpc:
    return ec2.Vpc.from_lookup(stack, "Vpc", vpc_id=VPC)


LOOKED_UP = {
    f"vpc-provider:account=111122223333:filter.vpc-id={VPC}:region=us-west-2:returnAsymmetricSubnets=true": {
        "vpcId": VPC,
        "vpcCidrBlock": "10.0.0.0/16",
        "ownerAccountId": "111122223333",
        "availabilityZones": [],
        "subnetGroups": [
            {
                "name": kind,
                "type": kind.capitalize(),
                "subnets": [
                    {
                        "subnetId": SUBNETS[kind][number - 1],
                        "cidr": f"10.0.{number}.0/24",
                        "availabilityZone": f"us-west-2{'ab'[number - 1]}",
                        "routeTableId": f"rtb-{kind}-{number}",
                    }
                    for number in (1, 2)
                ],
            }
            for kind in ("public", "private")
        ],
    }
}


@pytest.mark.parametrize("imported", [vpc_of_attributes, vpc_of_a_lookup])
@pytest.mark.parametrize(
    ("kind", "address"), [("private", "DISABLED"), ("public", "ENABLED")], ids=["private", "public"]
)
def test_in_an_imported_network_with_an_imported_cluster_the_task_runs_there(
    imported: Callable[[cdk.Stack], ec2.IVpc], kind: str, address: str
) -> None:
    stack = cdk.Stack(cdk.App(context=LOOKED_UP), "Shop", env=ENVIRONMENT)
    vpc = imported(stack)
    cluster = ecs.Cluster.from_cluster_attributes(stack, "Cluster", cluster_name="shop", vpc=vpc)
    subnets = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC) if kind == "public" else None
    secret = Secret.from_secret_complete_arn(stack, "Secret", SECRET)
    ours = migration(stack, cluster, secret, vpc_subnets=subnets)
    ours.execute_before(service(stack, cluster))
    found = resources(stack)
    properties = migration_of(stack)["Properties"]
    assert properties["Subnets"] == SUBNETS[kind]
    assert properties["AssignPublicIp"] == address
    assert flat(properties["Cluster"]) == "arn:aws:ecs:us-west-2:111122223333:cluster/shop"
    (group,) = (one for name, one in found.items() if name.startswith("MigrationSecurityGroup"))
    assert group["Properties"]["VpcId"] == VPC
    assert ":task/shop/*" in json.dumps(found)
    (ours_id,) = (name for name, one in found.items() if one["Type"] == "Custom::DatabaseMigration")
    assert ours_id in only(found, "AWS::ECS::Service")["DependsOn"]


def test_an_imported_security_group_is_let_into_the_database_before_the_migration(network: Network) -> None:
    group = ec2.SecurityGroup.from_security_group_id(network, "Clients", GROUP)
    database = rds.DatabaseInstance(network, "Database", engine=POSTGRES, vpc=network.vpc)
    ours = migration(network, network.cluster, database.secret, security_groups=[group])
    ours.connections.allow_to_default_port(database)
    assert migration_of(network)["Properties"]["SecurityGroups"] == [GROUP]
    rule = only(resources(network), "AWS::EC2::SecurityGroupIngress")
    assert rule["Properties"]["SourceSecurityGroupId"] == GROUP
    deployment = Deployment.of(network)
    assert deployment.of_type("AWS::EC2::SecurityGroupIngress") <= deployment.before(resource_of(ours))


def test_an_imported_execution_role_gets_what_ecs_needs_before_the_migration(network: Network) -> None:
    role = iam.Role.from_role_arn(network, "Role", "arn:aws:iam::111122223333:role/shop-execution")
    ours = migration(network, network.cluster, imported_secret_and_key(network), execution_role=role)
    deployment = Deployment.of(network)
    policies = {
        name
        for name in deployment.of_type("AWS::IAM::Policy")
        if deployment.resources[name]["Properties"]["Roles"] == ["shop-execution"]
    }
    assert len(policies) == 1
    assert policies <= deployment.before(resource_of(ours))
    text = json.dumps([deployment.resources[name] for name in policies])
    assert all(one in text for one in (SECRET, KEY, "logs:PutLogEvents"))


def test_two_databases_in_one_stack_have_a_migration_each_and_each_reads_its_own_secret(network: Network) -> None:
    orders, stock = network.aurora("Orders"), network.aurora("Stock")
    first = migration(network, network.cluster, orders.secret, "MigrateOrders")
    second = migration(network, network.cluster, stock.secret, "MigrateStock")
    for ours, database in ((first, orders), (second, stock)):
        ours.connections.allow_to_default_port(database)
    both = service(network, network.cluster)
    first.execute_before(both)
    second.execute_before(both)
    deployment = Deployment.of(network)
    deployment.fails_on_a_cycle()
    found = resources(network)
    for construct_id, database in (("MigrateOrders", orders), ("MigrateStock", stock)):
        assert database.secret
        read = execution_role(found, construct_id)["secretsmanager:GetSecretValue"]["Resource"]
        assert read == network.resolve(database.secret.secret_arn)
    (waiting,) = deployment.of_type("AWS::ECS::Service")
    assert {resource_of(first), resource_of(second)} <= deployment.before(waiting)
    assert resource_of(first) not in deployment.before(resource_of(second))
    assert resource_of(second) not in deployment.before(resource_of(first))


def test_services_in_stacks_of_their_own_wait_for_the_migration_and_need_nothing_else_of_it() -> None:
    app = cdk.App()
    data = Data(app)
    home = cdk.Stack(app, "Migrations")
    ours = migration(home, data.cluster, data.secret, security_groups=[data.clients])
    stacks = [cdk.Stack(app, name) for name in ("Orders", "Stock")]
    for stack in stacks:
        data.service(stack)
    ours.execute_before(*stacks)
    deployment = Deployment.of(app)
    deployment.fails_on_a_cycle()
    for waiting in deployment.of_type("AWS::ECS::Service"):
        assert resource_of(ours) in deployment.before(waiting)
    assert "Outputs" not in json.dumps(app.synth().get_stack_by_name("Migrations").template)


def test_an_arm_image_is_built_for_the_processor_that_the_task_runs_on(network: Network, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    image = ecs.ContainerImage.from_asset(str(tmp_path), platform=ecr_assets.Platform.LINUX_ARM64)
    arm = ecs.RuntimePlatform(
        cpu_architecture=ecs.CpuArchitecture.ARM64, operating_system_family=ecs.OperatingSystemFamily.LINUX
    )
    migration(network, network.cluster, Secret(network, "Secret"), image=image, runtime_platform=arm)
    definition = only(resources(network), "AWS::ECS::TaskDefinition")
    assert definition["Properties"]["RuntimePlatform"]["CpuArchitecture"] == "ARM64"
    root = network.node.root
    assert isinstance(root, cdk.App)
    assets = json.loads((Path(root.synth().directory) / "Network.assets.json").read_text())
    assert [one["source"]["platform"] for one in assets["dockerImages"].values()] == ["linux/arm64"]
