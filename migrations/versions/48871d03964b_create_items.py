"""create items

Revision ID: 48871d03964b
Revises:
Create Date: 2025-10-06 09:12:44.310291
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "48871d03964b"
down_revision: str | tuple[str, ...] | None = None
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None


def upgrade() -> None:
    # No constraint is named after a column: it would keep its name, and lie, once the column is renamed.
    op.create_table(
        "parent_items",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_parent_items")),
        sa.UniqueConstraint("name", name=op.f("uq_parent_items")),
    )
    op.create_table(
        "child_items",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("parent_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("quantity", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_child_items")),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["parent_items.id"], name=op.f("fk_child_items_parent_items"), ondelete="CASCADE"
        ),
        # Its index begins with parent_id, so the foreign key needs none of its own.
        sa.UniqueConstraint("parent_id", "name", name=op.f("uq_child_items")),
        sa.CheckConstraint("quantity >= 0", name=op.f("ck_child_items_quantity")),
    )


def downgrade() -> None:
    op.drop_table("child_items")
    op.drop_table("parent_items")
