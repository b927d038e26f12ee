"""One request of CloudFormation. Pure: nothing here calls AWS."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Step = Literal["upgrade", "contract", "downgrade", "reopen"]


@dataclass(frozen=True)
class Service:
    """A service of which no older task may be left when the contract is closed.

    Attributes:
        cluster: where it runs: name or ARN.
        arn: its own.
        task_definition: that of the release: an ARN, or a name with or without a revision; empty for a service in
            another stack than the contract, which can't know it.
    """

    cluster: str
    arn: str
    task_definition: str

    @property
    def name(self) -> str:
        """The last part of its ARN."""
        return self.arn.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Request:
    """One request of CloudFormation, parsed; its numbers arrive as text.

    Attributes:
        step: what its task does.
        command: what the container runs instead of what its task definition says; empty for just that.
        sent: when CloudFormation signed the address for the answer, in seconds since the epoch; 0 when it doesn't tell.
        families: of the older release's task and the newer's.
        started_by: the same for all tasks of one migration, those of its contract included.
        target: the newest revision of the release.
        targets: where the schema may be once the release's upgrade has succeeded: only contract revisions lie between.
        services: of the contract.
        required: whether a contract that stays open fails the deployment.
    """

    kind: str
    key: str
    sent: float
    stack_id: str
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
    families: frozenset[str]
    started_by: str
    targets: tuple[str, ...]
    step: Step = "upgrade"
    command: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    required: bool = False

    @classmethod
    def parse(cls, event: Mapping[str, Any], properties_name: str = "ResourceProperties") -> Request:
        """Read the event; raises KeyError or ValueError when it isn't one of ours."""
        properties = event[properties_name]
        both = (event["ResourceProperties"], event.get("OldResourceProperties") or properties)
        return cls(
            kind=event["RequestType"],
            key=_key(event),
            sent=_sent(event),
            stack_id=event["StackId"],
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
            families=frozenset(family(one["TaskDefinition"]) for one in both),
            started_by=resource_id(*migration_of(event)),
            targets=tuple(properties.get("Targets", [properties["Target"]])),
            step="contract" if is_of_contract(event) else "upgrade",
            command=tuple(properties.get("Command", ())),
            services=tuple(
                Service(one["Cluster"], one["Service"], one.get("TaskDefinition", ""))
                for one in properties.get("Services", [])
            ),
            required=is_required(event),
        )

    @classmethod
    def parse_way_back(cls, event: Mapping[str, Any], step: Step, revision: str) -> Request:
        """The way back in a rollback: in the newer image, for the older one lacks the files.

        Args:
            event: the rollback's.
            step: ``downgrade`` or ``reopen``.
            revision: where a downgrade ends; or the newest of the release that needs its names again.
        """
        older, newer = cls.parse(event), cls.parse(event, "OldResourceProperties")
        return replace(
            newer,
            target=revision,
            targets=older.targets if step == "downgrade" else newer.targets,
            fingerprint=older.fingerprint if step == "downgrade" else newer.fingerprint,
            timeout=min(older.timeout, newer.timeout),
            on_database_ahead="fail",
            step=step,
            command=("python", "-m", "migration_runner", step, revision),
        )

    @property
    def goes_back(self) -> bool:
        """Whether it is the way back."""
        return self.step in ("downgrade", "reopen")

    @property
    def of_contract(self) -> bool:
        """Whether CloudFormation has sent it to the contract, not to the migration."""
        return bool(self.services)

    @property
    def release(self) -> str:
        """Which release it is, told also by the properties that a rollback brings of it."""
        return _digest(f"{self.task_definition} {self.fingerprint}")

    def log_stream(self, task_arn: str) -> str:
        """Where the awslogs driver writes what the task's container says."""
        return f"{self.log_stream_prefix}/{self.container}/{task_id(task_arn)}"

    def client_token(self, attempt: int) -> str:
        """The same for the same event delivered twice, so that ECS gives the same task.

        Args:
            attempt: counts the tasks of one event, from 1.
        """
        return hashlib.sha256(f"{self.stack_id} {self.logical_id} {self.key} {attempt}".encode()).hexdigest()


def is_of_contract(event: Mapping[str, Any]) -> bool:
    """Whether the resource is the contract of a migration."""
    return "Services" in (event.get("ResourceProperties") or {})


def is_required(event: Mapping[str, Any]) -> bool:
    """Whether a contract that stays open fails the deployment."""
    return str((event.get("ResourceProperties") or {}).get("Required")).lower() == "true"


def migration_of(event: Mapping[str, Any]) -> tuple[str, str]:
    """The stack's id and the logical id of the migration: the resource itself, or the one whose contract it is."""
    migration = (event.get("ResourceProperties") or {}).get("Migration")
    if migration:
        return migration["StackId"], migration["LogicalId"]
    return event["StackId"], event["LogicalResourceId"]


def resource_id(stack_id: str, logical_id: str) -> str:
    """An id for the resource that never changes: CloudFormation deletes what has a new one.

    That of a migration is also ``startedBy`` of its tasks, at most 36 characters.
    """
    return "migration-" + hashlib.sha256(f"{stack_id} {logical_id}".encode()).hexdigest()[:24]


def task_id(task_arn: str) -> str:
    """The last part of the task's ARN."""
    return task_arn.rsplit("/", 1)[-1]


def is_meant(task_definition_arn: str, wanted: str) -> bool:
    """Whether the task definition is the one that is wanted: by its ARN, its family and revision, or its family."""
    name, wanted = (text.rsplit("/", 1)[-1] for text in (task_definition_arn, wanted))
    return name == wanted if ":" in wanted else family(name) == wanted


def family(task_definition_arn: str) -> str:
    """The task definition's name without its revision."""
    return task_definition_arn.rsplit("/", 1)[-1].partition(":")[0]


def stack_name(stack_id: str) -> str:
    """The stack's name, from its ARN."""
    return stack_id.split("/")[1]


def _key(event: Mapping[str, Any]) -> str:
    """The same for the same event delivered twice, and for no other.

    CloudFormation uses a request's id again when a deployment is retried, but signs each address for its answer anew.
    https://github.com/aws/aws-cdk/issues/35957
    """
    return _digest(f"{event['RequestId']} {event.get('ResponseURL', '')}")


def _sent(event: Mapping[str, Any]) -> float:
    parameters = parse_qs(urlsplit(event.get("ResponseURL", "")).query)
    try:
        return datetime.strptime(parameters["X-Amz-Date"][0], "%Y%m%dT%H%M%S%z").timestamp()
    except (KeyError, ValueError):
        return 0.0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
