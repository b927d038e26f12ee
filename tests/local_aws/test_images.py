from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from local_aws import images
from local_aws.machine import CLONE

DOCKERFILE = """\
FROM python:3.13-slim AS build
ENV STAGE=build
FROM python:3.13-slim
WORKDIR /app
ENV MODE=plain \\
    CERTIFICATES=/app/certificates.pem ELSEWHERE=/application
CMD ["python", "-m", "service"]
"""
HASH = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.setenv(images.STORE, str(folder))
    return folder


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "service.py").write_text("print('release 1')")
    return folder


def docker(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local_aws.images", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(CLONE), images.STORE: str(cwd.parent / "images")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_image_has_the_environment_and_the_command_of_the_last_stage(context: Path) -> None:
    images.build(context, context / "Dockerfile", f"cdkasset-{HASH}")
    image = images.find(f"0.dkr.ecr.us-west-2.amazonaws.com/assets:{HASH}")
    assert image.command == ["python", "-m", "service"]
    assert image.environment == {
        "MODE": "plain",
        "CERTIFICATES": str(image.folder / "certificates.pem"),
        "ELSEWHERE": "/application",
    }


def test_an_image_keeps_its_code_when_the_context_changes(context: Path) -> None:
    images.build(context, context / "Dockerfile", HASH)
    (context / "service.py").write_text("print('release 2')")
    assert "release 1" in (images.find(HASH).folder / "service.py").read_text()


def test_what_the_cdk_cli_asks_of_docker_is_answered(context: Path) -> None:
    tag, uri = f"cdkasset-{HASH}", f"registry/assets:{HASH}"
    assert docker("inspect", tag, cwd=context).returncode == 1
    assert docker("build", "--tag", tag, "--platform", "linux/amd64", ".", cwd=context).returncode == 0
    assert docker("inspect", tag, cwd=context).returncode == 0
    assert docker("tag", tag, uri, cwd=context).returncode == 0
    assert docker("push", uri, cwd=context).returncode == 0


def test_what_docker_alone_can_do_is_refused_in_one_sentence(context: Path) -> None:
    asked = docker("compose", "up", cwd=context)
    assert (asked.returncode, asked.stderr) == (1, "docker compose up: not known to the local AWS\n")
    (context / "Dockerfile").write_text('FROM x\nENTRYPOINT ["sh"]\n')
    asked = docker("build", "--tag", HASH, ".", cwd=context)
    assert (asked.returncode, asked.stderr) == (1, "an image with an ENTRYPOINT needs Docker: use CMD\n")


def test_an_image_that_was_never_built_can_not_be_pulled() -> None:
    with pytest.raises(images.ImageError, match="CannotPullContainerError: assets:beef: not found"):
        images.find("assets:beef")
