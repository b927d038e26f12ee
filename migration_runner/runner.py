"""One command from its first line to its result: what to do is decided here, and Alembic does it."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGTERM

import psycopg2

from migration_runner import inspection
from migration_runner.database import wait_for
from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.failures import failure
from migration_runner.guard import Guard
from migration_runner.ledger import Ledger
from migration_runner.manifest import StaleManifestError
from migration_runner.project import Journey, Limits, Project
from migration_runner.report import BASE, Report, Result, shown
from migration_runner.revisions import (
    Revision,
    RevisionError,
    fingerprint,
    head,
    lineage,
    read_manifest,
    read_revisions,
)
from migration_runner.settings import INVALID_INDEXES, connection_parameters
from migration_runner.stop import Stop

# What these tell of the files, they tell without a database too.
FILES_DO = ("plan", "history")
# A session that the server was told to cancel lets go of its locks within a moment.
LOCKS_GONE_SECONDS = 1.0
INVALID = f"SELECT i.indexrelid::regclass::text, c.relname ~ '_cc(new|old)[0-9]*$' {INVALID_INDEXES} ORDER BY 1"


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        command: upgrade, downgrade, stamp, status, plan, history or check.
        config: the project's ``alembic.ini``.
        wait: how long to wait for the database, in seconds.
        revision: the target: of an upgrade None for the newest, of a downgrade also ``base``, ``-1`` and so on.
        lock_wait: how long to wait for a lock, in seconds.
        timeout: how long all may take, in seconds; None for no limit.
    """

    command: str
    config: Path
    wait: float = 60.0
    revision: str | None = None
    lock_wait: float = 300.0
    timeout: float | None = None


def run(request: Request, environment: Mapping[str, str], report: Report) -> ExitCode:
    """Carry out the request and report its result; nothing is raised.

    Args:
        request: what to do.
        environment: names the database, and in MIGRATION_TARGET the revision that must be this image's newest.
        report: gets a line per event, and the result.
    """
    result, stop = Result(request.command), Stop()
    one = Run(request, environment, report, result, stop)
    with stop.listening():
        # The signal that stops the run is raised once, wherever that may be.
        try:
            try:
                one.carry_out()
            except RunError as error:
                result.error = error
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                result.error = failure(error)
            stop.finish()
        except KeyboardInterrupt:
            pass
        one.end()
        report.result(result)
    return result.exit_code


