"""A service in a stack of its own: that stack is deployed only after the one with the migration.

cdk synth --app "python -m examples.service_in_its_own_stack"

`cdk deploy Storefront` brings Shop along first, and ends there when the migration fails. The other way round nothing is
undone: when Storefront rolls back, Shop stays, and with it the schema. So write migrations that the release before can
live with.
"""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_rds as rds

from constructs_lib import AlembicMigrations, MigrationTask

app = cdk.App()
shop = cdk.Stack(app, "Shop")
vpc = ec2.Vpc(shop, "Vpc")
cluster = ecs.Cluster(shop, "Cluster", vpc=vpc)
postgres = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.of("17.9", "17"))
secret = rds.DatabaseSecret(shop, "Secret", username="inventory")
database = rds.DatabaseInstance(
    shop,
    "Database",
    engine=postgres,
    vpc=vpc,
    database_name="inventory",
    credentials=rds.Credentials.from_secret(secret),
    storage_encrypted=True,
)
image = ecs.ContainerImage.from_asset(".", platform=ecr_assets.Platform.LINUX_AMD64)

migration = MigrationTask(
    shop,
    "Migration",
    cluster=cluster,
    image=image,
    migrations=AlembicMigrations("alembic.ini"),
    database_secret=secret,
)
migration.connections.allow_to_default_port(database)

storefront = cdk.Stack(app, "Storefront")
task = ecs.FargateTaskDefinition(storefront, "Task")
secrets = {"DATABASE_SECRET": ecs.Secret.from_secrets_manager(secret)}
task.add_container("web", image=image, secrets=secrets, logging=ecs.LogDrivers.aws_logs(stream_prefix="web"))
service = ecs.FargateService(
    storefront,
    "Service",
    cluster=cluster,
    task_definition=task,
    min_healthy_percent=100,
    circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
)
service.connections.allow_to_default_port(database)

migration.execute_before(storefront)
# It stands in the service's stack, which is deployed after the one with the migration.
migration.contract_after(service)

app.synth()
