"""Several services behind one migration: none is created or updated before the schema is ready.

cdk synth --app "python -m examples.several_services"
"""

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_rds as rds

from constructs_lib import AlembicMigrations, MigrationTask

app = cdk.App()
stack = cdk.Stack(app, "Shop")
vpc = ec2.Vpc(stack, "Vpc")
cluster = ecs.Cluster(stack, "Cluster", vpc=vpc)
postgres = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.of("17.9", "17"))
secret = rds.DatabaseSecret(stack, "Secret", username="inventory")
database = rds.DatabaseInstance(
    stack,
    "Database",
    engine=postgres,
    vpc=vpc,
    database_name="inventory",
    credentials=rds.Credentials.from_secret(secret),
    storage_encrypted=True,
)
image = ecs.ContainerImage.from_asset(".", platform=ecr_assets.Platform.LINUX_AMD64)

migration = MigrationTask(
    stack,
    "Migration",
    cluster=cluster,
    image=image,
    migrations=AlembicMigrations("alembic.ini"),
    database_secret=secret,
)
migration.connections.allow_to_default_port(database)


def service(name: str, tasks: int) -> ecs.FargateService:
    """A service of the image that the migration comes from."""
    task = ecs.FargateTaskDefinition(stack, f"{name}Task")
    secrets = {"DATABASE_SECRET": ecs.Secret.from_secrets_manager(secret)}
    task.add_container("web", image=image, secrets=secrets, logging=ecs.LogDrivers.aws_logs(stream_prefix=name))
    made = ecs.FargateService(
        stack,
        name,
        cluster=cluster,
        task_definition=task,
        desired_count=tasks,
        min_healthy_percent=100,
        circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
    )
    made.connections.allow_to_default_port(database)
    return made


services = [service("Storefront", tasks=2), service("Backoffice", tasks=1)]
migration.execute_before(*services)
# A renamed column keeps its old name until both services are updated.
migration.contract_after(*services)

app.synth()
