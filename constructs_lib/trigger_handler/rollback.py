"""What is done about a deployment that is taken back or deleted, and about its schema."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from aws import Aws, as_far_as_possible, phase_began
from cfn_response import UNKNOWN, Answer, failed, succeeded, too_late
from decision import Undo, asks_for_downgrade, asks_for_names, rolls_back, undo
from ecs_task import STOPPED, VISIBLE_SECONDS, NotStartedError, Tasks, TooLateError
from outcome import deleted, kept, names_missing, stuck
from record import SHORT_PATIENCE, Record, Turn, read_record, write_record
from request import Request, Step, is_of_contract
from watch import ROLLED_BACK, Ended, Watch, follow, learn, stack_status, start

LOGGER = logging.getLogger(__name__)
CLOCK_SKEW = 5.0


def let_go(event: dict[str, Any], aws: Aws) -> Answer:
    """Stop what still runs, as far as that can be done: a resource that won't be deleted blocks its whole stack."""
    record = Record()
    with as_far_as_possible("a task of the migration may still run"):
        request = Request.parse(event)
        record = _unread(aws, request)
        with as_far_as_possible("what the deployment has done is not known"):
            record = read_record(aws, request, SHORT_PATIENCE)
            if record.turn_of(request).running:
                write_record(aws, request, record.taken_back_by(request), SHORT_PATIENCE)
        _end_deployment(Tasks(aws, request), request, record, "its resource is being deleted.")
    if is_of_contract(event):
        status = ""
        with as_far_as_possible("the contract is taken for one that is not rolled back"):
            status = stack_status(event, aws, SHORT_PATIENCE)
        if loud := deleted(record, rolls_back=rolls_back(status)):
            return replace(succeeded(loud, UNKNOWN, UNKNOWN, contract=record.contract), alarming=True)
    return succeeded("The schema stays as it is.", UNKNOWN, UNKNOWN, contract=record.contract)


def keep_schema(event: dict[str, Any], context: Any, aws: Aws) -> Answer | None:
    """Roll back nothing but what a contract has closed: the older image lacks the newer files, so it must not run.

    Nothing fails this answer, or the whole stack would be stuck in UPDATE_ROLLBACK_FAILED.

    Args:
        event: of the migration or of its contract; None is returned when it goes on in another invocation.
        context: Lambda's.
        aws: the world.
    """
    record, all_stopped, gives_back = Record(), False, False
    with as_far_as_possible("what the rollback leaves is not known"):
        request = Request.parse(event)
        newer = Request.parse(event, "OldResourceProperties") if event.get("OldResourceProperties") else request
        # An unknown record of the migration is made anew; its contract leaves it as it is.
        record, writes = _unread(aws, newer), not request.of_contract
        with as_far_as_possible("what the deployment has done is not known"):
            record = read_record(aws, request, SHORT_PATIENCE)
            writes = True
            if record.turn_of(request).refuses_rollback(request):
                return too_late()
        # A contract whose migration takes the whole schema back leaves it to that.
        gives_back = asks_for_names(request, newer, record) and not asks_for_downgrade(event)
        if (request.of_contract or gives_back) and _is_of_the_update(request, aws):
            return too_late()
        record = record.taken_back_by(request)
        with as_far_as_possible("the rollback is not recorded yet"):
            if writes:
                write_record(aws, request, record, SHORT_PATIENCE)
        way_back = Request.parse_way_back(event, "reopen", request.target) if gives_back else newer
        record, all_stopped = _end_deployment(Tasks(aws, way_back), newer, record, ROLLED_BACK)
        if writes:
            _close(aws, request, record)
        gives_back = gives_back and record.has_closed
    if gives_back:
        return open_names(event, context, aws)
    return _kept(record, all_stopped=all_stopped)


def _is_of_the_update(request: Request, aws: Aws) -> bool:
    """Whether the request is of the update that is rolled back: nobody waits for it any more."""
    with as_far_as_possible("the request is taken for one of the rollback"):
        return 0 < request.sent < phase_began(aws, request.stack_id, rolls_back)
    return False


def _kept(record: Record, *, all_stopped: bool) -> Answer:
    if all_stopped and record.after != UNKNOWN:
        reason = f"The stack rolls back; the schema is kept, last seen at {record.after}."
        return succeeded(reason, record.after, record.after, contract=record.contract)
    still_runs = "" if all_stopped else ", and whether a task of the migration still runs"
    reason = f"The stack rolls back; the schema is kept. Unknown: its revision{still_runs}."
    return replace(succeeded(reason, UNKNOWN, UNKNOWN, contract=record.contract), alarming=not all_stopped)


def open_names(event: dict[str, Any], context: Any, aws: Aws, watch: Watch | None = None) -> Answer | None:
    """Give the older release the names back that a contract has taken away; no failure of that fails the rollback.

    Args:
        event: of the migration or of its contract; None is returned when it goes on in another invocation.
        context: Lambda's.
        aws: the world.
        watch: of the task, when an earlier invocation has started it.
    """
    request = Request.parse_way_back(event, "reopen", Request.parse(event).target)
    why, where = "", ""
    try:
        ended = follow(event, context, aws, watch or start(event, Tasks(aws, request), request.sent or aws.now()))
        if ended is None:
            return None
        if ended.outcome.succeeded:
            reason = "The stack rolls back; the schema is kept, and the names that the contract took away are back."
            # Asked to take the schema back, it could not: that is not known to be this deployment's.
            return replace(ended.succeeded(reason), alarming=asks_for_downgrade(event))
        why, where = ended.outcome.sentence, ended.outcome.where
    except TooLateError:
        return too_late()
    except NotStartedError as refusal:
        why = str(refusal)
    except Exception as error:
        LOGGER.exception("unexpected")
        why = f"{type(error).__name__}: {error}."
    return replace(succeeded(names_missing(request, why, where), UNKNOWN, UNKNOWN), alarming=True)


