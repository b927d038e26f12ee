"""One task from its start to the answer, over as many invocations of the function as it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aws import PATIENCE, Aws, as_far_as_possible, passes, phase_began
from cfn_response import UNKNOWN, Answer, failed, succeeded
from decision import goes_on
from ecs_task import VISIBLE_SECONDS, NotStartedError, Task, Tasks, TooLateError
from outcome import Outcome, judge, stuck, was_refused
from record import SHORT_PATIENCE, Record, read_record, write_record
from request import Request

# What is left to do after this has been checked, at worst: the next poll (17 s), the log read three times (91 s), the
# record read and written (50 s), and the answer sent (65 s).
HAND_ON_MILLISECONDS = 300_000
ROLLED_BACK = "its deployment is being rolled back."
TRIGGER_FAILED = "its trigger has failed."
# Lambda delivers an event within a few seconds, and again after a minute.
PROMPT_SECONDS = 20.0


@dataclass(frozen=True)
class Watch:
    """A task that is being waited for. An invocation hands it to the next.

    Attributes:
        task: its ARN.
        started: when it, or the one before it, was; in seconds since the epoch.
        deadline: when it is stopped; in seconds since the epoch.
        downgrades: whether it takes the schema back.
        again: whether it was started because the database had refused the credentials of the one before it.
    """

    task: str
    started: float
    deadline: float
    downgrades: bool = False
    again: bool = False


def stack_status(event: Mapping[str, Any], aws: Aws, patience: float = PATIENCE) -> str:
    """The stack's status now; the patience is that of ``Aws.call``."""
    stacks = aws.call(aws.cloudformation.describe_stacks, patience=patience, StackName=event["StackId"])["Stacks"]
    return str(stacks[0]["StackStatus"])


def is_of_earlier_operation(request: Request, aws: Aws) -> bool:
    """Whether the stack has begun anew since the request was sent; asked only when that is a while ago."""
    late = request.sent > 0 and aws.now() - request.sent > PROMPT_SECONDS
    return late and request.sent < phase_began(aws, request.stack_id, goes_on)


def is_over(event: Mapping[str, Any], aws: Aws, request: Request) -> bool:
    """Whether the request was cancelled, or overtaken by a newer one.

    What SSM answers may be older than what has been written: only a newer request in it is an objection.
    """
    record = read_record(aws, request, 0)
    if request.downgrades:
        return record.refuses_rollback(request)
    over = record.refuses_upgrade(request) or not goes_on(stack_status(event, aws, 0))
    return over or is_of_earlier_operation(request, aws)


def start(event: Mapping[str, Any], tasks: Tasks, began: float) -> Watch:
    """Start the task, or adopt the one that an earlier delivery has started; raises what ``Tasks.start`` raises.

    A request that is over by then has its task stopped.

    Args:
        event: the request, as CloudFormation sent it.
        tasks: of the request.
        began: when CloudFormation sent the request, for that is when its time begins, however late it is delivered.
    """
    deadline = began + tasks.request.timeout
    try:
        task = tasks.start(deadline, lambda: is_over(event, tasks.aws, tasks.request))
    except NotStartedError:
        raise
    except Exception as error:
        # ECS may have started it, and only its answer was lost.
        _stop_all(tasks, VISIBLE_SECONDS if passes(error, PATIENCE) else 0)
        raise
    over = False
    with as_far_as_possible("the deployment is taken for one that goes on"):
        over = is_over(event, tasks.aws, tasks.request)
    if over:
        # The rollback, or the delete, may have looked before there was a task.
        tasks.stop(task, ROLLED_BACK)
        raise TooLateError
    return Watch(task["taskArn"], task["createdAt"].timestamp(), deadline, downgrades=tasks.request.downgrades)


def follow(event: dict[str, Any], context: Any, aws: Aws, watch: Watch, learned: Record | None = None) -> Answer | None:
    """Wait for the task, and judge it; no answer when the watch goes on in another invocation.

    Args:
        event: CloudFormation's.
        context: Lambda's.
        aws: the world.
        watch: of the task.
        learned: what is to be recorded first of earlier tasks of the same request; None for nothing.
    """
    request = Request.parse_downgrade(event) if watch.downgrades else Request.parse(event)
    tasks = Tasks(aws, request)
    try:
        if learned:
            # The task must not go on without it: what becomes of it is recorded on top.
            write_record(aws, request, learned)
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
        with as_far_as_possible("the task may go on"):
            tasks.tell_to_stop(watch.task, TRIGGER_FAILED)
        _stop_all(tasks)
        raise
    if was_refused(task, request) and not watch.again:
        # ECS reads the secret when it starts a task: since then it may have been rotated.
        next_one = start(event, tasks, watch.deadline - request.timeout)
        return follow(event, context, aws, replace(next_one, started=watch.started, again=True))
    outcome = judge(task, tasks.result(task), request)
    _record_outcome(aws, request, outcome)
    if not outcome.succeeded:
        return failed(stuck(request, outcome.sentence, outcome.where) if watch.downgrades else outcome.reason)
    reason = f"The stack rolls back, and so does the schema. {outcome.reason}" if watch.downgrades else outcome.reason
    return succeeded(reason, outcome.before, outcome.after, watch.task, f"{aws.now() - watch.started:.0f}")


def learn(tasks: Tasks, upgrade: Request, record: Record, ended: Sequence[Task]) -> Record:
    """What is known of the deployment with what these tasks have done, the oldest first."""
    for task in ended:
        # Should one have succeeded after all, then nobody has been told, and no release counts as deployed with it.
        record = judge(task, tasks.result(task), upgrade).added_to(record, UNKNOWN)
    return record


def _hand_on(event: dict[str, Any], context: Any, aws: Aws, watch: Watch) -> None:
    payload = json.dumps({**event, "Continuation": asdict(watch)}).encode()
    own_name = context.invoked_function_arn
    aws.call(aws.lambda_client.invoke, FunctionName=own_name, InvocationType="Event", Payload=payload)


def _stop_all(tasks: Tasks, seconds: float = 0) -> None:
    """So that no task goes on after an answer that says nothing of it.

    Args:
        tasks: of the migration.
        seconds: for how long to look for one; by default once.
    """
    give_up = tasks.aws.now() + seconds
    with as_far_as_possible("a task of the migration may still run"):
        while True:
            unfinished = tasks.unfinished()
            for task in unfinished:
                tasks.stop(task, TRIGGER_FAILED)
            if unfinished or tasks.aws.now() >= give_up:
                return
            tasks.aws.sleep(2)


def _record_outcome(aws: Aws, request: Request, outcome: Outcome) -> None:
    """Record what the task has done, unless its deployment is no longer the request's.

    When that can't be done the older record stays, for the task has ended, and a failure here would not undo it. It
    says that a task may run, so the next request looks what has become of that, or takes nothing for granted.
    """
    with as_far_as_possible("the outcome is not recorded"):
        record = read_record(aws, request, SHORT_PATIENCE)
        after = outcome.added_to(record, request.fingerprint)
        if record.is_of(request):
            write_record(aws, request, after, SHORT_PATIENCE)
        elif request.downgrades and record.rollback == request.key:
            write_record(aws, request, after.closed() if outcome.succeeded else after, SHORT_PATIENCE)
