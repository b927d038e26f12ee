"""What is done about a deployment that is taken back or deleted, and about its schema."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from aws import Aws, as_far_as_possible, phase_began
from cfn_response import UNKNOWN, Answer, failed, succeeded, too_late
from decision import Undo, rolls_back, undo
from ecs_task import STOPPED, VISIBLE_SECONDS, NotStartedError, Tasks, TooLateError
from outcome import kept, stuck
from record import SHORT_PATIENCE, Record, read_record, write_record
from request import Request
from watch import ROLLED_BACK, Watch, follow, learn, start

LOGGER = logging.getLogger(__name__)
CLOCK_SKEW = 5.0


def let_go(event: dict[str, Any], aws: Aws) -> Answer:
    """Stop what still runs, as far as that can be done: a resource that won't be deleted blocks its whole stack."""
    with as_far_as_possible("a task of the migration may still run"):
        request = Request.parse(event)
        record = _unread(aws)
        with as_far_as_possible("what the deployment has done is not known"):
            record = read_record(aws, request, SHORT_PATIENCE)
            if record.running:
                write_record(aws, request, record.taken_back_by(request), SHORT_PATIENCE)
        _end_upgrade(Tasks(aws, request), request, record, "its resource is being deleted.")
    return succeeded("The schema stays as it is.", UNKNOWN, UNKNOWN)


def keep_schema(event: dict[str, Any], aws: Aws) -> Answer:
    """Roll back nothing: the older image lacks the newer revisions' files, so it must not run.

    Nothing fails this answer, or the whole stack would be stuck in UPDATE_ROLLBACK_FAILED.
    """
    record, all_stopped = _unread(aws), False
    with as_far_as_possible("what the rollback leaves is not known"):
        request = Request.parse(event)
        with as_far_as_possible("what the deployment has done is not known"):
            record = read_record(aws, request, SHORT_PATIENCE)
            if record.refuses_rollback(request):
                return too_late()
        record = record.taken_back_by(request)
        with as_far_as_possible("the rollback is not recorded yet"):
            write_record(aws, request, record, SHORT_PATIENCE)
        upgrade = Request.parse(event, "OldResourceProperties") if event.get("OldResourceProperties") else request
        record, all_stopped = _end_upgrade(Tasks(aws, upgrade), upgrade, record, ROLLED_BACK)
        _close(aws, request, record)
    if all_stopped and record.after != UNKNOWN:
        return succeeded(
            f"The stack rolls back; the schema is kept, last seen at {record.after}.", record.after, record.after
        )
    still_runs = "" if all_stopped else ", and whether a task of the migration still runs"
    reason = f"The stack rolls back; the schema is kept. Unknown: its revision{still_runs}."
    return replace(succeeded(reason, UNKNOWN, UNKNOWN), alarming=not all_stopped)


def take_back(event: dict[str, Any], context: Any, aws: Aws, watch: Watch | None = None) -> Answer | None:
    """Roll back the schema too; whatever is in the way, the answer says how to go on, for the stack is stuck then."""
    request = Request.parse_downgrade(event)
    try:
        return follow(event, context, aws, watch) if watch else _downgrade(event, context, aws, request)
    except TooLateError:
        return too_late()
    except NotStartedError as refusal:
        return failed(stuck(request, str(refusal)))
    except Exception as error:
        LOGGER.exception("unexpected")
        return failed(stuck(request, f"{type(error).__name__}: {error}."))


def _downgrade(event: dict[str, Any], context: Any, aws: Aws, request: Request) -> Answer | None:
    record = read_record(aws, request)
    if record.refuses_rollback(request) or 0 < request.sent < phase_began(aws, request.stack_id, rolls_back):
        return too_late()
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
            return follow(event, context, aws, start(event, tasks, request.sent or aws.now()))
        case Undo.NOTHING:
            _close(aws, request, record)
            reason = f"The stack rolls back; the schema is at {record.after}, where the older release expects it."
            return succeeded(reason, record.after, record.after)
        case Undo.NOT_OURS:
            _close(aws, request, record)
            return replace(succeeded(kept(request, record), record.after, record.after), alarming=True)


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
        still_runs = [task for task in tasks.unfinished() if not (tasks.request.downgrades and tasks.runs(task))]
        stopped = [tasks.stop(task, reason) for task in still_runs]
        if stopped or tasks.aws.now() >= give_up:
            break
        tasks.aws.sleep(2)
    learned = learn(tasks, upgrade, record, [*ended, *stopped])
    if record.running and not stopped:
        # Whoever watched them is gone, and the last of them may be one that ECS has lost.
        learned = replace(learned, fingerprint=UNKNOWN, after=UNKNOWN)
    return learned, all(task["lastStatus"] == STOPPED for task in stopped)


def _unread(aws: Aws) -> Record:
    """What is known when the record can't be read: a task may be about to start."""
    return Record(running=True, began=aws.now())


def _close(aws: Aws, request: Request, record: Record) -> None:
    with as_far_as_possible("the rollback is not recorded"):
        write_record(aws, request, record.closed(), SHORT_PATIENCE)