def take_back(event: dict[str, Any], context: Any, aws: Aws, watch: Watch | None = None) -> Answer | None:
    """Roll back the schema too; whatever is in the way, the answer says how to go on, for the stack is stuck then."""
    older = Request.parse_way_back(event, "downgrade", Request.parse(event).target)
    try:
        return (
            _taken_back(older, follow(event, context, aws, watch)) if watch else _downgrade(event, context, aws, older)
        )
    except TooLateError:
        return too_late()
    except NotStartedError as refusal:
        return failed(stuck(older, str(refusal)))
    except Exception as error:
        LOGGER.exception("unexpected")
        return failed(stuck(older, f"{type(error).__name__}: {error}."))


def _downgrade(event: dict[str, Any], context: Any, aws: Aws, older: Request) -> Answer | None:
    record = read_record(aws, older)
    if record.refuses_rollback(older) or 0 < older.sent < phase_began(aws, older.stack_id, rolls_back):
        return too_late()
    newer = Request.parse(event, "OldResourceProperties")
    if record.release != newer.release:
        # The upgrade never began: what the record tells is what an earlier deployment has done.
        record = replace(record, before=UNKNOWN)
    record = record.taken_back_by(older)
    write_record(aws, older, record)
    # It ends where this deployment has begun: the older release may have left its own contract open.
    goal = record.before if record.before in older.targets else older.target
    record, all_stopped = _end_deployment(Tasks(aws, _back_to(goal, event)), newer, record, ROLLED_BACK)
    if not all_stopped:
        raise NotStartedError("the upgrade's task can't be stopped.")
    match undo(older.targets, record):
        case Undo.DOWNGRADE:
            write_record(aws, older, replace(record, fingerprint=UNKNOWN))
            tasks = Tasks(aws, _back_to(record.before, event))
            return _taken_back(older, follow(event, context, aws, start(event, tasks, older.sent or aws.now())))
        case Undo.NOTHING:
            _close(aws, older, record)
            reason = f"The stack rolls back; the schema is at {record.after}, where the older release expects it."
            return succeeded(reason, record.after, record.after, contract=record.contract)
        case Undo.NOT_OURS:
            _close(aws, older, record)
            if asks_for_names(older, newer, record):
                return open_names(event, context, aws)
            answer = succeeded(kept(older, record), record.after, record.after, contract=record.contract)
            return replace(answer, alarming=True)


def _back_to(revision: str, event: dict[str, Any]) -> Request:
    return Request.parse_way_back(event, "downgrade", revision)


def _taken_back(older: Request, ended: Ended | None) -> Answer | None:
    if ended is None:
        return None
    outcome = ended.outcome
    if not outcome.succeeded:
        return failed(stuck(older, outcome.sentence, outcome.where))
    return ended.succeeded(f"The stack rolls back, and so does the schema. {outcome.reason}")


def _end_deployment(tasks: Tasks, newer: Request, record: Record, reason: str) -> tuple[Record, bool]:
    """Stop what still runs of the deployment, other than its way back, and find out what it has done.

    Args:
        tasks: of the upgrade or the contract, or of the way back.
        newer: what was asked for; of a contract, only its own tasks are ended.
        record: what is known of the deployment.
        reason: why it is stopped.

    Returns:
        What is known then, and whether all has stopped.
    """
    runs: list[Step] = [step for step, turn in _turns(newer, record) if turn.running]
    give_up = tasks.aws.now() + (VISIBLE_SECONDS if runs else 0)
    while True:
        ended = [
            task
            for step, turn in _turns(newer, record)
            if turn.running
            for task in tasks.ended_since(turn.began - CLOCK_SKEW, step)
        ]
        still_runs = [task for task in tasks.unfinished() if not (tasks.request.goes_back and tasks.runs(task))]
        if newer.of_contract:
            still_runs = [task for task in still_runs if tasks.step_of(task) == "contract"]
        stopped = [tasks.stop(task, reason) for task in still_runs]
        if stopped or tasks.aws.now() >= give_up:
            break
        tasks.aws.sleep(2)
    learned = learn(tasks, newer, record, [*ended, *stopped])
    if runs and not stopped:
        # Whoever watched them is gone, and the last of them may be one that ECS has lost.
        fingerprint = UNKNOWN if "upgrade" in runs else learned.fingerprint
        learned = replace(learned, fingerprint=fingerprint, after=UNKNOWN, contract=UNKNOWN)
    return learned, all(task["lastStatus"] == STOPPED for task in stopped)


def _turns(newer: Request, record: Record) -> list[tuple[Step, Turn]]:
    closing: list[tuple[Step, Turn]] = [("contract", record.closing)]
    return closing if newer.of_contract else [("upgrade", record), *closing]


def _unread(aws: Aws, newer: Request) -> Record:
    """What is known when the record can't be read: a task may be about to start, and a contract may have closed."""
    turn = Turn(release=newer.release, began=aws.now(), running=True)
    return Record(running=True, began=turn.began, has_closed=newer.of_contract, closing=turn)


def _close(aws: Aws, request: Request, record: Record) -> None:
    with as_far_as_possible("the rollback is not recorded"):
        write_record(aws, request, record.closed_by(request), SHORT_PATIENCE)
