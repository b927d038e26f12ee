"""Alembic's revision files, read with the standard library alone: no Alembic, no database, no file is imported.

Synth and the runner read revisions with this one module, so that both see the same chain and the same checksums.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SEPARATORS = {"os": os.pathsep, "space": " ", "newline": "\n", ":": ":", ";": ";"}


class RevisionError(ValueError):
    """The revision files can't be used; the message is one sentence for a person."""


@dataclass(frozen=True)
class Revision:
    """One revision file.

    Args:
        revision: its id.
        down_revisions: the ids that it comes after; none for the first revision, several for a merge.
        depends_on: the ids of other branches that must be there before it; branch labels are resolved.
        message: the first line of the file's docstring, or its file name in words when it has none.
        checksum: SHA-256 of the file's bytes, in hexadecimal.
        path: the file.
    """

    revision: str
    down_revisions: tuple[str, ...]
    depends_on: tuple[str, ...]
    message: str
    checksum: str
    path: Path


def read_revisions(config: str | Path) -> list[Revision]:
    """The revisions of an Alembic project, newest first: children before their parents.

    Locations are understood as Alembic does: relative ones against the working directory, ``%(here)s`` as the folder
    of the configuration file.

    Args:
        config: the project's ``alembic.ini``.

    Raises:
        RevisionError: there is no configuration or no revision, a file can't be read, an id is used twice, an id
            is referred to that no file has, revisions form a cycle, or there is more than one head.
    """
    config = Path(config)
    folders, files = _revision_files(config)
    read = [_read(path) for path in files]
    if not read:
        raise RevisionError(f"{config} has no revision files: none in {' or '.join(map(str, folders))}.")
    revisions = _resolved(read)
    ordered = _newest_first(revisions)
    parents = {parent for revision in ordered for parent in revision.down_revisions}
    heads = [revision for revision in ordered if revision.revision not in parents]
    if len(heads) > 1:
        named = " and ".join(f"{one.revision} ({one.path.name})" for one in heads)
        ids = " ".join(one.revision for one in heads)
        raise RevisionError(f"{config} has {len(heads)} heads, {named}: join them with `alembic merge {ids}`.")
    return ordered


def head(revisions: Sequence[Revision]) -> str:
    """The id of the newest revision, out of what ``read_revisions`` returned."""
    return revisions[0].revision


def lineage(revisions: Sequence[Revision], current: Iterable[str]) -> set[str]:
    """The ids of everything that a schema at ``current`` has been through, ``current`` itself included.

    Args:
        revisions: newest first.
        current: what the version table holds.
    """
    reached = set(current)
    for revision in revisions:
        if revision.revision in reached:
            reached.update(revision.down_revisions, revision.depends_on)
    return reached


