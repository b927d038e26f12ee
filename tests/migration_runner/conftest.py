"""The runner as a real process, and Alembic projects as `alembic init` makes them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config

from migration_runner.report import Report
from migration_runner.revisions import Revision
from migration_runner.runner import run as run_command
from migration_runner.target import Request
from tests.conftest import Database
from tests.migration_runner.zygote import BARE_ENVIRONMENT as BARE_ENVIRONMENT
from tests.migration_runner.zygote import ROOT as ROOT
from tests.migration_runner.zygote import Ways, complete


@pytest.fixture(scope="session", autouse=True)
def _zygote() -> Iterator[None]:
    yield
    if Ways.zygote:
        Ways.zygote.end()


@pytest.fixture(autouse=True)
def _ways(request: pytest.FixtureRequest) -> None:
    Ways.fresh = request.node.get_closest_marker("fresh") is not None


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    exit_code: int
    output: str
    errors: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every line of standard output; each must be JSON."""
        return [json.loads(line) for line in self.output.splitlines()]

    @property
    def result(self) -> dict[str, Any]:
        """The last line."""
        last = self.events[-1]
        assert last["event"] == "migration.result"
        return last

    @property
    def error(self) -> dict[str, Any]:
        """The result's error."""
        error = self.result["error"]
        assert isinstance(error, dict)
        return error

    def named(self, event: str) -> list[dict[str, Any]]:
        """The events of this name."""
        return [line for line in self.events if line["event"] == event]


def run(*arguments: str, project: Path = ROOT, environment: Mapping[str, str]) -> Outcome:
    """Run ``python -m migration_runner`` in the folder of a project, to its end."""
    done = complete(arguments, cwd=project, env={**BARE_ENVIRONMENT, **environment}, timeout=60)
    return Outcome(done.returncode, done.stdout, done.stderr)


def migrate(database: Database, *arguments: str, project: Path = ROOT, **environment: str) -> Outcome:
    """Run a command against the test's database."""
    return run(*arguments, project=project, environment={"DATABASE_URL": database.url, **environment})


def migrate_here(database: Database, command: str, revision: str | None = None, *, project: Path) -> Outcome:
    """Run a command in this process, to save the time of starting one."""
    lines = io.StringIO()
    request = Request(command, project / "alembic.ini", 5, revision)
    exit_code = run_command(request, {"DATABASE_URL": database.url}, Report(lines))
    return Outcome(exit_code, lines.getvalue(), "")


@dataclass(frozen=True)
class Project:
    """An Alembic project in a folder of its own."""

    path: Path

    def write(
        self, revision: str, parents: object, upgrade: str = "pass", downgrade: str = "pass", **more: object
    ) -> Path:
        """Write a revision file; ``upgrade`` and ``downgrade`` are Python on one line, ``more`` other assignments."""
        path = self.path / "migrations" / "versions" / f"{revision}_step.py"
        values = {"revision": revision, "down_revision": parents, **more}
        assignments = "\n".join(f"{name} = {value!r}" for name, value in values.items())
        functions = f"def upgrade():\n    {upgrade}\n\n\ndef downgrade():\n    {downgrade}\n"
        path.write_text(f'"""step {revision}"""\n\nfrom alembic import op\n\n{assignments}\n\n\n{functions}')
        return path


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """What `alembic init` writes, unmodified, and not one revision."""
    ini = tmp_path / "project" / "alembic.ini"
    ini.parent.mkdir()
    command.init(Config(str(ini), stdout=io.StringIO()), str(ini.parent / "migrations"))
    return Project(ini.parent)


def revision(name: str, *parents: str, phase: str = "expand") -> Revision:
    """A revision for decisions that need no file."""
    return Revision(name, parents, (), f"step {name}", "0" * 64, f"{name}.py", phase=phase)
