"""What the image is built from, and so what makes a new image."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ecr_assets as ecr_assets

from local_aws.machine import CLONE

PARTS = ["Dockerfile", ".dockerignore", "requirements-image.txt", "alembic.ini"]
PACKAGES = ["migrations", "migration_runner", "inventory_service"]
OTHERS = ["README.md", "tests/test_x.py", "requirements-image.in", "stacks/stage.py", ".git/HEAD", ".venv/bin/python"]
LEFTOVERS = ["inventory_service/__pycache__/api.cpython-313.pyc", "migrations/versions/__pycache__/x.pyc"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with all that the image needs, and with much that it does not."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for part in PARTS:
        shutil.copy(CLONE / part, folder)
    for package in PACKAGES:
        shutil.copytree(CLONE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in OTHERS + LEFTOVERS:
        write(folder / path, "as it was")
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def staged(clone: Path) -> Path:
    """The context that the CDK hands to Docker; its path ends with the image's hash."""
    cdk.AssetStaging.clear_asset_hash_cache()
    app = cdk.App(outdir=str(clone.parent / "cdk.out"))
    image = ecr_assets.DockerImageAsset(
        cdk.Stack(app, "Stack"), "Image", directory=str(clone), ignore_mode=cdk.IgnoreMode.DOCKER
    )
    return clone.parent / "cdk.out" / f"asset.{image.asset_hash}"


def test_the_context_holds_exactly_what_the_image_needs(clone: Path) -> None:
    context = staged(clone)
    found = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()}
    packaged = {str(path.relative_to(clone)) for package in PACKAGES for path in (clone / package).rglob("*.*")}
    assert found == {path for path in packaged | set(PARTS) if "__pycache__" not in path}


@pytest.mark.parametrize("path", OTHERS + LEFTOVERS)
def test_a_change_of_what_the_image_does_not_hold_changes_no_hash(clone: Path, path: str) -> None:
    before = staged(clone)
    write(clone / path, "edited")
    assert staged(clone) == before


@pytest.mark.parametrize(
    "path", ["inventory_service/api.py", "migrations/versions/new.py", "alembic.ini", "Dockerfile"]
)
def test_a_change_of_what_the_image_holds_changes_its_hash(clone: Path, path: str) -> None:
    before = staged(clone)
    write(clone / path, "FROM edited")
    assert staged(clone) != before


def test_every_file_that_the_dockerfile_copies_is_in_the_context(clone: Path) -> None:
    context = staged(clone)
    copied = re.findall(r"^COPY ([^-\s]\S*) ", (CLONE / "Dockerfile").read_text(), re.MULTILINE)
    assert set(copied) == {*PACKAGES, "alembic.ini", "requirements-image.txt"}
    assert all((context / path).exists() for path in copied)
