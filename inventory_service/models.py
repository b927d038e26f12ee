"""The tables of the inventory: parent items and, below each of them, child items."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Identity, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import now


class Base(DeclarativeBase):
    """What every item has: a key, a sku, and when it was made and last changed."""

    # Not after columns, as PostgreSQL would name them: they keep their names, and lie, when a column is renamed.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
        }
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    sku: Mapped[str] = mapped_column(String(120))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=now(), onupdate=now())


class ParentItem(Base):
    """An item that children belong to; its sku is unique."""

    __tablename__ = "parent_items"
    __table_args__ = (UniqueConstraint("sku"),)


class ChildItem(Base):
    """So many pieces below a parent; its sku is unique there, and it is deleted with the parent."""

    __tablename__ = "child_items"
    __table_args__ = (UniqueConstraint("parent_id", "sku"), CheckConstraint("quantity >= 0", "ck_child_items_quantity"))

    parent_id: Mapped[int] = mapped_column(ForeignKey(ParentItem.id, ondelete="CASCADE"))
    quantity: Mapped[int] = mapped_column(server_default="0")
