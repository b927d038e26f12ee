"""The SQL that revisions will run, told by Alembic itself without a database, each statement with its line."""

from __future__ import annotations

import io
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import load_python_file
from sqlalchemy.exc import DBAPIError

from migration_runner.errors import wrong_use
from migration_runner.manifest import configuration_files
from migration_runner.renames import Rename
from migration_runner.revisions import Revision

# https://www.postgresql.org/docs/current/sql-syntax-lexical.html
TOKEN = re.compile(
    r"""(?P<space>(?:\s+|--[^\n]*|/\*.*?\*/)+)
      | (?P<string>\b[Ee]'(?:\\.|''|[^'\\])*'|'(?:''|[^'])*'|(?P<dollar>\$(?:[^\W\d]\w*)?\$).*?(?P=dollar))
      | (?P<word>"(?:""|[^"])*"|[\w$]+)
      | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
RENAMES = re.compile(r'ALTER TABLE (?:"(?:""|[^"])*"|[^\s"])+ RENAME ')
# What an autocommit block consists of, and settings that a bridge of a rename has no use for.
HARMLESS = re.compile(r"(COMMIT|BEGIN|SET (LOCAL |SESSION )?(lock_timeout|statement_timeout)\b.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Statement:
    """One statement of a revision.

    Args:
        sql: without the semicolon; COMMIT and BEGIN are there around an autocommit block.
        file: the revision file.
        line: where the file calls what has written it.
        rename: what one of Alembic's operations renames with it; None where the file has written the SQL itself.
    """

    sql: str
    file: Path
    line: int
    rename: Rename | None = None


@dataclass
class Script:
    """What ``upgrade()`` of a revision runs.

    Args:
        revision: the revision.
        statements: in their order.
        stopped: the line that can't run without a database, and the exception that it raises; None when all could.
    """

    revision: Revision
    statements: list[Statement] = field(default_factory=list)
    stopped: tuple[int, str] | None = None

    @property
    def renames(self) -> list[Rename]:
        """What Alembic's operations rename."""
        return [one.rename for one in self.statements if one.rename]


def write_sql(config: Path, revisions: Sequence[Revision]) -> list[Script]:
    """Let the project's ``env.py`` write the SQL of ``upgrade()`` offline; nothing connects, no password is needed.

    Only the files of ``revisions`` are imported. What Alembic does to its version table is left out.

    Args:
        config: the project's ``alembic.ini``.
        revisions: in the order to write them.

    Raises:
        RunError: ``env.py`` can't work offline.
    """
    ini, toml = configuration_files(str(config))
    settings = Config(ini, toml_file=toml, output_buffer=io.StringIO())
    settings.set_main_option("sqlalchemy.url", "postgresql+psycopg2://")
    scripts: list[Script] = []

    def write(_: tuple[str, ...], context: MigrationContext) -> list[RevisionStep]:
        scripts.extend(_write(revision, context) for revision in revisions)
        # Steps that Alembic does not see leave no trace in its version table.
        return []

    directory = ScriptDirectory.from_config(settings)
    try:
        with EnvironmentContext(settings, directory, fn=write, as_sql=True):
            directory.run_env()
    except DBAPIError:
        scripts.clear()
    if len(scripts) < len(revisions):
        raise wrong_use(
            "NoOfflineMode",
            "env.py does not write SQL when context.is_offline_mode() is true.",
            "Give it run_migrations_offline(), as `alembic init` writes it.",
        )
    return scripts


def split(sql: str) -> list[str]:
    """The statements in a text, without their semicolons."""
    if re.search(r"\bBEGIN\s+ATOMIC\b", sql, re.IGNORECASE):
        # The body of a function, with semicolons of its own.
        return [sql.strip().removesuffix(";")]
    parts = [""]
    for token in TOKEN.finditer(sql):
        if token["other"] == ";":
            parts.append("")
        else:
            parts[-1] += token[0]
    return [part.strip() for part in parts if any(token["space"] is None for token in TOKEN.finditer(part))]


def flat(sql: str) -> tuple[str, str]:
    """A statement on one line, without comments: as it is, and of the same length with every string blanked."""
    plain, blanked = "", ""
    for token in TOKEN.finditer(sql.strip()):
        text = " " if token["space"] else token[0]
        plain += text
        blanked += f"'{' ' * (len(text) - 2)}'" if token["string"] else text
    return plain, blanked


def _write(revision: Revision, context: MigrationContext) -> Script:
    script = Script(revision)
    module = load_python_file(revision.path.parent, revision.path.name)
    impl = context.impl
    alter_column, rename_table = impl.alter_column, impl.rename_table
    rename: Rename | None = None

    def collect(text: str) -> None:
        line = next(_lines(traceback.walk_stack(None), module), 1)
        for sql in split(text):
            # To alter a column may be several statements, of which one renames it.
            script.statements.append(Statement(sql, revision.path, line, rename if RENAMES.match(sql) else None))

    def altering(table_name: str, column_name: str, name: str | None = None, **more: Any) -> None:
        nonlocal rename
        rename = Rename(more.get("schema") or "", table_name, column_name, name) if name else None
        alter_column(table_name, column_name, name=name, **more)
        rename = None

    def renaming(old: str, new: str, schema: str | None = None) -> None:
        nonlocal rename
        rename = Rename(schema or "", old, old, str(new), of_table=True)
        rename_table(old, new, schema=schema)
        rename = None

    replaced = {"static_output": collect, "alter_column": altering, "rename_table": renaming}
    vars(impl).update(replaced)
    try:
        getattr(module, "upgrade", lambda: None)()
    except (Exception, SystemExit) as error:
        # A query gives None here, on which the migration trips sooner or later, in whichever way.
        *_, line = 1, *_lines(traceback.walk_tb(error.__traceback__), module)
        script.stopped = line, type(error).__name__
    finally:
        for name in replaced:
            del vars(impl)[name]
    return script


def _lines(frames: Iterator[tuple[FrameType, int]], module: ModuleType) -> Iterator[int]:
    return (line for frame, line in frames if frame.f_code.co_filename == module.__file__)
