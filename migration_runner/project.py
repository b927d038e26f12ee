"""A team's Alembic project and the database that it migrates.

Its ``env.py`` runs as the team wrote it. What is added comes from outside: the URL in the configuration's memory, the
settings of each session through SQLAlchemy's events, and through Alembic's own methods one transaction per migration,
the lock, the steps, and the ledger.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import HeadMaintainer, MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionMap
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from migration_runner.bridge import Bridges
from migration_runner.crossing import Crossing
from migration_runner.database import DRIVER, LOCK_NOT_AVAILABLE, be_noticed_when_lost, sqlalchemy_url
from migration_runner.errors import ExitCode, RunError, wrong_use
from migration_runner.failures import failure
from migration_runner.guard import DATABASE, Guard
from migration_runner.indexes import CONCURRENTLY, resumed
from migration_runner.ledger import ADD, ADD_IF_MOVED, BUILT, EXISTS, MAKE, REMOVE
from migration_runner.manifest import configuration_files
from migration_runner.patience import Limits, Sampler, locked_out
from migration_runner.report import Report, milliseconds_since, shown
from migration_runner.revisions import Revision, script_location
from migration_runner.settings import NAME
from migration_runner.steps import Journey, script_of, steps_of
from migration_runner.stop import Stop

# SQLAlchemy needs another driver for an env.py that is asynchronous.
ASYNC_DRIVER = "postgresql+psycopg"
LOCK_TIMEOUT = "100ms"
DEADLOCK = "40P01"
# Between two transactions, as libpq puts it.
IDLE = 0
LONGEST_PAUSE = 5.0
CONNECT_SECONDS = 10
SESSION = """
SELECT set_config('lock_timeout', %s, false), set_config('idle_in_transaction_session_timeout', '5min', false),
       pg_backend_pid()
