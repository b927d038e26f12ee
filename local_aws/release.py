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

SLEEPING = '''"""note on parents

Revision ID: 50871d03964e
Revises: 48871d03964b
"""

import sqlalchemy as sa
from alembic import op

revision = "50871d03964e"
down_revision = "48871d03964b"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("parent_items", sa.Column("note", sa.Text()))
    op.execute("SELECT pg_sleep(100)")


def downgrade() -> None:
    op.drop_column("parent_items", "note")
'''

ADDING = '''"""colour of parents

Revision ID: 51871d03964f
Revises: 49871d03964c
"""

import sqlalchemy as sa
from alembic import op

revision = "51871d03964f"
down_revision = "49871d03964c"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("parent_items", sa.Column("colour", sa.Text()))


def downgrade() -> None:
    op.drop_column("parent_items", "colour")
'''

UNDROPPABLE = '''"""drop legacy

Revision ID: 51871d03964a
Revises: 49871d03964c
"""

from alembic import op

revision = "51871d03964a"
down_revision = "49871d03964c"
branch_labels = None
depends_on = None
phase = "contract"


def upgrade() -> None:
    op.drop_table("legacy")


def downgrade() -> None:
    raise NotImplementedError("legacy is gone")
'''

REPORTS_STACK = '''"""A stack beside the service's, on the same database; its migration waits for the service's own."""

import aws_cdk as cdk
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from constructs_lib import MigrationTask
from stacks.data_stack import DataStack
from stacks.service_stack import ROOT

RENAMED = "49871d03964c"
SEEN = f"python -m migration_runner status | grep -q 'at.:.{RENAMED}'"
WAIT = f"for try in $(seq 100); do {SEEN} && exit 0; sleep 0.2; done; exit 1"


class ReportsStack(cdk.Stack):
    """A migration, and a parameter that waits for it."""

    def __init__(self, scope: Construct, construct_id: str, *, data: DataStack) -> None:
        super().__init__(scope, construct_id)
        migration = MigrationTask(
            self,
            "Migration",
            family="dev-reports-migration",
            cluster=data.cluster,
            image=ecs.ContainerImage.from_asset(
                str(ROOT), platform=ecr_assets.Platform.LINUX_AMD64, ignore_mode=cdk.IgnoreMode.DOCKER
            ),
            command=["sh", "-c", WAIT],
            version=RENAMED,
            database_secret=data.database_secret,
            security_groups=[data.database_clients],
            log_group_name="/ecs/dev/reports-migration",
        )
        migration.execute_before(ssm.StringParameter(self, "Ready", string_value="yes"))
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


def add_sleeping_migration(app: Path) -> None:
    """Add a revision to the release before the rename: it adds a column, then has much else to do."""
    (app / "migrations" / "versions" / "50871d03964e_note_on_parents.py").write_text(SLEEPING)


def migrate_with_missing_image(app: Path) -> None:
    """Take the migration's image, and no other, from where there is none."""
    missing = 'image=ecs.ContainerImage.from_registry("registry.example/inventory:gone"),'
    of_migration = "image=self._image,\n            migrations="
    _replace(app / "stacks" / "service_stack.py", of_migration, f"{missing}migrations=")


def migrate_with_missing_command(app: Path) -> None:
    """Give the migration a command that its image does not have."""
    _override(app, "task_definition", "ContainerDefinitions.0.Command", '["migrate-inventory"]')


def shorten_timeout(app: Path) -> None:
    """Give the migration six seconds, in the template alone: the construct grants a minute at least."""
    _override(app, 'node.find_child("Resource")', "Timeout", "6")


def add_reports_stack(app: Path) -> None:
    """Add ReportsStack on the same data stack: its migration, of another tool, ends after that of DevStack."""
    (app / "stacks" / "reports_stack.py").write_text(REPORTS_STACK)
    _replace(app / "app.py", "from stacks.stage", "from stacks.reports_stack import ReportsStack\nfrom stacks.stage")
    added = 'ReportsStack(app, "ReportsStack", data=app.node.find_child("DevDataStack"))'
    _replace(app / "app.py", "    app.synth()", f"    {added}\n    app.synth()")


def break_service(app: Path) -> None:
    """Let the service's container end as soon as it starts."""
    (app / "inventory_service" / "__main__.py").write_text("raise SystemExit('this release can not start')\n")


def break_downgrade(app: Path) -> None:
    """Let the rename be undone only when there is a table ``way_back``."""
    first = 'op.alter_column("parent_items", "sku", new_column_name="name")'
    _replace(app / "migrations" / "versions" / RENAME, first, f'op.execute("DROP TABLE way_back")\n    {first}')


def take_schema_back(app: Path) -> None:
    """Let a rollback of DevStack take the schema back."""
    dev, rest = (app / "stacks" / "stage.py").read_text().split('environment="staging"')
    keep = "on_rollback=OnRollback.KEEP"
    (app / "stacks" / "stage.py").write_text(
        f'{dev.replace(keep, keep.replace("KEEP", "DOWNGRADE"))}environment="staging"{rest}'
    )


def rename_plainly(app: Path) -> None:
    """Let the rename cost what it costs elsewhere: without a contract, and without a bridge."""
    _replace(app / "stacks" / "service_stack.py", "        self._contract()\n", "")
    _replace(app / "stacks" / "service_stack.py", "self.migration.contract_status", '"none"')


def break_contract(app: Path) -> None:
    """Let the contract fail, by a contract revision that can't be applied."""
    (app / "migrations" / "versions" / "51871d03964a_drop_legacy.py").write_text(UNDROPPABLE)


def fail_after_contract(app: Path) -> None:
    """Add a resource after the contract that can't be made."""
    last = "self._contract()"
    broken = (
        'cdk.CustomResource(self, "Broken", service_token=self.migration.node.find_child("Trigger").function'
        '.function_arn, properties={"Contract": self.migration.contract_status})'
    )
    _replace(app / "stacks" / "service_stack.py", last, f"{last}\n        {broken}")


def add_column(app: Path) -> None:
    """Add a revision that the release before can live with."""
    (app / "migrations" / "versions" / "51871d03964f_colour_of_parents.py").write_text(ADDING)


def proceed_when_database_is_ahead(app: Path) -> None:
    """Let a release pass that is older than the schema."""
    argument = "on_rollback=self._stage.on_rollback,"
    _replace(app / "stacks" / "service_stack.py", argument, f'{argument} on_database_ahead="proceed",')


def change_code_only(app: Path) -> None:
    """Change the service's image and nothing that the schema knows of."""
    module = app / "inventory_service" / "__init__.py"
    module.write_text(module.read_text() + "\n# A release that changes code only.\n")


def _override(app: Path, part: str, name: str, value: str) -> None:
    """Give a part of the migration a property in the template that the construct would not give it."""
    last = "self.migration.execute_before(self.service, self._rotation())"
    override = f'self.migration.{part}.node.default_child.add_property_override("{name}", {value})'
    _replace(app / "stacks" / "service_stack.py", last, f"{last}\n        {override}")


def _replace(module: Path, old: str, new: str) -> None:
    """Replace what the module has exactly once: a release that silently stays as it was would test nothing."""
    text = module.read_text()
    if text.count(old) != 1:
        raise ValueError(f"{module.name} has {text.count(old)} times {old!r}, but must have it once.")
    module.write_text(text.replace(old, new))
