"""The commands in the documents: those that can run here are run, of the others it is checked that they exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from local_aws import release
from local_aws.machine import CLONE
from tests.conftest import Database

DOCUMENTS = ["README.md", "MIGRATION_QUICK_START.md", "docs/DATABASE_MIGRATIONS.md"]
RUNNABLE = ("alembic ", "python -m migration_runner ")
# They need AWS, or make the environment in which everything here already runs.
ELSEWHERE = (". .venv/bin/activate", "export DATABASE_URL=", "cdk bootstrap", "cdk deploy DevStack", "pip install ")


def commands(document: str) -> list[str]:
    """Every command in the document's shell blocks, without prompts and comments."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", (CLONE / document).read_text(), re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line.removeprefix("$ ")) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_in_a_document_is_in_the_makefile(document: str) -> None:
    menu = subprocess.run(["make", "help"], cwd=CLONE, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^  make ([a-z-]+)", menu, re.MULTILINE))
    asked = {line.split()[1] for line in commands(document) if line.startswith("make ")}
    assert asked
    assert asked <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_a_document_is_of_a_known_kind(document: str) -> None:
    assert [line for line in commands(document) if not line.startswith((*RUNNABLE, *ELSEWHERE, "make "))] == []


@pytest.mark.parametrize("document", DOCUMENTS[1:])
def test_the_commands_for_a_developer_run_in_the_order_in_which_they_stand(
    document: str, tmp_path: Path, database: Database
) -> None:
    app = tmp_path / "app"
    release.copy(app)
    url = {"DATABASE_URL": database.url, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["alembic", "upgrade", "head"], cwd=app, env=os.environ | url, check=True, capture_output=True)
    run = [line for line in commands(document) if line.startswith(RUNNABLE)]
    assert len(run) >= 4
    for line in run:
        done = subprocess.run(
            line, cwd=app, env=os.environ | url, shell=True, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
