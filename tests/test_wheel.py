"""What other teams install: the wheel in an environment of its own, and the README's example made with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from local_aws import release
from local_aws.machine import CLONE

HOME = os.environ["HOME_OF_USER"]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    release.copy(folder / "source")
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / "source" / part).write_bytes((CLONE / part).read_bytes())
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(folder / "source"), HOME=HOME)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The versions that are pinned here, so that no new release of a package changes what is tested."""
    pinned = re.findall(r"^([\w.-]+==\S+)", (CLONE / "requirements.txt").read_text(), re.MULTILINE)
    file = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    file.write_text("\n".join(pinned))
    return f"--constraint={file}"


def run(*command: str, cwd: Path = CLONE, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_construct_and_the_runner_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"constructs_lib", "migration_runner"}
    assert {
        "constructs_lib/py.typed",
        "constructs_lib/trigger_handler/index.py",
        "migration_runner/py.typed",
        "migration_runner/rds-global-bundle.pem",
    } <= set(names)


def test_the_example_of_the_readme_is_synthesized_from_the_installed_wheel(
    wheel: Path, constraints: str, tmp_path: Path
) -> None:
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        constraints,
        f"{wheel}[cdk]",
        HOME=HOME,
    )
    installed = run(python, "-m", "pip", "list", "--format=freeze").lower()
    assert "alembic" not in installed
    assert "sqlalchemy" not in installed

    app = tmp_path / "shop"
    release.copy(app)
    blocks = re.findall(r"```python\n(.*?)```", (CLONE / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "App()" in block)
    (app / "app.py").write_text(example)
    # -P keeps the working directory out of the path: what is imported is what was installed.
    run(python, "-P", "app.py", cwd=app, CDK_OUTDIR=str(tmp_path / "out"))

    template = json.loads((tmp_path / "out" / "Shop.template.json").read_text())
    (migration,) = (one for one in template["Resources"].values() if one["Type"] == "Custom::DatabaseMigration")
    assert migration["Properties"]["Revisions"][0] == "49871d03964c rename name to sku"


def test_the_runner_of_the_wheel_needs_no_cdk(wheel: Path, constraints: str, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        constraints,
        f"{wheel}[runner]",
        HOME=HOME,
    )
    assert "aws-cdk" not in run(python, "-m", "pip", "list", "--format=freeze")
    assert "upgrade" in run(python, "-P", "-m", "migration_runner", "--help", cwd=tmp_path)
