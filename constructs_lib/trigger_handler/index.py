"""One request from CloudFormation, one answer: the migration's task is started, watched, and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import cfn_response
import notice
from aws import PATIENCE, Aws
from cfn_response import MAX_REASON, Answer, ascii_line
from decision import Action, Undo, asks_for_downgrade, decide, goes_on, rolls_back, undo
from ecs_task import STOPPED, NotStartedError, Task, Tasks, TooLateError
from outcome import Outcome, judge, kept, stuck
from record import UNKNOWN, Record, read_record, write_record
from request import Request, resource_id

LOGGER = logging.getLogger(__name__)
LOGGER.setLevel(logging.INFO)
# ResponseURL is signed: whoever reads it can answer in our place.
LOGGED = ("RequestType", "StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId", "Continuation")
# What is left to do after this has been checked, at worst: the next poll (17 s), the log read three times (91 s), the
# record read and written (50 s), and the answer sent (65 s).
HAND_ON_MILLISECONDS = 300_000
TRIGGER_FAILED = "its trigger has failed."
ROLLED_BACK = "its deployment is being rolled back."
# ECS is consistent only eventually, and a request that is cancelled may be about to start its task.
VISIBLE_SECONDS = 30.0
CLOCK_SKEW = 5.0
# Where an answer is due: after a task that could hardly be stopped 40 seconds are left, 15 of them for its log.
SHORT_PATIENCE = 10.0


@dataclass(frozen=True)
class Watch:
    """A task that is being waited for; times in seconds since the epoch. An invocation hands it to the next."""

    task: str
    started: float
    deadline: float
    downgrades: bool = False


def handler(event: dict[str, Any], context: Any) -> None:
    """Lambda's entry point."""
    respond(event, context, Aws.connect())


def respond(event: dict[str, Any], context: Any, aws: Aws) -> None:
    """Answer CloudFormation, whatever happens, unless the watch goes on in another invocation.

    Raises:
        NotDeliveredError: CloudFormation did not take the answer; Lambda then tries the event again.
    """
    _log("request", {name: event[name] for name in LOGGED if name in event})
    try:
        answer = _answer(event, context, aws)
    except TooLateError:
        answer = _too_late()
    except NotStartedError as refusal:
        answer = _failed(f"{refusal} Deploy again.")
    except Exception as error:
        LOGGER.exception("unexpected")
        answer = _failed(f"The migration's trigger failed: {type(error).__name__}: {error}. Its log has the details.")
    if answer is None:
        return
    answer = replace(answer, reason=ascii_line(answer.reason, MAX_REASON))
    # What CloudFormation calls the resource stays its id, or the old one would be deleted.
    own_id = event.get("PhysicalResourceId") or resource_id(event["StackId"], event["LogicalResourceId"])
    _log("answer", {"status": answer.status, "reason": answer.reason, **answer.attributes})
    cfn_response.send(aws.put, aws.sleep, event["ResponseURL"], cfn_response.body(event, own_id, answer))
    notice.give(aws, event, answer)


def _answer(event: dict[str, Any], context: Any, aws: Aws) -> Answer | None:
    if event["RequestType"] == "Delete":
        return _let_go(event, aws)
    if event.get("Continuation"):
        watch = Watch(**event["Continuation"])
        return _take_back(event, context, aws, watch) if watch.downgrades else _follow(event, context, aws, watch)
    status = _stack_status(event, aws)
    if not rolls_back(status):
        return _migrate(event, context, aws, status)
    return _take_back(event, context, aws) if asks_for_downgrade(event) else _keep_schema(event, aws)


def _stack_status(event: dict[str, Any], aws: Aws, patience: float = PATIENCE) -> str:
    stacks = aws.call(aws.cloudformation.describe_stacks, patience=patience, StackName=event["StackId"])["Stacks"]
    return str(stacks[0]["StackStatus"])


