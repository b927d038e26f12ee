"""The contract of a release: once no older task is left, the older names go away."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from aws import CALL_ERRORS, PATIENCE, Aws, as_far_as_possible, passes
from cfn_response import CLOSED, OPEN, UNKNOWN, Answer, failed, succeeded, too_late
from decision import Action, decide_contract, rolls_back
from ecs_task import STOPPED, NotStartedError, TooLateError
from outcome import closed, left_open, not_closed
from record import Record
from request import Request, Service, is_required
from rollback import keep_schema
from services import Obstacle, deployment_obstacle, older_tasks_obstacle, only_later
from watch import (
    HAND_ON_MILLISECONDS,
    Ended,
    Watch,
    follow,
    hand_on,
    is_cancelled,
    is_of_earlier_operation,
    open_deployment,
    run,
    stack_status,
)

LOGGER = logging.getLogger(__name__)
OLDER = "OldResourceProperties"
# Most deployments are done when the request comes; one that drains for long need not be asked so often.
POLL_SECONDS, SLOW_POLL_SECONDS = 2.0, 10.0
SLOW_AFTER_SECONDS = 120.0
# Of the timeout; the rest is for waiting.
TASKS_SHARE = 1 / 5
# ECS is consistent only eventually: what it says of a service may be older than what CloudFormation has done.
OBSTACLE_SECONDS = 120.0
# As many services as ECS describes at once.
MAX_SERVICES = 10


class NotReadyError(NotStartedError):
    """The services do not let the contract begin; the message says which, and why."""


class OnlyLaterError(NotReadyError):
    """It takes a later deployment, which a failure of this one would keep from coming."""


def answer(event: dict[str, Any], context: Any, aws: Aws, watch: Watch | None = None) -> Answer | None:
    """Close the contract, or take it back when the stack rolls back; None when that goes on in another invocation.

    What keeps it open fails no deployment, unless the contract is required: both names go on working.

    Args:
        event: a Create or an Update of the contract.
        context: Lambda's.
        aws: the world.
        watch: of the task, or of the services, when an earlier invocation has begun.
    """
    try:
        if watch and watch.task:
            return _answered(event, follow(event, context, aws, watch))
        status = stack_status(event, aws)
        if watch is None and rolls_back(status):
            # A rollback creates nothing.
            return too_late() if event["RequestType"] == "Create" else keep_schema(event, context, aws)
        return _close(event, context, aws, status, watch)
    except TooLateError:
        return too_late()
    except OnlyLaterError as reason:
        return _left_open(str(reason))
    except NotStartedError as refusal:
        return _still_open(event, str(refusal))
    except Exception as error:
        LOGGER.exception("unexpected")
        return _still_open(event, f"Its trigger failed: {type(error).__name__}: {error}. Its log has the details.")


def _close(event: dict[str, Any], context: Any, aws: Aws, status: str, watch: Watch | None) -> Answer | None:
    request = Request.parse(event)
    if is_of_earlier_operation(request, aws):
        raise TooLateError
    action, record, deployment = open_deployment(aws, request, lambda last: decide_contract(request, status, last))
    if action is Action.WAIT:
        if event["RequestType"] == "Update" and (why := only_later(Request.parse(event, OLDER), request)):
            raise OnlyLaterError(why)
        watch = watch or Watch("", aws.now(), deployment.closing.began + request.timeout, "contract")
        if not _await_services(event, context, aws, request, watch.deadline - request.timeout):
            hand_on(event, context, aws, watch)
            return None
        # The wait may have been long.
        status = stack_status(event, aws)
        action, record, deployment = open_deployment(aws, request, lambda last: _run_after_all(request, status, last))
    if action is Action.REFUSE:
        raise TooLateError
    if action is Action.ANSWER_UNCHANGED:
        return succeeded("The contract is closed already.", record.after, record.after, contract=CLOSED)
    return _answered(event, run(event, context, aws, request, record, deployment))


def _run_after_all(request: Request, status: str, last: Record) -> Action:
    action = decide_contract(request, status, last)
    return Action.RUN if action is Action.WAIT else action


def _answered(event: Mapping[str, Any], ended: Ended | None) -> Answer | None:
    if ended is None:
        return None
    outcome = ended.outcome
    if outcome.succeeded:
        return ended.succeeded(closed(outcome))
    if is_required(event):
        return failed(not_closed(outcome.sentence, outcome.where))
    told = ended.succeeded(left_open(outcome.sentence, outcome.where), f"{OPEN}: {outcome.sentence}")
    return replace(told, alarming=True)


def _still_open(event: Mapping[str, Any], why: str) -> Answer:
    return failed(not_closed(why)) if is_required(event) else _left_open(why)


def _left_open(why: str) -> Answer:
    # The attribute is what a person sees: CloudFormation shows no reason of a success.
    return replace(succeeded(left_open(why), UNKNOWN, UNKNOWN, contract=f"{OPEN}: {why}"), alarming=True)


def _await_services(event: dict[str, Any], context: Any, aws: Aws, request: Request, began: float) -> bool:
    """Wait until no task of another release is left; False when the time of this invocation is up.

    Args:
        event: CloudFormation's.
        context: Lambda's.
        aws: the world.
        request: the event, parsed.
        began: when the time of the request has begun, in seconds since the epoch.

    Raises:
        NotReadyError: that can't be expected any more, or is not so at the deadline.
        TooLateError: the request was cancelled.
    """
    patience = request.timeout * (1 - TASKS_SHARE)
    ended: set[str] = set()
    seen = expected = aws.now()
    obstacle = Obstacle("ECS has not described them.", passes=True)
    while True:
        now = aws.now()
        try:
            found = _obstacle(aws, request, ended)
            if found is None:
                return True
            obstacle, seen = found, now
        except CALL_ERRORS as error:
            if now - seen > PATIENCE and not passes(error, PATIENCE):
                raise
            LOGGER.warning("a call to ECS has failed, and is made again: %s", error)
        expected = now if obstacle.passes else expected
        _refuse_to_wait(event, aws, request)
        if now - expected >= OBSTACLE_SECONDS:
            raise NotReadyError(obstacle.sentence)
        if now - began >= patience:
            minutes = f"{patience / 60:g}"
            raise NotReadyError(f"The services have not been ready within {minutes} min. {obstacle.sentence}")
        if context.get_remaining_time_in_millis() < HAND_ON_MILLISECONDS:
            return False
        aws.sleep(POLL_SECONDS if now - began < SLOW_AFTER_SECONDS else SLOW_POLL_SECONDS)


def _refuse_to_wait(event: Mapping[str, Any], aws: Aws, request: Request) -> None:
    over = False
    with as_far_as_possible("the deployment is taken for one that goes on"):
        over = is_cancelled(event, aws, request)
    if over:
        raise TooLateError


def _obstacle(aws: Aws, request: Request, ended: set[str]) -> Obstacle | None:
    """The first thing that is in the way of the contract; first what is no matter of time.

    Args:
        aws: the world.
        request: of the contract.
        ended: the ARNs of tasks that have been seen stopped; new ones are added.
    """
    all_described = list(_described(aws, request))
    found = [deployment_obstacle(service, described) for service, described in all_described]
    obstacles = sorted(filter(None, found), key=lambda one: one.passes)
    if obstacles:
        return obstacles[0]
    for service, described in all_described:
        tasks = list(_tasks_of(aws, service, ended))
        ended |= {one["taskArn"] for one in tasks if one["lastStatus"] == STOPPED}
        if obstacle := older_tasks_obstacle(service, described or {}, tasks):
            return obstacle
    return None


def _described(aws: Aws, request: Request) -> Iterator[tuple[Service, Mapping[str, Any] | None]]:
    by_cluster = groupby(sorted(request.services, key=lambda one: one.cluster), key=lambda one: one.cluster)
    for cluster, services in [(cluster, list(services)) for cluster, services in by_cluster]:
        for start in range(0, len(services), MAX_SERVICES):
            asked = services[start : start + MAX_SERVICES]
            told = aws.ecs.describe_services(cluster=cluster, services=[one.arn for one in asked])["services"]
            known = {one["serviceName"]: one for one in told}
            yield from [(one, known.get(one.name)) for one in asked]


def _tasks_of(aws: Aws, service: Service, ended: Collection[str]) -> Iterator[Mapping[str, Any]]:
    # ECS lists a stopped task for an hour, and a service may have many. One that is only told to stop is listed as
    # STOPPED too, while it still serves what it has begun.
    for desired in ("RUNNING", "STOPPED"):
        position: dict[str, str] = {}
        while True:
            page = aws.ecs.list_tasks(
                cluster=service.cluster, serviceName=service.name, desiredStatus=desired, **position
            )
            if arns := [arn for arn in page["taskArns"] if arn not in ended]:
                yield from aws.ecs.describe_tasks(cluster=service.cluster, tasks=arns)["tasks"]
            if "nextToken" not in page:
                break
            position = {"nextToken": page["nextToken"]}
