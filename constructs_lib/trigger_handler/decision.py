"""What is to be done about a request of CloudFormation. Pure: nothing here calls AWS."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from cfn_response import UNKNOWN
from record import Record
from request import Request


class Action(Enum):
    """What a request leads to."""

    RUN = auto()
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
    if not goes_on(stack_status) or last.refuses_upgrade(request):
        return Action.REFUSE
    # Delivered again, the request that has migrated gets the outcome of its own task.
    has_migrated = last.is_of(request) and last.before != UNKNOWN
    unchanged = request.fingerprint == last.fingerprint and not last.running and not has_migrated
    return Action.ANSWER_UNCHANGED if unchanged and request.kind == "Update" else Action.RUN


def asks_for_downgrade(event: Mapping[str, Any]) -> bool:
    """Whether a rollback's event is about a schema that is to be taken back.

    It is the newer release that knows how its own migrations are undone, so its template decides.
    """
    older, newer = (event.get(name) or {} for name in ("ResourceProperties", "OldResourceProperties"))
    return bool(newer.get("OnRollback") == "DOWNGRADE" and newer.get("Target") != older.get("Target"))


def undo(target: str, deployment: Record) -> Undo:
    """What to do about the schema when a deployment rolls back that asked for a downgrade.

    Args:
        target: the older release's revision.
        deployment: what is known of the upgrade of the deployment that rolls back.
    """
    if deployment.after == target:
        return Undo.NOTHING
    return Undo.DOWNGRADE if deployment.before == target else Undo.NOT_OURS