def _migrate(event: dict[str, Any], context: Any, aws: Aws, status: str) -> Answer | None:
    request = Request.parse(event)
    tasks = Tasks(aws, request)
    record = read_record(aws, request)
    action = decide(request, status, record)
    if action is Action.REFUSE:
        return _too_late()
    again = record.is_of(request) and record.running
    # Without it a rollback could not tell what this deployment has applied.
    deployment = record.opened_for(request, aws.now(), runs=action is Action.RUN)
    write_record(aws, request, deployment)
    if action is Action.ANSWER_UNCHANGED:
        return _succeeded("No migration has changed since the last deployment.", record.after, record.after)

    def is_over() -> bool:
        # What SSM answers may be older than what has been written: only a newer request in it is an objection.
        return not goes_on(_stack_status(event, aws, 0)) or read_record(aws, request, 0).refuses_upgrade(request)

    try:
        watch = _start(tasks, deployment.began, is_over)
    except NotStartedError:
        with _as_far_as_possible("the record still says that a task may run"):
            if not (again or tasks.passed_over or is_over()):
                write_record(aws, request, replace(deployment, running=False))
        raise
    with _as_far_as_possible("the deployment is taken for one that goes on"):
        if is_over():
            # The rollback, or the delete, may have looked before there was a task.
            tasks.stop({"taskArn": watch.task}, ROLLED_BACK)
            return _too_late()
        if tasks.passed_over:
            # Their invocation, or the answer to its call, was lost: what they have done must not be.
            learned = _learn(tasks, request, deployment, tasks.passed_over)
            write_record(aws, request, replace(learned, running=True))
    return _follow(event, context, aws, watch)


def _start(tasks: Tasks, began: float, is_over: Callable[[], bool]) -> Watch:
    # CloudFormation counts from when it sent the request, however often and late that has been delivered since.
    deadline = began + tasks.request.timeout
    try:
        task = tasks.start(deadline, is_over)
    except NotStartedError:
        raise
    except Exception:
        # ECS may have started it, and only its answer was lost.
        _stop_all(tasks)
        raise
    return Watch(task["taskArn"], task["createdAt"].timestamp(), deadline, downgrades=bool(tasks.request.command))


def _stop_all(tasks: Tasks) -> None:
    """So that no task goes on after an answer that says nothing of it."""
    with _as_far_as_possible("a task of the migration may still run"):
        for task in tasks.unfinished():
            tasks.stop(task, TRIGGER_FAILED)


def _follow(event: dict[str, Any], context: Any, aws: Aws, watch: Watch) -> Answer | None:
    request = Request.parse_downgrade(event) if watch.downgrades else Request.parse(event)
    tasks = Tasks(aws, request)
    try:
        task = tasks.watch(
            watch.task,
            watch.deadline,
            stop_reason=f"it took longer than its timeout of {request.timeout / 60:g} min.",
            time_is_up=lambda: context.get_remaining_time_in_millis() < HAND_ON_MILLISECONDS,
        )
        if task is None:
            _hand_on(event, context, aws, watch)
            return None
    except Exception:
        with _as_far_as_possible("the task may go on"):
            tasks.tell_to_stop(watch.task, TRIGGER_FAILED)
        _stop_all(tasks)
        raise
    outcome = judge(task, tasks.result(task), request)
    _record_outcome(aws, request, outcome)
    if not outcome.succeeded:
        return _failed(stuck(request, outcome.sentence, outcome.where) if watch.downgrades else outcome.reason)
    reason = f"The stack rolls back, and so does the schema. {outcome.reason}" if watch.downgrades else outcome.reason
    return _succeeded(reason, outcome.before, outcome.after, watch.task, f"{aws.now() - watch.started:.0f}")


def _hand_on(event: dict[str, Any], context: Any, aws: Aws, watch: Watch) -> None:
    payload = json.dumps({**event, "Continuation": asdict(watch)}).encode()
    own_name = context.invoked_function_arn
    aws.call(aws.lambda_client.invoke, FunctionName=own_name, InvocationType="Event", Payload=payload)


