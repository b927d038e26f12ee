"""A team's Alembic project, run to a target: what to do is decided here, and Alembic's own commands do it."""

from __future__ import annotations

import ast
import re
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import alembic
from alembic import command
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Engine, event
from sqlalchemy.engine import Dialect

from migration_runner.database import database_failure, database_url, password_of, wait_for
from migration_runner.report import ExitCode, Report, Result, RunError, milliseconds_since, shown
from migration_runner.revisions import Revision, RevisionError, head, lineage, read_revisions

Steps = Callable[[tuple[str, ...], MigrationContext], Iterable[RevisionStep]]


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        command: upgrade, downgrade or status.
        config: the project's ``alembic.ini``.
        wait: how long to wait for the database, in seconds.
        revision: the target of upgrade (None: the newest) and downgrade (a revision, ``base``, or ``-1`` and so on).
    """

    command: str
    config: Path
    wait: float
    revision: str | None = None


def run(request: Request, environment: Mapping[str, str], report: Report) -> ExitCode:
    """Carry out the request and report its result; nothing is raised.

    Args:
        request: what to do.
        environment: names the database, and in MIGRATION_TARGET the revision that must be this image's newest.
        report: gets a line per event, and the result.
    """
    result = Result(request.command)
    try:
        _run(request, environment, report, result)
    except RunError as error:
        result.error = error
    except (Exception, KeyboardInterrupt) as error:
        result.error = failure(error)
    report.result(result)
    return result.exit_code


def _run(request: Request, environment: Mapping[str, str], report: Report, result: Result) -> None:
    try:
        revisions = read_revisions(request.config)
    except RevisionError as error:
        raise _wrong_use("RevisionError", str(error)) from None
    check_request(request, revisions, environment.get("MIGRATION_TARGET"))
    newest = head(revisions)
    # Where a downgrade leads may depend on where the schema is.
    result.target = None if request.command == "downgrade" else _named(request, revisions)
    url = database_url(environment)
    report.hide(password_of(url, environment))
    report.event(
        "migration.started", f"{request.command}: the image is at {newest}.", command=request.command, newest=newest
    )
    wait_for(url, request.wait, report)
    project = Project(request.config, url, revisions, report)
    before = project.current()
    result.start = result.at = before
    check_known(revisions, before)
    if request.command == "status":
        _report_pending(revisions, before, report)
        return
    result.target = destination(request, revisions, before)
    if _is_at(result.target, before):
        at = shown(before)
        report.event("migration.nothing_to_do", f"Nothing to do: the schema is at {at or 'base'}.", at=at)
        return
    try:
        project.migrate(request.command, result.target)
    except RunError:
        result.at, result.applied = None, project.finished
        # Unreachable now as well: then where the schema is stays unknown, and the first error is the one to tell.
        with suppress(RunError):
            _look_again(project, revisions, before, result)
        raise
    after = _look_again(project, revisions, before, result)
    if not _is_at(result.target, after):
        raise RunError(
            f"Alembic reported no error, but the schema is not at {result.target or 'base'}.",
            exit_code=ExitCode.FAILED,
            kind="TargetNotReached",
            hint="Look at env.py: it must run the migrations in a transaction that is committed.",
        )


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
        raise _wrong_use(
            "UnexpectedTarget",
            f"The deployment was made for revision {expected}, but the newest in this image is {newest}.",
            "Build the image and the template from the same revision files.",
        )
    symbols = r"head|base|-[1-9]\d*" if request.command == "downgrade" else "head"
    asked = "head" if request.revision is None else request.revision
    if not re.fullmatch(symbols, asked) and asked not in {one.revision for one in revisions}:
        raise _wrong_use(
            "UnknownRevision",
            f"This image has no revision {asked}; its newest is {newest}.",
            "Give a whole revision id; `alembic history` lists them.",
        )


def check_known(revisions: Sequence[Revision], current: Collection[str]) -> None:
    """Refuse a schema that another image has brought further than this one can know.

    Raises:
        RunError: the schema is at a revision that is not among ``revisions``.
    """
    unknown = sorted(set(current) - {one.revision for one in revisions})
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
        raise _wrong_use("AlreadyBeyond", f"The schema is at {at}, beyond {target}.", "To go back, use downgrade.")
    if request.command == "downgrade" and target not in been:
        raise _wrong_use("NotReached", f"The schema is at {at}, before {target}.", "To go there, use upgrade.")
    return target


def failure(error: BaseException, revision: str | None = None, files: Iterable[str] = ("env.py",)) -> RunError:
    """What may be told about an exception.

    The text of an exception may hold anything, a URL too. So it is shown only where it can't: it stands word for word
    in the file that raised it, or it is Alembic's own. Otherwise the file and the line must do.

    Args:
        error: what was raised.
        revision: the revision that was running.
        files: the names of the team's files, of which the innermost in the traceback is told.
    """
    from_database = database_failure(error, revision)
    if from_database:
        return from_database
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return RunError(
            "The run was interrupted.",
            exit_code=ExitCode.INTERRUPTED,
            kind="Interrupted",
            revision=revision,
            hint="Run it again to go on.",
        )
    # Between an import and what it imports stands Python's own machinery, which says nothing.
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not re.search(r"<frozen importlib|\bimportlib/__init__\.py$", frame.filename)
    ]
    frame = next((frame for frame in reversed(frames) if Path(frame.filename).name in files), frames[-1])
    message = f"{kind} was raised in {Path(frame.filename).name}, line {frame.lineno}."
    match error:
        case SyntaxError(filename=str(file), lineno=int(line)) if file.endswith(".py"):
            message = f"{Path(file).name}, line {line} is not valid Python."
        case ModuleNotFoundError(name=str(module)):
            importer = Path(frames[-1].filename).name
            message = f"{importer}, line {frames[-1].lineno} imports {module}, but there is no such module."
    alembics = isinstance(error, CommandError) and Path(frames[-1].filename).is_relative_to(
        Path(alembic.__file__).parent
    )
    if alembics or _stands_in(frame.filename, str(error)):
        message = str(error)
    return RunError(message, exit_code=ExitCode.FAILED, kind=kind, revision=revision)


class Project:
    """An Alembic project and the database that it migrates.

    Its ``env.py`` runs as the team wrote it. What is added comes from outside: the URL in the configuration's memory,
    the session's name through SQLAlchemy's events, and one transaction per migration through ``configure``.

    Args:
        config: the project's ``alembic.ini``.
        url: the database.
        revisions: the project's, newest first.
        report: gets a line per migration.
    """

    def __init__(self, config: Path, url: URL, revisions: Sequence[Revision], report: Report) -> None:
        self._config = Config(str(config))
        # Alembic's configuration takes a percent sign for the begin of an interpolation.
        self._config.set_main_option("sqlalchemy.url", url.render_as_string(hide_password=False).replace("%", "%%"))
        self._messages = {one.revision: one.message for one in revisions}
        self._files = {"env.py", *(one.path.name for one in revisions)}
        self._report = report
        self._running: str | None = None
        self.finished: list[str] = []

    def current(self) -> tuple[str, ...]:
        """What the version table holds now, read with a new connection; nothing for an empty schema.

        Raises:
            RunError: it can't be read.
        """
        seen: list[tuple[str, ...]] = []

        def look(heads: tuple[str, ...], _: MigrationContext) -> list[RevisionStep]:
            seen.append(heads)
            return []

        with self._environment():
            script = ScriptDirectory.from_config(self._config)
            with EnvironmentContext(self._config, script, fn=look, dont_mutate=True):
                script.run_env()
        if not seen:
            raise RunError(
                "env.py did not call context.run_migrations().", exit_code=ExitCode.FAILED, kind="NothingWasRun"
            )
        return seen[-1]

    def migrate(self, direction: str, target: str | None) -> None:
        """Run the migrations up or down to the target, each in a transaction of its own.

        Args:
            direction: ``upgrade`` or ``downgrade``.
            target: a revision; None to take everything back.

        Raises:
            RunError: a migration failed, or the session was lost.
        """
        with self._environment(), _configured(self._watched):
            move = {"upgrade": command.upgrade, "downgrade": command.downgrade}[direction]
            move(self._config, target or "base")

    @contextmanager
    def _environment(self) -> Iterator[None]:
        """Where the team's code runs: what it raises becomes a RunError."""
        event.listen(Engine, "do_connect", _name_session)
        try:
            yield
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise failure(error, self._running, self._files) from None
        finally:
            event.remove(Engine, "do_connect", _name_session)

    def _watched(self, steps: Steps) -> Steps:
        """The same steps; Alembic comes back for the next one after it has committed the last."""

        def watched(heads: tuple[str, ...], context: MigrationContext) -> Iterator[RevisionStep]:
            # Told with each revision, for who is killed has no last word.
            start = {"from": shown(heads)}
            for step in steps(heads, context):
                revision = self._running = str(step.info.up_revision_id)
                title = f"{revision} {self._messages[revision]}"
                self._report.event("migration.revision_started", f"{title} ...", revision=revision, **start)
                started = time.monotonic()
                yield step
                took = milliseconds_since(started)
                self._report.event(
                    "migration.revision", f"{title}: done in {took} ms", revision=revision, duration_ms=took
                )
                self.finished.append(revision)
                self._running = None

        return watched


