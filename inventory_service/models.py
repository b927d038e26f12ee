"""The tables of the inventory: parent items and, below each of them, child items."""

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Identity, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.functions import now


class Base(DeclarativeBase):
    """What every table has: a key, and when its rows were made and last changed."""

    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - as SQLAlchemy declares it
    # Without column names: a constraint keeps its name when a column is renamed, and would lie from then on.
    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "uq": "uq_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(server_default=now(), sort_order=1)
    updated_at: Mapped[datetime] = mapped_column(server_default=now(), onupdate=now(), sort_order=1)


class ParentItem(Base):
    """An item that children belong to; its sku is unique."""

    __tablename__ = "parent_items"

    sku: Mapped[str] = mapped_column(String(120), unique=True)


class ChildItem(Base):
    """So many pieces below a parent; its sku is unique there, and it is deleted with the parent."""

    __tablename__ = "child_items"
    __table_args__ = (UniqueConstraint("parent_id", "sku"), CheckConstraint("quantity >= 0", name="quantity"))

    parent_id: Mapped[int] = mapped_column(ForeignKey(ParentItem.id, ondelete="CASCADE"))
    sku: Mapped[str] = mapped_column(String(120))
    quantity: Mapped[int] = mapped_column(server_default="0")
