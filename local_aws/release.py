"""Copies of this application as other releases of it, for the tour and the end-to-end tests."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from local_aws.machine import CLONE

# What a release consists of: all that synth reads and the image holds.
PARTS = [
    "app.py",
    "cdk.json",
    "stacks",
    "constructs_lib",
    "migration_runner",
    "migrations",
    "alembic.ini",
    "inventory_service",
    "Dockerfile",
    ".dockerignore",
    "requirements-image.txt",
]
RENAME = "49871d03964c_rename_name_to_sku.py"

FAILING = '''"""rename name to label

Revision ID: 50871d03964d
Revises: 49871d03964c
"""

from alembic import op

revision = "50871d03964d"
down_revision = "49871d03964c"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("parent_items", "name", new_column_name="label")


def downgrade() -> None:
    op.alter_column("parent_items", "label", new_column_name="name")
'''


def copy(app: Path) -> None:
    """Make ``app`` this release."""
    shutil.rmtree(app, ignore_errors=True)
    app.mkdir(parents=True)
    for part in PARTS:
        source = CLONE / part
        if source.is_dir():
            shutil.copytree(source, app / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, app / part)


def copy_before_the_rename(app: Path) -> None:
    """Make ``app`` the release before the rename: without that revision, and with ``name`` in the service."""
    copy(app)
    (app / "migrations" / "versions" / RENAME).unlink()
    for module in (app / "inventory_service").glob("*.py"):
        module.write_text(re.sub(r"\bsku\b", "name", module.read_text()))


def add_failing_migration(app: Path) -> None:
    """Add a revision that renames a column which is no longer there."""
    (app / "migrations" / "versions" / "50871d03964d_rename_name_to_label.py").write_text(FAILING)


def change_code_only(app: Path) -> None:
    """Change the service's image and nothing that the schema knows of."""
    module = app / "inventory_service" / "__init__.py"
    module.write_text(module.read_text() + "\n# A release that changes code only.\n")
