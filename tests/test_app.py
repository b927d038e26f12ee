"""``app.py`` as the CDK CLI runs it: no credentials, no Docker, and one sentence for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from local_aws import release
from local_aws.machine import CLONE


def synth(app: Path, out: Path, **context: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_DOCKER"))}
    flags = json.loads((CLONE / "cdk.json").read_text())["context"]
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=app,
        env=kept | {"CDK_CONTEXT_JSON": json.dumps(flags | context), "CDK_OUTDIR": str(out)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def app(tmp_path: Path) -> Path:
    release.copy(tmp_path / "app")
    return tmp_path / "app"


def test_it_synthesizes_two_stacks_for_each_stage_that_are_bound_to_no_account_and_no_region(
    app: Path, tmp_path: Path
) -> None:
    made = synth(app, tmp_path / "out")
    assert made.returncode == 0, made.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    stacks = {key: value for key, value in manifest["artifacts"].items() if value["type"] == "aws:cloudformation:stack"}
    assert set(stacks) == {f"{stage}{kind}" for stage in ("Dev", "Staging", "Prod") for kind in ("DataStack", "Stack")}
    assert {stack["environment"] for stack in stacks.values()} == {"aws://unknown-account/unknown-region"}
    assert "missing" not in manifest


def test_the_image_is_built_for_the_processor_that_every_task_runs_on(app: Path, tmp_path: Path) -> None:  # E10
    assert synth(app, tmp_path / "out").returncode == 0
    assets = json.loads((tmp_path / "out" / "DevStack.assets.json").read_text())
    template = json.loads((tmp_path / "out" / "DevStack.template.json").read_text())
    platforms = {image["source"]["platform"] for image in assets["dockerImages"].values()}
    tasks = [one for one in template["Resources"].values() if one["Type"] == "AWS::ECS::TaskDefinition"]
    processors = [one["Properties"]["RuntimePlatform"]["CpuArchitecture"] for one in tasks]
    assert platforms == {"linux/amd64"}
    assert processors == ["X86_64", "X86_64"]


def test_an_unknown_stage_ends_in_one_sentence(app: Path, tmp_path: Path) -> None:
    refused = synth(app, tmp_path / "out", stage="qa")
    assert (refused.returncode, refused.stderr) == (2, "error: unknown stage 'qa': use one of dev, staging, prod\n")


def test_migrations_that_can_not_be_read_end_in_one_sentence(app: Path, tmp_path: Path) -> None:
    versions = app / "migrations" / "versions"
    text = (versions / release.RENAME).read_text().replace("49871d03964c", "59871d03964e")
    (versions / "59871d03964e_again.py").write_text(text)
    refused = synth(app, tmp_path / "out")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "2 heads" in refused.stderr
    assert "49871d03964c" in refused.stderr
    assert "59871d03964e" in refused.stderr


def test_a_readme_edit_changes_no_image_and_a_code_edit_does(app: Path, tmp_path: Path) -> None:
    def images(out: Path) -> set[str]:
        assert synth(app, out).returncode == 0
        assets = json.loads((out / "DevStack.assets.json").read_text())
        return set(assets["dockerImages"])

    first = images(tmp_path / "1")
    (app / "README.md").write_text("another text")
    assert images(tmp_path / "2") == first
    release.change_code_only(app)
    assert images(tmp_path / "3").isdisjoint(first)
