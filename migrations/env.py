"""Alembic's environment: which database, which models, and one transaction per migration.

The URL is the one that the migration runner has set on the configuration, or DATABASE_URL for a developer at a shell.
Writing SQL (``alembic upgrade head --sql``) needs neither.
"""

from __future__ import annotations

import os

from alembic import context
from alembic.util import CommandError
from sqlalchemy import URL, create_engine, make_url, pool
from sqlalchemy.exc import ArgumentError

from inventory_service.models import Base
from migration_runner.autogenerate import without_bridges

DRIVER = "postgresql+psycopg2"


def database_url() -> URL:
    """Where to connect; a bare ``postgresql://`` would mean psycopg 3 since SQLAlchemy 2.1.

    Raises:
        CommandError: there is no URL, or it can't be read.
    """
    given = context.config.get_main_option("sqlalchemy.url") or os.environ.get("DATABASE_URL")
    if not given:
        raise CommandError("Set DATABASE_URL to the database to work on: postgresql://user:password@host:5432/dbname")
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in ("postgres", "postgresql", DRIVER):
        # The value holds a password, and so may what SQLAlchemy says about it.
        raise CommandError("DATABASE_URL can't be read: write postgresql://user:password@host:5432/dbname")
    return url.set(drivername=DRIVER)


def write_sql() -> None:
    """Print the migrations as SQL; no database is needed."""
    context.configure(
        dialect_name=DRIVER,
        target_metadata=Base.metadata,
        transaction_per_migration=True,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate() -> None:
    """Run the migrations in the database."""
    with create_engine(database_url(), poolclass=pool.NullPool).connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=Base.metadata,
            transaction_per_migration=True,
            include_object=without_bridges(connection),
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    write_sql()
else:
    migrate()
