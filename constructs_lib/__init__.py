"""An AWS CDK construct that migrates a private database inside its VPC before the services update."""

from constructs_lib.alembic_migrations import AlembicMigrations
from constructs_lib.migration_task import MigrationTask, OnRollback

__all__ = ["AlembicMigrations", "MigrationTask", "OnRollback"]
