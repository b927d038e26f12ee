"""What is asked for, and the revision to end at. Pure: nothing here asks a database."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.report import shown
from migration_runner.revisions import Revision, expand_target, head, lineage


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        command: upgrade, contract, reopen, downgrade, stamp, status, plan, history or check.
        config: the project's ``alembic.ini``.
        wait: how long to wait for the database, in seconds.
        revision: the target: of an upgrade None for the newest, of a downgrade also ``base``, ``-1`` and so on; of a
            reopen the newest revision of the release that is to work again, or ``base``.
        lock_wait: how long to wait for a lock, in seconds.
        timeout: how long all may take, in seconds; None for no limit.
        files: the revision files to check; none for all.
        contract_follows: whether a contract step comes later, so that renames are bridged until then.
    """

    command: str
    config: Path
    wait: float = 60.0
    revision: str | None = None
    lock_wait: float = 300.0
    timeout: float | None = None
    files: tuple[Path, ...] = ()
    contract_follows: bool = False


def check_request(request: Request, revisions: Sequence[Revision], expected: str | None) -> None:
    """Refuse what can't work with this image, whatever the database holds.

    Args:
        request: what to do.
        revisions: the image's, newest first.
        expected: the revision that was the newest when the deployment was made, if known.

    Raises:
        RunError: the image has another newest revision, or lacks the one that is asked for.
    """
    newest = head(revisions)
    if expected and expected != newest:
        raise wrong_use(
            "UnexpectedTarget",
            f"The deployment was made for revision {expected}, but the newest in this image is {newest}.",
            "Build the image and the template from the same revision files.",
        )
    symbols = {"downgrade": r"head|base|-[1-9]\d*", "stamp": "head|base", "reopen": "base"}.get(request.command, "head")
    asked = "head" if request.revision is None else request.revision
    if not re.fullmatch(symbols, asked) and asked not in {one.revision for one in revisions}:
        raise wrong_use(
            "UnknownRevision",
            f"This image has no revision {asked}; its newest is {newest}.",
            "Give a whole revision id; `python -m migration_runner history` lists them.",
        )


def check_known(revisions: Sequence[Revision], current: Collection[str]) -> None:
    """Refuse a schema that another image has brought further than this one can know.

    Raises:
        RunError: the schema is at a revision that is not among ``revisions``, or its version table contradicts itself.
    """
    for one in current if len(current) > 1 else ():
        # Of what another row comes after, Alembic keeps no row of its own.
        others = list(current)
        others.remove(one)
        if one in lineage([replace(known, depends_on=()) for known in revisions], others):
            raise RunError(
                f"The version table holds {' and '.join(sorted(map(str, current)))}, of which one comes after another.",
                exit_code=ExitCode.FAILED,
                kind="VersionTableInconsistent",
                hint="Somebody has written to it by hand: find out where the schema is, and delete the other rows.",
            )
    unknown = sorted(set(map(str, current)) - {one.revision for one in revisions})
    if unknown:
        raise RunError(
            f"The database is at {' and '.join(unknown)}, which this image (newest: {head(revisions)}) does not have.",
            exit_code=ExitCode.AHEAD,
            kind="DatabaseAhead",
            hint="Deploy an image that has this revision, or go back with that image: "
            f"python -m migration_runner downgrade {head(revisions)}",
        )


def destination(request: Request, revisions: Sequence[Revision], current: Collection[str]) -> str | None:
    """The revision to end at; None for an empty schema.

    Args:
        request: an upgrade, a contract, a downgrade or a stamp that ``check_request`` has let through.
        revisions: the image's, newest first.
        current: what the version table holds: revisions of this image.

    Raises:
        RunError: the target lies in the other direction, or can't be told; or contract revisions come before it.
    """
    match request.command:
        case "upgrade":
            return _upgrade(request, revisions, current)
        case "contract":
            return _last_in_line(pending_contract(revisions, current)) or min(current, default=None)
    if request.revision == "base":
        return None
    if request.revision and request.revision.startswith("-"):
        return _steps_back(int(request.revision[1:]), revisions, current)
    target = named(request, revisions)
    if request.command == "downgrade" and target not in lineage(revisions, current):
        at = shown(current)
        raise wrong_use("NotReached", f"The schema is at {at}, before {target}.", "To go there, use upgrade.")
    return target