def _revision_files(config: Path) -> tuple[list[Path], list[Path]]:
    """The folders that hold revisions, and the files in them, each once."""
    parser = ConfigParser({"here": config.absolute().parent.as_posix()})
    try:
        if not parser.read(config, encoding="utf-8"):
            raise RevisionError(f"There is no {config}: name Alembic's configuration file.")
        location = parser.get("alembic", "script_location", fallback="").strip()
        given = parser.get("alembic", "version_locations", fallback="")
        separator = parser.get("alembic", "path_separator", fallback=None)
        separator = separator or parser.get("alembic", "version_path_separator", fallback=None)
        recursive = parser.get("alembic", "recursive_version_locations", fallback="") == "true"
    except (ConfigError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise RevisionError(f"{config} can't be read: {reason}") from None
    if not location:
        raise RevisionError(f"{config} has no script_location: add it to the section [alembic].")
    if separator is not None and separator not in SEPARATORS:
        raise RevisionError(f"path_separator in {config} is {separator!r}, but must be one of {', '.join(SEPARATORS)}.")
    # Without a separator Alembic splits at commas and spaces.
    parts = given.split(SEPARATORS[separator]) if separator else re.split(r", *| +", given)
    folders = [_folder(part.strip(), config) for part in parts if part.strip()]
    folders = folders or [_folder(location, config) / "versions"]
    pattern = "**/*.py" if recursive else "*.py"
    files = {os.path.realpath(path): path for folder in folders for path in sorted(folder.glob(pattern))}
    return folders, [path for path in files.values() if not path.name.startswith(("__init__", ".#"))]


def _folder(location: str, config: Path) -> Path:
    if ":" in location and not Path(location).is_absolute():
        raise RevisionError(f"{config} names the package {location}: write its folder, such as %(here)s/migrations.")
    return Path(location)


@dataclass(frozen=True)
class _File:
    revision: Revision
    branch_labels: tuple[str, ...]


def _read(path: Path) -> _File:
    try:
        content = path.read_bytes()
        module = ast.parse(content)
    except OSError as error:
        raise RevisionError(f"{path} can't be read: {error.strerror}.") from None
    except (RecursionError, MemoryError):
        raise RevisionError(f"{path} is nested too deeply for Python to read it.") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise RevisionError(f"{path}{line} is not valid Python.") from None
    values = dict(_assignments(module))
    if "revision" not in values or "down_revision" not in values:
        missing = "down_revision" if "revision" in values else "revision"
        raise RevisionError(f"{path} does not set {missing}: is it a revision file?")
    ids = _strings(path, "revision", values["revision"])
    if len(ids) != 1 or not ids[0]:
        raise RevisionError(f"revision in {path} must be one id, as a string.")
    docstring = (ast.get_docstring(module) or "").strip()
    revision = Revision(
        revision=ids[0],
        down_revisions=_strings(path, "down_revision", values["down_revision"]),
        depends_on=_strings(path, "depends_on", values.get("depends_on")),
        message=docstring.partition("\n")[0] or path.stem.removeprefix(f"{ids[0]}_").replace("_", " "),
        checksum=hashlib.sha256(content).hexdigest(),
        path=path,
    )
    return _File(revision, _strings(path, "branch_labels", values.get("branch_labels")))


def _assignments(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """What the module assigns to names at its top level, with or without a type."""
    for statement in module.body:
        match statement:
            case ast.Assign(targets=targets, value=value):
                yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


def _strings(path: Path, name: str, value: ast.expr | None) -> tuple[str, ...]:
    """A string, several of them or None, as a tuple."""
    try:
        literal = value and ast.literal_eval(value)
    except (ValueError, TypeError):
        raise RevisionError(f"{name} in {path} is computed: write it as a literal.") from None
    strings = (literal,) if isinstance(literal, str) else literal or ()
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise RevisionError(f"{name} in {path} must be a string, several strings or None.")
    return tuple(strings)


def _resolved(files: list[_File]) -> dict[str, Revision]:
    """The revisions by id; every id that one refers to is there, and branch labels have become ids."""
    revisions: dict[str, Revision] = {}
    for file in files:
        twin = revisions.setdefault(file.revision.revision, file.revision)
        if twin is not file.revision:
            raise RevisionError(f"{twin.path} and {file.revision.path} have the same revision id, {twin.revision}.")
    labels = {label: file.revision.revision for file in files for label in file.branch_labels}
    for key, revision in revisions.items():
        revisions[key] = replace(revision, depends_on=tuple(labels.get(one, one) for one in revision.depends_on))
    for revision in revisions.values():
        for parent in (*revision.down_revisions, *revision.depends_on):
            if parent not in revisions:
                raise RevisionError(f"{revision.path} comes after {parent}, but no file has this revision id.")
    return revisions


def _newest_first(revisions: dict[str, Revision]) -> list[Revision]:
    # Sorted, or the order of independent branches would be that of the file system.
    children: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(sorted(revisions), ()))
    for _, revision in sorted(revisions.items()):
        for parent in (*revision.down_revisions, *revision.depends_on):
            children.add(parent, revision.revision)
    try:
        return [revisions[key] for key in children.static_order()]
    except CycleError as error:
        around = " -> ".join(error.args[1])
        raise RevisionError(f"The revisions {around} form a cycle: mend a down_revision among them.") from None
