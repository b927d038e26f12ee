"""Runs a team's Alembic migrations to completion inside a container: ``python -m migration_runner upgrade``."""
