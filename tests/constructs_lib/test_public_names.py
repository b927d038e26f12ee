from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import constructs_lib

PROGRAM = """
import sys
before = set(sys.modules)
import constructs_lib
ours = {name for name in set(sys.modules) - before if name.split(".")[0] in ("migration_runner", "boto3", "alembic")}
sys.exit(", ".join(ours - {"migration_runner", "migration_runner.manifest", "migration_runner.revisions"}) or None)
"""


def test_other_teams_get_these_names_and_only_these() -> None:
    assert constructs_lib.__all__ == ["AlembicMigrations", "MigrationTask", "OnRollback"]
    assert all(getattr(constructs_lib, name).__doc__ for name in constructs_lib.__all__)


def test_the_library_is_typed() -> None:
    assert (Path(constructs_lib.__file__).parent / "py.typed").exists()


def test_importing_the_library_imports_nothing_of_the_runner_but_its_reader() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=Path(constructs_lib.__file__).parent.parent)
