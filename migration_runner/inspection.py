"""The commands that change nothing: status, plan, history and check."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from migration_runner.bridge import damaged
from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.guard import Guard
from migration_runner.ledger import Ledger
from migration_runner.report import BASE, Report, shown
from migration_runner.revisions import Revision, RevisionError, expand_target, head, lineage


def status(
    guard: Guard,
    version_table: str,
    revisions: Sequence[Revision],
    current: Collection[str],
    report: Report,
    open_renames: Sequence[str] = (),
    damage: Sequence[str] = (),
) -> None:
    """Show where the schema is, what is left to do, who migrates it now, and which applied files were edited since.

    Args:
        guard: the runner's connection.
        version_table: its schema and name.
        revisions: the image's, newest first.
        current: what the version table holds.
        report: gets the table.
        open_renames: those whose older names still work.
        damage: where somebody has changed by hand what keeps them, in sentences.

    Raises:
        RunError: there is damage, or revisions are pending that an upgrade applies.
    """
    pending = _for_upgrade(revisions, current)
    left = [f"{one.revision} {one.message}" for one in pending_of(revisions, current) if one not in pending]
    left = [*open_renames, *left]
    found = Ledger(guard, version_table).differences(revisions, lineage(revisions, current))
    holder = guard.holder(version_table)
    edited = [one.path.name for one in found.edited]
    rows = [
        ("current", shown(current) or BASE),
        ("head", head(revisions)),
        ("pending", str(len(pending))),
        *((f"  {one.revision}", one.message) for one in pending),
        ("open", ", ".join(left) or "none"),
        *([("damaged", " ".join(damage))] if damage else []),
        ("lock", holder or "free"),
        ("edited", ", ".join(edited) or "none"),
    ]
    report.event(
        "migration.status",
        _table(rows),
        current=sorted(current),
        head=head(revisions),
        pending=[{"revision": one.revision, "message": one.message} for one in pending],
        open=left,
        damaged=list(damage),
        lock_holder=holder,
        edited=edited,
    )
    if damage:
        raise damaged(" ".join(damage))
    if pending:
        raise RunError(
            f"Revisions are pending: {', '.join(one.revision for one in pending)}.",
            exit_code=ExitCode.FAILED,
            kind="RevisionsPending",
            hint="Apply them with: python -m migration_runner upgrade",
        )


def history(
    revisions: Sequence[Revision], ledger: Ledger | None, current: Collection[str] | None, report: Report
) -> None:
    """List the revisions, newest first, with what the database knows of each.

    Args:
        revisions: the image's, newest first.
        ledger: says when each was applied; None without a database.
        current: what the version table holds; None without a database.
        report: gets a line for each.
    """
    applied = ledger.applied_at() if ledger else {}
    been = lineage(revisions, current or ())
    for one in revisions:
        parents = ", ".join(one.down_revisions) or BASE
        when = applied.get(one.revision)
        state = None if current is None else "applied" if one.revision in been else "pending"
        told = f"{state} {when:%Y-%m-%d %H:%M:%S %Z}" if state and when else state or ""
        marks = [*(["head"] if one is revisions[0] else []), *(["contract"] if one.phase == "contract" else [])]
        mark = f" ({', '.join(marks)})" if marks else ""
        report.event(
            "migration.revision_known",
            f"{parents} -> {one.revision}{mark}  {one.message}{f'  {told}' if told else ''}",
            revision=one.revision,
            parents=list(one.down_revisions),
            message=one.message,
            phase=one.phase,
            checksum=one.checksum,
            state=state,
            applied_at=when.isoformat() if when else None,
        )


def plan(
    config: Path,
    pending: Sequence[Revision],
    guard: Guard | None,
    report: Report,
    open_renames: Sequence[str] = (),
    *,
    contract_follows: bool = False,
    stop: RunError | None = None,
) -> None:
    """Show what each pending revision will do: its SQL, its locks, and what is unsafe about it.

    Args:
        config: the project's ``alembic.ini``.
        pending: in the order of the upgrade.
        guard: tells how large the tables are; None without a database.
        report: gets the plan.
        open_renames: those whose older names still work.
        contract_follows: whether the upgrade will bridge renames: not in an empty schema, which nobody uses.
        stop: what the upgrade would stop for; None when it could begin, or that was not looked for.

    Raises:
        RunError: ``env.py`` can't work offline.
    """
    from migration_runner import safety

    planned = safety.plan(config, pending, contract_follows=contract_follows)
    sizes = safety.sizes(guard.own, safety.tables(planned)) if guard else {}
    shown_open = "".join(f"{one} is open: both names work until a contract step.\n" for one in open_renames)
    shown_stop = f"An upgrade would stop: {stop.message} {stop.hint or ''}".rstrip() + "\n" if stop else ""
    report.event(
        "migration.plan",
        f"{shown_open}{shown_stop}{safety.render_plan(planned, sizes)}".rstrip(),
        revisions=safety.plan_as_json(planned, sizes),
        open=list(open_renames),
        note=planned.note,
        stop=stop.message if stop else None,
    )


def check(config: Path, files: Collection[Path], report: Report, *, contract_follows: bool = False) -> None:
    """Look for what is wrong or unsafe in the revision files; needs no database.

    Args:
        config: the project's ``alembic.ini``.
        files: those to look into; none for all. The chain is always that of all.
        report: gets the findings.
        contract_follows: whether renames keep their older names until a contract step.

    Raises:
        RunError: there is something; or one of ``files`` is no revision, squawk is not installed, or the chain is
            broken.
    """
    from migration_runner import safety

    try:
        found = safety.check(config, files, contract_follows=contract_follows)
    except RevisionError as error:
        raise wrong_use("RevisionError", str(error)) from None
    report.event("migration.findings", safety.render_check(found).rstrip(), findings=[*map(safety.as_json, found)])
    for one in found:
        report.annotate(safety.explanation(one), title=one.rule, file=one.file, line=one.line)
    if found:
        raise RunError(
            f"There is something to mend in {' and '.join(sorted({one.file.name for one in found}))}.",
            exit_code=ExitCode.FAILED,
            kind="UnsafeRevisions",
            hint="Write it the safe way, or mark it in the file with: # safe: RULE - why",
        )


def pending_of(revisions: Sequence[Revision], current: Collection[str]) -> list[Revision]:
    """What is still to be applied, in that order."""
    been = lineage(revisions, current)
    return [one for one in reversed(revisions) if one.revision not in been]


def _for_upgrade(revisions: Sequence[Revision], current: Collection[str]) -> list[Revision]:
    """What of that an upgrade applies: of a schema in use not the contract revisions at the end."""
    way = lineage(revisions, [expand_target(revisions)] if current else [head(revisions)])
    return [one for one in pending_of(revisions, current) if one.revision in way]


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)