def _let_go(event: dict[str, Any], aws: Aws) -> Answer:
    """Stop what still runs, as far as that can be done: a resource that won't be deleted blocks its whole stack."""
    with _as_far_as_possible("a task of the migration may still run"):
        request = Request.parse(event)
        record = Record()
        with _as_far_as_possible("a task that is about to start may be missed"):
            record = read_record(aws, request, SHORT_PATIENCE)
            if record.running:
                write_record(aws, request, record.taken_back_by(request), SHORT_PATIENCE)
        _end_upgrade(Tasks(aws, request), request, record, "its resource is being deleted.")
    return _succeeded("The schema stays as it is.", UNKNOWN, UNKNOWN)


def _keep_schema(event: dict[str, Any], aws: Aws) -> Answer:
    """Roll back nothing: the older image lacks the newer revisions' files, so it must not run.

    Nothing fails this answer, or the whole stack would be stuck in UPDATE_ROLLBACK_FAILED.
    """
    record, all_stopped = Record(), False
    with _as_far_as_possible("what the rollback leaves is not known"):
        request = Request.parse(event)
        with _as_far_as_possible("what the deployment has done is not known"):
            record = read_record(aws, request, SHORT_PATIENCE)
            if record.refuses_rollback(request):
                return _too_late()
            record = record.taken_back_by(request)
            write_record(aws, request, record, SHORT_PATIENCE)
        upgrade = Request.parse(event, "OldResourceProperties") if event.get("OldResourceProperties") else request
        record, all_stopped = _end_upgrade(Tasks(aws, upgrade), upgrade, record, ROLLED_BACK)
        _close(aws, request, record)
    if all_stopped and record.after != UNKNOWN:
        return _succeeded(
            f"The stack rolls back; the schema is kept, last seen at {record.after}.", record.after, record.after
        )
    still_runs = "" if all_stopped else ", and whether a task of the migration still runs"
    reason = f"The stack rolls back; the schema is kept. Unknown: its revision{still_runs}."
    return replace(_succeeded(reason, UNKNOWN, UNKNOWN), alarming=not all_stopped)


def _take_back(event: dict[str, Any], context: Any, aws: Aws, watch: Watch | None = None) -> Answer | None:
    """Roll back the schema too; whatever is in the way, the answer says how to go on, for the stack is stuck then."""
    request = Request.parse_downgrade(event)
    try:
        return _follow(event, context, aws, watch) if watch else _downgrade(event, context, aws, request)
    except TooLateError:
        return _too_late()
    except NotStartedError as refusal:
        return _failed(stuck(request, str(refusal)))
    except Exception as error:
        LOGGER.exception("unexpected")
        return _failed(stuck(request, f"{type(error).__name__}: {error}."))


def _downgrade(event: dict[str, Any], context: Any, aws: Aws, request: Request) -> Answer | None:
    record = read_record(aws, request)
    if record.refuses_rollback(request) or 0 < request.sent < _rollback_began(event, aws):
        return _too_late()
    upgrade = Request.parse(event, "OldResourceProperties")
    if record.release != upgrade.release:
        # The upgrade never began: what the record tells is what an earlier deployment has done.
        record = replace(record, before=UNKNOWN)
    record = record.taken_back_by(request)
    write_record(aws, request, record)
    tasks = Tasks(aws, request)
    record, all_stopped = _end_upgrade(tasks, upgrade, record, ROLLED_BACK)
    if not all_stopped:
        raise NotStartedError("the upgrade's task can't be stopped.")
    match undo(request.target, record):
        case Undo.DOWNGRADE:
            write_record(aws, request, replace(record, fingerprint=UNKNOWN))

            def is_over() -> bool:
                return read_record(aws, request, 0).refuses_rollback(request)

            return _follow(event, context, aws, _start(tasks, request.sent or aws.now(), is_over))
        case Undo.NOTHING:
            _close(aws, request, record)
            reason = f"The stack rolls back; the schema is at {record.after}, where the older release expects it."
            return _succeeded(reason, record.after, record.after)
        case Undo.NOT_OURS:
            _close(aws, request, record)
            return replace(_succeeded(kept(request, record), record.after, record.after), alarming=True)


