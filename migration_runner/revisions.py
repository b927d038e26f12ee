"""Alembic's revision files, read with the standard library alone: no Alembic, no database, no file is imported.

Synth and the runner read revisions with this one module, so that both see the same chain and the same checksums.
``python -m migration_runner.revisions alembic.ini``, run when an image is built, writes what they are into a manifest
beside the configuration, so that the runner need not read thousands of files.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any
from zlib import crc32

from migration_runner.manifest import (
    FORMAT,
    StaleManifestError,
    checksum,
    configuration_files,
    fresh_header,
    listing,
    manifest_path,
)

VERSION_TABLE = "alembic_version"
# What an env.py may do so that a plain connection sees another version table, or sees less.
OTHER_SESSION = re.compile(
    rb"search_path|schema_translate_map|\b(set|reset)\s+(session\s+|local\s+)?(role|authorization)|set_config",
    re.IGNORECASE,
)
LONGEST_TIMEOUT = 2**31 - 1
MILLISECONDS = {"": 1, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}
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
        file: its path.
        branch_labels: the names of the branch that begins with it.
        phase: ``contract`` for what must wait until no task of an older release is left; ``expand`` otherwise.
        lock_timeout: for how long its statements wait for a lock, as PostgreSQL writes times; None for the runner's.
        size: of the file, in bytes.
        bridge: whether what it renames may keep its old name, too, until the contract step.
    """

    revision: str
    down_revisions: tuple[str, ...]
    depends_on: tuple[str, ...]
    message: str
    checksum: str
    file: str
    branch_labels: tuple[str, ...] = ()
    phase: str = "expand"
    lock_timeout: str | None = None
    size: int = 0
    bridge: bool = True

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)


def read_revisions(config: str | Path) -> list[Revision]:
    """The revisions of an Alembic project, newest first: children before their parents.

    Locations are understood as Alembic does: relative ones against the working directory, ``%(here)s`` as the folder
    of the configuration file.

    Args:
        config: the project's ``alembic.ini``.

    Raises:
        RevisionError: there is no configuration or no revision, a file can't be read, an id is used twice, an id
            is referred to that no file has, revisions form a cycle, there is more than one head, or a contract
            revision is the first one or a merge.
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


def fingerprint(revisions: Iterable[Revision]) -> str:
    """Changes when a revision is added, removed, edited or moved; not with ``env.py``, models or the image.

    A revision runs once, so what only surrounds the revisions can't change what a database has been through.
    """
    facts = [
        [one.revision, sorted(one.down_revisions), sorted(one.depends_on), one.phase, one.checksum] for one in revisions
    ]
    return hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()


def write_manifest(config: str | Path) -> Path:
    """Write down what the revisions are, newest first, after a first line with what a run checks before all else.

    Args:
        config: the project's ``alembic.ini``.

    Raises:
        RevisionError: as from ``read_revisions``; or the file can't be written.
    """
    config = Path(config)
    revisions = read_revisions(config)
    base = config.absolute().parent
    folders = sorted({one.path.absolute().parent for one in revisions} | _located_folders(config))
    settings = [*configuration_files(str(config)), str(script_location(config) / "env.py")]
    lines = [
        [
            one.revision,
            one.down_revisions,
            one.depends_on,
            one.message,
            one.checksum,
            os.path.relpath(one.path.absolute(), base),
            one.branch_labels,
            one.phase,
            one.lock_timeout,
            one.size,
            one.bridge,
        ]
        for one in revisions
    ]
    rest = f"{json.dumps(lines)}\n".encode()
    header = {
        "format": FORMAT,
        "head": head(revisions),
        "fingerprint": fingerprint(revisions),
        "files": {os.path.relpath(file, base): checksum(file) for file in settings},
        "folders": {os.path.relpath(folder, base): listing(str(folder)) for folder in folders},
        "version_table": _version_table(config),
        "lines": crc32(rest),
    }
    path = Path(manifest_path(str(config)))
    try:
        path.write_bytes(f"{json.dumps(header)}\n".encode() + rest)
    except OSError as error:
        raise RevisionError(f"{path} can't be written: {error.strerror}.") from None
    return path


def read_manifest(config: str | Path) -> tuple[list[Revision], str] | None:
    """What ``read_revisions`` would return, from the manifest, with the fingerprint; None when there is none.

    Args:
        config: the project's ``alembic.ini``.

    Raises:
        StaleManifestError: it was made from other files.
    """
    header = fresh_header(str(config))
    if header is None:
        return None
    base = str(Path(config).absolute().parent)
    rest = Path(manifest_path(str(config))).read_bytes().partition(b"\n")[2]
    if crc32(rest) != header["lines"]:
        raise StaleManifestError
    read = [
        Revision(id_, tuple(down), tuple(needs), message, sha256, f"{base}/{name}", tuple(labels), *more)
        for id_, down, needs, message, sha256, name, labels, *more in json.loads(rest)
    ]
    try:
        is_fresh = all(os.stat(one.file).st_size == one.size for one in read)  # noqa: PTH116 - thousands of them
    except OSError:
        is_fresh = False
    if not is_fresh or not read:
        raise StaleManifestError
    return read, str(header["fingerprint"])


def head(revisions: Sequence[Revision]) -> str:
    """The id of the newest revision, out of what ``read_revisions`` returned."""
    return revisions[0].revision


def expand_target(revisions: Sequence[Revision], been: Collection[str] = ()) -> str:
    """The id of the newest revision once the contract revisions at the end of the chain are left out.

    Args:
        revisions: newest first.
        been: what the schema has been through: of that, no contract revision is left out.
    """
    by_id = {one.revision: one for one in revisions}
    newest = revisions[0]
    while newest.phase == "contract" and newest.revision not in been:
        newest = by_id[newest.down_revisions[0]]
    return newest.revision


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


def script_location(config: str | Path) -> Path:
    """The folder of the project's ``env.py``; raises RevisionError like ``read_revisions``."""
    config = Path(config)
    option = _options(config)
    location = option("script_location")
    if not isinstance(location, str) or not location.strip():
        raise RevisionError(f"{config} has no script_location: add it to the section [alembic].")
    return _folder(location.strip(), config)


