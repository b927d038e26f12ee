"""One request from CloudFormation, one answer: the migration's task is started, watched, and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cfn_response
import contract
import notice
from aws import Aws
from cfn_response import MAX_REASON, Answer, ascii_line, failed, succeeded, too_late
from decision import Action, asks_for_downgrade, decide, rolls_back
from ecs_task import NotStartedError, TooLateError
from request import Request, is_of_contract, resource_id
from rollback import keep_schema, let_go, open_names, take_back
from watch import Ended, Watch, follow, is_of_earlier_operation, open_deployment, run, stack_status

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
        return _go_on(event, context, aws, Watch(**event["Continuation"]))
    if is_of_contract(event):
        return contract.answer(event, context, aws)
    status = stack_status(event, aws)
    if not rolls_back(status):
        return _migrate(event, context, aws, status)
    return take_back(event, context, aws) if asks_for_downgrade(event) else keep_schema(event, context, aws)


def _go_on(event: dict[str, Any], context: Any, aws: Aws, watch: Watch) -> Answer | None:
    match watch.step:
        case "upgrade":
            return _migrated(follow(event, context, aws, watch))
        case "contract":
            return contract.answer(event, context, aws, watch)
        case "downgrade":
            return take_back(event, context, aws, watch)
        case "reopen":
            return open_names(event, context, aws, watch)


def _migrate(event: dict[str, Any], context: Any, aws: Aws, status: str) -> Answer | None:
    request = Request.parse(event)
    if is_of_earlier_operation(request, aws):
        return too_late()
    action, record, deployment = open_deployment(aws, request, lambda last: decide(request, status, last))
    if action is Action.REFUSE:
        return too_late()
    if action is Action.ANSWER_UNCHANGED:
        reason = "No migration has changed since the last deployment."
        return succeeded(reason, record.after, record.after, contract=record.contract)
    return _migrated(run(event, context, aws, request, record, deployment))


def _migrated(ended: Ended | None) -> Answer | None:
    if ended is None:
        return None
    return ended.succeeded(ended.outcome.reason) if ended.outcome.succeeded else failed(ended.outcome.reason)


def _log(event: str, fields: Mapping[str, Any]) -> None:
    LOGGER.info(json.dumps({"event": f"trigger.{event}", **fields}))
