"""What an image knows of its revisions without looking at them: the first line of the manifest beside ``alembic.ini``.

Light, for every run begins with it. ``revisions.py`` writes the manifest, and reads the rest of it.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

FORMAT = 1


class StaleManifestError(ValueError):
    """The manifest tells of other files than those that are there."""


def manifest_path(config: str) -> str:
    """Where the manifest of an Alembic project is: ``alembic.manifest.json`` beside ``alembic.ini``."""
    return f"{os.path.splitext(config)[0]}.manifest.json"  # noqa: PTH122 - pathlib is slow to import


def fresh_header(config: str) -> dict[str, Any] | None:
    """The manifest's first line, when configuration and file names are as they were; None when there is no manifest.

    Args:
        config: the project's ``alembic.ini``.

    Raises:
        StaleManifestError: something was added, removed or renamed since, or it is no manifest.
    """
    folder = os.path.dirname(config)  # noqa: PTH120
    try:
        with open(manifest_path(config), "rb") as manifest:  # noqa: PTH123
            header: dict[str, Any] = json.loads(manifest.readline())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise StaleManifestError from None
    try:
        names = {where: listing(os.path.join(folder, where)) for where in header["folders"]}  # noqa: PTH118
        if (header["format"], header["config"], header["folders"]) == (FORMAT, configuration(config), names):
            return header
    except (OSError, KeyError, TypeError):
        pass
    raise StaleManifestError


def listing(folder: str) -> int:
    """A checksum of the names in a folder that may matter: Python files, and folders."""
    names = os.listdir(folder)  # noqa: PTH208
    told = sorted(name for name in names if name.endswith(".py") or ("." not in name and name != "__pycache__"))
    return zlib.crc32("\n".join(told).encode(errors="surrogateescape"))


def configuration(config: str) -> int:
    """A checksum of what says where the revisions are."""
    content = b""
    for path in configuration_files(config):
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                content += file.read()
        except FileNotFoundError:
            continue
    return zlib.crc32(content)


def configuration_files(config: str) -> tuple[str, str]:
    """The ``alembic.ini`` and the ``pyproject.toml`` of a project, of which either may be missing."""
    folder, name = os.path.split(config)
    other = "alembic.ini" if name == "pyproject.toml" else "pyproject.toml"
    files = config, os.path.join(folder, other)  # noqa: PTH118
    return files if other == "pyproject.toml" else files[::-1]