class Run:
    """One command on its way; the arguments are those of ``run``."""

    def __init__(
        self, request: Request, environment: Mapping[str, str], report: Report, result: Result, stop: Stop
    ) -> None:
        self._request = request
        self._environment = environment
        self._report = report
        self._result = result
        self._stop = stop
        self._revisions: Sequence[Revision] = ()
        self._fingerprint = ""
        self._parameters: dict[str, str] = {}
        self._guard: Guard | None = None
        self._project: Project | None = None

    def carry_out(self) -> None:
        """Do what is asked for; raises RunError when that can't be done."""
        request, result, report = self._request, self._result, self._report
        started = time.monotonic()
        self._read_revisions()
        check_request(request, self._revisions, self._environment.get("MIGRATION_TARGET"))
        newest = head(self._revisions)
        # Where a downgrade leads may depend on where the schema is.
        result.target = None if request.command == "downgrade" else _named(request, self._revisions)
        named = self._environment.get("DATABASE_SECRET") or self._environment.get("DATABASE_URL")
        if request.command == "check" or (request.command in FILES_DO and not named):
            self._inspect_files()
            return
        self._parameters = connection_parameters(self._environment)
        report.hide(self._parameters.get("password") or self._environment.get("PGPASSWORD"))
        report.event(
            "migration.started", f"{request.command}: the image is at {newest}.", command=request.command, newest=newest
        )
        own = wait_for(self._parameters, request.wait, report)
        # It may also come from a file of libpq's.
        report.hide(own.info.password)
        with closing(own):
            self._guard = Guard(own, report)
            deadline = None if request.timeout is None else started + request.timeout
            self._project = Project(
                request.config,
                self._parameters,
                self._revisions,
                self._guard,
                report,
                self._stop,
                Limits(request.lock_wait, deadline),
            )
            if request.command in ("status", *FILES_DO):
                self._inspect(self._project, self._guard)
            else:
                self._migrate(self._project, self._guard)

    def end(self) -> None:
        """Say that the run was told to stop, if it was before it had come to its end, and what of it is left."""
        told = self._stop.signal
        if told is None:
            return
        revision = self._result.error.revision if self._result.error else None
        self._result.error = RunError(
            f"The run was {'told to stop (SIGTERM)' if told == SIGTERM else 'interrupted'}; {self._left_behind()}.",
            exit_code=ExitCode.TOLD_TO_STOP if told == SIGTERM else ExitCode.INTERRUPTED,
            kind="ToldToStop" if told == SIGTERM else "Interrupted",
            revision=revision,
            hint="Run it again to go on.",
        )

    def _read_revisions(self) -> None:
        config = self._request.config
        try:
            try:
                # A status is about the files themselves.
                read = None if self._request.command == "status" else read_manifest(config)
            except StaleManifestError:
                read = None
                self._report.event(
                    "manifest.stale",
                    f"The manifest beside {config.name} was made from other revision files, and is not used.",
                    hint=f"Make it anew: python -m migration_runner.revisions {config.name}",
                )
            if read is None:
                revisions = read_revisions(config)
                read = revisions, fingerprint(revisions)
        except RevisionError as error:
            raise wrong_use("RevisionError", str(error)) from None
        self._revisions, self._fingerprint = read

    def _migrate(self, project: Project, guard: Guard) -> None:
        request, result, revisions = self._request, self._result, self._revisions
        before: Collection[str] = ()
        incomplete = False

        def plan(current: tuple[str, ...]) -> Journey | None:
            nonlocal before, incomplete
            before = result.start = result.at = current
            check_known(revisions, current)
            target = destination(request, revisions, current)
            result.target = target or BASE
            incomplete = self._tell_differences(Ledger(guard, project.environment.version_table), current)
            if _is_at(target, current, revisions):
                at = shown(current)
                self._report.event("migration.nothing_to_do", f"Nothing to do: the schema is at {at}.", at=at)
                return None
            return Journey(request.command, target)

        try:
            project.migrate(plan)
        except RunError:
            if result.start is not None:
                result.at, result.applied = None, project.finished
                # Unreachable now as well: then where the schema is stays unknown, and the first error is to be told.
                with suppress(RunError):
                    self._look_again(project, guard, before)
            raise
        after = self._look_again(project, guard, before)
        target = None if result.target == BASE else result.target
        if not _is_at(target, after, revisions):
            raise RunError(
                f"Alembic reported no error, but the schema is not at {result.target}.",
                exit_code=ExitCode.FAILED,
                kind="TargetNotReached",
                hint="Look at env.py: it must run the migrations in a transaction that is committed.",
            )
        self._mend_indexes(project, guard)
        ledger = Ledger(guard, project.environment.version_table)
        if incomplete or request.command == "stamp":
            ledger.complete(revisions, lineage(revisions, after))
        if target == head(revisions):
            ledger.verified(self._fingerprint)

    def _look_again(self, project: Project, guard: Guard, before: Collection[str]) -> Collection[str]:
        """Read from the database where the schema is now, and what has brought it there."""
        try:
            after = _version(guard, project)
        except RunError:
            with closing(wait_for(self._parameters, min(self._request.wait, 10), self._report)) as own:
                after = _version(Guard(own, self._report), project)
        self._result.at = after
        revisions = self._revisions
        old, new = lineage(revisions, before), lineage(revisions, after)
        gained, lost = new - old, old - new
        up = [one.revision for one in reversed(revisions) if one.revision in gained]
        down = [one.revision for one in revisions if one.revision in lost]
        self._result.applied = [] if self._request.command == "stamp" else up or down
        return after

    def _tell_differences(self, ledger: Ledger, current: Collection[str]) -> bool:
        """Say what something else has done to the schema; whether the ledger must be completed."""
        found = ledger.differences(self._revisions, lineage(self._revisions, current))
        if found.adopted and found.unrecorded:
            number = len(found.unrecorded)
            self._report.event(
                "migration.adopted",
                f"The schema was at {shown(current)} before this runner came: {number} revisions are taken as applied.",
                revisions=number,
            )
        elif found.unrecorded or found.gone:
            applied = [one.revision for one in found.unrecorded]
            self._report.event(
                "migration.foreign",
                f"Something else has migrated or stamped this database: applied {', '.join(applied) or 'nothing'}, "
                f"taken back {', '.join(found.gone) or 'nothing'}.",
                applied=applied,
                taken_back=list(found.gone),
            )
        for one in found.edited:
            self._report.event(
                "migration.edited",
                f"{one.path.name} was edited after it had been applied; the schema keeps what it did then.",
                revision=one.revision,
                file=one.path.name,
            )
        return bool(found.unrecorded or found.gone)

    def _mend_indexes(self, project: Project, guard: Guard) -> None:
        reasons = {}
        for name in (name for name, is_remnant in guard.query(INVALID) if not is_remnant):
            self._report.event(
                "migration.index_rebuilt",
                f"{name} was left INVALID, and is built anew.",
                index=name,
            )
            try:
                project.at_length(f"REINDEX INDEX CONCURRENTLY {name}")
            except psycopg2.Error as error:
                reasons[name] = failure(error)
        # What REINDEX leaves behind when it is interrupted, or fails.
        for name in (name for name, is_remnant in guard.query(INVALID) if is_remnant):
            project.at_length(f"DROP INDEX CONCURRENTLY {name}")
        left = [name for name, _ in guard.query(INVALID)]
        if left:
            named = [
                f"{name} ({reasons[name].kind}: {reasons[name].message})" if name in reasons else name for name in left
            ]
            raise RunError(
                f"The schema is at its target, but left INVALID is: {', '.join(named)}.",
                exit_code=ExitCode.FAILED,
                kind="InvalidIndex",
                hint="Mend what keeps it from being built, then run this again; or drop it.",
            )

    def _inspect(self, project: Project, guard: Guard) -> None:
        current = project.look()
        self._result.start = self._result.at = current
        version_table, revisions = project.environment.version_table, self._revisions
        check_known(revisions, current)
        match self._request.command:
            case "status":
                inspection.status(guard, version_table, revisions, current, self._report)
            case "history":
                inspection.history(revisions, Ledger(guard, version_table), current, self._report)
            case _:
                inspection.plan(self._request.config, inspection.pending_of(revisions, current), guard, self._report)

    def _inspect_files(self) -> None:
        match self._request.command:
            case "history":
                inspection.history(self._revisions, None, None, self._report)
            case "check":
                inspection.check(self._request.config, self._report)
            case _:
                inspection.plan(self._request.config, self._revisions[::-1], None, self._report)

    def _left_behind(self) -> str:
        """What is left of a run that was told to stop: looked up, for a promise would not do."""
        if not self._guard or not self._project or not self._project.environment.sessions:
            return "nothing was begun"
        sessions = [*self._project.environment.sessions, self._guard.pid]
        deadline = time.monotonic() + LOCKS_GONE_SECONDS
        try:
            with closing(wait_for(self._parameters, 0, self._report)) as own:
                guard = Guard(own, self._report)
                while guard.locks_of(sessions) and time.monotonic() < deadline:
                    time.sleep(0.02)
                locks = guard.locks_of(sessions)
        except RunError:
            return "the database can't be asked what is left of it"
        if locks:
            return f"{locks} of its locks are still held"
        half = self._project.half_done
        undone = f"what {half} has done in an autocommit block stays, the rest" if half else "what was under way"
        return f"{undone} was rolled back, and no lock is left"


