"""What other teams install: the wheel in an environment of its own, and the README's example made with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from local_aws import release
from local_aws.machine import CLONE

HOME = os.environ["HOME_OF_USER"]
pytestmark = pytest.mark.e2e

# What the example of the snapshot helper imports.
SHOP = """
import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2, aws_ecs as ecs, aws_secretsmanager as secretsmanager

from constructs_lib import AlembicMigrations, MigrationTask


class ShopStack(cdk.Stack):
    def __init__(self, scope, construct_id):
        super().__init__(scope, construct_id)
        MigrationTask(
            self,
            "Migration",
            cluster=ecs.Cluster(self, "Cluster", vpc=ec2.Vpc(self, "Vpc")),
            image=ecs.ContainerImage.from_registry("shop:1"),
            migrations=AlembicMigrations("alembic.ini"),
            database_secret=secretsmanager.Secret(self, "Secret"),
        )
"""


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


@pytest.fixture(scope="module")
def infrastructure(wheel: Path, constraints: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with ``[cdk]``."""
    return installed(f"{wheel}[cdk]", constraints, tmp_path_factory.mktemp("infrastructure"))


@pytest.fixture(scope="module")
def image(wheel: Path, constraints: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with ``[runner]``."""
    return installed(f"{wheel}[runner]", constraints, tmp_path_factory.mktemp("image"))


def installed(requirement: str, constraints: str, folder: Path) -> str:
    """Install it in an environment of its own; the environment's Python."""
    # With this pip instead of one in there, which would take seconds to install; so would the bytecode of CDK.
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    python = str(folder / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", constraints, requirement, HOME=HOME)
    return python


def distributions(python: str) -> set[str]:
    """The names of what is installed, in the form in which the package index has them."""
    program = "import importlib.metadata as m; print(*(one.metadata['Name'] for one in m.distributions()))"
    return {re.sub(r"[-_.]+", "-", name).lower() for name in run(python, "-P", "-c", program).split()}


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


def test_neither_extra_brings_what_the_other_is_for(infrastructure: str, image: str) -> None:
    for_cdk, for_runner = distributions(infrastructure), distributions(image)

    assert {"aws-cdk-lib", "constructs", "jsii"} <= for_cdk
    assert for_runner - {"greenlet"} == {
        "alembic",
        "cdk-migration-task",
        "mako",
        "markupsafe",
        "psycopg2-binary",
        "sqlalchemy",
        "typing-extensions",
    }
    assert for_cdk & for_runner == {"cdk-migration-task", "typing-extensions"}
    # Nor what runs tests, which the snapshot helper is for.
    assert for_cdk.isdisjoint({"boto3", "pytest", "psycopg2", "psycopg"})


def test_the_example_of_the_readme_is_synthesized_from_the_installed_wheel(infrastructure: str, tmp_path: Path) -> None:
    app = tmp_path / "shop"
    release.copy(app)
    blocks = re.findall(r"```python\n(.*?)```", (CLONE / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "App()" in block)
    (app / "app.py").write_text(example)
    # -P keeps the working directory out of the path: what is imported is what was installed. In that environment is
    # neither Alembic nor SQLAlchemy, and yet the revisions are read.
    run(infrastructure, "-P", "app.py", cwd=app, CDK_OUTDIR=str(tmp_path / "out"))

    template = json.loads((tmp_path / "out" / "Shop.template.json").read_text())
    (migration,) = (one for one in template["Resources"].values() if one["Type"] == "Custom::DatabaseMigration")
    assert migration["Properties"]["Revisions"][0] == "49871d03964c rename name to sku"


def test_the_example_of_the_snapshot_helper_runs_with_the_installed_wheel(infrastructure: str, tmp_path: Path) -> None:
    page = (CLONE / "docs" / "REFERENCE.md").read_text()
    (example,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "assert_matches" in one)
    (name,) = re.findall(r"def (test_\w+)", example)
    (tmp_path / "test_shop.py").write_text(f"{example}\n\n{name}()\n")
    (tmp_path / "shop.py").write_text(SHOP)
    shutil.copy(CLONE / "alembic.ini", tmp_path)
    shutil.copytree(CLONE / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))

    run(infrastructure, "test_shop.py", cwd=tmp_path, UPDATE_SNAPSHOTS="1")
    snapshot = (tmp_path / "snapshots" / "Shop.json").read_text()
    assert "49871d03964c rename name to sku" in snapshot
    assert '"S3Key": "ASSET.zip"' in snapshot

    # As another release of the wheel would: its function has other code, and so another hash.
    package = run(infrastructure, "-P", "-c", "import constructs_lib as c; print(c.__path__[0])", cwd=tmp_path).strip()
    assert Path(package).is_relative_to(Path(infrastructure).parent.parent), "what is changed here must be a copy"
    with (Path(package) / "trigger_handler" / "index.py").open("a") as code:
        code.write("# another release\n")
    run(infrastructure, "test_shop.py", cwd=tmp_path, UPDATE_SNAPSHOTS="")


def test_the_runner_of_the_wheel_needs_no_cdk(image: str, tmp_path: Path) -> None:
    assert "upgrade" in run(image, "-P", "-m", "migration_runner", "--help", cwd=tmp_path)
