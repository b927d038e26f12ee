"""CloudFormation, Lambda and ECS as the trigger meets them, with a clock that waits for nobody.

Every call is checked against botocore's own model of the service, so that a misspelt parameter fails here too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any

import boto3
import index
from aws import Aws
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.validate import ParamValidator
from request import resource_id

LAMBDA_SECONDS = 900
MAX_PAGE = 100
STACK = "arn:aws:cloudformation:us-west-2:111122223333:stack/DevStack/51af3dc0-da77-11e4-872e-1234567db123"
CLUSTER = "arn:aws:ecs:us-west-2:111122223333:cluster/dev-inventory-cluster"
TASK_DEFINITION = "arn:aws:ecs:us-west-2:111122223333:task-definition/dev-migration-task:7"
URL = "https://cloudformation-custom-resource-response.example/answer?X-Amz-Date={}&X-Amz-Signature=c0ffee{}"
PROPERTIES = {
    "ServiceToken": "arn:aws:lambda:us-west-2:111122223333:function:trigger",
    "Cluster": CLUSTER,
    "TaskDefinition": TASK_DEFINITION,
    "Container": "migration",
    "Subnets": ["subnet-1", "subnet-2"],
    "SecurityGroups": ["sg-1"],
    "AssignPublicIp": "DISABLED",
    "LogGroup": "/ecs/dev/migration-task",
    "LogStreamPrefix": "migration",
    "MemoryLimitMiB": "512",
    "Timeout": "1800",
    "Target": "49871d03964c",
    "Fingerprint": "new",
    "RecordParameter": "record",
    "Revisions": ["49871d03964c rename name to sku", "48871d03964b create items"],
}
SERVICE = "arn:aws:ecs:us-west-2:111122223333:service/dev-inventory-cluster/dev-inventory-service"
OLDER_WEB, NEWER_WEB = (
    f"arn:aws:ecs:us-west-2:111122223333:task-definition/dev-inventory-service:{number}" for number in (3, 4)
)
CONTRACT: dict[str, Any] = {
    "Command": ["python", "-m", "migration_runner", "contract"],
    "Services": [{"Cluster": CLUSTER, "Service": SERVICE, "TaskDefinition": NEWER_WEB}],
    "Required": "false",
    "Migration": {"StackId": STACK, "LogicalId": "Migration8F2B1C3D"},
}
SUCCEEDED = {"event": "migration.result", "from": "48871d03964b", "at": "49871d03964c", "applied": ["49871d03964c"]}
FAILED = {
    "event": "migration.result",
    "from": "48871d03964b",
    "at": "48871d03964b",
    "applied": [],
    "error": {
        "kind": "UndefinedColumn",
        "sqlstate": "42703",
        "revision": "49871d03964c",
        "message": 'column "name" does not exist',
        "hint": None,
    },
}


class LambdaTimeout(BaseException):
    """Lambda ended the invocation; nothing in the function can catch that."""


class LostAnswerError(EndpointConnectionError):  # type: ignore[misc]
    """What was asked for has been done, but the caller can't know."""

    def __init__(self) -> None:
        super().__init__(endpoint_url="https://aws.example")


@dataclass
class Run:
    """How a task that is started will go: for how long, how it ends, and what it says."""

    seconds: float = 20
    exit_code: int | None = 0
    stop_code: str = "EssentialContainerExited"
    stopped_reason: str = "Essential container in task exited"
    said: Mapping[str, Any] | str | None = field(default_factory=lambda: SUCCEEDED)
    said_when_stopped: Mapping[str, Any] | None = None
    seconds_to_stop: float = 2
    sidecars: Sequence[Mapping[str, Any]] = ()


@dataclass
class Web:
    """A service: what it runs, since when its deployment is done, and until when older tasks drain."""

    task_definition: str = NEWER_WEB
    done_at: float = 0
    drained_at: float = 0
    status: str = "ACTIVE"
    rollout: str | None = "COMPLETED"

    def deployments(self, now: float) -> list[dict[str, Any]]:
        """As ECS describes them."""
        counts = {"desiredCount": 2, "runningCount": 2 if now >= self.done_at else 1, "pendingCount": 0}
        newest = {"status": "PRIMARY", "taskDefinition": self.task_definition, **counts}
        if self.rollout:
            newest["rolloutState"] = self.rollout if now >= self.done_at else "IN_PROGRESS"
            newest["rolloutStateReason"] = "ECS deployment circuit breaker: tasks failed to start."
        older = {"status": "ACTIVE", "taskDefinition": OLDER_WEB, "rolloutState": "COMPLETED", **counts}
        return [newest, older] if now < self.done_at else [newest]

    def tasks(self, name: str, now: float) -> list[dict[str, Any]]:
        """As ECS describes them."""
        older = "STOPPED" if now >= self.drained_at else "DEACTIVATING" if now >= self.done_at else "RUNNING"
        desired = "STOPPED" if now >= self.done_at else "RUNNING"
        prefix = f"arn:aws:ecs:us-west-2:111122223333:task/dev-inventory-cluster/{name}"
        return [
            {
                "taskArn": f"{prefix}-new",
                "taskDefinitionArn": self.task_definition,
                "lastStatus": "RUNNING",
                "desiredStatus": "RUNNING",
            },
            {
                "taskArn": f"{prefix}-old",
                "taskDefinitionArn": OLDER_WEB,
                "lastStatus": older,
                "desiredStatus": desired,
            },
        ]