def _version(guard: Guard, project: Project) -> tuple[str, ...]:
    """What the version table holds, read on the runner's own connection; nothing when there is none."""
    seen = project.environment
    if seen.role:
        guard.take_role(seen.role)
    name = ".".join(guard.quoted(part) for part in (seen.schema, seen.table) if part)
    if not guard.query("SELECT to_regclass(%s)", name)[0][0]:
        return ()
    return tuple(version for (version,) in guard.query(f"SELECT version_num FROM {name}"))  # noqa: S608 - quoted


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
    symbols = {"downgrade": r"head|base|-[1-9]\d*", "stamp": "head|base"}.get(request.command, "head")
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
        request: an upgrade or a downgrade that ``check_request`` has let through.
        revisions: the image's, newest first.
        current: what the version table holds.

    Raises:
        RunError: the target lies in the other direction, or can't be told.
    """
    if request.revision == "base":
        return None
    if request.revision and request.revision.startswith("-"):
        return _steps_back(int(request.revision[1:]), revisions, current)
    target = _named(request, revisions)
    been, at = lineage(revisions, current), shown(current) or "base"
    if request.command == "upgrade" and target in been and target not in current:
        raise wrong_use("AlreadyBeyond", f"The schema is at {at}, beyond {target}.", "To go back, use downgrade.")
    if request.command == "downgrade" and target not in been:
        raise wrong_use("NotReached", f"The schema is at {at}, before {target}.", "To go there, use upgrade.")
    return target


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


def _named(request: Request, revisions: Sequence[Revision]) -> str:
    return head(revisions) if request.revision in (None, "head") else str(request.revision)


def _is_at(target: str | None, current: Collection[str], revisions: Sequence[Revision]) -> bool:
    if target is None or target in current:
        return target is not None or not current
    # A revision that others depend on is not in the version table, though nothing that comes after it is applied.
    been = lineage(revisions, current)
    return target in been and not any(target in one.down_revisions for one in revisions if one.revision in been)
