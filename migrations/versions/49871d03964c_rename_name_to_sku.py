"""rename name to sku

Revision ID: 49871d03964c
Revises: 48871d03964b
Create Date: 2025-11-03 14:27:05.118402
"""

from __future__ import annotations

from alembic import op

revision: str = "49871d03964c"
down_revision: str | tuple[str, ...] | None = "48871d03964b"
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None


def upgrade() -> None:
    op.alter_column("parent_items", "name", new_column_name="sku")
    op.alter_column("child_items", "name", new_column_name="sku")


def downgrade() -> None:
    op.alter_column("parent_items", "sku", new_column_name="name")
    op.alter_column("child_items", "sku", new_column_name="name")
