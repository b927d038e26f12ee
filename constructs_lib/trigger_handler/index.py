"""One request from CloudFormation, one answer: the migration's task is started, watched, and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import cfn_response
import notice
from aws import PATIENCE, Aws
from cfn_response import Answer
from decision import (
    UNKNOWN,
    Action,
    Record,
    Request,
    Undo,
    asks_for_downgrade,
    decide,
    resource_id,
    rolls_back,
    undo,
)
from ecs_task import STOPPED, NotStartedError, Tasks
from outcome import Outcome, judge, kept, stuck

LOGGER = logging.getLogger(__name__)
LOGGER.setLevel(logging.INFO)
# ResponseURL is signed: whoever reads it can answer in our place.
LOGGED = ("RequestType", "StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId", "Continuation")
# What is left to do after this has been checked, at worst: the next poll (17 s), the log read three times (91 s), the
# record written (105 s), and the answer sent (65 s).
HAND_ON_MILLISECONDS = 300_000
ROLLED_BACK = "its deployment is being rolled back."
LATE_PATIENCE = 5.0


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
    except NotStartedError as refusal:
        answer = _failed(f"{refusal} Deploy again.")
    except Exception as error:
        LOGGER.exception("unexpected")
        answer = _failed(f"The migration's trigger failed: {type(error).__name__}: {error}. Its log has the details.")
    if answer is None:
        return
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
    status = aws.call(aws.cloudformation.describe_stacks, StackName=event["StackId"])["Stacks"][0]["StackStatus"]
    if not rolls_back(status):
        return _migrate(event, context, aws, status)
    if _is_upgrade(event, aws):
        return _failed("This request came too late: the stack rolls back already.")
    return _take_back(event, context, aws) if asks_for_downgrade(event) else _keep_schema(event, aws)


def _migrate(event: dict[str, Any], context: Any, aws: Aws, status: str) -> Answer | None:
    began = aws.now()
    request = Request.parse(event)
    record = _read_record(aws, request)
    action = decide(request, status, record)
    if action is Action.REFUSE:
        return _failed(f"This request came too late: the stack is already {status}. Deploy again.")
    # Without it a rollback could not tell what this deployment has applied.
    deployment = record.opened_for(request)
    _write_record(aws, request, deployment)
    if action is Action.ANSWER_UNCHANGED:
        return _succeeded("No migration has changed since the last deployment.", record.after, record.after)
    return _start(event, context, Tasks(aws, replace(request, turn=deployment.turn)), began)


def _start(event: dict[str, Any], context: Any, tasks: Tasks, began: float) -> Answer | None:
    timeout = tasks.request.timeout
    task = tasks.start(began + timeout)
    started = task["createdAt"].timestamp()
    # CloudFormation counts from the event's first delivery: an adopted task is older than this one.
    watch = Watch(task["taskArn"], started, min(began, started) + timeout, downgrades=bool(tasks.request.command))
    return _follow(event, context, tasks.aws, watch)


def _follow(event: dict[str, Any], context: Any, aws: Aws, watch: Watch) -> Answer | None:
    request = Request.parse_downgrade(event) if watch.downgrades else Request.parse(event)
    tasks = Tasks(aws, request)
    task = tasks.watch(
        watch.task,
        watch.deadline,
        stop_reason=f"it took longer than its timeout of {request.timeout / 60:g} min.",
        time_is_up=lambda: context.get_remaining_time_in_millis() < HAND_ON_MILLISECONDS,
    )
    if task is None:
        payload = json.dumps({**event, "Continuation": asdict(watch)}).encode()
        own_name = context.invoked_function_arn
        aws.call(aws.lambda_client.invoke, FunctionName=own_name, InvocationType="Event", Payload=payload)
        return None
    outcome = judge(task, tasks.result(task), request)
    with _as_far_as_possible("the outcome can't be recorded"):
        _record_outcome(aws, request, outcome)
    if not outcome.succeeded:
        return _failed(stuck(request, outcome.sentence, outcome.where) if watch.downgrades else outcome.reason)
    reason = f"The stack rolls back, and so does the schema. {outcome.reason}" if watch.downgrades else outcome.reason
    return _succeeded(reason, outcome.before, outcome.after, watch.task, f"{aws.now() - watch.started:.0f}")


def _let_go(event: dict[str, Any], aws: Aws) -> Answer:
    """Stop what still runs, as far as that can be done: a resource that won't be deleted blocks its whole stack."""
    with _as_far_as_possible("a task of the migration may still run"):
        tasks = Tasks(aws, Request.parse(event))
        for task in tasks.unfinished():
            tasks.stop(task, "its resource is being deleted.")
    return _succeeded("The schema stays as it is.", UNKNOWN, UNKNOWN)


def _is_upgrade(event: dict[str, Any], aws: Aws) -> bool:
    """Whether what comes during a rollback is the upgrade's own event, delivered once more."""
    with _as_far_as_possible("it is taken for the rollback's event"):
        request = Request.parse(event)
        return _read_record(aws, request, patience=LATE_PATIENCE).is_of(request)
    return False