def _options(config: Path) -> Callable[[str], Any]:
    """How to read one of Alembic's options: the ini file's goes before the toml file's."""
    ini, toml = map(Path, configuration_files(str(config)))
    parser = ConfigParser({"here": ini.absolute().parent.as_posix()})
    table: dict[str, Any] = {}
    if not config.exists():
        raise RevisionError(f"There is no {config}: name Alembic's configuration file.")
    try:
        parser.read(ini, encoding="utf-8")
        # Only options of Alembic's own are looked up there, and most projects have none.
        if toml.exists() and b"tool.alembic" in (content := toml.read_bytes()):
            import tomllib

            table = tomllib.loads(content.decode()).get("tool", {}).get("alembic", {})
    except (ConfigError, ValueError, OSError) as error:
        raise _unreadable(config, error) from None
    here = toml.absolute().parent.as_posix()

    def filled(value: Any) -> Any:
        return value.replace("%(here)s", here) if isinstance(value, str) else value

    def option(name: str) -> Any:
        # One at a time: others may hold a secret with a percent sign, which would stand in the error.
        try:
            of_ini = parser.get("alembic", name, fallback=None)
        except ConfigError as error:
            raise _unreadable(config, error) from None
        if of_ini:
            return of_ini
        value = table.get(name)
        return [filled(one) for one in value] if isinstance(value, list) else filled(value)

    return option


def _unreadable(config: Path, error: Exception) -> RevisionError:
    return RevisionError(f"{config} can't be read: {str(error).splitlines()[0]}")


def _locations(config: Path) -> tuple[list[Path], bool]:
    """The folders with revision files, and whether the folders in them count too."""
    option = _options(config)
    location = script_location(config)
    if option("databases"):
        raise RevisionError(
            f"{config} lists several databases (Alembic's multidb template): give each its own alembic.ini, and run "
            "each with its own task."
        )
    separator = option("path_separator") or option("version_path_separator")
    if separator is not None and separator not in SEPARATORS:
        raise RevisionError(f"path_separator in {config} is {separator!r}, but must be one of {', '.join(SEPARATORS)}.")
    given = option("version_locations") or ""
    if isinstance(given, str):
        # Without a separator Alembic splits at commas and spaces.
        given = given.split(SEPARATORS[separator]) if separator else re.split(r", *| +", given)
    folders = [_folder(part.strip(), config) for part in given if part.strip()]
    return folders or [location / "versions"], option("recursive_version_locations") in ("true", True)


def _revision_files(config: Path) -> tuple[list[Path], list[Path]]:
    """The folders that hold revisions, and the files in them, each once."""
    folders, recursive = _locations(config)
    pattern = "**/*.py" if recursive else "*.py"
    files = {os.path.realpath(path): path for folder in folders for path in sorted(folder.glob(pattern))}
    return folders, [path for path in files.values() if not path.name.startswith(("__init__", ".#"))]


def _located_folders(config: Path) -> set[Path]:
    folders, recursive = _locations(config)
    inner = [path for folder in folders for path in folder.glob("**/*") if recursive and path.is_dir()]
    return {folder.absolute() for folder in (*folders, *inner) if folder.is_dir() and folder.name != "__pycache__"}


