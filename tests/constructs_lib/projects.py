"""Alembic projects on disk, as small as they can be."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

REVISION = '''"""{message}"""

revision = "{revision}"
down_revision = {down_revision!r}
'''
CONTRACT = 'phase = "contract"\n'


def alembic_project(
    folder: Path, revisions: dict[str, str | None], message: str = "change things", contract: Collection[str] = ()
) -> Path:
    """Write a project.

    Args:
        folder: where.
        revisions: id to the id that it comes after.
        message: of every revision.
        contract: the ids of those that are contract revisions.

    Returns:
        Its alembic.ini.
    """
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    for revision, down_revision in revisions.items():
        text = REVISION.format(message=message, revision=revision, down_revision=down_revision)
        text += CONTRACT if revision in contract else ""
        (versions / f"{revision}.py").write_text(text, encoding="utf-8")
    config = folder / "alembic.ini"
    config.write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    return config
