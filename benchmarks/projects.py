"""A project and a database of one tool: brought to a state, and migrated while a clock runs."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2
import psycopg2.extensions

from benchmarks.history import Revision, write
from benchmarks.peers import Tool
from local_aws.machine import CLONE
from local_aws.postgres import HOST, Postgres


class FailedError(RuntimeError):
    """A tool failed, or left the database where it should not be."""


@dataclass(frozen=True)
class Sample:
    """One run: what was timed, and the peak memory of the tool's process."""

    seconds: float
    megabytes: float


class Project:
    """A folder and a database.

    Args:
        tool: whose.
        folder: must be empty.
        postgres: the server that gets the database.
    """

    def __init__(self, tool: Tool, folder: Path, postgres: Postgres) -> None:
        self.tool = tool
        self._folder = folder
        self._postgres = postgres
        self._revisions: list[Revision] = []
        self._database = f"bench_{secrets.token_hex(6)}"
        self._password = secrets.token_hex(12)
        write(tool.settings.items(), folder)
        for package in tool.packages:
            shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))

    def create_database(self) -> None:
        """An empty one, in place of the last."""
        self.drop_database()
        self._postgres.create_database(self._database, owner=self._database, password=self._password)

    def drop_database(self) -> None:
        """No error when there is none."""
        self._postgres.drop_database(self._database)

    def connect(self) -> psycopg2.extensions.connection:
        """A connection in autocommit."""
        connection = psycopg2.connect(self._environment["DATABASE_URL"])
        connection.autocommit = True
        return connection

    def add(self, revisions: Sequence[Revision]) -> None:
        """Add revisions, as the next release of a team does.

        Raises:
            FailedError: the tool's build failed.
        """
        write(map(self.tool.file, revisions), self._folder)
        for command in self.tool.build:
            built = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, check=False)
            if built.returncode:
                raise self._failed(built.returncode, built.stdout + built.stderr)
        self._revisions += revisions

    def add_applied(self, revisions: Sequence[Revision]) -> None:
        """Add revisions that the database has been through already.

        The tool applies the first two itself and so makes its version table; for the others, what it would have
        written is written here, in seconds. A last run is for what it notes down when all is applied.
        """
        self.add(revisions[:2])
        self.run()
        rest = revisions[2:]
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for begin in range(0, len(rest), 100):
                cursor.execute("".join(revision.sql for revision in rest[begin : begin + 100]))
            for revision in rest:
                cursor.execute(self.tool.record, {"version": self.tool.version(revision), "name": revision.message})
        self.add(rest)
        self.run()

    def run(self) -> Sample:
        """Run the tool to its end.

        Raises:
            FailedError: it failed, or it has not recorded the newest revision.
        """
        measured, said = self._launch()
        seconds, megabytes, exit_code = json.loads(measured)
        if exit_code:
            raise self._failed(exit_code, said)
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(self.tool.newest)
            found = cursor.fetchall()
        expected = self.tool.version(self._revisions[-1])
        if found != [(expected,)]:
            raise FailedError(f"it ended well, but {expected} is not the newest revision in the database")
        return Sample(seconds, megabytes)

    @property
    def _environment(self) -> dict[str, str]:
        """Nothing of the shell's but where programs are; the same kind of connection for every tool."""
        address = f"{HOST}:{self._postgres.port}"
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DATABASE_URL": f"postgresql://{self._database}:{self._password}@{address}/{self._database}",
            "PGHOST": HOST,
            "PGPORT": str(self._postgres.port),
            "PGUSER": self._database,
            "PGPASSWORD": self._password,
            "PGDATABASE": self._database,
            **self.tool.environment,
        }

    def _failed(self, exit_code: int, said: str) -> FailedError:
        lines = said.replace(self._password, "***").strip().splitlines() or ["it said nothing"]
        return FailedError(f"exit code {exit_code}: {lines[-1]}")

    def _launch(self) -> tuple[str, str]:
        launcher = [sys.executable, "-I", "-S", str(CLONE / "benchmarks" / "launch.py")]
        with subprocess.Popen(
            [*launcher, *self.tool.command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                return process.communicate()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def projects(tools: Sequence[Tool], folder: Path, postgres: Postgres) -> Iterator[list[Project]]:
    """A project with an empty database for each tool; all are removed in the end."""
    with ExitStack() as stack:
        made = []
        for tool in tools:
            project = Project(tool, Path(stack.enter_context(TemporaryDirectory(dir=folder))), postgres)
            stack.callback(project.drop_database)
            project.create_database()
            made.append(project)
        yield made
