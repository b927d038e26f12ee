"""One request from CloudFormation, one answer: the migration's task is started, watched, and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cfn_response
from aws import Aws
from cfn_response import Answer
from decision import UNKNOWN, Action, Record, Request, decide, resource_id, rolls_back
from ecs_task import STOPPED, NotStartedError, Task, Tasks
from outcome import Outcome, judge

LOGGER = logging.getLogger(__name__)
LOGGER.setLevel(logging.INFO)
# ResponseURL is signed: whoever reads it can answer in our place.
LOGGED = ("RequestType", "StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId", "Continuation")
# What is left to do after this has been checked, at worst: the next poll (17 s), the log read three times (91 s), the
# record written (105 s), and the answer sent (65 s).
HAND_ON_MILLISECONDS = 300_000


@dataclass(frozen=True)
class Watch:
    """A task that is being waited for; times in seconds since the epoch. An invocation hands it to the next."""

    task: str
    started: float
    deadline: float


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
        answer = _failed(str(refusal))
    except Exception as error:
        LOGGER.exception("unexpected")
        answer = _failed(f"The migration's trigger failed: {type(error).__name__}: {error}. Its log has the details.")
    if answer is None:
        return
    # What CloudFormation calls the resource stays its id, or the old one would be deleted.
    own_id = event.get("PhysicalResourceId") or resource_id(event["StackId"], event["LogicalResourceId"])
    _log("answer", {"status": answer.status, "reason": answer.reason, **answer.attributes})
    cfn_response.send(aws.put, aws.sleep, event["ResponseURL"], cfn_response.body(event, own_id, answer))


def _answer(event: dict[str, Any], context: Any, aws: Aws) -> Answer | None:
    if event["RequestType"] == "Delete":
        return _let_go(event, aws)
    began = aws.now()
    if watch := event.get("Continuation"):
        return _follow(event, context, Tasks(aws, Request.parse(event)), Watch(**watch))
    status = aws.call(aws.cloudformation.describe_stacks, StackName=event["StackId"])["Stacks"][0]["StackStatus"]
    if rolls_back(status):
        return _keep_schema(event, aws)
    request = Request.parse(event)
    tasks = Tasks(aws, request)
    record = _read_record(tasks)
    match decide(request.kind, status, request.fingerprint, record):
        case Action.REFUSE:
            return _failed(f"This request came too late: the stack is already {status}. Deploy again.")
        case Action.ANSWER_UNCHANGED:
            return _succeeded("No migration has changed since the last deployment.", record.after, record.after)
        case _:
            task = tasks.start()
            started = task["createdAt"].timestamp()
            # CloudFormation counts from the event's first delivery: an adopted task is older than this one.
            watch = Watch(task["taskArn"], started, deadline=min(began, started) + request.timeout)
            return _follow(event, context, tasks, watch)


def _let_go(event: dict[str, Any], aws: Aws) -> Answer:
    """Stop what still runs, as far as that can be done: a resource that won't be deleted blocks its whole stack."""
    try:
        Tasks(aws, Request.parse(event)).stop_all("its resource is being deleted.")
    except Exception:
        LOGGER.exception("a task of the migration may still run")
    return _succeeded("The schema stays as it is.", UNKNOWN, UNKNOWN)


def _follow(event: dict[str, Any], context: Any, tasks: Tasks, watch: Watch) -> Answer | None:
    task = tasks.watch(
        watch.task,
        watch.deadline,
        stop_reason=f"it took longer than its timeout of {tasks.request.timeout / 60:g} min.",
        time_is_up=lambda: context.get_remaining_time_in_millis() < HAND_ON_MILLISECONDS,
    )
    aws = tasks.aws
    if task is None:
        payload = json.dumps({**event, "Continuation": asdict(watch)}).encode()
        own_name = context.invoked_function_arn
        aws.call(aws.lambda_client.invoke, FunctionName=own_name, InvocationType="Event", Payload=payload)
        return None
    outcome = _settle(tasks, task, tasks.request.fingerprint)
    if not outcome.succeeded:
        return _failed(outcome.reason)
    seconds = f"{aws.now() - watch.started:.0f}"
    return _succeeded(outcome.reason, outcome.before, outcome.after, task=watch.task, seconds=seconds)


def _keep_schema(event: dict[str, Any], aws: Aws) -> Answer:
    """Roll back nothing: the older image lacks the newer revisions' files, so it must not run.

    Nothing fails this answer, or the whole stack would be stuck in UPDATE_ROLLBACK_FAILED.
    """
    revision, unknown, why = UNKNOWN, "its revision, and whether a task of the migration still runs", ""
    try:
        tasks = Tasks(aws, Request.parse(event))
        stopped = tasks.stop_all("its deployment is being rolled back.")
        for task in stopped:
            # If it succeeded after all, then with the migrations of the release that is going, not of this request.
            _settle(tasks, task, UNKNOWN)
        if all(task["lastStatus"] == STOPPED for task in stopped):
            unknown = "its revision"
            revision = _read_record(tasks).after
    except Exception as error:
        LOGGER.exception("unknown while the stack rolls back: %s", unknown)
        why = f" ({type(error).__name__}: {error})"
    seen = f", last seen at {revision}" if revision != UNKNOWN else f". Unknown: {unknown}{why}"
    return _succeeded(f"The stack rolls back; the schema is kept{seen}.", revision, revision)


def _settle(tasks: Tasks, task: Task, fingerprint: str) -> Outcome:
    """Judge the task, and record what the next deployment must know."""
    outcome = judge(task, tasks.result(task), tasks.request)
    if outcome.succeeded:
        _write_record(tasks, Record(fingerprint, outcome.before, outcome.after))
    elif not outcome.untouched:
        # The schema may be anywhere between two releases: no deployment counts as unchanged after this.
        _write_record(tasks, Record(UNKNOWN, outcome.before, outcome.after))
    return outcome


def _read_record(tasks: Tasks) -> Record:
    aws = tasks.aws
    try:
        found = aws.call(aws.ssm.get_parameter, Name=tasks.request.record_parameter)
    except aws.ssm.exceptions.ParameterNotFound:
        # Someone has deleted it: the next record that is written makes it anew.
        return Record()
    return Record.parse(found["Parameter"]["Value"])


def _write_record(tasks: Tasks, record: Record) -> None:
    """Write the record if that can be done: the task has ended, and no failure here could undo what it did.

    The older record then stays. It lacks the new migrations, so the next deployment of them starts a task that finds
    nothing to do. It can mislead only a deployment of its own, older migrations: "unchanged", though the schema has
    moved on. An error would do that harm now instead of maybe later: the stack would roll back to just that release.
    """
    aws = tasks.aws
    try:
        aws.call(aws.ssm.put_parameter, Name=tasks.request.record_parameter, Value=record.dump(), Overwrite=True)
    except Exception:
        LOGGER.exception("the record of the migration can't be written: %s", record)


def _succeeded(reason: str, before: str, after: str, task: str = UNKNOWN, seconds: str = UNKNOWN) -> Answer:
    # A stack's output fails the stack when its attribute is missing.
    attributes = {"RevisionBefore": before, "RevisionAfter": after, "TaskArn": task, "Duration": seconds}
    return Answer("SUCCESS", reason, attributes)


def _failed(reason: str) -> Answer:
    return Answer("FAILED", reason, {})


def _log(event: str, fields: Mapping[str, Any]) -> None:
    LOGGER.info(json.dumps({"event": f"trigger.{event}", **fields}))
