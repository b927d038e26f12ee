"""Another tool than Alembic: Flyway, as its own image runs it, with the scripts in flyway_image/sql.

cdk synth --app "python -m examples.flyway"

Flyway reads its settings from variables; user and password are fields of the database's secret. The version is a
digest of the scripts, so the task runs when one is added or edited, and only then.
"""

from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_rds as rds

from constructs_lib import MigrationTask

IMAGE = Path(__file__).parent / "flyway_image"

app = cdk.App()
stack = cdk.Stack(app, "Prices")
vpc = ec2.Vpc(stack, "Vpc")
cluster = ecs.Cluster(stack, "Cluster", vpc=vpc)
postgres = rds.DatabaseInstanceEngine.postgres(version=rds.PostgresEngineVersion.of("17.9", "17"))
secret = rds.DatabaseSecret(stack, "Secret", username="prices")
database = rds.DatabaseInstance(
    stack,
    "Database",
    engine=postgres,
    vpc=vpc,
    database_name="prices",
    credentials=rds.Credentials.from_secret(secret),
    storage_encrypted=True,
)

migration = MigrationTask(
    stack,
    "Migration",
    cluster=cluster,
    image=ecs.ContainerImage.from_asset(str(IMAGE), platform=ecr_assets.Platform.LINUX_AMD64),
    command=["migrate"],  # the image's entry point is flyway itself
    version=cdk.FileSystem.fingerprint(str(IMAGE / "sql")),
    memory_limit_mib=1024,
    database_secret=secret,
    database_secret_fields={"FLYWAY_USER": "username", "FLYWAY_PASSWORD": "password"},
    environment={
        "FLYWAY_URL": f"jdbc:postgresql://{database.db_instance_endpoint_address}:"
        f"{database.db_instance_endpoint_port}/prices?sslmode=verify-full&sslrootcert=/flyway/rds.pem",
        "FLYWAY_CONNECT_RETRIES": "5",
    },
)
migration.connections.allow_to_default_port(database)

task = ecs.FargateTaskDefinition(stack, "Task")
task.add_container("web", image=ecs.ContainerImage.from_registry("public.ecr.aws/nginx/nginx:stable"))
service = ecs.FargateService(
    stack,
    "Service",
    cluster=cluster,
    task_definition=task,
    min_healthy_percent=100,
    circuit_breaker=ecs.DeploymentCircuitBreaker(rollback=True),
)
migration.execute_before(service)

app.synth()
