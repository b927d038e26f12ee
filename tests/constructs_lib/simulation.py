"""CloudFormation, Lambda, ECS and the database at once, in simulated time, with everything that each may do.

Every invocation is a thread, but only one of all runs at a time: it hands over where it sleeps or calls AWS, and in the
order of the simulated clock. So the same script gives the same run, to the last call.
"""

from __future__ import annotations

import heapq
import io
import itertools
import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace
from typing import Any, NoReturn

import index
from aws import Aws
from botocore.exceptions import EndpointConnectionError
from botocore.validate import ParamValidator
from cfn_response import NotDeliveredError
from request import resource_id

from tests.constructs_lib.world import CLUSTER, PROPERTIES, SERVICE, fault, real_client

LAMBDA_SECONDS = 900
DELIVERIES = 3
ANSWER_MARGIN = 180
LISTED_FOR = 3600
LAST_MOMENT = 40
NEVER = float("inf")
FUNCTION = "arn:aws:lambda:us-west-2:111122223333:function:trigger"
LOGICAL_ID = "Migration8F2B1C3D"
CONTRACT_ID = "MigrationContract5D1B0206"
ATTRIBUTES = {"RevisionBefore", "RevisionAfter", "TaskArn", "Duration", "Contract"}
SIGNATURE = "c0ffee"
# What a short outage may hit for a minute; the trigger is patient for 90 seconds.
OUTAGE_SECONDS = (5, 20, 60)
SERVICES = {
    "RunTask": "ecs",
    "ListTasks": "ecs",
    "DescribeTasks": "ecs",
    "StopTask": "ecs",
    "DescribeServices": "ecs",
    "GetLogEvents": "logs",
    "GetParameter": "ssm",
    "PutParameter": "ssm",
    "DescribeStacks": "cloudformation",
    "DescribeStackEvents": "cloudformation",
    "Invoke": "lambda",
    "Publish": "sns",
}
# Each thread plays one invocation that is under way; at the end of a script none is.
THREADS = ThreadPoolExecutor(max_workers=256)


class Lines(logging.Handler):
    """What is logged, and what the errors say that are logged with it."""

    def __init__(self, lines: io.StringIO) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.write(record.getMessage())
        error = record.exc_info[1] if record.exc_info else None
        while error:
            self.lines.write(str(error))
            error = error.__cause__ or error.__context__


class KilledError(BaseException):
    """Lambda has ended the invocation; nothing in the function can catch that."""


class Actor:
    """Someone who lives in the simulated time: an invocation, or whoever gives the stack its orders."""

    def __init__(self, sent: Sent | None = None, dies_at: float = NEVER) -> None:
        self.sent = sent
        self.dies_at = dies_at
        self.saw: Container | None = None
        self.turn = threading.Semaphore(0)


class Clock:
    """The simulated time; whoever sleeps hands over to who is due next."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.current = self.main = Actor()
        self.alive: set[Actor] = set()
        self.over = False
        self._due: list[tuple[float, int, Actor | Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, what: Actor | Callable[[], None]) -> None:
        """Let something happen, or wake someone, at a time."""
        heapq.heappush(self._due, (when, next(self._order), what))

    def sleep(self, seconds: float) -> None:
        """Time passes for who calls; raises KilledError when the caller's own ends before."""
        actor = self.current
        wakes = min(self.now + seconds, max(self.now, actor.dies_at))
        if self._due and self._due[0][0] <= wakes:
            self.at(wakes, actor)
            self.hand_over(actor)
        else:
            self.now = wakes
        if self.over or self.now >= actor.dies_at:
            raise KilledError

    def wait(self, until: float, enough: Callable[[], bool]) -> None:
        """Let time pass for who gives the orders."""
        while self.now < until and not enough():
            self.at(until, self.main)
            self.hand_over(self.main)

    def hand_over(self, actor: Actor | None) -> None:
        """Let what is due next happen, until it is the caller's turn again; None when the caller is done."""
        while True:
            when, _, what = heapq.heappop(self._due)
            self.now = max(self.now, when)
            if isinstance(what, Actor):
                self.current = what
                if what is not actor:
                    what.turn.release()
                    if actor is not None:
                        actor.turn.acquire()
                return
            what()

    def start(self, actor: Actor, play: Callable[[], None]) -> None:
        """Let someone begin to live, now."""

        def live() -> None:
            actor.turn.acquire()
            try:
                if not self.over:
                    play()
            finally:
                self.alive.discard(actor)
                if self.over:
                    self.main.turn.release()
                else:
                    self.hand_over(None)

        self.alive.add(actor)
        THREADS.submit(live)
        self.at(self.now, actor)

    def end(self) -> None:
        """Whoever still lives ends."""
        self.over = True
        while self.alive:
            self.current = next(iter(self.alive))
            self.current.turn.release()
            self.main.turn.acquire()
        self._due.clear()


@dataclass(frozen=True)
class Release:
    """What a template says about the migration."""

    image: int
    head: int
    edited: bool = False
    family: str = "dev-migration-task"
    on_rollback: str = "KEEP"
    proceed: bool = False
    minutes: float = 30
    contract: bool = False
    required: bool = False

    @property
    def target(self) -> str:
        """Its newest revision."""
        return revision(self.head)

    @property
    def task_definition(self) -> str:
        """Every release has its own."""
        return f"arn:aws:ecs:us-west-2:111122223333:task-definition/{self.family}:{self.image}"

    @property
    def properties(self) -> dict[str, Any]:
        """The custom resource's."""
        return {
            **PROPERTIES,
            "TaskDefinition": self.task_definition,
            "Target": self.target,
            "Fingerprint": f"{self.target}{' edited' if self.edited else ''}",
            "Timeout": str(self.minutes * 60),
            "OnRollback": self.on_rollback,
            "OnDatabaseAhead": "proceed" if self.proceed else "fail",
            "FailureTopic": "arn:aws:sns:us-west-2:111122223333:failures",
        }

    def contract_properties(self, stack_id: str) -> dict[str, Any]:
        """Those of the contract."""
        return {
            **self.properties,
            "OnDatabaseAhead": "fail",
            "Command": ["python", "-m", "migration_runner", "contract"],
            "Services": [{"Cluster": CLUSTER, "Service": SERVICE, "TaskDefinition": web_image(self.image)}],
            "Required": "true" if self.required else "false",
            "Migration": {"StackId": stack_id, "LogicalId": LOGICAL_ID},
        }


