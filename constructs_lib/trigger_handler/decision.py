"""What CloudFormation asks for, and what is to be done about it. Pure: nothing here calls AWS."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum, auto
from typing import Any

UNKNOWN = "-"


class Action(Enum):
    """What a request leads to."""

    RUN = auto()
    ANSWER_UNCHANGED = auto()
    REFUSE = auto()


class Undo(Enum):
    """What a rollback that may downgrade leads to."""

    NOTHING = auto()
    DOWNGRADE = auto()
    NOT_OURS = auto()


@dataclass(frozen=True)
class Request:
    """One request of CloudFormation, parsed; its numbers arrive as text.

    Attributes:
        command: what the container runs instead of what its task definition says; empty for just that.
        turn: tells deployments apart to which CloudFormation gives the same request id.
    """

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
    on_database_ahead: str
    command: tuple[str, ...] = ()
    turn: int = 0

    @classmethod
    def parse(cls, event: Mapping[str, Any], properties_name: str = "ResourceProperties") -> Request:
        """Read the event; raises KeyError or ValueError when it isn't one of ours."""
        properties = event[properties_name]
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
            # A rollback may bring the properties of an older template, which lacks it.
            on_database_ahead=properties.get("OnDatabaseAhead", "fail"),
        )

    @classmethod
    def parse_downgrade(cls, event: Mapping[str, Any]) -> Request:
        """The way back that a rollback's event asks for: in the newer image, for the older one lacks the files."""
        older, newer = cls.parse(event), cls.parse(event, "OldResourceProperties")
        return replace(
            newer,
            target=older.target,
            fingerprint=older.fingerprint,
            timeout=min(older.timeout, newer.timeout),
            on_database_ahead="fail",
            command=("python", "-m", "migration_runner", "downgrade", older.target),
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
        text = f"{self.stack_id} {self.logical_id} {self.request_id} {self.turn} {attempt}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def key(self) -> str:
        """The same for the same event delivered twice; not the same for a rollback, whatever its id."""
        text = f"{self.request_id} {self.task_definition} {self.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What the trigger must know of the last deployment.

    Attributes:
        fingerprint: of the migrations that the schema has; unknown after a failure that may have moved it.
        before: where the schema was before this deployment's upgrade; unknown when that has moved nothing.
        after: where the schema was seen last.
        request: the deployment's: the key of the request that was the last to ask for an upgrade.
        turn: which deployment with just this request it is; CloudFormation may use a request's id again.
        rolled_back: whether the deployment is being, or has been, rolled back.
    """

    fingerprint: str = UNKNOWN
    before: str = UNKNOWN
    after: str = UNKNOWN
    request: str = UNKNOWN
    turn: int = 0
    rolled_back: bool = False

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read it back; what was not written by ``dump`` is no record."""
        try:
            fields = json.loads(text)
            return cls(
                fingerprint=str(fields["fingerprint"]),
                before=str(fields["before"]),
                after=str(fields["after"]),
                request=str(fields.get("request", UNKNOWN)),
                turn=int(fields.get("turn", 0)),
                rolled_back=fields.get("rolled_back") is True,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls()

    def dump(self) -> str:
        """For the parameter."""
        return json.dumps(asdict(self))

    def closed(self) -> Record:
        """The record of the same deployment when it has been rolled back: there is nothing left to undo."""
        return replace(self, before=UNKNOWN, rolled_back=True)

    def is_of(self, request: Request) -> bool:
        """Whether this deployment is the request's own, so that the request has been delivered before."""
        return self.request == request.key

    def opened_for(self, request: Request) -> Record:
        """The record with which the request's deployment begins, or goes on when it has begun already."""
        if self.is_of(request) and not self.rolled_back:
            return self
        turn = self.turn + 1 if self.is_of(request) else 0
        return Record(self.fingerprint, UNKNOWN, self.after, request.key, turn)


def resource_id(stack_id: str, logical_id: str) -> str:
    """An id for the resource that never changes: CloudFormation deletes what has a new one."""
    return "migration-" + hashlib.sha256(f"{stack_id} {logical_id}".encode()).hexdigest()[:24]


def task_id(task_arn: str) -> str:
    """The last part of the task's ARN."""
    return task_arn.rsplit("/", 1)[-1]


def stack_name(stack_id: str) -> str:
    """The stack's name, from its ARN."""
    return stack_id.split("/")[1]


def rolls_back(stack_status: str) -> bool:
    """Whether the stack rolls back now; nothing else tells a rollback from an ordinary update."""
    return "ROLLBACK" in stack_status and stack_status.endswith("_IN_PROGRESS")


def decide(request: Request, stack_status: str, last: Record) -> Action:
    """What to do while the stack does not roll back.

    Args:
        request: a Create or an Update.
        stack_status: the stack's status now.
        last: old properties can't tell what has been migrated, for they may be those of a failed attempt.
    """
    if not stack_status.endswith("_IN_PROGRESS"):
        return Action.REFUSE
    # Delivered again, the request that has migrated gets the outcome of its own task.
    has_migrated = last.is_of(request) and last.before != UNKNOWN
    if request.kind == "Update" and request.fingerprint == last.fingerprint and not has_migrated:
        return Action.ANSWER_UNCHANGED
    return Action.RUN


def asks_for_downgrade(event: Mapping[str, Any]) -> bool:
    """Whether a rollback's event is about a schema that is to be taken back.

    It is the newer release that knows how its own migrations are undone, so its template decides.
    """
    older, newer = (event.get(name, {}) for name in ("ResourceProperties", "OldResourceProperties"))
    return bool(newer.get("OnRollback") == "DOWNGRADE" and newer.get("Target") != older.get("Target"))


def undo(target: str, deployment: Record) -> Undo:
    """What to do about the schema when a deployment rolls back that asked for a downgrade.

    Args:
        target: the older release's revision.
        deployment: what is known of the upgrade of the deployment that rolls back.
    """
    if deployment.after == target:
        return Undo.NOTHING
    return Undo.DOWNGRADE if deployment.before == target else Undo.NOT_OURS
