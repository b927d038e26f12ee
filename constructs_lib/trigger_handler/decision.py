"""What is to be done about a request of CloudFormation. Pure: nothing here calls AWS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from cfn_response import CLOSED, UNKNOWN
from record import Record
from request import Request


class Action(Enum):
    """What a request leads to."""

    RUN = auto()
    WAIT = auto()
    ANSWER_UNCHANGED = auto()
    REFUSE = auto()


class Undo(Enum):
    """What a rollback that may downgrade leads to."""

    NOTHING = auto()
    DOWNGRADE = auto()
    NOT_OURS = auto()


def rolls_back(stack_status: str) -> bool:
    """Whether the stack rolls back now; nothing else tells a rollback from an ordinary update."""
    return "ROLLBACK" in stack_status and stack_status.endswith("_IN_PROGRESS")


def goes_on(stack_status: str) -> bool:
    """Whether the stack is being created or updated now."""
    under_way = stack_status.endswith("_IN_PROGRESS") and not stack_status.startswith("DELETE")
    return under_way and not rolls_back(stack_status)


def decide(request: Request, stack_status: str, last: Record) -> Action:
    """What to do while the stack does not roll back.

    Args:
        request: a Create or an Update.
        stack_status: the stack's status now.
        last: old properties can't tell what has been migrated, for they may be those of a failed attempt.
    """
    if not goes_on(stack_status) or last.refuses(request):
        return Action.REFUSE
    # Delivered again, the request that has migrated gets the outcome of its own task.
    has_migrated = last.is_of(request) and last.before != UNKNOWN
    unchanged = request.fingerprint == last.fingerprint and not last.running and not has_migrated
    return Action.ANSWER_UNCHANGED if unchanged and request.kind == "Update" else Action.RUN


def decide_contract(request: Request, stack_status: str, last: Record) -> Action:
    """What to do about a contract while the stack does not roll back; the arguments are those of ``decide``.

    One that is not known to be closed is closed, also when nothing but a service has changed.
    """
    if not goes_on(stack_status) or last.closing.refuses(request):
        return Action.REFUSE
    lost = last.running or last.closing.running
    closed = last.contract == CLOSED and last.fingerprint == request.fingerprint and not lost
    return Action.ANSWER_UNCHANGED if closed else Action.WAIT


def asks_for_downgrade(event: Mapping[str, Any]) -> bool:
    """Whether a rollback's event is about a schema that is to be taken back.

    It is the newer release that knows how its own migrations are undone, so its template decides.
    """
    older, newer = (event.get(name) or {} for name in ("ResourceProperties", "OldResourceProperties"))
    return bool(newer.get("OnRollback") == "DOWNGRADE" and newer.get("Target") != older.get("Target"))


def undo(targets: Sequence[str], deployment: Record) -> Undo:
    """What to do about the schema when a deployment rolls back that asked for a downgrade, which ends where it began.

    Args:
        targets: where the older release may have left the schema: it has run its contract, or not.
        deployment: what is known of the upgrade of the deployment that rolls back.
    """
    if deployment.after in targets:
        return Undo.NOTHING
    return Undo.DOWNGRADE if deployment.before in targets else Undo.NOT_OURS


def asks_for_names(older: Request, newer: Request, deployment: Record) -> bool:
    """Whether a rollback is one of a deployment whose contract may have taken names from the older release.

    Whichever comes first gives them back, the migration or its contract.

    Args:
        older: the rollback's request.
        newer: the request that is rolled back.
        deployment: what is known of the last deployment, which is another one when that request never arrived.
    """
    its_own = deployment.turn_of(newer).release == newer.release
    return deployment.has_closed and its_own and newer.target != older.target
