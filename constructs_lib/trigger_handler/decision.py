"""What CloudFormation asks for, and what is to be done about it. Pure: nothing here calls AWS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum, auto
from typing import Any

UNKNOWN = "-"


class Action(Enum):
    """What a request leads to."""

    RUN = auto()
    ANSWER_UNCHANGED = auto()
    REFUSE = auto()


@dataclass(frozen=True)
class Request:
    """One request of CloudFormation, parsed; its numbers arrive as text."""

    kind: str
    stack_id: str
    request_id: str
    logical_id: str
    cluster: str
    task_definition: str
    container: str
    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]
    assign_public_ip: str
    log_group: str
    log_stream_prefix: str
    timeout: float
    memory_limit_mib: str
    target: str
    fingerprint: str
    record_parameter: str

    @classmethod
    def parse(cls, event: Mapping[str, Any]) -> Request:
        """Read the event; raises KeyError or ValueError when it isn't one of ours."""
        properties = event["ResourceProperties"]
        return cls(
            kind=event["RequestType"],
            stack_id=event["StackId"],
            request_id=event["RequestId"],
            logical_id=event["LogicalResourceId"],
            cluster=properties["Cluster"],
            task_definition=properties["TaskDefinition"],
            container=properties["Container"],
            subnets=tuple(properties["Subnets"]),
            security_groups=tuple(properties["SecurityGroups"]),
            assign_public_ip=properties["AssignPublicIp"],
            log_group=properties["LogGroup"],
            log_stream_prefix=properties["LogStreamPrefix"],
            timeout=float(properties["Timeout"]),
            memory_limit_mib=str(properties["MemoryLimitMiB"]),
            target=properties["Target"],
            fingerprint=properties["Fingerprint"],
            record_parameter=properties["RecordParameter"],
        )

    @property
    def resource_id(self) -> str:
        """The resource's physical id, which is also ``startedBy`` of its tasks (at most 36 characters): constant."""
        return resource_id(self.stack_id, self.logical_id)

    @property
    def family(self) -> str:
        """The task definition's name without its revision."""
        return self.task_definition.rsplit("/", 1)[-1].partition(":")[0]

    def log_stream(self, task_arn: str) -> str:
        """Where the awslogs driver writes what the task's container says."""
        return f"{self.log_stream_prefix}/{self.container}/{task_id(task_arn)}"

    def client_token(self, attempt: int) -> str:
        """The same for the same event delivered twice, so that ECS gives the same task.

        Args:
            attempt: counts the tasks of one event, from 1.
        """
        text = f"{self.stack_id} {self.logical_id} {self.request_id} {attempt}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What the next deployment must know of the last migration."""

    fingerprint: str = UNKNOWN
    before: str = UNKNOWN
    after: str = UNKNOWN

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read it back; what was not written by ``dump`` is no record."""
        try:
            fields = json.loads(text)
            return cls(str(fields["fingerprint"]), str(fields["before"]), str(fields["after"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return cls()

    def dump(self) -> str:
        """For the parameter."""
        return json.dumps(asdict(self))


def resource_id(stack_id: str, logical_id: str) -> str:
    """An id for the resource that never changes: CloudFormation deletes what has a new one."""
    return "migration-" + hashlib.sha256(f"{stack_id} {logical_id}".encode()).hexdigest()[:24]


def task_id(task_arn: str) -> str:
    """The last part of the task's ARN."""
    return task_arn.rsplit("/", 1)[-1]


def rolls_back(stack_status: str) -> bool:
    """Whether the stack rolls back now; nothing else tells a rollback from an ordinary update."""
    return "ROLLBACK" in stack_status and stack_status.endswith("_IN_PROGRESS")


def decide(kind: str, stack_status: str, fingerprint: str, last_success: Record) -> Action:
    """What to do while the stack does not roll back.

    Args:
        kind: Create or Update.
        stack_status: the stack's status now.
        fingerprint: of the migrations that are asked for.
        last_success: old properties can't tell what has been migrated, for they may be those of a failed attempt.
    """
    if not stack_status.endswith("_IN_PROGRESS"):
        return Action.REFUSE
    if kind == "Update" and fingerprint == last_success.fingerprint:
        return Action.ANSWER_UNCHANGED
    return Action.RUN
