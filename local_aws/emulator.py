"""The emulator's process: ministack, with the gaps closed that a deployment of ours would meet.

Each function below closes one gap of the pinned version and says which. Started by ``local_aws.machine``.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from datetime import datetime
from pathlib import Path
from typing import Any

from ministack.services import cloudformation, ec2, ecr, ecs, rds
from ministack.services.cloudformation import custom_resource, provisioners, stacks

from local_aws import images
from local_aws.application import NOT_EMULATED
from local_aws.engine import Engine
from local_aws.postgres import Postgres

ROLLOUT_TIMEOUT = 300.0
# The longest that Fargate grants, in seconds.
STOP_TIMEOUT = 120.0
# What ministack puts before the reason of everything that goes wrong before a container runs.
NOT_STARTED = "ResourceInitializationError: unable to pull image or start container: "

Handler = Callable[..., tuple[str, dict[str, str]]]


def keep_container_secrets_and_health_checks() -> None:
    """A task definition from CloudFormation loses its ``Secrets``, and its health check keeps CloudFormation's case."""
    original = provisioners._normalize_container_defs

    @functools.wraps(original)
    def normalize(definitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        normalized: list[dict[str, Any]] = original(definitions)
        for definition in normalized:
            for key in {"secrets", "healthCheck"} & definition.keys():
                definition[key] = provisioners._pascal_to_camel(definition[key])
        return normalized

    provisioners._normalize_container_defs = normalize


def keep_runtime_platform() -> None:
    """A task definition from CloudFormation loses its ``RuntimePlatform``."""
    original = provisioners._ecs_task_def_create

    @functools.wraps(original)
    def create(logical_id: str, props: dict[str, Any], stack_name: str) -> tuple[str, dict[str, str]]:
        arn, attributes = original(logical_id, props, stack_name)
        definition = ecs._task_defs[arn.rpartition("/")[2]]
        definition["runtimePlatform"] = provisioners._pascal_to_camel(props.get("RuntimePlatform"))
        return arn, attributes

    provisioners._ecs_task_def_create = create
    provisioners._RESOURCE_HANDLERS["AWS::ECS::TaskDefinition"]["create"] = create


def keep_milliseconds() -> None:
    """The times of a task lose what is below a second."""
    ecs._ts_to_epoch = lambda value: datetime.fromisoformat(value).timestamp() if isinstance(value, str) else value


def say_why_a_task_did_not_start() -> None:
    """Whatever keeps a container from starting is reported as a failed initialization; ECS names an error for each."""
    original = ecs._fail_task_start

    @functools.wraps(original)
    def fail(task: dict[str, Any], docker_client: Engine, reason: str) -> None:
        original(task, docker_client, reason.removeprefix(NOT_STARTED) if f"{NOT_STARTED}Cannot" in reason else reason)

    ecs._fail_task_start = fail


def stop_tasks_with_their_containers() -> None:
    """StopTask takes a task for stopped, with exit code 0, before its container has heard of it.

    ECS answers at once, and the task goes on until its container has ended; its exit code is the container's own.
    """
    stop_before_it_runs = ecs._stop_task
    original = ecs._mark_task_stopped

    def stop(data: dict[str, Any]) -> Any:
        task = ecs._resolve_task(data.get("task", ""), ecs._resolve_cluster_name(data.get("cluster", "default")))
        if not task or task["lastStatus"] != "RUNNING":
            return stop_before_it_runs(data)
        task["_told_to_stop"] = data.get("reason", "Task stopped by user")
        for container in task["_docker_ids"]:
            threading.Thread(target=ecs._get_docker().containers.get(container).stop, args=[STOP_TIMEOUT]).start()
        return ecs.json_response({"task": {**ecs._sanitize(task), "desiredStatus": "STOPPED"}})

    @functools.wraps(original)
    def mark(arn: str, task: dict[str, Any], reason: str, code: str, exit_code: int | None = None) -> Any:
        told = task.get("_told_to_stop")
        return original(arn, task, told or reason, "UserInitiated" if told else code, exit_code)

    ecs._ACTION_MAP["StopTask"], ecs._mark_task_stopped = stop, mark


def wait_for_rollouts() -> None:
    """CloudFormation waits until a service is stable and fails when its circuit breaker trips; ministack does not."""
    original = ecs._make_deployment

    @functools.wraps(original)
    def make_deployment(task_definition: str, desired_count: int, status: str = "PRIMARY") -> dict[str, Any]:
        deployment: dict[str, Any] = original(task_definition, desired_count, status)
        if desired_count:
            deployment |= {"rolloutState": "IN_PROGRESS", "rolloutStateReason": ""}
        return deployment

    ecs._make_deployment = make_deployment

    def waiting(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def handle(*args: Any, **kwargs: Any) -> tuple[str, dict[str, str]]:
            arn, attributes = handler(*args, **kwargs)
            _wait_for_rollout("/".join(arn.split("/")[-2:]))
            return arn, attributes

        return handle

    service = provisioners._RESOURCE_HANDLERS["AWS::ECS::Service"]
    service["create"], service["update"] = waiting(service["create"]), waiting(service["update"])
    # Where the wait happens: not on the event loop, which the tasks need to start.
    on_worker = stacks._runs_on_worker_thread
    stacks._runs_on_worker_thread = lambda kind: kind == "AWS::ECS::Service" or on_worker(kind)


def _wait_for_rollout(service_key: str) -> None:
    deployment = ecs._services[service_key]["deployments"][0]
    deadline = time.monotonic() + ROLLOUT_TIMEOUT
    while deployment["rolloutState"] == "IN_PROGRESS" and time.monotonic() < deadline:
        time.sleep(0.1)
    if deployment["rolloutState"] != "COMPLETED":
        raise ValueError(
            'Resource handler returned message: "Error occurred during operation '
            "'ECS Deployment Circuit Breaker was triggered'.\" (HandlerErrorCode: GeneralServiceException)"
        )


def interrupt_custom_resources() -> None:
    """An update is cancelled, and a stack that is being created is deleted, only once its custom resource has answered.

    CloudFormation does not wait for that answer: while the first request goes on, the resource gets the Update of the
    rollback, or a Delete with an id that CloudFormation has made up.
    """
    original = custom_resource.invoke_custom_resource

    @functools.wraps(original)
    def invoke(
        request: str, logical_id: str, props: dict[str, Any], stack_name: str, stack_id: str, kind: str, **kwargs: Any
    ) -> Any:
        stack = cloudformation._stacks[stack_name]
        running = futures.ThreadPoolExecutor(max_workers=1).submit(
            contextvars.copy_context().run,
            functools.partial(original, request, logical_id, props, stack_name, stack_id, kind, **kwargs),
        )
        while not futures.wait([running], timeout=0.1).done:
            if request == "Update" and stack.pop("_cancel_requested", False):
                raise RuntimeError("Resource update cancelled")
            if request == "Create" and stack["StackStatus"] == "DELETE_IN_PROGRESS":
                made_up = {"PhysicalResourceId": f"{stack_name}-{logical_id}", "ResourceType": kind}
                stack["_resources"][logical_id] = {**made_up, "Properties": props}
                raise RuntimeError("Resource creation cancelled")
        return running.result()

    custom_resource.invoke_custom_resource = invoke

    roll_back = stacks._roll_back_operation

    @functools.wraps(roll_back)
    async def roll_back_unless_deleted(
        stack_name: str, stack_id: str, stack: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if stack["StackStatus"] == "DELETE_IN_PROGRESS":
            stack["StackStatus"] = "CREATE_FAILED"
        else:
            await roll_back(stack_name, stack_id, stack, *args, **kwargs)

    stacks._roll_back_operation = roll_back_unless_deleted

    delete = cloudformation.handlers._delete_stack_async

    @functools.wraps(delete)
    async def interrupt_and_delete(stack_name: str, *args: Any, **kwargs: Any) -> None:
        stack = cloudformation._stacks[stack_name]
        if stack["StackStatus"] == "CREATE_IN_PROGRESS":
            stack["StackStatus"] = "DELETE_IN_PROGRESS"
            while stack["StackStatus"] == "DELETE_IN_PROGRESS":
                await asyncio.sleep(0.1)
        await delete(stack_name, *args, **kwargs)

    cloudformation.handlers._delete_stack_async = interrupt_and_delete


def database_instances_are_real(postgres: Postgres) -> None:
    """A database instance from CloudFormation is only a record; here it is a database with its master user."""
    handlers = provisioners._RESOURCE_HANDLERS["AWS::RDS::DBInstance"]
    original_create, original_delete = handlers["create"], handlers["delete"]

    def create(logical_id: str, props: dict[str, Any], stack_name: str) -> tuple[str, dict[str, str]]:
        identifier, attributes = original_create(logical_id, props, stack_name)
        instance = rds._instances[identifier]
        postgres.create_database(
            instance["DBName"], owner=instance["MasterUsername"], password=instance["_MasterUserPassword"]
        )
        postgres.serve_as([instance["Endpoint"]["Address"]])
        instance["Endpoint"]["Port"] = postgres.port
        return identifier, attributes | {"Endpoint.Port": str(postgres.port)}

    def delete(identifier: str, props: dict[str, Any]) -> None:
        if instance := rds._instances.get(identifier):
            postgres.drop_database(instance["DBName"])
        original_delete(identifier, props)

    handlers["create"], handlers["delete"] = create, delete


def know_security_group_rules() -> None:
    """A rule that is a resource of its own is unknown to ministack; EC2 itself knows how to keep one."""

    def kept(direction: str) -> dict[str, Callable[..., Any]]:
        permissions = "IpPermissions" if direction == "Ingress" else "IpPermissionsEgress"

        def create(logical_id: str, props: dict[str, Any], stack_name: str) -> tuple[str, dict[str, str]]:
            rules: list[Any] = ec2._security_groups[props["GroupId"]][permissions]
            rules += provisioners._ec2_sg_permissions([props])
            return f"{stack_name}-{logical_id}", {}

        def delete(_: str, props: dict[str, Any]) -> None:
            group = ec2._security_groups.get(props["GroupId"], {permissions: []})
            for rule in provisioners._ec2_sg_permissions([props]):
                if rule in group[permissions]:
                    group[permissions].remove(rule)

        def update(
            identifier: str, old: dict[str, Any], new: dict[str, Any], stack_name: str, logical_id: str = ""
        ) -> tuple[str, dict[str, str]]:
            delete(identifier, old)
            return create(logical_id, new, stack_name)

        return {"create": create, "update": update, "delete": delete}

    for direction in ("Ingress", "Egress"):
        provisioners._RESOURCE_HANDLERS[f"AWS::EC2::SecurityGroup{direction}"] = kept(direction)


def accept_what_is_not_emulated() -> None:
    """Kinds of resources that ministack does not know, and on which neither the migration nor the service depends."""

    def create(logical_id: str, _: dict[str, Any], stack_name: str) -> tuple[str, dict[str, str]]:
        return f"{stack_name}-{logical_id}", {}

    def update(identifier: str, *_: Any, **__: Any) -> tuple[str, dict[str, str]]:
        return identifier, {}

    def delete(*_: Any) -> None:
        """Nothing was made."""

    for kind in NOT_EMULATED:
        provisioners._RESOURCE_HANDLERS[kind] = {"create": create, "update": update, "delete": delete}


def describe_only_images_that_exist() -> None:
    """ECR answers DescribeImages for an image that is missing, and the CDK CLI then skips its build."""
    original = ecr._describe_images

    @functools.wraps(original)
    def describe(data: dict[str, Any]) -> Any:
        try:
            for wanted in data.get("imageIds", []):
                images.find(wanted.get("imageTag") or wanted["imageDigest"])
        except images.ImageError:
            return ecr.error_response_json("ImageNotFoundException", "The image requested does not exist", 400)
        return original(data)

    ecr._describe_images = describe


def main() -> None:
    """Serve until told to stop, then end every container."""
    postgres = Postgres(Path(os.environ["LOCAL_AWS_POSTGRES"]), force_tls=True)
    engine = Engine(Path(os.environ["LOCAL_AWS_CONTAINERS"]), postgres.ca_file)
    ecs._docker = engine
    keep_container_secrets_and_health_checks()
    keep_runtime_platform()
    keep_milliseconds()
    say_why_a_task_did_not_start()
    stop_tasks_with_their_containers()
    wait_for_rollouts()
    interrupt_custom_resources()
    database_instances_are_real(postgres)
    know_security_group_rules()
    accept_what_is_not_emulated()
    describe_only_images_that_exist()

    from ministack.app import main as serve

    sys.argv = ["ministack"]
    try:
        serve()
    finally:
        try:
            engine.stop_all()
        finally:
            # Threads of the emulator may still wait for a task that is no more.
            os._exit(0)


if __name__ == "__main__":
    main()