def web_image(image: int) -> str:
    """The service's task definition of a release."""
    return f"arn:aws:ecs:us-west-2:111122223333:task-definition/dev-inventory-service:{image}"


@dataclass(frozen=True)
class Web:
    """The service: what it runs, since when its deployment is done, and until when the older tasks drain."""

    image: int
    older: int
    done_at: float
    drained_at: float

    @property
    def names(self) -> dict[str, str]:
        """Its two tasks, the newer and the older, and their task definitions."""
        prefix = "arn:aws:ecs:us-west-2:111122223333:task/dev-inventory-cluster/web"
        return {f"{prefix}-new": web_image(self.image), f"{prefix}-old": web_image(self.older)}

    def deployments(self, now: float) -> list[dict[str, str]]:
        """As ECS describes them."""
        state = "COMPLETED" if now >= self.done_at else "IN_PROGRESS"
        newest = {"status": "PRIMARY", "taskDefinition": web_image(self.image), "rolloutState": state}
        older = {"status": "ACTIVE", "taskDefinition": web_image(self.older), "rolloutState": "COMPLETED"}
        return [newest] if now >= self.done_at else [newest, older]

    def task(self, arn: str, now: float) -> dict[str, str]:
        """As ECS describes it."""
        leaves = arn.endswith("-old") and now >= self.done_at
        status = "STOPPED" if leaves and now >= self.drained_at else "DEACTIVATING" if leaves else "RUNNING"
        desired = "STOPPED" if leaves else "RUNNING"
        return {
            "taskArn": arn,
            "taskDefinitionArn": self.names[arn],
            "lastStatus": status,
            "desiredStatus": desired,
        }


def revision(position: int) -> str:
    """The name of the revision at a place in the chain; as the runner says it, "base" before the first."""
    return f"4{position}871d03964b" if position else "base"


@dataclass(eq=False)
class Sent:
    """A request of CloudFormation, and what has become of it."""

    number: int
    kind: str
    release: Release
    older: Release | None
    deployment: int
    event: dict[str, Any]
    sent_at: float
    contract: bool
    awaited: bool = True
    answer: dict[str, Any] | None = None
    answers: int = 0
    deliveries: int = 0
    lost: int = 0
    unheard: int = 0

    @property
    def expires(self) -> float:
        """When CloudFormation gives up."""
        return self.sent_at + self.release.minutes * 60 + ANSWER_MARGIN


@dataclass(eq=False)
class Container:
    """A task: how it will go, and how far it is."""

    arn: str
    release_image: str
    command: list[str]
    parameters: dict[str, Any]
    deployments: set[int]
    created: float
    seen_from: float
    starts: float
    seconds: float
    ending: str
    stop_seconds: float
    heeds: bool
    started: float = NEVER
    ended: float = NEVER
    gone: float = NEVER
    vanished: bool = False
    stop_asked: float = NEVER
    stop_reason: str = ""
    exit_code: int | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    said_from: float = 0
    steps: list[int] = field(default_factory=list)
    begun_at: int = 0
    recorded: bool = False

    @property
    def step(self) -> str:
        """What it does."""
        return self.command[3] if self.command else "upgrade"