def _version_table(config: Path) -> list[str | None] | None:
    """The schema and the name of the version table, if ``env.py`` can be read for them.

    None when it computes them, or makes its session see other tables than a plain connection does.
    """
    names: dict[str, set[str | None]] = {"version_table": set(), "version_table_schema": set()}
    try:
        content = (script_location(config) / "env.py").read_bytes()
        module = ast.parse(content)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if OTHER_SESSION.search(content):
        return None
    for call in ast.walk(module):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "configure":
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            if None in given:
                return None
            for name, found in names.items():
                match given.get(name):
                    case None:
                        found.add(None)
                    case ast.Constant(value=str() | None as value):
                        found.add(value)
                    case _:
                        return None
    if any(len(found) != 1 for found in names.values()):
        return None
    return [names["version_table_schema"].pop(), names["version_table"].pop() or VERSION_TABLE]


def _folder(location: str, config: Path) -> Path:
    if ":" in location and not Path(location).is_absolute():
        raise RevisionError(f"{config} names the package {location}: write its folder, such as %(here)s/migrations.")
    return Path(location)


def _read(path: Path) -> Revision:
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
    id_ = _text(path, "revision", values["revision"])
    if not id_:
        raise RevisionError(f"revision in {path} must be one id, as a string.")
    if re.search("[@+-]", id_):
        raise RevisionError(f"revision in {path} is {id_!r}, but Alembic allows no @, + or - in an id.")
    phase, lock_timeout = (_text(path, name, values.get(name)) for name in ("phase", "lock_timeout"))
    if phase not in (None, "expand", "contract"):
        raise RevisionError(f"phase in {path} is {phase!r}, but must be 'expand' or 'contract'.")
    if lock_timeout is not None and not _is_time(lock_timeout):
        raise RevisionError(f"lock_timeout in {path} is {lock_timeout!r}, but must be a time such as '100ms' or '5s'.")
    labels = _strings(path, "branch_labels", values.get("branch_labels"))
    down_revisions = _strings(path, "down_revision", values["down_revision"])
    if phase == "contract" and len(down_revisions) != 1:
        raise _no_contract(path, down_revisions)
    docstring = (ast.get_docstring(module) or "").strip()
    return Revision(
        revision=id_,
        down_revisions=down_revisions,
        depends_on=_strings(path, "depends_on", values.get("depends_on")),
        message=docstring.partition("\n")[0] or path.stem.removeprefix(f"{id_}_").replace("_", " "),
        checksum=hashlib.sha256(content).hexdigest(),
        file=str(path),
        branch_labels=labels,
        phase=phase or "expand",
        lock_timeout=lock_timeout,
        size=len(content),
        bridge=_flag(path, "bridge", values.get("bridge")),
    )


def _no_contract(path: Path, down_revisions: Sequence[str]) -> RevisionError:
    if not down_revisions:
        return RevisionError(f"{path} is the first revision, and no contract revision can be: remove its phase.")
    return RevisionError(
        f"{path} joins {' and '.join(down_revisions)}, and no contract revision can: remove its phase, and write the "
        "contract revision after it."
    )


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
    strings = (literal,) if isinstance(literal, str) else () if literal is None else literal
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise RevisionError(f"{name} in {path} must be a string, several strings or None.")
    return tuple(strings)


def _text(path: Path, name: str, value: ast.expr | None) -> str | None:
    """One string or None."""
    texts = _strings(path, name, value)
    if texts and not isinstance(value, ast.Constant):
        raise RevisionError(f"{name} in {path} must be one string.")
    return texts[0] if texts else None


def _flag(path: Path, name: str, value: ast.expr | None) -> bool:
    """What is not set is true."""
    match value:
        case None:
            return True
        case ast.Constant(value=bool() as flag):
            return flag
    raise RevisionError(f"{name} in {path} must be True or False, written out.")


def _is_time(text: str) -> bool:
    time = re.fullmatch("([0-9]{1,10}) ?(|ms|s|min|h)", text)
    return time is not None and int(time[1]) * MILLISECONDS[time[2]] <= LONGEST_TIMEOUT


def _resolved(read: list[Revision]) -> dict[str, Revision]:
    """The revisions by id; every id that one refers to is there, and branch labels have become ids."""
    revisions: dict[str, Revision] = {}
    for one in read:
        twin = revisions.setdefault(one.revision, one)
        if twin is not one:
            raise RevisionError(f"{twin.path} and {one.path} have the same revision id, {twin.revision}.")
    labels: dict[str, str] = {}
    for one in read:
        for label in one.branch_labels:
            if label in labels or label in revisions:
                raise RevisionError(f"{one.path} has the branch label {label}, but another revision has this name.")
            labels[label] = one.revision
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


def main(arguments: Sequence[str]) -> int:
    """Write the manifest of the project whose configuration is named; the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m migration_runner.revisions alembic.ini\n\nWrite alembic.manifest.json beside it.")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    try:
        print(f"wrote {write_manifest(arguments[0])}")
    except RevisionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
