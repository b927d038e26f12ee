"""Alembic's operations where renames are bridged: looked at before they run, and led to the table behind a bridge.

Alembic lets its operations have other implementations: https://alembic.sqlalchemy.org/en/latest/api/operations.html
"""

from __future__ import annotations

import copy
import io
import itertools
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import alembic.op
from alembic.operations import BatchOperations, Operations
from alembic.operations.ops import AddColumnOp, AlterColumnOp, CreateIndexOp, MigrateOperation, RenameTableOp
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event

from migration_runner.bridge import Bridges
from migration_runner.errors import RunError, wrong_use
from migration_runner.offline import HARMLESS, TOKEN, flat, split
from migration_runner.renames import Bridge, Rename
from migration_runner.revisions import Revision

# More than any revision asks that does not wait for an answer.
MOST_QUESTIONS = 10_000
RENAMES = re.compile(rb"new_column_name|rename_table")
# Constraints and sequences: more than a column, and some of them hold the table up, or another one.
MORE_THAN_COLUMN = re.compile(
    r"\b(CONSTRAINT|REFERENCES|CHECK|UNIQUE|PRIMARY|SERIAL|BIGSERIAL|SMALLSERIAL|IDENTITY)\b", re.IGNORECASE
)
COLUMN_ALONE = re.compile(r'(ALTER TABLE (?:"(?:""|[^"])*"|[^\s"])+ ADD COLUMN|COMMENT ON COLUMN) ', re.IGNORECASE)

Implementation = Callable[[Operations, Any, Callable[..., Any]], Any]


class _ReachesDatabaseError(Exception):
    """A revision does something in the database that is only to tell what it does."""