class Weather:
    """What goes wrong by chance, from a seed; 0 is a calm day."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calm = seed == 0
        self.rate = 0.0 if self.calm else self.random.choice((0.0, 0.0, 0.03, 0.15))
        self.kills = 0.0 if self.calm else self.random.choice((0.0, 0.0, 0.2, 0.6))
        self.repeats = 0.0 if self.calm else self.random.choice((0.0, 0.0, 0.3))
        self.latency = 0.05 if self.calm else self.random.choice((0.02, 0.1, 0.6))

    def chance(self, probability: float) -> bool:
        """Whether it happens."""
        return not self.calm and self.random.random() < probability

    def between(self, low: float, high: float) -> float:
        """So many seconds."""
        return low if self.calm else self.random.uniform(low, high)


class Simulation:
    """All of it: give the stack orders with deploy() and the others; ``broken`` says what must never happen."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.weather = Weather(0)
        self.outages: list[tuple[str, float, float]] = []
        self.no_room_until = 0.0
        self.counts: Counter[str] = Counter()
        self.broken: list[str] = []
        self.trace: list[str] = []
        # The database.
        self.at = 0
        self.applied_by: dict[int, set[int] | None] = {}
        self.hand_unseen = False
        self.hand_since_success = False
        self.hand_at = 0.0
        # Of the applied revisions: those that both names were given to, and those whose older name is gone, with the
        # deployment whose contract has taken it; none when it was never there.
        self.bridged: set[int] = set()
        self.gone: dict[int, int | None] = {}
        # ECS and SSM.
        self.tasks: dict[str, Container] = {}
        self.tokens: dict[tuple[str, str], Container] = {}
        self.ending: str | None = None
        self.unseen_for = 0.0
        self.records: dict[str, str] = {}
        self.releases: dict[str, Release] = {}
        self.web = Web(0, 0, 0, 0)
        # CloudFormation.
        self.stacks = 0
        self.status = "-"
        self.stack_id = ""
        self.update_began = self.rollback_began = 0.0
        self.current: Release | None = None
        self.stable: Release | None = None
        self.deployment = 0
        self.requests: dict[str, Sent] = {}
        self.opened: set[int] = set()
        # Whether the stack has the contract's resource, whether this deployment has made it, and has asked it.
        self.has_contract = self.contract_is_new = self.contract_asked = False
        self.reasons: list[str] = []
        self.awaited: Sent | None = None
        self.log = io.StringIO()
        # Lambda logs both; pytest's own handlers would keep every line of thousands of scripts.
        root = logging.getLogger()
        self._handlers, root.handlers = root.handlers, [Lines(self.log)]
        self._stdout = redirect_stdout(self.log)
        self._stdout.__enter__()
        self._clients = {service: self._client(service) for service in set(SERVICES.values())}

    def end(self) -> None:
        """The end of the script."""
        self.clock.end()
        self._stdout.__exit__(None, None, None)
        logging.getLogger().handlers = self._handlers
        if SIGNATURE in self.log.getvalue():
            self.breaks("the signed address is in a log")

    def breaks(self, what: str) -> None:
        """Keep what must never happen, and what led there: raised here, the function under test would catch it."""
        self.note(f"BROKEN: {what}")
        self.broken.append(what)

    def note(self, what: str) -> None:
        """For who has to understand a failing script."""
        self.trace.append(f"{self.clock.now - 1_800_000_000:9.1f}  {what}")

    # --- CloudFormation

    def begin(self, seed: int, ending: str | None = None) -> None:
        """A new order to the stack: new weather, new outages."""
        self.weather = Weather(seed)
        self.ending = ending
        now = self.clock.now
        if self.weather.chance(0.3):
            operation = self.weather.random.choice([*SERVICES, "Answer"])
            start = now + self.weather.between(0, 150)
            self.outages.append((operation, start, start + self.weather.random.choice(OUTAGE_SECONDS)))
        if self.weather.chance(0.1):
            self.no_room_until = now + self.weather.between(5, 400)
            self.counts["no room"] += 1

    def deploy(
        self,
        release: Release,
        *,
        seed: int = 0,
        ending: str | None = None,
        cancel_after: float | None = None,
        later_failure: bool = False,
        no_rollback: bool = False,
        same_id: bool = False,
        cancel_contract_after: float | None = None,
        contract_ending: str | None = None,
    ) -> None:
        """Create or update the stack, and see it through."""
        self.begin(seed, ending)
        self.contract_asked = self.contract_is_new = False
        if self.current is None:
            self.deployment += 1
            self.has_contract = False
            return self._create(release, cancel_after, later_failure)
        older = self.current
        if older.properties == release.properties:
            return None
        self.deployment += 1
        self.status, self.update_began = "UPDATE_IN_PROGRESS", self.clock.now
        self.note(f"deploy {release}")
        self.current = release
        sent = self._send("update", release, older, f"update-{release.image}" if same_id else None)
        answer = self._wait(sent, cancel_after)
        if answer == "SUCCESS" and release.contract:
            self.ending = contract_ending
            answer = self._close_contract(release, older, cancel_contract_after)
        if answer == "SUCCESS" and not later_failure:
            if self.has_contract and not release.contract:
                self.status = "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"
                self._delete_contract(older)
            self.status, self.stable = "UPDATE_COMPLETE", release
            return None
        if no_rollback and answer != "cancelled":
            self.counts["no rollback"] += 1
            self.status = "UPDATE_FAILED"
            return None
        return self.roll_back(same_id=same_id)

    def roll_back(self, *, same_id: bool = False) -> None:
        """The update has failed, or is cancelled."""
        assert self.current
        assert self.stable
        self.counts["rollback"] += 1
        self.status, self.rollback_began = "UPDATE_ROLLBACK_IN_PROGRESS", self.clock.now
        request_id = f"back-{self.stable.image}" if same_id else None
        orders = [False]
        if self.contract_asked and not self.contract_is_new and self.stable.contract:
            orders = [True, False] if self.weather.chance(0.5) else [False, True]
        self.reasons = []
        for contract in orders:
            if contract:
                self.counts["contract back first" if orders[0] else "contract back second"] += 1
            sent = self._send("rollback", self.stable, self.current, request_id, contract=contract)
            if self._wait(sent) != "SUCCESS":
                self.status = "UPDATE_ROLLBACK_FAILED"
                self.counts["rollback failed"] += 1
                return
        self._check_names(self.stable, self.current)
        if self.contract_is_new:
            self.status = "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"
            self._delete_contract(self.current)
            self.contract_is_new = False
        self.status, self.current = "UPDATE_ROLLBACK_COMPLETE", self.stable

    def skip(self) -> None:
        """continue-update-rollback without the resource."""
        if self.contract_is_new:
            assert self.current
            self._delete_contract(self.current)
            self.contract_is_new = False
        self.status, self.current = "UPDATE_ROLLBACK_COMPLETE", self.stable

    def delete(self) -> None:
        """Delete the stack; the database belongs to another one."""
        assert self.current
        self.status = "DELETE_IN_PROGRESS"
        if self.has_contract:
            self._delete_contract(self.current)
        answer = self._wait(self._send("delete", self.current, None))
        if answer != "SUCCESS":
            self.note(f"a Delete ended with {answer}")
        self.status, self.current, self.stable = "DELETE_COMPLETE", None, None

    def deliver_again(self, number: int, after: float) -> None:
        """Lambda delivers a request once more, although it has been answered."""
        sent = next(one for one in self.requests.values() if one.number == number)
        self._again(sent.event, sent, DELIVERIES, self.clock.now, after)

    def by_hand(self, position: int) -> None:
        """Someone runs alembic."""
        if self._unfinished() or position == self.at:
            return
        self.note(f"by hand: {self.at} -> {position}")
        for one in range(self.at + 1, position + 1):
            self.applied_by[one] = None
            self.gone[one] = None
        for one in range(position + 1, self.at + 1):
            self._forget(one)
        self.at, self.hand_unseen, self.hand_at = position, True, self.clock.now
        self.hand_since_success = True
        self.counts["by hand"] += 1

    def _forget(self, step: int) -> None:
        self.bridged.discard(step)
        self.gone.pop(step, None)

    def _close_contract(self, release: Release, older: Release | None, cancel_after: float | None) -> str:
        """The service is deployed, and the contract comes after it."""
        weather, now = self.weather, self.clock.now
        done = now + weather.between(5, 60)
        leaves = weather.random.choice((0, 30, 300)) if not weather.calm else 20
        image = release.image
        if weather.chance(0.05):
            image = self.web.image
            self.counts["a service was taken back"] += 1
        # CloudFormation waits for the deployment, as a rule; then older tasks drain.
        self.web = Web(image, self.web.image, done + weather.between(0, 40), done + 40 + leaves)
        self.clock.wait(done, lambda: False)
        is_new = not self.has_contract
        self.has_contract = self.contract_asked = True
        self.contract_is_new = self.contract_is_new or is_new
        sent = self._send("create" if is_new else "update", release, None if is_new else older, contract=True)
        return self._wait(sent, cancel_after)

    def _delete_contract(self, release: Release) -> None:
        self.has_contract = False
        answer = self._wait(self._send("delete", release, None, contract=True))
        if answer != "SUCCESS":
            self.note(f"a Delete of the contract ended with {answer}")

    def _check_names(self, stable: Release, newer: Release) -> None:
        """What a contract has taken away in a deployment that was rolled back is there again, or people know."""
        told = any(words in reason for reason in self.reasons for words in ("could not be opened", "Unknown: "))
        missing = [step for step, by in self.gone.items() if by == self.deployment and step > stable.head]
        if missing and not told and newer.head != stable.head:
            self.breaks(f"after a rollback the older release misses its names: {missing}")

    def idle(self, seconds: float) -> None:
        """Nobody gives an order for a while."""
        self.clock.wait(self.clock.now + seconds, lambda: False)

    def _create(self, release: Release, cancel_after: float | None, later_failure: bool) -> None:
        self.stacks += 1
        self.stack_id = f"arn:aws:cloudformation:us-west-2:111122223333:stack/DevStack/{self.stacks:08d}"
        self.note(f"create {release}")
        self.status, self.current = "CREATE_IN_PROGRESS", release
        answer = self._wait(self._send("create", release, None), cancel_after)
        if answer == "SUCCESS" and release.contract:
            answer = self._close_contract(release, None, None)
        if answer == "SUCCESS" and not later_failure:
            self.status, self.stable = "CREATE_COMPLETE", release
            return
        self.status = "DELETE_IN_PROGRESS" if answer == "cancelled" else "ROLLBACK_IN_PROGRESS"
        self.counts["delete during create" if answer == "cancelled" else "delete after create"] += 1
        if self.has_contract:
            self._delete_contract(release)
        self._wait(self._send("delete", release, None))
        self.status, self.current = "ROLLBACK_COMPLETE", None

    def _send(
        self,
        kind: str,
        release: Release,
        older: Release | None,
        request_id: str | None = None,
        *,
        contract: bool = False,
    ) -> Sent:
        def properties(one: Release) -> dict[str, Any]:
            mine = one.contract_properties(self.stack_id) if contract else one.properties
            return {**mine, "RecordParameter": f"record-{self.stacks}"}

        logical_id = CONTRACT_ID if contract else LOGICAL_ID
        self.releases[release.task_definition] = release
        if any(task.started < NEVER and task.ended < NEVER and not task.recorded for task in self._own()):
            self.counts["a task has ended and nobody has recorded how"] += 1
        if kind == "rollback" and not contract and self.deployment not in self.opened:
            self.counts["an upgrade has never reached its record"] += 1
        number = len(self.requests) + 1
        signed = f"{datetime.fromtimestamp(self.clock.now, UTC):%Y%m%dT%H%M%SZ}"
        url = f"https://cloudformation-custom-resource-response.example/{number}?X-Amz-Date={signed}"
        url += f"&X-Amz-Signature={SIGNATURE}{number}"
        event: dict[str, Any] = {
            "RequestType": {"create": "Create", "delete": "Delete"}.get(kind, "Update"),
            "StackId": self.stack_id,
            "RequestId": request_id or f"request-{number}",
            "ResponseURL": url,
            "ResourceType": "Custom::DatabaseMigration",
            "LogicalResourceId": logical_id,
            "ResourceProperties": properties(release),
        }
        if older:
            event["OldResourceProperties"] = properties(older)
        if kind != "create":
            event["PhysicalResourceId"] = resource_id(self.stack_id, logical_id)
        sent = Sent(number, kind, release, older, self.deployment, event, self.clock.now, contract)
        self.requests[url] = self.awaited = sent
        name = f"contract {kind}" if contract else kind
        self.counts[name] += 1
        self.note(f"sends {number} {name} to head {release.head}, image {release.image}")
        queued = self.clock.now
        self.clock.at(queued + self.weather.between(0.1, 3), lambda: self._deliver(event, sent, 1, queued))
        return sent

    def _wait(self, sent: Sent, cancel_after: float | None = None) -> str:
        until = min(sent.expires, sent.sent_at + (NEVER if cancel_after is None else cancel_after))
        self.clock.wait(until, lambda: sent.answer is not None)
        sent.awaited, self.awaited = False, None
        if sent.answer:
            self.counts[f"{'contract ' if sent.contract else ''}{sent.kind} {sent.answer['Status']}"] += 1
            self.reasons.append(sent.answer["Reason"])
            return str(sent.answer["Status"])
        if until < sent.expires:
            self.note("cancelled")
            self.counts["cancelled"] += 1
            return "cancelled"
        self.note(f"gives up on {sent.number}")
        self.counts["no answer"] += 1
        # Lambda delivers again after one minute, and then two: what is lost late can't be made good in time.
        if not sent.lost:
            self.breaks(f"no answer to a {sent.kind} in time")
        return "none"

    def _stack(self, *, StackName: str) -> dict[str, Any]:  # noqa: N803
        return {"Stacks": [{"StackStatus": self.status if StackName == self.stack_id else "DELETE_COMPLETE"}]}

    def _stack_events(self, *, StackName: str) -> dict[str, Any]:  # noqa: N803
        began = {"UPDATE_ROLLBACK_IN_PROGRESS": self.rollback_began, "UPDATE_IN_PROGRESS": self.update_began}
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

    def _put_answer(self, url: str, content: bytes) -> None:
        self._latency()
        sent = self.requests[url]
        if self._fails("Answer"):
            raise ConnectionResetError
        body = json.loads(content)
        self.note(f"answer to {sent.number}: {body['Status']} {body['Reason'][:140]}")
        sent.answers += 1
        self._check_form(sent, content, body)
        if sent.awaited and sent.answer is None and self.clock.now <= sent.expires:
            sent.answer = body
            self._check_answer(sent, body)
            self.clock.at(self.clock.now, self.clock.main)
        self._latency()
        if self._fails("Answer"):
            sent.unheard += 1
            raise ConnectionResetError

    # --- Lambda

    def _deliver(self, event: dict[str, Any], sent: Sent, delivery: int, queued: float) -> None:
        if self.current is None or sent.event["StackId"] != self.stack_id:
            return  # The function has gone with its stack.
        max_age = sent.release.minutes * 60 + ANSWER_MARGIN
        if self.clock.now - queued > max_age:
            sent.lost += 1
            self.counts["event too old"] += 1
            return
        weather, began = self.weather, self.clock.now
        ends = began + LAMBDA_SECONDS
        actor = Actor(sent, ends)
        if weather.chance(weather.kills):
            actor.dies_at = began + weather.random.choice((1, 10, 100, 900)) * weather.random.random()
        context = SimpleNamespace(
            invoked_function_arn=FUNCTION,
            get_remaining_time_in_millis=lambda: int((ends - self.clock.now) * 1000),
        )
        sent.deliveries += 1
        if delivery > 1:
            self.counts["delivered again"] += 1

        def play() -> None:
            try:
                index.respond(json.loads(json.dumps(event)), context, self._aws())
            except KilledError:
                if self.clock.over:
                    return
                self.note(f"the invocation for {sent.number} is killed")
                self.counts["killed"] += 1
                if self.clock.now >= ends:
                    self.breaks("an invocation takes longer than Lambda allows")
            except NotDeliveredError as error:
                self.note(f"the invocation for {sent.number} raises {error}")
                self.counts["raised"] += 1
            except Exception as error:
                self.breaks(f"the function raises {error!r}")
            else:
                if weather.chance(weather.repeats) and delivery < DELIVERIES:
                    self._again(event, sent, DELIVERIES, queued, weather.between(0, 90))
                return
            sent.lost += 1
            if delivery < DELIVERIES:
                self._again(event, sent, delivery + 1, queued, 60.0 * delivery)
            else:
                self.counts["lost"] += 1

        self.clock.start(actor, play)

    def _again(self, event: dict[str, Any], sent: Sent, delivery: int, queued: float, seconds: float) -> None:
        self.clock.at(self.clock.now + seconds, lambda: self._deliver(event, sent, delivery, queued))

    def _hand_on(self, *, Payload: bytes, **_: Any) -> dict[str, Any]:  # noqa: N803
        event, queued, sent = json.loads(Payload), self.clock.now, self.current_sent
        self.counts["continuation"] += 1
        self.clock.at(queued + self.weather.between(0.1, 3), lambda: self._deliver(event, sent, 1, queued))
        return {}

    @property
    def current_sent(self) -> Sent:
        """Whose invocation it is that calls."""
        sent = self.clock.current.sent
        assert sent
        return sent

    # --- every call to AWS

    def _aws(self) -> Aws:
        return Aws(
            ecs=self._clients["ecs"],
            logs=self._clients["logs"],
            ssm=self._clients["ssm"],
            cloudformation=self._clients["cloudformation"],
            lambda_client=self._clients["lambda"],
            sns=self._clients["sns"],
            put=self._put_answer,
            now=lambda: self.clock.now,
            sleep=self.clock.sleep,
        )

    def _client(self, service: str) -> SimpleNamespace:
        real = real_client(service)
        names = method_names(service)
        methods: dict[str, Callable[..., dict[str, Any]]] = {
            "RunTask": self._run,
            "ListTasks": self._list,
            "DescribeTasks": self._tell,
            "StopTask": self._stop,
            "DescribeServices": self._serve,
            "GetLogEvents": self._read_log,
            "GetParameter": self._get,
            "PutParameter": self._put,
            "DescribeStacks": self._stack,
            "DescribeStackEvents": self._stack_events,
            "Invoke": self._hand_on,
            "Publish": lambda **_: {},
        }

        def call(operation: str) -> Callable[..., dict[str, Any]]:
            method = methods[operation]

            def called(**parameters: Any) -> dict[str, Any]:
                check(service, operation, parameters)
                self._latency()
                if self._fails(operation):
                    self._fail(service)
                answer = method(**parameters)
                self._latency()
                if self._fails(operation):
                    # It has been done, but the caller can't know.
                    raise EndpointConnectionError(endpoint_url="https://aws.example")
                return answer

            return called

        mine = {names[operation]: call(operation) for operation, of in SERVICES.items() if of == service}
        return SimpleNamespace(exceptions=real.exceptions, **mine)

    def _latency(self) -> None:
        self.clock.sleep(self.weather.latency * (1 if self.weather.calm else self.weather.random.random()))

    def _fails(self, operation: str) -> bool:
        now = self.clock.now
        if any(operation == one and start <= now < end for one, start, end in self.outages):
            return True
        return self.weather.rate > 0 and self.weather.chance(self.weather.rate)

    def _fail(self, service: str) -> NoReturn:
        self.counts["failed call"] += 1
        kind = self.weather.random.randrange(3)
        if kind == 0:
            raise fault("ThrottlingException", service=service)
        if kind == 1:
            raise fault("InternalServerError", service=service, status=500)
        raise EndpointConnectionError(endpoint_url="https://aws.example")

    # --- SSM

    def _get(self, *, Name: str) -> dict[str, Any]:  # noqa: N803
        return {"Parameter": {"Value": self.records.get(Name, "none")}}

    def _put(self, *, Name: str, Value: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        self.note(f"record by {self.current_sent.number}: {Value}")
        self.records[Name] = Value
        if self.current_sent.deployment != self.deployment:
            self.counts["an event of an earlier deployment comes again"] += 1
        if self.current_sent.kind == "update" and not self.current_sent.contract:
            self.opened.add(self.current_sent.deployment)
        if (actor := self.clock.current).saw:
            actor.saw.recorded = True
        return {}

    # --- ECS

    def _run(self, **parameters: Any) -> dict[str, Any]:
        sent, weather, now = self.current_sent, self.weather, self.clock.now
        if now < self.no_room_until:
            return {"tasks": [], "failures": [{"reason": "RESOURCE:ENI"}]}
        token = (parameters["cluster"], parameters["clientToken"])
        known = self.tokens.get(token)
        if known:
            self.counts["token known"] += 1
            if known.parameters != parameters:
                raise fault("ConflictException", resourceIds=[known.arn])
            known.deployments.add(sent.deployment)
            return {"tasks": [self._describe(known)], "failures": []}
        overrides = parameters["overrides"]["containerOverrides"]
        long = weather.chance(0.02)
        task = Container(
            arn=f"arn:aws:ecs:us-west-2:111122223333:task/dev-inventory-cluster/{len(self.tasks) + 1:032x}",
            release_image=parameters["taskDefinition"],
            command=overrides[0]["command"] if overrides else [],
            parameters=parameters,
            deployments={sent.deployment},
            created=now,
            seen_from=now + (weather.between(0, 20) if weather.chance(0.4) else self.unseen_for),
            starts=now + weather.between(2, 40),
            seconds=weather.between(300, 4000) if long else weather.between(3, 120),
            ending=self.ending or ("ok" if weather.calm else weather.random.choice(ENDINGS)),
            stop_seconds=weather.between(0.5, 100),
            heeds=not weather.chance(0.2),
        )
        if task.ending == "hang":
            task.seconds, task.heeds = 999_999, False
        self.ending = None
        self.tasks[task.arn] = self.tokens[token] = task
        self.note(f"{sent.number} starts image {task.release_image[-2:]} {task.command[2:]}: {task.ending}")
        self._check_start(sent, task)
        if task.ending == "never":
            self.clock.at(task.starts + task.seconds, lambda: self._finish(task, None))
        else:
            self.clock.at(task.starts, lambda: self._begin(task))
        return {"tasks": [self._describe(task)], "failures": []}

    def _begin(self, task: Container) -> None:
        if task.ended < NEVER or task.stop_asked < NEVER:
            return
        now = task.started = self.clock.now
        if not (self.awaited and not self.awaited.answer and self.awaited.deployment in task.deployments):
            self.breaks("a container starts although its deployment has been answered")
        for other in self.tasks.values():
            same = other.parameters["startedBy"] == task.parameters["startedBy"]
            if same and other is not task and other.started < NEVER and other.ended == NEVER:
                self.breaks("two tasks at once")
        task.begun_at = self.at
        if task.step in ("contract", "reopen"):
            self._begin_contract(task)
            return
        downgrade = "downgrade" in task.command
        head = int(task.release_image.rpartition(":")[2]) % 10
        goal = int(task.command[-1][1]) if downgrade else head
        knows = self.at <= head
        if not knows and not downgrade and self._both_names(head):
            self.counts["an older release passes beside open names"] += 1
            self.clock.at(now + 2, lambda: self._finish(task, 0))
            return
        if not knows or (downgrade and self.at < goal):
            self.clock.at(now + 2, lambda: self._finish(task, 2 if downgrade else 5))
            return
        steps = list(range(self.at, goal, -1)) if downgrade else list(range(self.at + 1, goal + 1))
        stop_after = len(steps)
        code: int | None = 0
        if task.ending == "fail":
            stop_after, code = 0, 1
        elif task.ending == "half":
            stop_after, code = len(steps) // 2, 1
        elif task.ending == "killed":
            stop_after, code = self.weather.random.randint(0, len(steps)), 137
        elif task.ending == "vanish":
            stop_after, code = self.weather.random.randint(0, len(steps)), None
        elif task.ending == "vanish in the end":
            code = None
        elif task.ending == "unreachable":
            stop_after, code = 0, self.weather.random.choice((3, 4, 6))
        for number, step in enumerate(steps[:stop_after], 1):
            when = now + task.seconds * number / (stop_after + 1)
            self.clock.at(when, lambda step=step: self._step(task, step, downgrade))  # type: ignore[misc]
        self.clock.at(now + task.seconds, lambda: self._finish(task, code, vanishes=task.ending.startswith("vanish")))

    def _step(self, task: Container, step: int, downgrade: bool) -> None:
        if task.ended < NEVER or (task.stop_asked < NEVER and task.heeds):
            return
        task.steps.append(step)
        if downgrade:
            self._forget(step)
            by = self.applied_by.pop(step, None)
            since_hand = self.hand_at > min(t.created for t in self.tasks.values() if task.deployments & t.deployments)
            if not since_hand and not (by and by & task.deployments):
                self.breaks("a downgrade undoes what its deployment has not applied")
            self.at = step - 1
        else:
            self.applied_by[step] = task.deployments
            if self.releases[task.release_image].contract and task.begun_at > 0:
                self.bridged.add(step)
            else:
                self.gone[step] = None
            self.at = step
        self.note(f"the schema is at {self.at}")

    def _both_names(self, head: int) -> bool:
        """Whether a release with that head finds all that it knows."""
        return not any(step in self.gone for step in range(head + 1, self.at + 1))

    def _begin_contract(self, task: Container) -> None:
        """A contract, or what gives the names back: one name after the other."""
        now, head = self.clock.now, int(task.release_image.rpartition(":")[2]) % 10
        self.counts[task.step] += 1
        if task.step == "contract":
            release = self.releases[task.release_image]
            if self.web.image != release.image or now < max(self.web.done_at, self.web.drained_at):
                self.breaks("a contract begins although an older task may ask for older names")
            todo = [step for step in self.bridged - self.gone.keys() if step <= head]
        else:
            if self.at > head:
                self.clock.at(now + 2, lambda: self._finish(task, 2))
                return
            todo = [step for step in self.bridged & self.gone.keys() if step > int(task.command[-1][1])]
        stop_after = len(todo)
        code: int | None = 0
        if task.ending in ("fail", "unreachable"):
            stop_after, code = 0, 1 if task.ending == "fail" else self.weather.random.choice((3, 4, 6))
        elif task.ending in ("half", "killed", "vanish"):
            stop_after = self.weather.random.randint(0, len(todo))
            code = {"half": 1, "killed": 137, "vanish": None}[task.ending]
        elif task.ending == "vanish in the end":
            code = None
        for number, step in enumerate(todo[:stop_after], 1):
            when = now + task.seconds * number / (stop_after + 1)
            self.clock.at(when, lambda step=step: self._name(task, step))  # type: ignore[misc]
        self.clock.at(now + task.seconds, lambda: self._finish(task, code, vanishes=task.ending.startswith("vanish")))

    def _name(self, task: Container, step: int) -> None:
        if task.ended < NEVER or (task.stop_asked < NEVER and task.heeds):
            return
        if task.step == "contract":
            self.gone[step] = self.deployment
        else:
            self.gone.pop(step, None)
        self.note(f"the older name of {step} is {'gone' if step in self.gone else 'back'}")

    def _finish(self, task: Container, code: int | None, *, vanishes: bool = False) -> None:
        if task.ended < NEVER:
            return
        now = task.ended = self.clock.now
        task.exit_code, task.vanished = code, vanishes
        task.gone = now + self.weather.between(0, 8)
        self.note(f"a task ends with {code}{' and vanishes' if vanishes else ''}")
        if task.started == NEVER:
            return
        lost = code in (137, None)
        applied = [revision(one) for one in task.steps]
        if lost:
            if not self.weather.chance(0.3):
                task.said = [{"event": "migration.revision_started", "from": revision(task.begun_at)}]
        elif not self.weather.chance(0.05):
            ends: dict[str, Any] = {"from": revision(task.begun_at), "at": revision(self.at), "applied": applied}
            target = revision(int(task.release_image.rpartition(":")[2]) % 10)
            left = [f"name {step}" for step in sorted(self.bridged - self.gone.keys())]
            ends |= {"target": target, "open": None if self.weather.chance(0.1) else left}
            task.said = [{"event": "migration.result", "command": task.step, **ends}]
            task.said_from = now + self.weather.between(0, 1.5)

    def _list(self, *, cluster: str, **filters: str) -> dict[str, Any]:  # noqa: ARG002
        assert not ("startedBy" in filters and len(filters) > 1)
        wanted = {"desiredStatus": "RUNNING", **filters}
        if "serviceName" in filters:
            serving = [self.web.task(arn, self.clock.now) for arn in self.web.names]
            return {"taskArns": [one["taskArn"] for one in serving if one["desiredStatus"] == wanted["desiredStatus"]]}
        arns = []
        sent = self.current_sent
        for task in self.tasks.values():
            ran = task.started < NEVER and task.ended < NEVER
            if sent.kind == "rollback" and sent.deployment in task.deployments and ran and not task.recorded:
                self.counts["a task has ended and nobody has recorded how"] += 1
            if task.ended == NEVER and self.clock.now < task.seen_from:
                self.counts["a task that runs is not listed yet"] += 1
            if self._seen(task):
                told = self._describe(task)
                family = told["taskDefinitionArn"].rpartition("/")[2].partition(":")[0]
                if wanted.items() <= {**told, "family": family}.items():
                    arns.append(task.arn)
        return {"taskArns": arns[:100]}

    def _serve(self, **_: Any) -> dict[str, Any]:
        deployments = self.web.deployments(self.clock.now)
        name = SERVICE.rpartition("/")[2]
        one = {"serviceArn": SERVICE, "serviceName": name, "status": "ACTIVE", "deployments": deployments}
        return {"services": [one], "failures": []}

    def _seen(self, task: Container) -> bool:
        now = self.clock.now
        return now >= task.seen_from and not (task.vanished and task.ended <= now) and now < task.gone + LISTED_FOR

    def _tell(self, *, tasks: list[str], **_: Any) -> dict[str, Any]:
        if self.web.names.keys() & set(tasks):
            return {"tasks": [self.web.task(arn, self.clock.now) for arn in tasks], "failures": []}
        known = [self.tasks[arn] for arn in tasks]
        missing = [{"arn": one.arn, "reason": "MISSING"} for one in known if not self._seen(one)]
        return {"tasks": [self._describe(one) for one in known if self._seen(one)], "failures": missing}

    def _describe(self, task: Container) -> dict[str, Any]:
        now = self.clock.now
        ended = task.ended <= now and not task.vanished
        told: dict[str, Any] = {
            "taskArn": task.arn,
            "taskDefinitionArn": task.release_image,
            "startedBy": task.parameters["startedBy"],
            "createdAt": datetime.fromtimestamp(task.created, UTC),
            "overrides": task.parameters["overrides"],
            "desiredStatus": "STOPPED" if ended or task.stop_asked <= now else "RUNNING",
        }
        if task.started <= now:
            told["startedAt"] = datetime.fromtimestamp(task.started, UTC)
        container: dict[str, Any] = {"name": "migration"}
        if not (ended and task.gone <= now):
            status = "DEPROVISIONING" if ended else "RUNNING" if task.started <= now else "PROVISIONING"
            return {**told, "lastStatus": status, "containers": [container]}
        if task.exit_code is not None:
            container["exitCode"] = task.exit_code
        asked = task.stop_asked < task.ended
        code = "UserInitiated" if asked else "EssentialContainerExited"
        if task.started == NEVER and not asked:
            code = "TaskFailedToStart"
        reason = task.stop_reason if asked else "Essential container in task exited"
        return {**told, "lastStatus": "STOPPED", "stopCode": code, "stoppedReason": reason, "containers": [container]}

    def _stop(self, *, task: str, reason: str, **_: Any) -> dict[str, Any]:
        one, now = self.tasks[task], self.clock.now
        if one.ended == NEVER and one.stop_asked == NEVER:
            one.stop_asked, one.stop_reason = now, reason
            self.note(f"stop a task: {reason}")
            self.counts["stopped"] += 1
            if one.started == NEVER:
                self.clock.at(now + 1, lambda: self._finish(one, None))
            elif one.heeds:
                self.clock.at(now + one.stop_seconds, lambda: self._finish(one, 143))
            else:
                self.clock.at(now + 110, lambda: self._finish(one, 137))
        return {"task": self._describe(one)}

    def _read_log(self, *, logStreamName: str, **_: Any) -> dict[str, Any]:  # noqa: N803
        task = next(one for one in self.tasks.values() if one.arn.endswith(logStreamName.rpartition("/")[2]))
        self.clock.current.saw = task
        if task.started == NEVER:
            raise fault("ResourceNotFoundException", service="logs")
        said = task.said if self.clock.now >= task.said_from else []
        # What ended before somebody has migrated by hand has not seen it.
        if any("at" in line for line in said) and task.ended >= self.hand_at:
            self.hand_unseen = False
        return {"events": [{"message": json.dumps(line)} for line in said]}

    def _unfinished(self) -> list[Container]:
        return [task for task in self._own() if task.ended == NEVER]

    def _own(self) -> list[Container]:
        own = resource_id(self.stack_id, LOGICAL_ID)
        return [task for task in self.tasks.values() if task.parameters["startedBy"] == own]

    # --- what must hold

    def _check_form(self, sent: Sent, content: bytes, body: Mapping[str, Any]) -> None:
        if len(content) > 4096 or not content.isascii():
            self.breaks("an answer that CloudFormation does not take")
        if body["PhysicalResourceId"] != resource_id(sent.event["StackId"], sent.event["LogicalResourceId"]):
            self.breaks("the physical id changes")
        if body["Status"] == "SUCCESS" and (set(body["Data"]) != ATTRIBUTES or not all(body["Data"].values())):
            self.breaks("a SUCCESS lacks an attribute")
        if sent.answers > sent.deliveries + sent.unheard:
            self.breaks("more answers than deliveries")

    def _check_start(self, sent: Sent, task: Container) -> None:
        if sent.kind == "delete":
            self.breaks("a Delete starts a task")
        if sent.deployment != self.deployment:
            self.counts["an event of an earlier deployment comes again"] += 1
        elif not sent.awaited or sent.answer:
            self.counts["a task is started while its request is taken back"] += 1
        if sent.kind == "rollback":
            assert sent.older
            self.counts["downgrade"] += 1
            if task.release_image != sent.older.task_definition or task.step not in ("downgrade", "reopen"):
                self.breaks("the old image, or an upgrade, runs in a rollback")

    def _check_answer(self, sent: Sent, body: Mapping[str, Any]) -> None:
        # One that has yet to start is stopped before it runs, or _begin() tells. At the very last moment, to which only
        # lost invocations and outages lead, an answer is worth more than the task's end.
        left = [task for task in self._unfinished() if task.started < NEVER]
        if sent.older and any(f"/{sent.release.family}:" not in task.release_image for task in left):
            self.counts["a task of another family is still being stopped"] += 1
        told = "whether a task of the migration still runs" in body["Reason"]
        if left and self.clock.now < sent.expires - LAST_MOMENT and not told:
            self.breaks(f"a task is left after the answer to a {sent.kind}")
        if sent.contract:
            self._check_contract(sent, body)
            return
        if body["Status"] != "SUCCESS" or sent.kind == "delete":
            return
        if self.hand_since_success and not self.hand_unseen:
            self.counts["someone has migrated by hand before an upgrade that failed"] += 1
        if sent.kind == "rollback":
            assert sent.older
            asked = sent.older.on_rollback == "DOWNGRADE" and sent.older.head != sent.release.head
            if asked and ("kept" in body["Reason"] or "could not be opened" in body["Reason"]):
                self.counts["kept"] += 1
            elif asked and self.at != sent.release.head and not self.hand_unseen:
                self.breaks("a rollback claims to have taken the schema back")
            return
        if sent.kind in ("create", "update") and body["Data"]["TaskArn"] != "-":
            self.hand_unseen = self.hand_since_success = False
        passes = sent.release.proceed or self._both_names(sent.release.head)
        at_target = self.at == sent.release.head or (passes and self.at > sent.release.head)
        if body["Data"]["TaskArn"] == "-":
            self.counts["unchanged"] += 1
            if not at_target and not self.hand_unseen:
                self.breaks("unchanged, but the schema is not at the target")
            return
        if self.at > sent.release.head:
            self.counts["a release has passed although the schema is ahead of it"] += 1
        task = self.tasks[body["Data"]["TaskArn"]]
        passing = (0, 5) if sent.release.proceed else (0,)
        ran = task.release_image == sent.release.task_definition and not task.command
        if not ran or task.exit_code not in passing:
            self.breaks("SUCCESS without the task's success")
        if not at_target:
            self.breaks("SUCCESS, but the schema is not at the target")

    def _check_contract(self, sent: Sent, body: Mapping[str, Any]) -> None:
        if body["Status"] == "FAILED" and not sent.release.required:
            self.breaks(f"the contract fails a {sent.kind}")
        if body["Status"] == "FAILED" or sent.kind not in ("create", "update"):
            return
        self.counts[f"contract {body['Data']['Contract']}"] += 1
        left = [step for step in self.bridged - self.gone.keys() if step <= sent.release.head]
        if body["Data"]["Contract"] == "closed" and left and not self.hand_unseen:
            self.breaks(f"the contract claims to be closed, but is not: {left}")
        loud = body["Reason"].startswith("The contract is still open: ")
        if loud and (not body["Data"]["Contract"].startswith("open") or sent.release.required):
            self.breaks("a contract that is still open is told otherwise")


ENDINGS = ("ok", "ok", "ok", "fail", "half", "killed", "never", "vanish", "unreachable")
_CHECKED: set[tuple[str, str]] = set()


def check(service: str, operation: str, parameters: Mapping[str, Any]) -> None:
    """Hold the parameters against botocore's model of the service; exactly the same ones only once."""
    call = (operation, repr(parameters))
    if call in _CHECKED:
        return
    shape = real_client(service).meta.service_model.operation_model(operation).input_shape
    report = ParamValidator().validate(parameters, shape)
    assert not report.has_errors(), report.generate_report()
    if len(_CHECKED) > 50_000:
        _CHECKED.clear()
    _CHECKED.add(call)


@cache
def method_names(service: str) -> dict[str, str]:
    """What botocore calls the service's operations."""
    return {operation: method for method, operation in real_client(service).meta.method_to_api_mapping.items()}
