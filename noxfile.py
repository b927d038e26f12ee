"""The wheel with the oldest and the newest packages that it claims, on each Python that is found: ``make versions``.

What is claimed stands in pyproject.toml alone. "oldest" installs each package of an extra at its lower bound, "newest"
whatever pip finds; a marker there may raise a bound for a Python that the older release has no wheel for. The tests run
in a folder that has neither ``constructs_lib`` nor ``migration_runner``: what they import is what was installed.

A Python that is not found on PATH is skipped. One session: ``nox -s "runner-3.14(packages='oldest')"``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

CLONE = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
# What the tests need beside what they test; as pinned for the developer, so that only what is tested varies.
TOOLS = ["boto3", "hypothesis", "psutil", "pytest", "pytest-xdist", "trustme"]
# The trigger's are among them: on AWS it runs on Python 3.14, whatever the developer's is.
CDK_TESTS = ["tests/constructs_lib", "tests/examples"]
RUNNER_TESTS = [
    *(f"tests/migration_runner/test_{name}.py" for name in ("bridge", "env_py", "inspection", "runner")),
    "tests/migration_runner/test_revision_files.py",
    # It leaves out all that is installed, and so the wheel.
    "--deselect=tests/migration_runner/test_revision_files.py::test_files_are_never_imported_and_only_the_standard_library_is",
]
# What the tests read, and the examples: an image is made of its folder.
BESIDE_THE_WHEEL = ["alembic.ini", "inventory_service", "local_aws", "migrations", "pyproject.toml", "tests"]
BESIDE_THE_WHEEL += ["examples", "Dockerfile", ".dockerignore"]

nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False


@nox.session(python=PYTHONS)
@nox.parametrize("packages", ["oldest", "newest"])
def cdk(session: nox.Session, packages: str) -> None:
    """The construct: ``[cdk]``."""
    # Neither the local AWS nor its PostgreSQL is started, but the tests ask it what it knows.
    install(session, "cdk", packages, *pinned([*TOOLS, "ministack", "psycopg2-binary"]))
    # The Lambda's modules import each other by their bare names.
    where = session.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", silent=True)
    session.env.update(
        CDK_VALIDATION="false",
        PYTHONPATH=f"{str(where).strip()}/constructs_lib/trigger_handler",
        JSII_NODE=os.environ.get("JSII_NODE") or shutil.which("node") or "node",
        JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION="true",
    )
    tests(session, packages, *CDK_TESTS)


@nox.session(python=PYTHONS)
@nox.parametrize("packages", ["oldest", "newest"])
def runner(session: nox.Session, packages: str) -> None:
    """The runner: ``[runner]``, against a real PostgreSQL."""
    install(session, "runner", packages, *pinned([*TOOLS, "psycopg", "psycopg-binary", "greenlet"]))
    tests(session, packages, *RUNNER_TESTS)


def install(session: nox.Session, extra: str, packages: str, *tools: str) -> None:
    """Install the wheel with an extra, and what the tests need."""
    bounds = lower_bounds(extra, str(session.python)) if packages == "oldest" else []
    session.install("--quiet", f"{wheel()}[{extra}]", *bounds, *tools)


def tests(session: nox.Session, packages: str, *arguments: str) -> None:
    """Run them beside the installed wheel."""
    folder = Path(session.create_tmp()) / "tests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in BESIDE_THE_WHEEL:
        copy(CLONE / part, folder / part)
    (folder / "local_aws" / "node_modules").symlink_to(CLONE / "local_aws" / "node_modules")
    session.chdir(folder)
    # What an old release warns of on a newer Python can't be mended here.
    warnings = ["-W", "default"] if packages == "oldest" else []
    pytest = ["python", "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile"]
    session.run(*pytest, *warnings, *arguments, *session.posargs)


@functools.cache
def wheel() -> Path:
    """The wheel of this clone, built once, from a copy: what an earlier build has left in the clone stays out of it."""
    folder = Path(tempfile.mkdtemp(prefix="wheel-"))
    for part in ("pyproject.toml", "README.md", "LICENSE", "constructs_lib", "migration_runner"):
        copy(CLONE / part, folder / "source" / part)
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(folder / "source")]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (made,) = folder.glob("*.whl")
    return made


def lower_bounds(extra: str, python: str) -> list[str]:
    """Each package of an extra at the lower bound that pyproject.toml claims for a Python."""
    bounds: dict[str, Version] = {}
    extras = nox.project.load_toml(CLONE / "pyproject.toml")["project"]["optional-dependencies"]
    for one in map(Requirement, extras[extra]):
        if one.marker is None or one.marker.evaluate({"python_version": python}):
            lowest = max(Version(bound.version) for bound in one.specifier if bound.operator == ">=")
            bounds[one.name] = max(lowest, bounds.get(one.name, lowest))
    return [f"{name}=={version}" for name, version in bounds.items()]


def pinned(names: list[str]) -> list[str]:
    """The packages as the developer's environment has them."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (CLONE / "requirements.txt").read_text(), re.MULTILINE))
    return [f"{name}=={pins[name]}" for name in names]


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder, without what Python, setuptools and npm leave in it."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "node_modules", "*.egg-info"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
