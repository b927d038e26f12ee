"""Records of processes in files: another command finds the process again, and never a stranger with the same id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil


def write(record: Path, pid: int, **facts: object) -> None:
    """Keep the process with what is known of it; the file is never seen half-written."""
    content = json.dumps({"pid": pid, "created": psutil.Process(pid).create_time(), **facts})
    part = record.with_suffix(".part")
    part.write_text(content)
    part.replace(record)


def read(record: Path) -> dict[str, Any] | None:
    """What was kept; None when there is no record that can be read, or its process has ended."""
    try:
        facts: dict[str, Any] = json.loads(record.read_text())
        process = psutil.Process(facts["pid"])
        alive = process.create_time() == facts["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    return facts if alive else None
