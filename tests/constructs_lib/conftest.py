"""A network with a database, and a migration of it. Imported only when asked for: the trigger's tests need no CDK."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.constructs_lib.projects import alembic_project

if TYPE_CHECKING:
    from constructs import Construct

    from constructs_lib import AlembicMigrations, MigrationTask
    from tests.constructs_lib.templates import Data, Migrate


@pytest.fixture
def data() -> Data:
    import aws_cdk as cdk

    from tests.constructs_lib.templates import Data

    return Data(cdk.App())


@pytest.fixture
def migrations(tmp_path: Path) -> AlembicMigrations:
    from constructs_lib import AlembicMigrations
    from tests.constructs_lib.templates import CHAIN

    return AlembicMigrations(alembic_project(tmp_path, CHAIN, message="rename name to sku"))


@pytest.fixture
def migrate(data: Data, migrations: AlembicMigrations) -> Migrate:
    """Make a migration, in the data stack unless another scope is given."""
    from constructs_lib import MigrationTask
    from tests.constructs_lib.templates import IMAGE

    def make(scope: Construct = data, construct_id: str = "Migration", **arguments: Any) -> MigrationTask:
        given = {
            "migrations": migrations,
            "image": IMAGE,
            "database_secret": data.secret,
            "security_groups": [data.clients],
            **arguments,
        }
        return MigrationTask(scope, construct_id, cluster=data.cluster, **given)

    return make