def _rollback_began(event: dict[str, Any], aws: Aws) -> float:
    """When the stack began to roll back, in whole seconds; an event that was sent earlier is the upgrade's own."""
    position: dict[str, Any] = {}
    while True:
        page = aws.call(aws.cloudformation.describe_stack_events, StackName=event["StackId"], **position)
        for one in page["StackEvents"]:
            if one["PhysicalResourceId"] == event["StackId"] and rolls_back(one.get("ResourceStatus", "")):
                return float(int(one["Timestamp"].timestamp()))
        if "NextToken" not in page:
            return 0.0
        position = {"NextToken": page["NextToken"]}


def _end_upgrade(tasks: Tasks, upgrade: Request, record: Record, reason: str) -> tuple[Record, bool]:
    """Stop what still runs of the deployment, other than its way back, and find out what its upgrade has done.

    Args:
        tasks: of the upgrade, or of the way back.
        upgrade: what was asked for.
        record: what is known of the deployment.
        reason: why it is stopped.

    Returns:
        What is known then, and whether all has stopped.
    """
    give_up = tasks.aws.now() + (VISIBLE_SECONDS if record.running else 0)
    while True:
        ended = tasks.upgrades_since(record.began - CLOCK_SKEW) if record.running else []
        still_runs = [task for task in tasks.unfinished() if not (tasks.request.command and tasks.runs(task))]
        stopped = [tasks.stop(task, reason) for task in still_runs]
        if stopped or tasks.aws.now() >= give_up:
            break
        tasks.aws.sleep(2)
    learned = _learn(tasks, upgrade, record, [*ended, *stopped])
    if record.running and not stopped:
        # Whoever watched them is gone, and the last of them may be one that ECS has lost.
        learned = replace(learned, fingerprint=UNKNOWN, after=UNKNOWN)
    return learned, all(task["lastStatus"] == STOPPED for task in stopped)


def _learn(tasks: Tasks, upgrade: Request, record: Record, ended: Sequence[Task]) -> Record:
    """What is known of the deployment with what these tasks have done, the oldest first."""
    for task in ended:
        # Should one have succeeded after all, then nobody has been told, and no release counts as deployed with it.
        record = judge(task, tasks.result(task), upgrade).added_to(record, UNKNOWN)
    return record


def _record_outcome(aws: Aws, request: Request, outcome: Outcome) -> None:
    """Record what the task has done, unless its deployment is no longer the request's.

    When that can't be done the older record stays, for the task has ended, and a failure here would not undo it. It
    says that a task may run, so the next request looks what has become of that, or takes nothing for granted.
    """
    with _as_far_as_possible("the outcome is not recorded"):
        record = read_record(aws, request, SHORT_PATIENCE)
        after = outcome.added_to(record, request.fingerprint)
        if record.is_of(request):
            write_record(aws, request, after, SHORT_PATIENCE)
        elif request.command and record.rollback == request.key:
            write_record(aws, request, after.closed() if outcome.succeeded else after, SHORT_PATIENCE)


def _close(aws: Aws, request: Request, record: Record) -> None:
    with _as_far_as_possible("the rollback is not recorded"):
        write_record(aws, request, record.closed(), SHORT_PATIENCE)


@contextmanager
def _as_far_as_possible(otherwise: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        LOGGER.exception(otherwise)


def _succeeded(reason: str, before: str, after: str, task: str = UNKNOWN, seconds: str = UNKNOWN) -> Answer:
    # A stack's output fails the stack when its attribute is missing.
    attributes = {"RevisionBefore": before, "RevisionAfter": after, "TaskArn": task, "Duration": seconds}
    return Answer("SUCCESS", reason, attributes, alarming=False)


def _failed(reason: str) -> Answer:
    return Answer("FAILED", reason, {}, alarming=True)


def _too_late() -> Answer:
    reason = "This request came too late: its deployment is over. Deploy again."
    return Answer("FAILED", reason, {}, alarming=False)


def _log(event: str, fields: Mapping[str, Any]) -> None:
    LOGGER.info(json.dumps({"event": f"trigger.{event}", **fields}))
