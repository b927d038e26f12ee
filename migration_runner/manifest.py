"""What an image knows of its revisions without looking at them: the first line of the manifest beside ``alembic.ini``.

Light, for every run begins with it. ``revisions.py`` writes the manifest, and reads the rest of it.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

FORMAT = 2
FIELDS = {"head", "fingerprint", "version_table", "lines"}


class StaleManifestError(ValueError):
    """The manifest tells of other files than those that are there."""


def manifest_path(config: str) -> str:
    """Where the manifest of an Alembic project is: ``alembic.manifest.json`` beside ``alembic.ini``."""
    return f"{os.path.splitext(config)[0]}.manifest.json"  # noqa: PTH122 - pathlib is slow to import


def fresh_header(config: str) -> dict[str, Any] | None:
    """The manifest's first line, when settings and file names are as they were; None when there is no manifest.

    Args:
        config: the project's ``alembic.ini``.

    Raises:
        StaleManifestError: a setting was changed, something was added, removed or renamed, or it is no manifest.
    """
    folder = os.path.dirname(config)  # noqa: PTH120
    try:
        with open(manifest_path(config), "rb") as manifest:  # noqa: PTH123
            header: dict[str, Any] = json.loads(manifest.readline())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise StaleManifestError from None
    try:
        files = {where: checksum(os.path.join(folder, where)) for where in header["files"]}  # noqa: PTH118
        folders = {where: listing(os.path.join(folder, where)) for where in header["folders"]}  # noqa: PTH118
        found = header["format"], header["files"], header["folders"]
        is_fresh = found == (FORMAT, files, folders) and header.keys() >= FIELDS
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        is_fresh = False
    if not is_fresh:
        raise StaleManifestError
    return header


def listing(folder: str) -> int:
    """A checksum of the names in a folder that may matter: Python files, and folders."""

    def matters(name: str) -> bool:
        return name.endswith(".py") or (name != "__pycache__" and os.path.isdir(os.path.join(folder, name)))  # noqa: PTH112, PTH118

    told = sorted(filter(matters, os.listdir(folder)))  # noqa: PTH208
    return zlib.crc32("\n".join(told).encode(errors="surrogateescape"))


def checksum(path: str) -> int | None:
    """A checksum of a file; None when there is none."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return zlib.crc32(file.read())
    except FileNotFoundError:
        return None


def configuration_files(config: str) -> tuple[str, str]:
    """The ``alembic.ini`` and the ``pyproject.toml`` of a project, of which either may be missing."""
    folder, name = os.path.split(config)
    other = "alembic.ini" if name == "pyproject.toml" else "pyproject.toml"
    files = config, os.path.join(folder, other)  # noqa: PTH118
    return files if other == "pyproject.toml" else files[::-1]
