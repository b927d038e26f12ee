"""Image assets without Docker: an image is its build context, and a container runs from it.

The CDK CLI calls this module as its ``docker`` (CDK_DOCKER). A build keeps the context under the asset's hash, which
is also the image's tag in ECR, so that each release goes on running its own code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

STORE = "LOCAL_AWS_IMAGES"


class ImageError(RuntimeError):
    """There is no such image, or its Dockerfile asks for what can't be done without Docker."""


@dataclass(frozen=True)
class Image:
    """What a container needs of an image: its files, environment and command."""

    folder: Path
    environment: dict[str, str]
    command: list[str]


def build(context: Path, dockerfile: Path, tag: str) -> None:
    """Keep ``context`` as the image ``tag``; the last stage of its Dockerfile says what runs and with which ENV."""
    folder = _folder(tag)
    if folder.exists():
        return
    config = _parse(dockerfile.read_text())
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.copytree(context, part / "files")
    (part / "image.json").write_text(json.dumps(config))
    part.rename(folder)


def find(reference: str) -> Image:
    """The image behind a reference such as ``REPOSITORY:TAG`` or ``REPOSITORY@sha256:TAG``.

    Raises:
        ImageError: when it was never built.
    """
    folder = _folder(reference)
    if not folder.exists():
        raise ImageError(f"CannotPullContainerError: {reference}: not found")
    config = json.loads((folder / "image.json").read_text())
    files = folder / "files"
    # The context stands where the image has its working directory.
    environment = {
        name: re.sub(f"^{re.escape(config['workdir'])}(?=/|$)", str(files), value)
        for name, value in config["environment"].items()
    }
    return Image(files, environment, config["command"])


def _folder(reference: str) -> Path:
    return Path(os.environ[STORE]) / re.split("[:/-]", reference)[-1]


def _parse(dockerfile: str) -> dict[str, object]:
    environment: dict[str, str] = {}
    workdir, command = "/", list[str]()
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        instruction, _, value = line.strip().partition(" ")
        match instruction.upper():
            case "FROM":
                environment, workdir, command = {}, "/", []
            case "WORKDIR":
                workdir = value.strip()
            case "ENV":
                environment |= dict(pair.split("=", 1) for pair in value.split())
            case "CMD":
                command = json.loads(value)
            case "ENTRYPOINT":
                raise ImageError("an image with an ENTRYPOINT needs Docker: use CMD")
    return {"environment": environment, "workdir": workdir, "command": command}


def main(arguments: list[str]) -> int:
    """Do what the CDK CLI asks of ``docker``; the exit code is Docker's: 0, or 1 with a sentence on stderr."""
    match arguments:
        case ["build", *options, context]:
            named = dict(zip(options[::2], options[1::2], strict=True))
            folder = Path(context)
            build(folder, folder / named.get("--file", "Dockerfile"), named["--tag"])
        case ["inspect", reference]:
            return 0 if _folder(reference).exists() else 1
        case ["tag", reference, _]:
            find(reference)
        case ["push", reference]:
            find(reference)
        case ["login", *_]:
            sys.stdin.read()
        case _:
            print(f"docker {' '.join(arguments)}: not known to the local AWS", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ImageError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
