"""A history of revisions, as an Alembic project and as the SQL that Alembic makes of it.

Ten revisions make one table: it is created, gets six columns and three indexes. The tables stay empty, so that the
tools are measured and not PostgreSQL.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

INI = """\
[alembic]
script_location = %(here)s/migrations
path_separator = os
"""

ENV = '''\
"""The database that the runner or DATABASE_URL names; one transaction per migration."""

import os

from alembic import context
from sqlalchemy import create_engine, make_url, pool

DRIVER = "postgresql+psycopg2"

if context.is_offline_mode():
    context.configure(dialect_name=DRIVER, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    url = make_url(context.config.get_main_option("sqlalchemy.url") or os.environ["DATABASE_URL"])
    with create_engine(url.set(drivername=DRIVER), poolclass=pool.NullPool).connect() as connection:
        context.configure(connection=connection, transaction_per_migration=True)
        with context.begin_transaction():
            context.run_migrations()
'''

ALEMBIC_SETTINGS = {"alembic.ini": INI, "migrations/env.py": ENV}

REVISION = '''\
"""{message}

Revision ID: {id}
Revises: {parent}
Create Date: 2025-10-06 09:12:44.310291
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "{id}"
down_revision: str | tuple[str, ...] | None = {down_revision}
branch_labels: str | tuple[str, ...] | None = None
depends_on: str | tuple[str, ...] | None = None


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''

CREATE_TABLE = """\
op.create_table(
        "{table}",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_{table}")),
    )"""
TYPES = ("sa.Text()", "sa.Integer()", "sa.Boolean(), server_default=sa.false(), nullable=False")


@dataclass(frozen=True)
class Revision:
    """One step of the history.

    Args:
        number: its place, from 1.
        message: what it does, in words.
        upgrade: what it does, in Alembic's operations.
        downgrade: the way back.
        sql: what it does, in SQL.
    """

    number: int
    message: str
    upgrade: str
    downgrade: str
    sql: str = ""

    @property
    def id(self) -> str:
        """As random as those that Alembic makes."""
        return _id(self.number)

    @property
    def slug(self) -> str:
        """The message as part of a file name."""
        return self.message.replace(" ", "_")


def mixed(number: int) -> Revision:
    """A revision of a project that grows: a table, its columns, its indexes."""
    table, step = f"orders_{(number - 1) // 10 + 1}", (number - 1) % 10
    if step == 0:
        return Revision(number, f"create {table}", CREATE_TABLE.format(table=table), f'op.drop_table("{table}")')
    if step % 3 == 0:
        column, index = f"field_{step - 1}", f"ix_{table}_{step - 1}"
        create = f'op.create_index("{index}", "{table}", ["{column}"])'
        return Revision(number, f"index {column} of {table}", create, f'op.drop_index("{index}", "{table}")')
    return _add_column(number, table, f"field_{step}", TYPES[step % len(TYPES)])


def widening(number: int) -> Revision:
    """A revision of a project with one table, which gets a column each time."""
    return mixed(1) if number == 1 else _add_column(number, "orders_1", f"field_{number}", TYPES[0])


def history(count: int, kind: Callable[[int], Revision], folder: Path) -> list[Revision]:
    """The first revisions of a kind, each with the SQL that ``alembic upgrade --sql`` prints for it.

    Args:
        count: how many.
        kind: ``mixed`` or ``widening``.
        folder: for the Alembic project; made when missing.
    """
    revisions = [kind(number) for number in range(1, count + 1)]
    write([*ALEMBIC_SETTINGS.items(), *map(alembic_file, revisions)], folder)
    offline = [sys.executable, "-m", "alembic", "upgrade", "head", "--sql"]
    printed = subprocess.run(offline, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    steps = re.findall(
        r"^-- Running upgrade [^\n]*-> (\w+)\n\n(.*?)\n\n(?:INSERT INTO|UPDATE) alembic_version",
        printed.stdout.decode(),
        re.MULTILINE | re.DOTALL,
    )
    sql = dict(steps)
    return [replace(revision, sql=sql[revision.id] + "\n") for revision in revisions]


def alembic_file(revision: Revision) -> tuple[str, str]:
    """The revision as a file of an Alembic project, as Alembic's template writes it: path and content."""
    parent = _id(revision.number - 1) if revision.number > 1 else ""
    text = REVISION.format(
        message=revision.message,
        id=revision.id,
        parent=parent,
        down_revision=f'"{parent}"' if parent else None,
        upgrade=revision.upgrade,
        downgrade=revision.downgrade,
    )
    return f"migrations/versions/{revision.id}_{revision.slug}.py", text


def write(files: Iterable[tuple[str, str]], folder: Path) -> None:
    """Write files, each a path in the folder and a content."""
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def _add_column(number: int, table: str, column: str, kind: str) -> Revision:
    add = f'op.add_column("{table}", sa.Column("{column}", {kind}))'
    return Revision(number, f"add {column} to {table}", add, f'op.drop_column("{table}", "{column}")')


def _id(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:12]
