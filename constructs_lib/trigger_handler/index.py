"""One request from CloudFormation, one answer: the migration's task is started, watched, and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cfn_response
import notice
from aws import CALL_ERRORS, PATIENCE, Aws, as_far_as_possible, passes
from cfn_response import MAX_REASON, Answer, ascii_line, failed, succeeded, too_late
from decision import Action, asks_for_downgrade, decide, rolls_back
from ecs_task import NotStartedError, Tasks, TooLateError
from record import Record, read_record, write_record
from request import Request, resource_id
from rollback import keep_schema, let_go, take_back
from watch import Watch, follow, is_of_earlier_operation, is_over, learn, stack_status, start

LOGGER = logging.getLogger(__name__)
LOGGER.setLevel(logging.INFO)
# ResponseURL is signed: whoever reads it can answer in our place.
LOGGED = ("RequestType", "StackId", "RequestId", "LogicalResourceId", "PhysicalResourceId", "Continuation")


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
        answer = too_late()
    except NotStartedError as refusal:
        answer = failed(f"{refusal} Deploy again.")
    except Exception as error:
        LOGGER.exception("unexpected")
        answer = failed(f"The migration's trigger failed: {type(error).__name__}: {error}. Its log has the details.")
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
        return let_go(event, aws)
    if event.get("Continuation"):
        watch = Watch(**event["Continuation"])
        return take_back(event, context, aws, watch) if watch.downgrades else follow(event, context, aws, watch)
    status = stack_status(event, aws)
    if not rolls_back(status):
        return _migrate(event, context, aws, status)
    return take_back(event, context, aws) if asks_for_downgrade(event) else keep_schema(event, aws)


def _migrate(event: dict[str, Any], context: Any, aws: Aws, status: str) -> Answer | None:
    request = Request.parse(event)
    if is_of_earlier_operation(request, aws):
        return too_late()
    tasks = Tasks(aws, request)
    action, record, deployment = _open(aws, request, status)
    if action is Action.REFUSE:
        return too_late()
    again = record.is_of(request) and record.running
    if action is Action.ANSWER_UNCHANGED:
        return succeeded("No migration has changed since the last deployment.", record.after, record.after)

    try:
        watch = start(event, tasks, deployment.began)
    except NotStartedError:
        with as_far_as_possible("the record still says that a task may run"):
            if not (again or tasks.passed_over or is_over(event, aws, request)):
                write_record(aws, request, replace(deployment, running=False))
        raise
    if not tasks.passed_over:
        return follow(event, context, aws, watch)
    # Their invocation, or the answer to its call, was lost: what they have done must not be.
    learned = replace(learn(tasks, request, deployment, tasks.passed_over), running=True)
    return follow(event, context, aws, watch, learned)


def _open(aws: Aws, request: Request, status: str) -> tuple[Action, Record, Record]:
    """What is to be done, the record as it was, and as it is now: the request's own, unless that is refused.

    Without it a rollback could not tell what this deployment has applied. SSM knows no condition for a write, so it is
    read again before each try: meanwhile it may have become that of a newer request.
    """
    began = aws.now()
    while True:
        record = read_record(aws, request)
        action = decide(request, status, record)
        deployment = record.opened_for(request, aws.now(), runs=action is Action.RUN)
        try:
            if action is not Action.REFUSE:
                write_record(aws, request, deployment, patience=0)
        except CALL_ERRORS as error:
            waited = aws.now() - began
            if waited > PATIENCE or not passes(error, waited):
                raise
            aws.sleep(2)
        else:
            return action, record, deployment


def _log(event: str, fields: Mapping[str, Any]) -> None:
    LOGGER.info(json.dumps({"event": f"trigger.{event}", **fields}))