"""
SESSION_OF_ENV_PY = f"SELECT current_schema(), current_user::text, current_setting('search_path'), {DATABASE}"
VERSION_UPDATES = ("_insert_version", "_update_version", "_delete_version")
MOVE = f"WITH moved AS (UPDATE {{table}} SET version_num = %s WHERE version_num = %s RETURNING 1) {ADD_IF_MOVED}"  # noqa: S608 - constants

Plan = Callable[[tuple[str, ...]], Journey]


@dataclass
class Step:
    """The migration that runs now."""

    revision: Revision
    direction: str
    statements: int = 0
    began: float = 0.0
    committed: bool = False
    inside: bool = False
    record: tuple[str, tuple[str, ...]] | None = None


@dataclass
class Environment:
    """What a run of ``env.py`` has told.

    Args:
        schema: of the version table.
        table: its name.
        role: whose rights env.py's session has.
        before: what it held.
        sessions: the server's process ids of the connections that were opened.
    """

    schema: str | None = None
    table: str | None = None
    role: str | None = None
    before: tuple[str, ...] | None = None
    sessions: list[int] = field(default_factory=list)

    @property
    def version_table(self) -> str:
        """Schema and name, as the ledger and the lock know it."""
        return f"{self.schema}.{self.table}"


class Project:
    """An Alembic project and the database that it migrates.

    Args:
        config: the project's ``alembic.ini``.
        parameters: the database, as libpq knows it.
        revisions: the project's, newest first.
        guard: the runner's own connection.
        report: gets a line per migration.
        stop: learns what to cancel.
        limits: how long to wait for locks.
    """

    def __init__(
        self,
        config: Path,
        parameters: Mapping[str, str],
        revisions: Sequence[Revision],
        guard: Guard,
        report: Report,
        stop: Stop,
        limits: Limits,
    ) -> None:
        self._parameters = parameters
        ini, toml = configuration_files(str(config))
        self._config = Config(ini, toml_file=toml)
        env = script_location(config) / "env.py"
        driver = ASYNC_DRIVER if env.exists() and b"async_engine" in env.read_bytes() else DRIVER
        url = sqlalchemy_url(parameters, driver).render_as_string(hide_password=False)
        # Alembic's configuration takes a percent sign for the begin of an interpolation.
        self._config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
        self._revisions = {one.revision: one for one in revisions}
        self._files = {"env.py", *(os.path.basename(one.file) for one in revisions)}  # noqa: PTH119 - of thousands
        self._guard = guard
        self._report = report
        self._stop = stop
        self._limits = limits
        self._step: Step | None = None
        self._locking = False
        self._crossing: Crossing | None = None
        self.environment = Environment()
        self.half_done: str | None = None
        self.finished: list[str] = []

    @property
    def bridges(self) -> Bridges:
        """The renames that keep their older names; once it is known which version table this is about."""
        return self.bridges_by(self._guard)

    def bridges_by(self, guard: Guard) -> Bridges:
        """The same, seen from another connection."""
        table = self.environment.version_table
        return Bridges(guard, self._parameters, table, self._limits, self._report, self._stop)

    def look(self) -> tuple[str, ...]:
        """What the version table holds now, and which it is; nothing is changed, and no lock is waited for.

        Raises:
            RunError: it can't be read.
        """
        self._run(lambda _, __: [], locking=False, dont_mutate=True)
        return self.environment.before or ()

    def look_ahead(self, plan: Plan) -> None:
        """Find out whether migrations could begin; nothing is changed, and no lock is waited for.

        Args:
            plan: decides where to, when it is known what the version table holds.

        Raises:
            RunError: what stands against them.
        """

        def steps(heads: tuple[str, ...], context: MigrationContext) -> Iterable[MigrationStep]:
            journey = plan(heads)
            planned = steps_of(journey, heads, self._revisions, context.script)
            crossing = Crossing(self.bridges, self._revisions, journey, heads)
            crossing.look_ahead(planned, is_external=context._in_external_transaction)
            return []

        self._run(steps, locking=False, dont_mutate=True)

    def migrate(self, plan: Plan) -> None:
        """Be the only one who migrates, and run the migrations, each in a transaction of its own.

        Args:
            plan: decides where to, when it is known what the version table holds.

        Raises:
            RunError: a migration failed, the session was lost, or a lock was not free in time.
        """

        def steps(heads: tuple[str, ...], context: MigrationContext) -> Iterable[MigrationStep]:
            journey = plan(heads)
            planned = steps_of(journey, heads, self._revisions, context.script)
            crossing = self._crossing = Crossing(self.bridges, self._revisions, journey, heads)
            crossing.look_ahead(planned, is_external=context._in_external_transaction)
            self._prepare(context)
            crossing.begin()
            for step in planned:
                self._guard.check()
                if isinstance(step, RevisionStep):
                    with crossing.led(step.revision.revision):
                        yield from self._watched(step, context, heads, crossing.way_of(step))
                else:
                    yield step

        self._run(steps, locking=True)

    def run_long(self, statement: str) -> None:
        """Run what may take long on the runner's own connection; a signal, the deadline and the process end it."""
        guard = self._guard
        if self._limits.deadline is not None:
            guard.query(f"SET statement_timeout = '{max(1, int(self._limits.left * 1000))}ms'")
        self._stop.sessions.append(guard.own)
        try:
            guard.query(statement)
        finally:
            self._stop.sessions.remove(guard.own)

    def _run(self, steps: Callable[..., Iterable[Any]], *, locking: bool, **options: Any) -> None:
        self._locking = locking
        self.environment = Environment()
        script = ScriptDirectory.from_config(self._config)
        everything = reversed(self._revisions.values())
        script.revision_map = RevisionMap(lambda: map(script_of, everything))

        def begin(heads: tuple[str, ...], context: MigrationContext) -> Iterable[Any]:
            self.environment.before = heads
            return steps(heads, context)

        with self._team_code(), EnvironmentContext(self._config, script, fn=begin, **options):
            script.run_env()
        if self.environment.before is None:
            raise RunError(
                "env.py did not call context.run_migrations().", exit_code=ExitCode.FAILED, kind="NothingWasRun"
            )

    @contextmanager
    def _team_code(self) -> Iterator[None]:
        """Where the team's code runs: what it raises becomes a RunError."""
        listeners: list[tuple[str, Callable[..., Any]]] = [
            ("do_connect", _name_session),
            ("connect", self._connected),
            ("before_cursor_execute", self._before_statement),
            ("after_cursor_execute", self._after_statement),
        ]
        configure, block = EnvironmentContext.configure, MigrationContext.autocommit_block
        migrations = MigrationContext.run_migrations
        updates = {name: getattr(HeadMaintainer, name) for name in VERSION_UPDATES}
        EnvironmentContext.configure = self._configuring(configure)  # type: ignore[method-assign]
        MigrationContext.autocommit_block = self._blocking(block)  # type: ignore[method-assign]
        MigrationContext.run_migrations = self._locked(migrations)  # type: ignore[method-assign]
        for name, original in updates.items():
            setattr(HeadMaintainer, name, self._recording(original))
        for name, listener in listeners:
            event.listen(Engine, name, listener, retval=name.startswith("before"))
        try:
            yield
        except BaseException as error:
            revision = self._step.revision.revision if self._step else None
            raise failure(error, revision, self._files) from None
        finally:
            for name, listener in listeners:
                event.remove(Engine, name, listener)
            for name, original in updates.items():
                setattr(HeadMaintainer, name, original)
            EnvironmentContext.configure = configure  # type: ignore[method-assign]
            MigrationContext.autocommit_block = block  # type: ignore[method-assign]
            MigrationContext.run_migrations = migrations  # type: ignore[method-assign]

    def _configuring(self, original: Callable[..., None]) -> Callable[..., None]:
        """Every env.py configures Alembic with one transaction per migration."""

        def configure(environment: EnvironmentContext, *args: Any, **options: Any) -> None:
            if options.get("upgrade_token", "upgrades") != "upgrades":
                raise wrong_use(
                    "SeveralDatabases",
                    "env.py migrates several databases (Alembic's multidb template); the runner migrates one.",
                    "Give each database its own alembic.ini, and run each with its own task.",
                )
            options["transaction_per_migration"] = True
            original(environment, *args, **options)

        return configure

    def _locked(self, original: Callable[..., None]) -> Callable[..., None]:
        """Alembic looks where the schema is when nobody else can change it, and env.py has set all that it sets."""

        def run_migrations(context: MigrationContext, **arguments: Any) -> None:
            connection = _connection(context)
            if connection._trans_context_manager:
                # Begun after Alembic was configured, env.py's own transaction is as external as one begun before.
                context._in_external_transaction = True
            self._see(context, connection)
            if not context._in_external_transaction:
                # What env.py has set must survive a rollback; and nobody waits for the lock within a transaction.
                connection.commit()
            if self._locking:
                self._guard.lock(self.environment.version_table, self._limits.patience)
            original(context, **arguments)

        return run_migrations

    def _see(self, context: MigrationContext, connection: Connection) -> None:
        """Find out where the version table is, and let the runner's own connection see it as env.py's does."""
        default, role, search_path, *database = connection.exec_driver_sql(SESSION_OF_ENV_PY).one()
        schema = context.version_table_schema or default
        seen = self.environment
        if seen.table and (seen.schema, seen.table) != (schema, context.version_table):
            raise wrong_use(
                "SeveralVersionTables",
                f"env.py migrates {seen.version_table} and then {schema}.{context.version_table}; the runner migrates "
                "one of them in a run.",
                "Run env.py once for each.",
            )
        if self._guard.take_role(role, search_path) != tuple(database):
            raise wrong_use(
                "AnotherDatabase",
                "env.py connects to another database than the one that DATABASE_SECRET or DATABASE_URL names.",
                "Let env.py take the URL from config.get_main_option('sqlalchemy.url'), or name its database.",
            )
        seen.schema, seen.table, seen.role = schema, context.version_table, role

    def _prepare(self, context: MigrationContext) -> None:
        """Make the ledger, with the role that the migrations are run by."""
        connection = _connection(context)
        if not connection.exec_driver_sql(EXISTS).scalar():
            try:
                connection.exec_driver_sql(MAKE)
            except DBAPIError as error:
                told = failure(error)
                if told.sqlstate != "42501":
                    raise
                raise RunError(
                    "The role that migrates may not make the schema migration_runner, where the runner keeps which "
                    "revision files were applied.",
                    exit_code=ExitCode.FAILED,
                    kind=told.kind,
                    sqlstate=told.sqlstate,
                    hint="Let an administrator run GRANT CREATE ON DATABASE ... TO the role, or make the schema for it "
                    "with CREATE SCHEMA migration_runner AUTHORIZATION the role.",
                ) from None
        # From here on in nobody's way. Committed, for what is set in a transaction goes with it.
        connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
        if not context._in_external_transaction:
            connection.commit()

    def _watched(
        self,
        step: RevisionStep,
        context: MigrationContext,
        start: Collection[str],
        way: Callable[[], None] | None,
    ) -> Iterator[RevisionStep]:
        """The same step, told about; Alembic comes back after it has committed it.

        Args:
            step: of Alembic's.
            context: Alembic's.
            start: where the schema was before the first of them.
            way: what is done instead of the revision's own function, outside of Alembic's transaction; None for that.
        """
        revision = self._revisions[step.revision.revision]
        self._step = Step(revision, "upgrade" if step.is_upgrade else "downgrade")
        title = f"{revision.revision} {revision.message}"
        # Told with each revision, for who is killed has no last word.
        self._report.progress(
            "migration.revision_started", f"{title} ...", revision=revision.revision, **{"from": shown(start)}
        )
        started = time.monotonic()
        step.migration_fn = (
            self._apart(way, self._step) if way else self._patiently(step.migration_fn, context, self._step)
        )
        yield step
        took = milliseconds_since(started)
        self._report.event(
            "migration.revision",
            f"{title}: done in {took} ms",
            revision=revision.revision,
            statements=self._step.statements,
            duration_ms=took,
        )
        self.finished.append(revision.revision)
        self.half_done = None
        self._step = None

    def _patiently(self, migrate: Callable[..., None], context: MigrationContext, step: Step) -> Callable[..., None]:
        """The migration, tried again while somebody stands in its way, and then recorded in its transaction."""
        revision = step.revision

        @wraps(migrate)
        def run(**arguments: Any) -> None:
            began, patience = time.monotonic(), self._limits.patience
            for attempt in count(1):
                sampler = Sampler(self._guard, self.environment.sessions)
                try:
                    self._set_timeouts(context, revision)
                    step.statements, step.inside = 0, True
                    # Nobody is in the way as a rule: who is, is found out from the second try on.
                    with sampler.sampling() if attempt > 1 else _nothing():
                        migrate(**arguments)
                    break
                except DBAPIError as error:
                    step.inside = False
                    told = failure(error, revision.revision, self._files)
                    if told.sqlstate not in (LOCK_NOT_AVAILABLE, DEADLOCK) or step.committed or self._stop.signal:
                        raise
                    if context._in_external_transaction:
                        raise
                    pause = min(0.1 * 2**attempt, LONGEST_PAUSE) * random.uniform(0.5, 1.5)  # noqa: S311
                    blockers = sorted(sampler.seen)
                    waited = time.monotonic() - began
                    if attempt > 1 and waited + pause >= patience:
                        raise locked_out(told, waited, attempt, blockers) from None
                    transaction = _connection(context).get_transaction()
                    if transaction:
                        transaction.rollback()
                    context._transaction = _connection(context).begin()
                    self._report.progress(
                        "migration.locked",
                        f"{revision.revision} waits for a lock, try {attempt}: {'; '.join(blockers) or told.message}",
                        revision=revision.revision,
                        attempt=attempt,
                        statement=step.statements,
                        blockers=blockers,
                    )
                    time.sleep(pause)
                finally:
                    step.inside = False
            step.record = self._record_of(step)
            if step.committed:
                _connection(context).exec_driver_sql(BUILT, step.record[1][:2])

        return run

    def _apart(self, way: Callable[[], None], step: Step) -> Callable[..., None]:
        """What is done in transactions of its own, and then recorded with the version."""

        def run(**_: Any) -> None:
            way()
            step.record = self._record_of(step)

        return run

    def _record_of(self, step: Step) -> tuple[str, tuple[str, ...]]:
        values = (self.environment.version_table, step.revision.revision, step.revision.checksum)
        return (ADD, values) if step.direction == "upgrade" else (REMOVE, values[:2])

    def _set_timeouts(self, context: MigrationContext, revision: Revision) -> None:
        settings = []
        if revision.lock_timeout:
            settings.append(f"SET LOCAL lock_timeout = '{revision.lock_timeout}'")
        if self._limits.deadline is not None:
            settings.append(f"SET statement_timeout = '{max(1, int(self._limits.left * 1000))}ms'")
        if settings:
            _connection(context).exec_driver_sql("; ".join(settings))

    def _recording(self, original: Callable[..., None]) -> Callable[..., None]:
        """The version table and the ledger change together, as a rule in one round trip."""

        def update(maintainer: HeadMaintainer, *versions: str) -> None:
            record = self._step.record if self._step else None
            if record is None or self._step is None:
                original(maintainer, *versions)
                return
            self._step.record = None
            connection = _connection(maintainer.context)
            if len(versions) != 2 or self._step.direction != "upgrade":
                original(maintainer, *versions)
                connection.exec_driver_sql(*record)
                return
            names = (self.environment.schema, self.environment.table)
            table = ".".join(connection.dialect.identifier_preparer.quote(name) for name in names if name)
            done = connection.exec_driver_sql(MOVE.format(table=table), (versions[1], versions[0], *record[1]))
            if done.rowcount != 1:
                raise RunError(
                    f"The version table no longer held {versions[0]} when {versions[1]} had run: it is rolled back.",
                    exit_code=ExitCode.FAILED,
                    kind="VersionTableChanged",
                    revision=versions[1],
                    hint="Look who else writes to it; then run this again.",
                )
            maintainer.heads.remove(versions[0])
            maintainer.heads.add(versions[1])

        return update

    def _blocking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """In an autocommit block a statement waits for its locks, or CONCURRENTLY would leave an INVALID index."""

        @contextmanager
        def autocommit_block(context: MigrationContext) -> Iterator[None]:
            if self._step:
                self._step.committed = True
                self.half_done = self._step.revision.revision
            with original(context):
                connection = context.connection
                if connection is not None:
                    connection.exec_driver_sql("SET lock_timeout = 0")
                yield
                if connection is not None:
                    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
            if self._step:
                self._set_timeouts(context, self._step.revision)

        return autocommit_block

    def _connected(self, session: Any, _: object) -> None:
        """Settings of a new session; and what is needed to cancel what runs in it."""
        cursor = session.cursor()
        try:
            # What env.py and Alembic do before the migrations waits for its locks as long as the run does.
            cursor.execute(SESSION, (f"{max(1, int(self._limits.patience * 1000))}ms",))
            self.environment.sessions.append(cursor.fetchone()[2])
            session.commit()
        finally:
            cursor.close()
        be_noticed_when_lost(session)
        self._stop.sessions.append(getattr(session, "driver_connection", None) or session)

    def _before_statement(
        self, connection: Any, _: object, statement: str, parameters: Any, *__: object
    ) -> tuple[str, Any]:
        step = self._step
        if step is None or not step.inside:
            return statement, parameters
        if self._limits.left <= 0:
            raise RunError(
                "The run has taken longer than its timeout.",
                exit_code=ExitCode.FAILED,
                kind="TimedOut",
                revision=step.revision.revision,
                hint="Raise the timeout, or let several revisions do the work.",
            )
        if step.statements and connection.connection.driver_connection.info.transaction_status == IDLE:
            # The migration has ended its transaction itself, or never had one: nothing may be done a second time.
            step.committed = True
            self.half_done = step.revision.revision
        if self._crossing:
            self._crossing.refuse(step.revision.revision, statement)
            if self._crossing.is_plain_rename(statement):
                self._report.event(
                    "migration.plain_rename",
                    f"{step.revision.revision} renames with a statement of its own: that is a plain rename, which "
                    "fails the older release's requests until its tasks are gone. op.alter_column and op.rename_table "
                    "are bridged.",
                    revision=step.revision.revision,
                )
        step.statements += 1
        step.began = time.monotonic()
        index = CONCURRENTLY.match(statement)
        if index:
            step.inside = False
            statement = resumed(connection, index, self.environment.version_table, step.revision.revision, self._report)
            step.inside = True
            step.began = time.monotonic()
        return statement, parameters

    def _after_statement(self, *_: object) -> None:
        step = self._step
        if step is None or not step.inside:
            return
        self._report.event(
            "migration.statement",
            "",
            revision=step.revision.revision,
            statement=step.statements,
            duration_ms=milliseconds_since(step.began),
        )


def _connection(context: MigrationContext) -> Connection:
    if context.connection is None:
        raise wrong_use("NoConnection", "env.py has configured Alembic without a connection.")
    return context.connection


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _name_session(_: object, __: object, ___: object, parameters: dict[str, Any]) -> None:
    parameters.setdefault("application_name", NAME)
    parameters.setdefault("connect_timeout", CONNECT_SECONDS)