def pending_contract(revisions: Sequence[Revision], current: Collection[str]) -> list[Revision]:
    """The contract revisions that can be applied as the schema is, oldest first: no other revision comes before them.

    Args:
        revisions: the image's, newest first.
        current: what the version table holds.
    """
    been, found = lineage(revisions, current), []
    for one in reversed(revisions):
        is_next = one.revision not in been and been.issuperset(one.down_revisions + one.depends_on)
        if is_next and one.phase == "contract":
            been.add(one.revision)
            found.append(one)
    return found


def _upgrade(request: Request, revisions: Sequence[Revision], current: Collection[str]) -> str:
    target = named(request, revisions)
    if not current:
        # No release uses it yet.
        return target
    been, at = lineage(revisions, current), shown(current)
    if request.revision in (None, "head"):
        target = expand_target(revisions, been)
    elif target in current:
        return target
    elif target in been:
        raise wrong_use("AlreadyBeyond", f"The schema is at {at}, beyond {target}.", "To go back, use downgrade.")
    way = lineage(revisions, [target]) - been
    pending = [one for one in reversed(revisions) if one.revision in way and one.phase == "contract"]
    if pending and pending[-1].revision == target:
        raise wrong_use(
            "ContractRevision",
            f"{target} is a contract revision, which an upgrade does not apply.",
            "Once no task of an older release is left, run: python -m migration_runner contract",
        )
    if pending:
        raise _contract_pending(pending, target, been)
    return target


def _contract_pending(pending: Sequence[Revision], target: str, been: Collection[str]) -> RunError:
    ids = [one.revision for one in pending]
    first = pending[0]
    before = [f"upgrade {one}" for one in (*first.down_revisions, *first.depends_on) if one not in been]
    by_hand = " and ".join(f"`python -m migration_runner {step}`" for step in (*before, "contract"))
    return wrong_use(
        "ContractPending",
        f"Before {target} come{'s' if len(ids) == 1 else ''} {' and '.join(ids)}, which only a contract step applies.",
        f"Deploy the release whose newest revision is {_last_in_line(pending)} first. By hand: {by_hand}, once no task "
        "of an older release is left.",
    )


def _last_in_line(contract: Sequence[Revision]) -> str | None:
    """Of contract revisions, oldest first, the last of those that come one directly after the other."""
    last = None
    for one in contract:
        if last in (None, *one.down_revisions):
            last = one.revision
    return last


def _steps_back(count: int, revisions: Sequence[Revision], current: Collection[str]) -> str | None:
    by_id = {one.revision: one for one in revisions}
    at = tuple(current)
    for taken in range(count + 1):
        if len(at) > 1:
            forks = " and ".join(at)
            raise wrong_use("AmbiguousTarget", f"The way back forks into {forks}.", "Name the revision to go back to.")
        if taken < count:
            if not at:
                raise wrong_use("NotReached", f"The schema can't go back {count} revisions: only {taken} are applied.")
            at = by_id[at[0]].down_revisions
    return at[0] if at else None


def named(request: Request, revisions: Sequence[Revision]) -> str:
    """The revision that a request names."""
    return head(revisions) if request.revision in (None, "head") else str(request.revision)


def is_at(target: str | None, current: Collection[str], revisions: Sequence[Revision]) -> bool:
    """Whether a schema that the version table says is at ``current`` is at the target; None for an empty one."""
    if target is None or target in current:
        return target is not None or not current
    # A revision that others depend on is not in the version table, though nothing that comes after it is applied.
    been = lineage(revisions, current)
    return target in been and not any(target in one.down_revisions for one in revisions if one.revision in been)
