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

# Whose definitions follow in parentheses.
NEW_TABLE = re.compile(
    r'\s*CREATE (?:\w+ )*TABLE (?:IF NOT EXISTS )?(?:(?:"(?:""|[^"])*"|[\w$.])+) ?(?=\()', re.IGNORECASE
)
RENAMED = re.compile(
    r'ALTER TABLE (?:IF EXISTS )?(?:ONLY )?(?:"(?:""|[^"])*"|[^\s"])+(?: ?\*)? RENAME (?!CONSTRAINT )', re.IGNORECASE
)
SEARCH_PATH = "search_path"
PLAINLY = (
    "write bridge = False into it, for plain renames, which fail the older release's requests until its tasks are gone."
)

Implementation = Callable[[Operations, Any, Callable[..., Any]], Any]
SchemaOf = Callable[[str], str]


class _ReachesDatabaseError(Exception):
    """A revision does something in the database that is only to tell what it does."""


@dataclass
class Recording:
    """What a revision does, as far as it tells without a database.

    Args:
        renames: of columns and tables.
        led: the tables that get a column or an index, and nothing that is named after them: schema, name and column.
        others: everything else, in SQL.
        is_whole: whether all of it is known; a query for one gives nothing without a database.
        asks: whether there was such a query.
    """

    renames: list[Rename] = field(default_factory=list)
    led: list[tuple[str, str, str | None]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    is_whole: bool = True
    asks: bool = False

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


def record(migrate: Callable[[], None], schema_of: SchemaOf) -> Recording:
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
        recording.asks = True
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
            schema = operation.schema or schema_now(operation.table_name)
            recording.led.append((schema, operation.table_name, operation.column.name))

    def create_index(operations: Operations, operation: CreateIndexOp, original: Callable[..., Any]) -> Any:
        if not operation.index_name or isinstance(operations, BatchOperations):
            return original(operations, operation)
        schema = operation.schema or schema_now(operation.table_name)
        recording.led.append((schema, operation.table_name, None))
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

    def __init__(self, bridges: Bridges, revision: Revision, *, is_bridging: bool) -> None:
        self._bridges = bridges
        self._revision = revision
        self._found = [*bridges.open_bridges(), *bridges.open_bridges_of_others()]
        self._is_bridging = is_bridging
        self._is_own = False
        self._schema_of: SchemaOf | None = bridges.schema_of

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

    def forbids(self, statement: str) -> Bridge | None:
        """The bridged table that a statement is about which is not one of ours."""
        if self._is_own:
            return None
        if SEARCH_PATH in statement.lower():
            self._schema_of = None
        parts = split(statement) if self._found else []
        return next((one for one in self._found if any(mentions(part, one, self._schema_of) for part in parts)), None)

    def is_plain_rename(self, statement: str) -> bool:
        """Whether a statement that the revision has written itself renames what an operation would have bridged."""
        return self._is_bridging and not self._is_own and any(RENAMED.match(flat(one)[1]) for one in split(statement))

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
            raise unforeseen(self._revision)
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
        f"Put the renames into a revision of their own; or {PLAINLY}",
    )
    error.revision = revision
    return error


def unforeseen(revision: Revision) -> RunError:
    """Why a revision is not run whose renames are not known before it runs."""
    if may_rename(revision):
        message = (
            f"{revision.revision} asks the database, so what it renames can't be told ahead: only a revision of "
            "renames alone can be bridged."
        )
        instead = "Let it rename without asking"
    else:
        message = (
            f"{revision.revision} renames a column or a table, and its own file does not say so (new_column_name or "
            "rename_table): it can't be told ahead."
        )
        instead = "Write op.alter_column or op.rename_table into the file itself"
    error = wrong_use("MixedRename", message, f"{instead}; or {PLAINLY}")
    error.revision = revision.revision
    return error


def touched(recording: Recording, bridges: Collection[Bridge], schema_of: SchemaOf) -> Bridge | None:
    """The open bridge to whose table a revision would do more than add columns and indexes.

    Args:
        recording: of the revision.
        bridges: the open ones.
        schema_of: finds the schema of a table that is named without one.
    """
    is_led_astray = any(SEARCH_PATH in statement.lower() for statement in recording.others)
    for bridge in bridges:
        if any(mentions(statement, bridge, None if is_led_astray else schema_of) for statement in recording.others):
            return bridge
        if any(
            schema == bridge.schema and table in bridge.names and column in bridge.columns
            for schema, table, column in recording.led
        ):
            return bridge
        if any(one.schema == bridge.schema and one.table in bridge.names for one in recording.renames):
            return bridge
    return None


def mentions(sql: str, bridge: Bridge, schema_of: SchemaOf | None) -> bool:
    """Whether a statement names the table of a bridge; in the body of a function, or of DO, every word counts.

    Args:
        sql: the statement.
        bridge: of the table.
        schema_of: finds the schema of a table that is named without one; None where that may be any.
    """
    names = {name.lower(): name for name in bridge.names}
    is_anonymous = re.match(r"\s*DO\b", sql, re.IGNORECASE)
    definitions = NEW_TABLE.match(sql)
    depth, before = 0, ["", "", ""]
    for token in TOKEN.finditer(sql):
        word = token["word"]
        if word:
            said = word.strip('"').replace('""', '"').lower()
            is_column = [one.upper() for one in before[:2]] == ["COLUMN", "ADD"] or bool(
                # Of a definition in parentheses the first word; a LIKE would be it, too.
                definitions and token.start() >= definitions.end() and depth == 1 and before[0] in ("(", ",")
            )
            if said in names and not is_column and _is_in(bridge.schema, names[said], before, schema_of):
                return True
        elif (token["dollar"] or (is_anonymous and token["string"])) and names.keys() & {
            one.lower() for one in re.findall(r"[\w$]+", token["string"])
        }:
            return True
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if definitions and depth == 0 and token[0] == ")":
            definitions = None
        if not token["space"]:
            before = [token[0], *before[:2]]
    return False


def _is_in(schema: str, name: str, before: Sequence[str], schema_of: SchemaOf | None) -> bool:
    """Whether a name is that of a table in the schema, by what stands before it: the last token first."""
    if before[0] == ".":
        return before[1].strip('"').replace('""', '"').lower() == schema.lower()
    return schema_of is None or schema_of(name) == schema


def _is_rename(operation: AlterColumnOp) -> bool:
    return operation.modify_name is not None and operation.modify_name != operation.column_name


def _is_nothing_else(operation: AlterColumnOp) -> bool:
    more = [value for name, value in operation.kw.items() if not name.startswith("existing_") and value is not None]
    unchanged = operation.modify_server_default is False and operation.modify_comment is False
    return unchanged and operation.modify_type is None and operation.modify_nullable is None and not more
