"""One task from its start to the answer, over as many invocations of the function as it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from aws import CALL_ERRORS, PATIENCE, Aws, as_far_as_possible, passes, phase_began
from cfn_response import UNKNOWN, Answer, succeeded
from decision import Action, goes_on
from ecs_task import VISIBLE_SECONDS, NotStartedError, Task, Tasks, TooLateError
from outcome import Outcome, judge, was_refused
from record import SHORT_PATIENCE, Record, Turn, read_record, write_record
from request import Request, Step

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
        task: its ARN; empty as long as a contract waits for its services.
        started: when it, or the one before it, was; in seconds since the epoch.
        deadline: when it is stopped; in seconds since the epoch.
        step: what it does.
        revision: of the way back, where it leads.
        again: whether it was started because the database had refused the credentials of the one before it.
    """

    task: str
    started: float
    deadline: float
    step: Step = "upgrade"
    revision: str = ""
    again: bool = False


@dataclass(frozen=True)
class Ended:
    """A task that has ended: its ARN, after how many seconds, and what has become of it."""

    task: str
    seconds: str
    outcome: Outcome

    def succeeded(self, reason: str, contract: str | None = None) -> Answer:
        """The answer of a success; what the contract is is the outcome's unless given."""
        outcome = self.outcome
        return succeeded(reason, outcome.before, outcome.after, self.task, self.seconds, contract or outcome.contract)


def stack_status(event: Mapping[str, Any], aws: Aws, patience: float = PATIENCE) -> str:
    """The stack's status now; the patience is that of ``Aws.call``."""
    stacks = aws.call(aws.cloudformation.describe_stacks, patience=patience, StackName=event["StackId"])["Stacks"]
    return str(stacks[0]["StackStatus"])


def is_of_earlier_operation(request: Request, aws: Aws) -> bool:
    """Whether the stack has begun anew since the request was sent; asked only when that is a while ago."""
    late = request.sent > 0 and aws.now() - request.sent > PROMPT_SECONDS
    return late and request.sent < phase_began(aws, request.stack_id, goes_on)


def is_cancelled(event: Mapping[str, Any], aws: Aws, request: Request) -> bool:
    """Whether the request, which asks for no way back, was cancelled, or overtaken by a newer one.

    What SSM answers may be older than what has been written: only a newer request in it is an objection.
    """
    turn = read_record(aws, request, 0).turn_of(request)
    return turn.refuses(request) or not goes_on(stack_status(event, aws, 0))


def is_over(event: Mapping[str, Any], aws: Aws, request: Request) -> bool:
    """Whether the request was cancelled, overtaken by a newer one, or comes from an operation that is over."""
    if request.goes_back:
        return read_record(aws, request, 0).turn_of(request).refuses_rollback(request)
    return is_cancelled(event, aws, request) or is_of_earlier_operation(request, aws)


def open_deployment(aws: Aws, request: Request, decide: Callable[[Record], Action]) -> tuple[Action, Record, Record]:
    """What is to be done, the record as it was, and as it is now: the request's own, unless that is refused.

    Without it a rollback could not tell what this deployment has done. SSM knows no condition for a write, so it is
    read again before each try: meanwhile it may have become that of a newer request.

    Args:
        aws: the world.
        request: asks for an upgrade or a contract.
        decide: what to do, by the record.
    """
    began = aws.now()
    while True:
        record = read_record(aws, request)
        action = decide(record)
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


def run(
    event: dict[str, Any], context: Any, aws: Aws, request: Request, record: Record, deployment: Record
) -> Ended | None:
    """Run the task of an upgrade or a contract, and wait for it; None when that goes on in another invocation.

    Args:
        event: CloudFormation's.
        context: Lambda's.
        aws: the world.
        request: the event, parsed.
        record: as it was before this deployment was opened.
        deployment: the record as it is now.
    """
    tasks = Tasks(aws, request)
    turn = record.turn_of(request)
    again = turn.is_of(request) and turn.running
    try:
        watch = start(event, tasks, deployment.turn_of(request).began)
    except NotStartedError:
        with as_far_as_possible("the record still says that a task may run"):
            if not (again or tasks.passed_over or is_over(event, aws, request)):
                write_record(aws, request, deployment.not_begun_by(request))
        raise
    if not tasks.passed_over:
        return follow(event, context, aws, watch)
    # Their invocation, or the answer to its call, was lost: what they have done must not be.
    learned = learn(tasks, request, deployment, tasks.passed_over).opened_for(request, aws.now(), runs=True)
    return follow(event, context, aws, watch, learned)


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
    request = tasks.request
    revision = request.target if request.goes_back else ""
    return Watch(task["taskArn"], task["createdAt"].timestamp(), deadline, request.step, revision)


def follow(event: dict[str, Any], context: Any, aws: Aws, watch: Watch, learned: Record | None = None) -> Ended | None:
    """Wait for the task, judge it, and record what it has done; None when the watch goes on in another invocation.

    Args:
        event: CloudFormation's.
        context: Lambda's.
        aws: the world.
        watch: of the task.
        learned: what is to be recorded first of earlier tasks of the same request; None for nothing.
    """
    goes_back = bool(watch.revision)
    request = Request.parse_way_back(event, watch.step, watch.revision) if goes_back else Request.parse(event)
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
            hand_on(event, context, aws, watch)
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
    return Ended(watch.task, f"{aws.now() - watch.started:.0f}", outcome)


def learn(tasks: Tasks, asked: Request, record: Record, ended: Sequence[Task]) -> Record:
    """What is known of the deployment with what these tasks have done, the oldest first."""
    for task in ended:
        step = tasks.step_of(task)
        outcome = judge(task, tasks.result(task), replace(asked, step=step))
        # Should one have succeeded after all, then nobody has been told, and no release counts as deployed with it.
        record = outcome.closed_in(record) if step == "contract" else outcome.added_to(record, UNKNOWN)
    return record


def hand_on(event: dict[str, Any], context: Any, aws: Aws, watch: Watch) -> None:
    """Let the watch go on in another invocation."""
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
        turn = record.turn_of(request)
        if turn.is_of(request) or (request.goes_back and _is_rollback_of(request, turn)):
            write_record(aws, request, _with(outcome, record, request), SHORT_PATIENCE)


def _is_rollback_of(request: Request, turn: Turn) -> bool:
    # The migration and its contract share the record: one may have written what it had read before the other.
    overwritten = turn.rollback == UNKNOWN and request.sent > 0 and not turn.refuses_rollback(request)
    return turn.rollback == request.key or overwritten


def _with(outcome: Outcome, record: Record, request: Request) -> Record:
    match request.step:
        case "upgrade":
            return outcome.added_to(record, request.fingerprint)
        case "contract":
            return outcome.closed_in(record)
        case "reopen":
            return outcome.reopened_in(record.taken_back_by(request))
        case "downgrade":
            after = outcome.added_to(record.taken_back_by(request), request.fingerprint)
            return after.closed_by(request).reopened() if outcome.succeeded else after