@dataclass
class Recording:
    """What a revision does, as far as it tells without a database.

    Args:
        renames: of columns and tables.
        led: the tables that get a column or an index, and nothing that is named after them; with the column.
        others: everything else, in SQL.
        is_whole: whether all of it is known; a query for one gives nothing without a database.
    """

    renames: list[Rename] = field(default_factory=list)
    led: list[tuple[str, str | None]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    is_whole: bool = True

    @property
    def is_of_renames_alone(self) -> bool:
        """Whether it can be bridged."""
        return bool(self.renames) and self.is_whole and not self.led and not self.others


@contextmanager
def implemented(implementations: Mapping[type[MigrateOperation], Implementation]) -> Iterator[None]:
    """Let operations be carried out otherwise, within.

    Args:
        implementations: each gets Alembic's operations, the operation, and the implementation that it stands for.
    """
    originals = {kind: Operations._to_impl.dispatch(kind) for kind in implementations}

    def bound(implementation: Implementation, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda operations, operation: implementation(operations, operation, original)

    for kind, implementation in implementations.items():
        Operations.implementation_for(kind, replace=True)(bound(implementation, originals[kind]))
    try:
        yield
    finally:
        for kind, original in originals.items():
            Operations.implementation_for(kind, replace=True)(original)


def may_rename(revision: Revision) -> bool:
    """Whether the revision's file has a word of a rename."""
    return RENAMES.search(revision.path.read_bytes()) is not None


def record(migrate: Callable[[], None], schema_of: Callable[[str], str]) -> Recording:
    """Let a revision tell what it does, without a database.

    Args:
        migrate: its ``upgrade`` or ``downgrade``.
        schema_of: finds the schema of a table that is named without one.
    """
    recording, written = Recording(), io.StringIO()
    options = {"as_sql": True, "literal_binds": True, "output_buffer": written}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    inner, bind = Operations(context), context.connection

    questions = itertools.count(1)

    def ask(statement: object, *_: object, **__: object) -> None:
        """What a query asks is known, though not what it gives: who waits for that may ask for ever."""
        if next(questions) > MOST_QUESTIONS:
            raise _ReachesDatabaseError
        context.impl.static_output(f"{statement};")

    for name in ("execute", "exec_driver_sql", "scalar", "scalars"):
        setattr(bind, name, ask)

    def schema_now(table: str) -> str:
        """Of a table that the revision itself has renamed, the database knows only the older name."""
        renamed = (one.schema for one in reversed(recording.renames) if one.of_table and one.new == table)
        return next(renamed, None) or schema_of(table)

    def alter_column(operations: Operations, operation: AlterColumnOp, original: Callable[..., Any]) -> Any:
        if not _is_rename(operation):
            return original(operations, operation)
        schema = operation.schema or schema_now(operation.table_name)
        old, new = operation.column_name, str(operation.modify_name)
        recording.renames.append(Rename(schema, operation.table_name, old, new))
        if not _is_nothing_else(operation):
            recording.others.append(f"more than a rename of {operation.table_name}.{old}")
        return None

    def rename_table(_: Operations, operation: RenameTableOp, __: Callable[..., Any]) -> None:
        schema, table = operation.schema or schema_now(operation.table_name), operation.table_name
        recording.renames.append(Rename(schema, table, table, operation.new_table_name, of_table=True))

    def add_column(operations: Operations, operation: AddColumnOp, original: Callable[..., Any]) -> Any:
        began = written.tell()
        original(operations, operation)
        statements = [flat(one)[1] for one in split(written.getvalue()[began:])]
        alone = all(COLUMN_ALONE.match(one) and not MORE_THAN_COLUMN.search(one) for one in statements)
        if statements and alone:
            written.truncate(began)
            written.seek(began)
            recording.led.append((operation.table_name, operation.column.name))

    def create_index(operations: Operations, operation: CreateIndexOp, original: Callable[..., Any]) -> Any:
        if not operation.index_name or isinstance(operations, BatchOperations):
            return original(operations, operation)
        recording.led.append((operation.table_name, None))
        return None

    recorders: dict[type[MigrateOperation], Implementation] = {
        AlterColumnOp: alter_column,
        RenameTableOp: rename_table,
        AddColumnOp: add_column,
        CreateIndexOp: create_index,
    }

    def refuse(*_: object) -> None:
        """Another connection, such as env.py's, would change what is only to be told."""
        raise _ReachesDatabaseError

    # Operations.context would leave no proxy behind, and Alembic's own is needed again. It says what it does offline.
    logger = logging.getLogger("alembic.runtime.migration")
    was_disabled, logger.disabled = logger.disabled, True
    outer = alembic.op._proxy  # type: ignore[attr-defined]
    inner._install_proxy()
    event.listen(Engine, "before_cursor_execute", refuse)
    try:
        with implemented(recorders):
            migrate()
    except RunError:
        raise
    except (Exception, SystemExit):
        # A query gives None, on which the migration trips sooner or later, in whichever way.
        recording.is_whole = False
    finally:
        event.remove(Engine, "before_cursor_execute", refuse)
        logger.disabled = was_disabled
        outer._install_proxy()
    recording.others += [one for one in split(written.getvalue()) if not HARMLESS.fullmatch(flat(one)[0].strip())]
    return recording


class Lead:
    """Leads what a revision does to a bridged table to the table behind its bridge.

    Args:
        bridges: of the database.
        revision: that is run.
        is_bridging: whether a rename that was not seen before is refused.
    """

    def __init__(self, bridges: Bridges, revision: str, *, is_bridging: bool) -> None:
        self._bridges = bridges
        self._revision = revision
        self._found = bridges.open_bridges()
        self._is_bridging = is_bridging
        self._is_own = False

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Within, Alembic's operations are led."""
        rename: Implementation = self._rename
        with implemented(
            {
                AddColumnOp: self._add_column,
                CreateIndexOp: self._create_index,
                AlterColumnOp: rename,
                RenameTableOp: rename,
            }
        ):
            yield

    def forbids(self, statement: str) -> str | None:
        """The bridged table that a statement is about which is not one of ours."""
        if self._is_own:
            return None
        return next((one.table for one in self._found if mentions(statement, one.names)), None)

    @contextmanager
    def _own(self) -> Iterator[None]:
        self._is_own = True
        try:
            yield
        finally:
            self._is_own = False

    def _bridge_for(self, operation: Any) -> Bridge | None:
        schema = operation.schema or self._bridges.schema_of(operation.table_name)
        return next((one for one in self._found if one.schema == schema and operation.table_name in one.names), None)

    def _add_column(self, operations: Operations, operation: AddColumnOp, original: Callable[..., Any]) -> Any:
        bridge = self._bridge_for(operation)
        if bridge is None:
            return original(operations, operation)

        def query(statement: str, **named: object) -> Sequence[Any]:
            options = {} if named else {"no_parameters": True}
            result = operations.get_bind().exec_driver_sql(statement, named or None, execution_options=options)
            return result.all() if result.returns_rows else []

        with self._own(), self._bridges.apart(bridge, query):
            original(operations, _led(operation, bridge, bridge.table))
        return None

    def _create_index(self, operations: Operations, operation: CreateIndexOp, original: Callable[..., Any]) -> Any:
        bridge = self._bridge_for(operation)
        if bridge is None:
            return original(operations, operation)
        with self._own():
            return original(operations, _led(operation, bridge, bridge.base))

    def _rename(self, operations: Operations, operation: Any, original: Callable[..., Any]) -> Any:
        if self._is_bridging and (isinstance(operation, RenameTableOp) or _is_rename(operation)):
            raise mixed(self._revision)
        return original(operations, operation)


def _led(operation: Any, bridge: Bridge, table: str) -> Any:
    other = copy.copy(operation)
    other.table_name, other.schema = table, bridge.schema
    return other


def mixed(revision: str) -> RunError:
    """Why a revision that renames, and does something else too, is not run."""
    error = wrong_use(
        "MixedRename",
        f"{revision} renames a column or a table, and does something else too: only a revision of renames alone can be "
        "bridged.",
        "Put the renames into a revision of their own; or write bridge = False into it, for plain renames, which fail "
        "the older release's requests until its tasks are gone.",
    )
    error.revision = revision
    return error


def touched(recording: Recording, bridges: Collection[Bridge]) -> str | None:
    """The table behind an open bridge that a revision would do more to than add columns and indexes.

    Args:
        recording: of the revision.
        bridges: the open ones.
    """
    for bridge in bridges:
        if any(mentions(statement, bridge.names) for statement in recording.others):
            return bridge.table
        if any(table in bridge.names and column in bridge.columns for table, column in recording.led):
            return bridge.table
        if any(one.schema == bridge.schema and one.table in bridge.names for one in recording.renames):
            return bridge.table
    return None


def mentions(sql: str, names: Collection[str]) -> bool:
    """Whether a statement names one of the tables; in the body of a function, or of DO, every word counts."""
    wanted = {name.lower() for name in names}
    is_anonymous = re.match(r"\s*DO\b", sql, re.IGNORECASE)
    for token in TOKEN.finditer(sql):
        if token["word"]:
            if token["word"].strip('"').replace('""', '"').lower() in wanted:
                return True
        elif (token["dollar"] or (is_anonymous and token["string"])) and wanted & {
            word.lower() for word in re.findall(r"[\w$]+", token["string"])
        }:
            return True
    return False


def _is_rename(operation: AlterColumnOp) -> bool:
    return operation.modify_name is not None and operation.modify_name != operation.column_name


def _is_nothing_else(operation: AlterColumnOp) -> bool:
    more = [value for name, value in operation.kw.items() if not name.startswith("existing_") and value is not None]
    unchanged = operation.modify_server_default is False and operation.modify_comment is False
    return unchanged and operation.modify_type is None and operation.modify_nullable is None and not more
