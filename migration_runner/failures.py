"""What may be told about an exception of the team's code."""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import alembic
from alembic.util import CommandError

from migration_runner.database import database_failure
from migration_runner.errors import ExitCode, RunError


def failure(error: BaseException, revision: str | None = None, files: Iterable[str] = ("env.py",)) -> RunError:
    """What may be told about an exception.

    The text of an exception may hold anything, a URL too. So it is shown only where it can't: it stands word for word
    in the file that raised it, or it is Alembic's own. Otherwise the file and the line must do.

    Args:
        error: what was raised.
        revision: the revision that was running.
        files: the names of the team's files, of which the innermost in the traceback is told.
    """
    if isinstance(error, RunError):
        return error
    from_database = database_failure(error, revision) or _lost(error, revision)
    if from_database:
        return from_database
    kind = type(error).__name__
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
        case ImportError(__cause__=ModuleNotFoundError(name=str(module))):
            message = f"{Path(frame.filename).name}, line {frame.lineno} needs {module}, but there is no such module."
    alembics = isinstance(error, CommandError) and Path(frames[-1].filename).is_relative_to(
        Path(alembic.__file__).parent
    )
    if alembics or _stands_in(frame.filename, str(error)):
        message = str(error)
    return RunError(message, exit_code=ExitCode.FAILED, kind=kind, revision=revision)


def _lost(error: BaseException, revision: str | None) -> RunError | None:
    """The lost session that was being handled: SQLAlchemy then raises another error when a block is left."""
    handled = error.__context__
    told = database_failure(handled, revision) if handled else None
    if handled is None or (told and told.exit_code is ExitCode.UNREACHABLE):
        return told
    return _lost(handled, revision)


def _stands_in(file: str, text: str) -> bool:
    try:
        constants = ast.walk(ast.parse(Path(file).read_bytes()))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return text != "" and any(isinstance(node, ast.Constant) and node.value == text for node in constants)
