"""Blue/green: the migration runs before the green revision starts. docs/BLUE_GREEN.md tells what that asks of it.

cdk synth --app "python -m examples.blue_green"
"""

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from aws_cdk import aws_rds as rds

from constructs_lib import AlembicMigrations, MigrationTask, OnRollback

PORT = 8080

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
    on_rollback=OnRollback.KEEP,  # the default: blue and green both live with the new schema
)
migration.connections.allow_to_default_port(database)

# Only what is in the VPC reaches it: port 80 is production, 9000 shows the green revision before it is.
balancer = elbv2.ApplicationLoadBalancer(stack, "Balancer", vpc=vpc, internet_facing=False)
blue, green = (
    elbv2.ApplicationTargetGroup(
        stack,
        name,
        vpc=vpc,
        port=PORT,
        protocol=elbv2.ApplicationProtocol.HTTP,
        target_type=elbv2.TargetType.IP,
        health_check=elbv2.HealthCheck(path="/ready"),
        deregistration_delay=cdk.Duration.seconds(30),
    )
    for name in ("Blue", "Green")
)


def rule(name: str, port: int) -> ecs.ListenerRuleConfiguration:
    """A listener with the one rule whose weights ECS shifts from one target group to the other."""
    listener = balancer.add_listener(
        name,
        port=port,
        protocol=elbv2.ApplicationProtocol.HTTP,
        open=False,
        default_action=elbv2.ListenerAction.fixed_response(404),
    )
    listener.connections.allow_default_port_from(ec2.Peer.ipv4(vpc.vpc_cidr_block))
    targets = [
        elbv2.WeightedTargetGroup(target_group=blue, weight=100),
        elbv2.WeightedTargetGroup(target_group=green, weight=0),
    ]
    made = elbv2.ApplicationListenerRule(
        stack,
        f"{name}Rule",
        listener=listener,
        priority=1,
        conditions=[elbv2.ListenerCondition.path_patterns(["/*"])],
        action=elbv2.ListenerAction.weighted_forward(targets),
    )
    return ecs.ListenerRuleConfiguration.application_listener_rule(made)


errors = balancer.metrics.http_code_target(elbv2.HttpCodeTarget.TARGET_5XX_COUNT, period=cdk.Duration.minutes(1))
alarm = errors.create_alarm(
    stack,
    "Errors",
    threshold=5,
    evaluation_periods=1,
    treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
)

task = ecs.FargateTaskDefinition(stack, "Task")
task.add_container(
    "web",
    image=image,
    port_mappings=[ecs.PortMapping(container_port=PORT)],
    secrets={"DATABASE_SECRET": ecs.Secret.from_secrets_manager(secret)},
    logging=ecs.LogDrivers.aws_logs(stream_prefix="web"),
)
service = ecs.FargateService(
    stack,
    "Service",
    cluster=cluster,
    task_definition=task,
    desired_count=2,
    min_healthy_percent=100,
    max_healthy_percent=200,
    deployment_strategy=ecs.DeploymentStrategy.BLUE_GREEN,
    bake_time=cdk.Duration.minutes(10),
    deployment_alarms=ecs.DeploymentAlarmConfig(
        alarm_names=[alarm.alarm_name], behavior=ecs.AlarmBehavior.ROLLBACK_ON_ALARM
    ),
)
service.connections.allow_to_default_port(database)
service.load_balancer_target(
    container_name="web",
    container_port=PORT,
    alternate_target=ecs.AlternateTarget(
        "Green",
        alternate_target_group=green,
        production_listener=rule("Production", 80),
        test_listener=rule("Test", 9000),
    ),
).attach_to_application_target_group(blue)

migration.execute_before(service)
# Once the bake time is over and no blue task is left.
migration.contract_after(service)

app.synth()