def _keep_schema(event: dict[str, Any], aws: Aws) -> Answer:
    """Roll back nothing: the older image lacks the newer revisions' files, so it must not run.

    Nothing fails this answer, or the whole stack would be stuck in UPDATE_ROLLBACK_FAILED.
    """
    revision, unknown, why = UNKNOWN, "its revision, and whether a task of the migration still runs", ""
    try:
        request = Request.parse(event)
        tasks = Tasks(aws, request)
        stopped = [tasks.stop(task, ROLLED_BACK) for task in tasks.unfinished()]
        all_stopped = all(task["lastStatus"] == STOPPED for task in stopped)
        unknown = "its revision" if all_stopped else unknown
        record = _read_record(aws, request)
        for task in stopped:
            # If it succeeded after all, then with the migrations of the release that is going, not of this request.
            record = judge(task, tasks.result(task), request).added_to(record, UNKNOWN)
        revision = record.after if all_stopped else UNKNOWN
        _close(aws, request, record)
    except Exception as error:
        LOGGER.exception("unknown while the stack rolls back: %s", unknown)
        why = f" ({type(error).__name__}: {error})"
    seen = f", last seen at {revision}" if revision != UNKNOWN else f". Unknown: {unknown}{why}"
    return _succeeded(f"The stack rolls back; the schema is kept{seen}.", revision, revision)


def _take_back(event: dict[str, Any], context: Any, aws: Aws, watch: Watch | None = None) -> Answer | None:
    """Roll back the schema too; whatever is in the way, the answer says how to go on, for the stack is stuck then."""
    request = Request.parse_downgrade(event)
    try:
        return _follow(event, context, aws, watch) if watch else _downgrade(event, context, aws, request)
    except NotStartedError as refusal:
        return _failed(stuck(request, str(refusal)))
    except Exception as error:
        LOGGER.exception("unexpected")
        return _failed(stuck(request, f"{type(error).__name__}: {error}."))


def _downgrade(event: dict[str, Any], context: Any, aws: Aws, request: Request) -> Answer | None:
    began = aws.now()
    record = _read_record(aws, request)
    tasks = Tasks(aws, replace(request, turn=record.turn))
    upgrade = Request.parse(event, "OldResourceProperties")
    for task in tasks.unfinished():
        if tasks.runs(task):
            continue
        stopped = tasks.stop(task, ROLLED_BACK)
        if stopped["lastStatus"] != STOPPED:
            raise NotStartedError(f"the upgrade's task can't be stopped, ECS last said {stopped['lastStatus']}.")
        record = judge(stopped, tasks.result(stopped), upgrade).added_to(record, UNKNOWN)
    match undo(request.target, record):
        case Undo.DOWNGRADE:
            # From now on the upgrade's own invocation, should it still live, records nothing.
            _write_record(aws, request, replace(record, fingerprint=UNKNOWN, rolled_back=True))
            return _start(event, context, tasks, began)
        case Undo.NOTHING:
            _close(aws, request, record)
            reason = f"The stack rolls back; the schema is at {record.after}, where the older release expects it."
            return _succeeded(reason, record.after, record.after)
        case Undo.NOT_OURS:
            _close(aws, request, record)
            return replace(_succeeded(kept(request, record), record.after, record.after), alarming=True)


def _record_outcome(aws: Aws, request: Request, outcome: Outcome) -> None:
    """Record what the task has done.

    When that can't be done the older record stays, for the task has ended, and a failure here would not undo it. The
    record then lacks the new migrations, so the next deployment of them starts a task that finds nothing to do. It can
    mislead only a deployment of its own, older migrations: "unchanged", though the schema has moved on.
    """
    record = _read_record(aws, request)
    if request.command:
        after = outcome.added_to(record, request.fingerprint)
        _write_record(aws, request, after.closed() if outcome.succeeded else after)
    elif record.is_of(request) and not record.rolled_back:
        _write_record(aws, request, outcome.added_to(record, request.fingerprint))


def _close(aws: Aws, request: Request, record: Record) -> None:
    with _as_far_as_possible("the rollback can't be recorded"):
        _write_record(aws, request, record.closed())


def _read_record(aws: Aws, request: Request, patience: float = PATIENCE) -> Record:
    try:
        found = aws.call(aws.ssm.get_parameter, patience=patience, Name=request.record_parameter)
    except aws.ssm.exceptions.ParameterNotFound:
        # Someone has deleted it: the next record that is written makes it anew.
        return Record()
    return Record.parse(found["Parameter"]["Value"])


def _write_record(aws: Aws, request: Request, record: Record) -> None:
    aws.call(aws.ssm.put_parameter, Name=request.record_parameter, Value=record.dump(), Overwrite=True)


@contextmanager
def _as_far_as_possible(otherwise: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        LOGGER.exception(otherwise)


def _succeeded(reason: str, before: str, after: str, task: str = UNKNOWN, seconds: str = UNKNOWN) -> Answer:
    # A stack's output fails the stack when its attribute is missing.
    attributes = {"RevisionBefore": before, "RevisionAfter": after, "TaskArn": task, "Duration": seconds}
    return Answer("SUCCESS", reason, attributes)


def _failed(reason: str) -> Answer:
    return Answer("FAILED", reason, {})


def _log(event: str, fields: Mapping[str, Any]) -> None:
    LOGGER.info(json.dumps({"event": f"trigger.{event}", **fields}))