@dataclass
class World:
    """All of it at once: give it runs and faults, one for each call or None, deliver requests, read the answers."""

    runs: list[Run] = field(default_factory=list)
    stack_status: str = "UPDATE_IN_PROGRESS"
    updated_at: float = 0
    rolled_back_at: float = 0
    recorded: str = "none"
    faults: dict[str, list[Exception | None]] = field(default_factory=dict)
    no_room: int = 0
    silent_reads: int = 0
    unseen_for: float = 0
    clock: float = 1_800_000_000
    answers: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tasks: dict[str, tuple[Run, dict[str, Any]]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    invocations: list[dict[str, Any]] = field(default_factory=list)
    invocation_ends: float = 0
    undeliverable: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    services: dict[str, Web] = field(default_factory=dict)

    def request(
        self, kind: str, request_id: str = "request-1", old: Mapping[str, Any] | None = None, **properties: Any
    ) -> dict[str, Any]:
        """An event of CloudFormation; ``old`` and ``properties`` are what differs from PROPERTIES.

        Its address is a new one each time, as CloudFormation's are, also when the id is used again. It is one of the
        contract when ``properties`` have its services.
        """
        logical_id = "MigrationContract5D1B0206" if "Services" in properties else "Migration8F2B1C3D"
        event = {
            "RequestType": kind,
            "StackId": STACK,
            "RequestId": request_id,
            "ResponseURL": URL.format(f"{datetime.fromtimestamp(self.clock, UTC):%Y%m%dT%H%M%SZ}", len(self.requests)),
            "ResourceType": "Custom::DatabaseContract" if "Services" in properties else "Custom::DatabaseMigration",
            "LogicalResourceId": logical_id,
            "ResourceProperties": {**PROPERTIES, **properties},
        }
        if kind == "Update":
            event["OldResourceProperties"] = {**PROPERTIES, **(old or {})}
        if kind != "Create":
            event["PhysicalResourceId"] = resource_id(STACK, logical_id)
        self.requests.append(event)
        return event

    def deliver(
        self, kind: str, request_id: str = "request-1", old: Mapping[str, Any] | None = None, **properties: Any
    ) -> dict[str, Any]:
        """Send a request, let the function and its continuations run, and return CloudFormation's only answer."""
        before = len(self.answers)
        self.invoke(self.request(kind, request_id, old, **properties))
        mine = [answer for answer in self.answers[before:] if answer["RequestId"] == request_id]
        assert len(mine) == 1
        return mine[0]

    def deliver_again(self) -> dict[str, Any]:
        """Let Lambda deliver the last request once more; the answer to it."""
        self.invoke(self.requests[-1])
        return self.answers[-1]

    def invoke(self, event: dict[str, Any]) -> None:
        """Run the function, and every invocation that it has asked for."""
        outer_end = self.invocation_ends
        self.invocations.append(event)
        while self.invocations:
            self.invocation_ends = self.clock + LAMBDA_SECONDS
            context = SimpleNamespace(
                invoked_function_arn="arn:aws:lambda:us-west-2:111122223333:function:trigger",
                get_remaining_time_in_millis=lambda: int((self.invocation_ends - self.clock) * 1000),
            )
            index.respond(self.invocations.pop(0), context, self.aws())
        self.invocation_ends = outer_end

    def aws(self) -> Aws:
        """What the function is given."""
        return Aws(
            ecs=self._client(
                "ecs",
                RunTask=self._run,
                ListTasks=self._list,
                DescribeTasks=self._tell,
                StopTask=self._stop,
                DescribeServices=self._serve,
            ),
            logs=self._client("logs", GetLogEvents=self._log),
            ssm=self._client("ssm", GetParameter=self._get, PutParameter=self._put),
            cloudformation=self._client(
                "cloudformation", DescribeStacks=self._stack, DescribeStackEvents=self._stack_events
            ),
            lambda_client=self._client("lambda", Invoke=self._hand_on),
            sns=self._client("sns", Publish=self._publish),
            put=self._answer,
            now=lambda: self.clock,
            sleep=self.sleep,
        )

    def sleep(self, seconds: float) -> None:
        """Time passes, and what is due happens."""
        self.clock += seconds
        if self.clock > self.invocation_ends:
            raise LambdaTimeout
        for moment in [one for one in self.later if one[0] <= self.clock]:
            self.later.remove(moment)
            moment[1]()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen while the function waits."""
        self.later.append((self.clock + seconds, action))

    def called(self, operation: str) -> list[dict[str, Any]]:
        """The parameters of every call of an operation."""
        return [parameters for name, parameters in self.calls if name == operation]

    @property
    def running(self) -> list[str]:
        """The tasks that run now."""
        return [arn for arn in self.tasks if self._describe(arn)["lastStatus"] != "STOPPED"]

    def _client(self, service: str, **operations: Callable[..., dict[str, Any]]) -> SimpleNamespace:
        real = real_client(service)
        methods = {operation: method for method, operation in real.meta.method_to_api_mapping.items()}

        def call(operation: str) -> Callable[..., dict[str, Any]]:
            def called(**parameters: Any) -> dict[str, Any]:
                shape = real.meta.service_model.operation_model(operation).input_shape
                report = ParamValidator().validate(parameters, shape)
                assert not report.has_errors(), report.generate_report()
                self.calls.append((operation, parameters))
                if (faults := self.faults.get(operation)) and (one := faults.pop(0)):
                    if isinstance(one, LostAnswerError):
                        operations[operation](**parameters)
                    raise one
                return operations[operation](**parameters)

            return called

        return SimpleNamespace(exceptions=real.exceptions, **{methods[name]: call(name) for name in operations})

    def _run(
        self,
        *,
        startedBy: str,  # noqa: N803
        clientToken: str,  # noqa: N803
        taskDefinition: str,  # noqa: N803
        overrides: Mapping[str, Any] = MappingProxyType({}),
        **_: Any,
    ) -> dict[str, Any]:
        if self.no_room:
            self.no_room -= 1
            return {"tasks": [], "failures": [{"reason": "RESOURCE:ENI"}]}
        arn = self.tokens.get(clientToken)
        if arn is None:
            arn = f"arn:aws:ecs:us-west-2:111122223333:task/dev-inventory-cluster/{len(self.tasks) + 1:032x}"
            self.tokens[clientToken] = arn
            commands = overrides.get("containerOverrides") or [{"name": "migration"}]
            created = {
                "taskArn": arn,
                "taskDefinitionArn": taskDefinition,
                "startedBy": startedBy,
                "overrides": {"containerOverrides": commands},
            }
            self.tasks[arn] = (self.runs.pop(0), {**created, "createdAt": datetime.fromtimestamp(self.clock, UTC)})
        return {"tasks": [self._describe(arn)], "failures": []}

    def _list(self, *, cluster: str, nextToken: str = "0", **filters: str) -> dict[str, Any]:  # noqa: ARG002, N803
        if "startedBy" in filters and len(filters) > 1:
            raise fault("InvalidParameterException", "startedBy must be the only filter.")
        wanted = {"desiredStatus": "RUNNING", **filters}
        if name := filters.get("serviceName"):
            tasks = self.services[name].tasks(name, self.clock)
            return {"taskArns": [one["taskArn"] for one in tasks if one["desiredStatus"] == wanted["desiredStatus"]]}
        arns = []
        for task in map(self._describe, self.tasks):
            family = task["taskDefinitionArn"].rpartition("/")[2].partition(":")[0]
            if wanted.items() <= {**task, "family": family}.items():
                arns.append(task["taskArn"])
        end = int(nextToken) + MAX_PAGE
        more = {"nextToken": str(end)} if arns[end:] else {}
        return {"taskArns": arns[int(nextToken) : end], **more}

    def _tell(self, *, tasks: list[str], **_: Any) -> dict[str, Any]:
        if not 1 <= len(tasks) <= MAX_PAGE:
            raise fault("InvalidParameterException", "Tasks must be from 1 to 100.")
        serving = {one["taskArn"]: one for name, web in self.services.items() for one in web.tasks(name, self.clock)}
        if serving.keys() & set(tasks):
            return {"tasks": [serving[arn] for arn in tasks], "failures": []}
        seen = [a for a in tasks if self.clock >= self.tasks[a][1]["createdAt"].timestamp() + self.unseen_for]
        missing = [{"arn": arn, "reason": "MISSING"} for arn in tasks if arn not in seen]
        return {"tasks": [self._describe(arn) for arn in seen], "failures": missing}

    def _serve(self, *, services: list[str], **_: Any) -> dict[str, Any]:
        assert 1 <= len(services) <= 10
        known = [arn for arn in services if arn.rpartition("/")[2] in self.services]
        described = []
        for arn in known:
            name = arn.rpartition("/")[2]
            web = self.services[name]
            deployments = web.deployments(self.clock)
            described.append({"serviceArn": arn, "serviceName": name, "status": web.status, "deployments": deployments})
        missing = [{"arn": arn, "reason": "MISSING"} for arn in services if arn not in known]
        return {"services": described, "failures": missing}

    def _describe(self, arn: str) -> dict[str, Any]:
        run, task = self.tasks[arn]
        ends = task["createdAt"].timestamp() + run.seconds
        stops = task.get("stop_asked", float("inf")) + run.seconds_to_stop
        known = {name: task[name] for name in ("taskArn", "taskDefinitionArn", "startedBy", "createdAt", "overrides")}
        known["desiredStatus"] = "STOPPED" if "stop_asked" in task or self.clock >= ends else "RUNNING"
        if self.clock < min(ends, stops):
            status = "STOPPING" if "stop_asked" in task else "RUNNING"
            return {**known, "lastStatus": status, "containers": [{"name": "migration"}]}
        if ends <= stops:
            exit_code, code, reason = run.exit_code, run.stop_code, run.stopped_reason
        else:
            exit_code, code, reason = 143, "UserInitiated", task["stop_reason"]
        container = {"name": "migration"} | ({} if exit_code is None else {"exitCode": exit_code})
        if code != "TaskFailedToStart":
            known["startedAt"] = known["createdAt"]
        containers = [*run.sidecars, container]
        return {**known, "lastStatus": "STOPPED", "stopCode": code, "stoppedReason": reason, "containers": containers}

    def _stop(self, *, task: str, reason: str, **_: Any) -> dict[str, Any]:
        self.tasks[task][1].setdefault("stop_asked", self.clock)
        self.tasks[task][1].setdefault("stop_reason", reason)
        return {"task": self._describe(task)}

    def _log(self, *, logStreamName: str, startFromHead: bool, **_: Any) -> dict[str, Any]:  # noqa: N803
        prefix, container, task_id = logStreamName.split("/")
        assert (prefix, container) == ("migration", "migration")
        assert not startFromHead
        run, task = next(known for arn, known in self.tasks.items() if arn.endswith(task_id))
        said = run.said_when_stopped if "stop_asked" in task and run.said_when_stopped else run.said
        if said is None:
            raise fault("ResourceNotFoundException", service="logs")
        if self.silent_reads:
            self.silent_reads -= 1
            return {"events": []}
        return {
            "events": [
                {"message": "starting"},
                {"message": said if isinstance(said, str) else json.dumps(said)},
                {"message": '{"event": "bye"}'},
                {"message": "7"},
            ]
        }

    def _get(self, **_: Any) -> dict[str, Any]:
        return {"Parameter": {"Value": self.recorded}}

    def _put(self, *, Value: str, Overwrite: bool, **_: Any) -> dict[str, Any]:  # noqa: N803
        assert Overwrite
        self.recorded = Value
        return {}

    def _publish(self, **message: Any) -> dict[str, Any]:
        self.messages.append(message)
        return {}

    def _stack(self, **_: Any) -> dict[str, Any]:
        return {"Stacks": [{"StackStatus": self.stack_status}]}

    def _stack_events(self, *, StackName: str, NextToken: str = "") -> dict[str, Any]:  # noqa: N803
        if not NextToken:
            return {"StackEvents": [{"PhysicalResourceId": "some-service"}], "NextToken": "next"}
        began = {"UPDATE_ROLLBACK_IN_PROGRESS": self.rolled_back_at, "UPDATE_IN_PROGRESS": self.updated_at}
        return {
            "StackEvents": [
                {
                    "PhysicalResourceId": StackName,
                    "ResourceStatus": status,
                    "Timestamp": datetime.fromtimestamp(at, UTC),
                }
                for status, at in began.items()
            ]
        }

    def _hand_on(self, *, Payload: bytes, **_: Any) -> dict[str, Any]:  # noqa: N803
        self.invocations.append(json.loads(Payload))
        return {}

    def _answer(self, url: str, content: bytes) -> None:
        assert url in [request["ResponseURL"] for request in self.requests]
        assert len(content) <= 4096
        if self.undeliverable:
            self.undeliverable -= 1
            raise ConnectionResetError
        self.answers.append(json.loads(content))


def fault(
    code: str, message: str = "as AWS puts it", *, service: str = "ecs", status: int = 400, **fields: Any
) -> ClientError:
    """What botocore raises for an error of AWS."""
    error = {"Code": code, "Message": message}
    response: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}, **fields}
    raised: ClientError = real_client(service).exceptions.from_code(code)(response, "")
    return raised


@cache
def real_client(service: str) -> Any:
    return boto3.client(service, region_name="us-west-2", aws_access_key_id="none", aws_secret_access_key="none")
