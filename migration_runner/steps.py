"""Alembic's steps from one place in the history to another; only the files that are to be run are imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from alembic.runtime.migration import MigrationStep, RevisionStep, StampStep
from alembic.script import Script
from alembic.script.revision import RevisionMap
from alembic.util import load_python_file

from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.revisions import Revision


@dataclass(frozen=True)
class Journey:
    """Which way to go, and where to.

    Args:
        direction: ``upgrade``, ``downgrade`` or ``stamp``; None to stay.
        target: a revision; None for an empty schema.
        is_bridged: whether renames keep the older names until a contract.
        contracted: the revisions whose older names are taken away first.
        reopened: the revisions whose older names work again.
    """

    direction: str | None
    target: str | None
    is_bridged: bool = False
    contracted: frozenset[str] = frozenset()
    reopened: frozenset[str] = frozenset()


def steps_of(
    journey: Journey, heads: tuple[str, ...], revisions: Mapping[str, Revision], script: Any
) -> list[MigrationStep]:
    """Alembic's steps from where the schema is; all that is to be run is imported before the first of it is.

    Args:
        journey: where to.
        heads: what the version table holds.
        revisions: the image's, by id.
        script: Alembic's ScriptDirectory of them.
    """
    if journey.direction is None:
        return []
    target = journey.target or "base"
    if journey.direction == "stamp":
        stamps: list[StampStep] = script._stamp_revs(target, heads)
        return list(stamps)
    line = _line(journey, heads, revisions)
    if line is None:
        move = {"upgrade": script._upgrade_revs, "downgrade": script._downgrade_revs}[journey.direction]
        steps: list[RevisionStep] = move(target, heads[0] if len(heads) == 1 else heads)
        return list(steps)
    if not line:
        return []
    upward = journey.direction == "upgrade"
    # Alembic needs to know of no others.
    ends = [one for one in (heads[0] if heads else None, journey.target) if one]
    outside = [revisions[one] for one in ends if revisions[one] not in line]
    known = [script_of(replace(one, down_revisions=(), depends_on=())) for one in outside]
    scripts = [script_of(one) for one in line]
    chain = RevisionMap(lambda: [*known, *scripts])
    chain._revision_map  # noqa: B018 - it resolves the scripts' parents
    return [RevisionStep(chain, one, upward) for one in scripts]


def _line(journey: Journey, heads: tuple[str, ...], revisions: Mapping[str, Revision]) -> list[Revision] | None:
    """The revisions to run, in order, when each has the one before it as its only parent; None otherwise."""
    if len(heads) > 1:
        return None
    old, new = (heads[0] if heads else None), journey.target
    top, bottom = (new, old) if journey.direction == "upgrade" else (old, new)
    line: list[Revision] = []
    at = top
    while at != bottom:
        one = revisions.get(at or "")
        if one is None or len(one.down_revisions) > 1 or one.depends_on:
            return None
        line.append(one)
        at = one.down_revisions[0] if one.down_revisions else None
    return line[::-1] if journey.direction == "upgrade" else line


def script_of(revision: Revision) -> Script:
    """A revision as Alembic knows it."""
    return Script(_Lazily(revision), revision.revision, revision.file)  # type: ignore[arg-type]


class _Lazily:
    """A revision file as Alembic sees it, imported only when its functions are asked for."""

    def __init__(self, revision: Revision) -> None:
        parents = revision.down_revisions
        self.revision = revision.revision
        self.down_revision = parents[0] if len(parents) == 1 else parents or None
        self.branch_labels = revision.branch_labels or None
        self.depends_on = revision.depends_on or None
        self.__doc__ = revision.message
        self._read = revision

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        module = self.__dict__.get("_module")
        if module is None:
            path = self._read.path
            if sha256(path.read_bytes()).hexdigest() != self._read.checksum:
                raise wrong_use(
                    "RevisionChanged",
                    f"{path.name} was changed after the manifest beside alembic.ini had been made.",
                    "Make it when nothing is changed any more: python -m migration_runner.revisions alembic.ini",
                )
            module = self._module = load_python_file(str(path.parent), path.name)
        if not hasattr(module, name):
            raise RunError(
                f"{self._read.path.name} has no {name}().",
                exit_code=ExitCode.FAILED,
                kind="NoSuchDirection",
                revision=self.revision,
            )
        return getattr(module, name)