@contextmanager
def _configured(watched: Callable[[Steps], Steps]) -> Iterator[None]:
    """Every env.py configures Alembic with one transaction per migration, and steps that are watched."""
    original = EnvironmentContext.configure

    def configure(self: EnvironmentContext, *args: Any, **options: Any) -> None:
        options["transaction_per_migration"] = True
        original(self, *args, **options, fn=watched(self.context_opts["fn"]))

    EnvironmentContext.configure = configure  # type: ignore[method-assign]
    try:
        yield
    finally:
        EnvironmentContext.configure = original  # type: ignore[method-assign]


def _name_session(_: Dialect, __: object, ___: object, parameters: dict[str, Any]) -> None:
    parameters.setdefault("application_name", "migration_runner")


def _look_again(
    project: Project, revisions: Sequence[Revision], before: Collection[str], result: Result
) -> Collection[str]:
    """Read from the database where the schema is now, and what has brought it there."""
    after = project.current()
    result.at = after
    old, new = lineage(revisions, before), lineage(revisions, after)
    up = [one.revision for one in reversed(revisions) if one.revision in new - old]
    down = [one.revision for one in revisions if one.revision in old - new]
    result.applied = up or down
    return after


def _report_pending(revisions: Sequence[Revision], current: Collection[str], report: Report) -> None:
    been = lineage(revisions, current)
    pending = [one for one in reversed(revisions) if one.revision not in been]
    for one in pending:
        report.event(
            "migration.pending", f"{one.revision} {one.message}: pending", revision=one.revision, message=one.message
        )
    if pending:
        raise RunError(
            f"Revisions are pending: {', '.join(one.revision for one in pending)}.",
            exit_code=ExitCode.FAILED,
            kind="RevisionsPending",
            hint="Apply them with: python -m migration_runner upgrade",
        )


def _steps_back(count: int, revisions: Sequence[Revision], current: Collection[str]) -> str | None:
    by_id = {one.revision: one for one in revisions}
    at = tuple(current)
    for taken in range(count + 1):
        if len(at) > 1:
            forks = " and ".join(at)
            raise _wrong_use("AmbiguousTarget", f"The way back forks into {forks}.", "Name the revision to go back to.")
        if taken < count:
            if not at:
                raise _wrong_use("NotReached", f"The schema can't go back {count} revisions: only {taken} are applied.")
            at = by_id[at[0]].down_revisions
    return at[0] if at else None


def _named(request: Request, revisions: Sequence[Revision]) -> str:
    return head(revisions) if request.revision in (None, "head") else str(request.revision)


def _stands_in(file: str, text: str) -> bool:
    try:
        constants = ast.walk(ast.parse(Path(file).read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return text != "" and any(isinstance(node, ast.Constant) and node.value == text for node in constants)


def _is_at(target: str | None, current: Collection[str]) -> bool:
    return target in current if target else not current


def _wrong_use(kind: str, message: str, hint: str | None = None) -> RunError:
    return RunError(message, exit_code=ExitCode.WRONG_USE, kind=kind, hint=hint)
