"""One command from its first line to its result: what to do is decided here, and Alembic does it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from signal import SIGTERM

from migration_runner import inspection
from migration_runner.bridge import Bridges, damaged
from migration_runner.database import wait_for
from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.failures import failure
from migration_runner.guard import Guard
from migration_runner.indexes import mend_indexes
from migration_runner.ledger import Ledger
from migration_runner.manifest import StaleManifestError
from migration_runner.patience import Limits
from migration_runner.project import Project
from migration_runner.renames import Recorded
from migration_runner.report import BASE, Report, Result, shown
from migration_runner.revisions import (
    Revision,
    RevisionError,
    expand_target,
    fingerprint,
    head,
    lineage,
    read_manifest,
    read_revisions,
)
from migration_runner.service_role import ServiceRole
from migration_runner.settings import SettingsError, connection_parameters, contract_follows, service_login
from migration_runner.steps import Journey
from migration_runner.stop import Stop
from migration_runner.target import (
    Request,
    check_known,
    check_request,
    destination,
    is_at,
    named,
    pending_contract,
)

# What these tell of the files, they tell without a database too.
FILES_DO = ("plan", "history")
# What a contract that follows makes a difference to.
BRIDGING = ("upgrade", "plan", "check")
# A session that the server was told to cancel lets go of its locks within a moment.
LOCKS_GONE_SECONDS = 1.0


def run(request: Request, environment: Mapping[str, str], report: Report) -> ExitCode:
    """Carry out the request and report its result; nothing is raised.

    Args:
        request: what to do.
        environment: names the database, in MIGRATION_TARGET the revision that must be this image's newest, and in
            SERVICE_SECRET the role of the services, which an upgrade looks after; MIGRATION_CONTRACT_FOLLOWS in it is
            as good as the request's own word.
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
        self._service: tuple[str, str] | None = None
        self._guard: Guard | None = None
        self._project: Project | None = None
        self._recorded: Sequence[Recorded] | None = None

    def carry_out(self) -> None:
        """Do what is asked for; raises RunError when that can't be done."""
        started = time.monotonic()
        if self._request.command in BRIDGING and contract_follows(self._environment):
            self._request = replace(self._request, contract_follows=True)
        request, result, report = self._request, self._result, self._report
        self._read_revisions()
        check_request(request, self._revisions, self._environment.get("MIGRATION_TARGET"))
        newest = head(self._revisions)
        # Where a downgrade leads may depend on where the schema is.
        result.target = None if request.command == "downgrade" else named(request, self._revisions)
        database = self._environment.get("DATABASE_SECRET") or self._environment.get("DATABASE_URL")
        if request.command == "check" or (request.command in FILES_DO and not database):
            self._inspect_files()
            return
        self._parameters = connection_parameters(self._environment)
        report.hide(self._parameters.get("password") or self._environment.get("PGPASSWORD"))
        self._service = self._service_login()
        report.event(
            "migration.started", f"{request.command}: the image is at {newest}.", command=request.command, newest=newest
        )
        own = wait_for(self._parameters, request.wait, report)
        # It may also come from a file of libpq's.
        report.hide(own.info.password)
        with closing(own):
            self._guard = Guard(own, report)
            limits = Limits(request.lock_wait, None if request.timeout is None else started + request.timeout)
            self._project = Project(
                request.config,
                self._parameters,
                self._revisions,
                self._guard,
                report,
                self._stop,
                limits,
            )
            if request.command in ("status", *FILES_DO):
                self._inspect(self._project, self._guard)
            else:
                self._migrate(self._project, self._guard, limits)

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

    def _service_login(self) -> tuple[str, str] | None:
        """The login of the role that an upgrade looks after; None for the other commands."""
        needed = self._request.command == "upgrade"
        try:
            login = service_login(self._environment)
        except SettingsError:
            if needed:
                raise
            return None
        if login:
            # env.py may print it, whatever the command is.
            self._report.hide(login[1])
        return login if needed else None

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

    def _migrate(self, project: Project, guard: Guard, limits: Limits) -> None:
        request, result, revisions = self._request, self._result, self._revisions
        before: Collection[str] = ()
        incomplete = passes = False
        service = None
        if self._service:
            service = ServiceRole(*self._service, self._parameters, guard, project.run_long, limits, self._report)

        def plan(current: tuple[str, ...]) -> Journey:
            nonlocal before, incomplete, passes
            before = result.start = result.at = current
            ledger, self._recorded = Ledger(guard, project.environment.version_table), project.bridges.recorded()
            passes = request.command in ("upgrade", "contract") and self._may_pass(project.bridges, ledger, current)
            if passes:
                return Journey(None, None)
            self._check_known(project.bridges, ledger, current)
            if request.command in ("upgrade", "contract"):
                _refuse_damage(project.bridges, before_contract=request.command == "contract")
            if request.command != "stamp":
                self._refuse_behind(ledger, current)
            target = destination(request, revisions, current)
            result.target = target or BASE
            if service:
                service.prepare()
            incomplete = self._tell_differences(ledger, current)
            return self._journey(project.bridges, target, current)

        try:
            project.migrate(plan)
        except RunError as error:
            if result.start is not None:
                result.at, result.applied = None, project.finished
                # Unreachable now as well: then where the schema is stays unknown, and the first error is to be told.
                with suppress(RunError):
                    self._look_again(project, guard, before)
            moved = shown(result.at) != shown(result.start) or project.half_done or self._moved(guard)
            if error.exit_code is ExitCode.WRONG_USE and moved:
                # Such as a second version table in env.py: wrong use is for a run that has changed nothing.
                error.exit_code = ExitCode.FAILED
            raise
        after = self._look_again(project, guard, before)
        target = None if result.target == BASE else result.target
        if passes or request.command == "reopen":
            return
        if not is_at(target, after, revisions):
            raise RunError(
                f"Alembic reported no error, but the schema is not at {result.target}.",
                exit_code=ExitCode.FAILED,
                kind="TargetNotReached",
                hint="Look at env.py: it must run the migrations in a transaction that is committed.",
            )
        mend_indexes(guard, project.run_long, self._report)
        ledger = Ledger(guard, project.environment.version_table)
        if incomplete or request.command == "stamp":
            ledger.complete(revisions, lineage(revisions, after))
        if target == head(revisions):
            ledger.verified(self._fingerprint)
        if service:
            service.ensure(project.environment.version_table)

    def _journey(self, bridges: Bridges, target: str | None, current: Collection[str]) -> Journey:
        """What is to be done, now that it is known where the schema is."""
        request, revisions = self._request, self._revisions
        been, recorded = lineage(revisions, current), bridges.recorded()
        if request.command == "stamp" and (stays_open := [str(one.rename) for one in recorded if one.is_open]):
            self._report.event(
                "migration.stays_open",
                f"Both names go on working, which a stamp does not change: {', '.join(stays_open)}.",
                renames=stays_open,
            )
        if request.command == "reopen":
            later = been - lineage(revisions, [target] if target else [])
            reopened = {one.revision for one in recorded if one.is_closed} & later
            if not reopened:
                at = shown(current)
                told = f"Nothing to do: no rename after {target or BASE} was contracted."
                self._report.event("migration.nothing_to_do", told, at=at)
            return Journey(None, None, reopened=frozenset(reopened))
        stays = is_at(target, current, revisions)
        # One that an interrupted downgrade has taken away is made again before.
        is_left = {one.revision for one in recorded if not one.is_closed} & been
        contracted = is_left if request.command == "contract" else set()
        if stays and not contracted and not any(one.is_reverted for one in recorded):
            at = shown(current)
            self._report.event("migration.nothing_to_do", f"Nothing to do: the schema is at {at}.", at=at)
        left = [str(one.rename) for one in recorded if one.is_open and one.revision not in been]
        if request.command == "contract" and left:
            self._report.event(
                "migration.left_open",
                f"Left open is {', '.join(left)}, of a revision that is not applied.",
                renames=left,
                hint="Go on with: python -m migration_runner upgrade",
            )
        # A contract moves forward too; and a fresh database has no older release that needs older names.
        direction = "upgrade" if request.command == "contract" else request.command
        return Journey(
            # A downgrade to where the schema is takes back what an interrupted upgrade has begun.
            None if stays and direction != "downgrade" else direction,
            target,
            is_bridged=request.contract_follows and request.command == "upgrade" and bool(current),
            contracted=frozenset(contracted),
        )

    def _refuse_behind(self, ledger: Ledger, current: Collection[str]) -> None:
        """Refuse a version table that lacks an applied revision: to take its open renames back would lose names."""
        been = lineage(self._revisions, current)
        begun = {one.revision for one in self._recorded or () if one.is_open and one.revision not in been}
        # An interrupted upgrade has not recorded it as applied.
        applied = begun & set(ledger.applied_at()) if begun else set()
        if applied:
            newest = next((one.revision for one in self._revisions if one.revision in applied), max(applied))
            raise RunError(
                f"The version table is at {shown(current) or BASE}, but {' and '.join(sorted(applied))} was applied, "
                "whose renames are open.",
                exit_code=ExitCode.FAILED,
                kind="VersionTableBehind",
                hint="Somebody has written to it by hand. Record where the schema is, as a rule with: python -m "
                f"migration_runner stamp {newest}",
            )

    def _check_known(self, bridges: Bridges, ledger: Ledger, current: Collection[str]) -> None:
        """Refuse a newer schema; when only renames that were contracted make it newer, they can be opened again."""
        try:
            check_known(self._revisions, current)
        except RunError as error:
            newer = set(ledger.applied_at()) - {one.revision for one in self._revisions}
            if error.exit_code is ExitCode.AHEAD and newer and newer <= {one.revision for one in bridges.recorded()}:
                error.hint = (
                    "Only renames make it newer. Let a task of the newer image run: python -m migration_runner reopen "
                    f"{head(self._revisions)}. Then this release may pass."
                )
                if damage := bridges.damage():
                    error.hint = f"Only renames make it newer, but somebody has changed something by hand. {damage[0]}"
            raise

    def _may_pass(self, bridges: Bridges, ledger: Ledger, current: Collection[str]) -> bool:
        """Whether an older release can live with a newer schema: all that it does not know is renames, and all open."""
        own = {one.revision for one in self._revisions}
        if set(current) <= own:
            return False
        applied, recorded = set(ledger.applied_at()), bridges.recorded()
        newer = applied - own
        is_open = {one.revision for one in recorded} - {one.revision for one in recorded if not one.is_open}
        if not (set(current) - own <= newer <= is_open and expand_target(self._revisions) in applied):
            return False
        if bridges.damage():
            return False
        names = ", ".join(str(one.rename) for one in recorded if one.is_open)
        self._report.event(
            "migration.ahead_but_bridged",
            f"The database is at {shown(current)}, which this image does not have. Of what that brings, both names "
            f"still work ({names}), so this release may pass; its contract leaves them alone.",
            at=shown(current),
        )
        return True

    def _look_again(self, project: Project, guard: Guard, before: Collection[str]) -> Collection[str]:
        """Read from the database where the schema is now, and what has brought it there."""
        try:
            after, left = self._seen(guard, project)
        except RunError:
            with closing(wait_for(self._parameters, min(self._request.wait, 10), self._report)) as own:
                after, left = self._seen(Guard(own, self._report), project)
        self._result.at, self._result.open = after, left
        revisions = self._revisions
        old, new = lineage(revisions, before), lineage(revisions, after)
        gained, lost = new - old, old - new
        up = [one.revision for one in reversed(revisions) if one.revision in gained]
        down = [one.revision for one in revisions if one.revision in lost]
        self._result.applied = [] if self._request.command == "stamp" else up or down
        return after

    def _seen(self, guard: Guard, project: Project) -> tuple[Collection[str], list[str]]:
        after = _version(guard, project)
        return after, self._left_open(project.bridges_by(guard), after)

    def _left_open(self, bridges: Bridges, current: Collection[str]) -> list[str]:
        """What a contract run would have to do."""
        renames = [str(one.rename) for one in bridges.recorded() if one.is_open]
        pending = pending_contract(self._revisions, current) if current else []
        return [*renames, *(f"{one.revision} {one.message}" for one in pending)]

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

    def _inspect(self, project: Project, guard: Guard) -> None:
        current = project.look()
        self._result.start = self._result.at = current
        version_table, revisions = project.environment.version_table, self._revisions
        bridges = project.bridges
        self._result.open = self._left_open(bridges, current)
        check_known(revisions, current)
        renames = [str(one.rename) for one in bridges.recorded() if one.is_open]
        match self._request.command:
            case "status":
                inspection.status(guard, version_table, revisions, current, self._report, renames, bridges.damage())
            case "history":
                inspection.history(revisions, Ledger(guard, version_table), current, self._report)
            case _:
                inspection.plan(
                    self._request.config,
                    inspection.pending_of(revisions, current),
                    guard,
                    self._report,
                    renames,
                    # A fresh database gets no bridges.
                    contract_follows=self._request.contract_follows and bool(current),
                    # Running env.py once more takes time.
                    stop=self._stop_ahead(project) if renames or self._request.contract_follows else None,
                )

    def _stop_ahead(self, project: Project) -> RunError | None:
        """What an upgrade would stop for, before it has changed anything; None when it could begin."""
        upgrade = replace(self._request, command="upgrade")

        def plan(current: tuple[str, ...]) -> Journey:
            _refuse_damage(project.bridges, before_contract=False)
            target = destination(upgrade, self._revisions, current)
            stays = is_at(target, current, self._revisions)
            is_bridged = upgrade.contract_follows and bool(current)
            return Journey(None if stays else "upgrade", target, is_bridged=is_bridged)

        try:
            project.look_ahead(plan)
        except RunError as error:
            return error
        return None

    def _inspect_files(self) -> None:
        match self._request.command:
            case "history":
                inspection.history(self._revisions, None, None, self._report)
            case "check":
                inspection.check(
                    self._request.config,
                    self._request.files,
                    self._report,
                    contract_follows=self._request.contract_follows,
                )
            case _:
                inspection.plan(
                    self._request.config,
                    self._revisions[::-1],
                    None,
                    self._report,
                    contract_follows=self._request.contract_follows,
                )

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
                moved = self._moved(guard)
        except RunError:
            return "the database can't be asked what is left of it"
        if locks:
            return f"{locks} of its locks are still held"
        half = self._project.half_done
        undone = f"what {half} has committed itself stays, the rest" if half else "what was under way"
        stays = f"{', '.join(moved)}, which stays so; " if moved and not half else ""
        return f"{stays}{undone} was rolled back, and no lock is left"

    def _moved(self, guard: Guard) -> list[str]:
        """What has become of renames in this run, each in words; each table is a transaction of its own."""
        if self._recorded is None or self._project is None:
            return []
        if self._project.environment.role:
            guard.take_role(self._project.environment.role)
        states = [
            {(one.revision, one.position, one.rename): _state(one) for one in records}
            for records in (self._recorded, self._project.bridges_by(guard).recorded())
        ]
        before, after = states
        return [
            f"{key[2]} is {after.get(key, 'taken back')}"
            for key in {**before, **after}
            if before.get(key) != after.get(key)
        ]


def _state(one: Recorded) -> str:
    return "contracted" if one.is_closed else "taken back" if one.is_reverted else "open"


def _refuse_damage(bridges: Bridges, *, before_contract: bool) -> None:
    """Raise RunError for open renames that somebody has changed by hand, as far as a contract does not mend it."""
    found = bridges.damage(before_contract=before_contract)
    if found:
        error = damaged(" ".join(found))
        if not before_contract and not bridges.damage(before_contract=True):
            error.hint = (
                "Somebody has changed that by hand. Once no task of an older release is left, mend it with: python -m "
                "migration_runner contract"
            )
        raise error


def _version(guard: Guard, project: Project) -> tuple[str, ...]:
    """What the version table holds, read on the runner's own connection; nothing when there is none."""
    seen = project.environment
    if seen.role:
        guard.take_role(seen.role)
    name = ".".join(guard.quoted(part) for part in (seen.schema, seen.table) if part)
    if not guard.query("SELECT to_regclass(%s)", name)[0][0]:
        return ()
    return tuple(version for (version,) in guard.query(f"SELECT version_num FROM {name}"))  # noqa: S608 - quoted
