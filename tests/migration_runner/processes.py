"""A run that goes on while the test looks at it, and that is disturbed."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

import psycopg2.extensions

from tests.conftest import Database
from tests.migration_runner.conftest import ROOT, Outcome
from tests.migration_runner.zygote import BARE_ENVIRONMENT, start

Found = TypeVar("Found")
SESSIONS = """
SELECT pid, query FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'migration_runner'
"""


class Runner:
    """A started ``python -m migration_runner``; its output can be read while it runs."""

    def __init__(self, database: Database, project: Path, *arguments: str, **environment: str) -> None:
        self._password = database.password
        self._reading, writing = os.pipe()
        os.set_blocking(self._reading, False)
        variables = {**BARE_ENVIRONMENT, "DATABASE_URL": database.url, **environment}
        self._process = start(arguments, cwd=project, env=variables, stdout=writing, stderr=writing)
        os.close(writing)
        self._output = b""

    @property
    def output(self) -> str:
        """What it has said so far, the line that it is at left out."""
        try:
            while read := os.read(self._reading, 65536):
                self._output += read
        except BlockingIOError:
            pass
        return self._output[: self._output.rfind(b"\n") + 1].decode()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def until(self, event: str, **fields: object) -> dict[str, Any]:
        """Wait for an event with these fields."""

        def seen() -> list[dict[str, Any]]:
            assert self.running or event in self.output, f"it ended without {event}: {self.output}"
            events: list[dict[str, Any]] = [json.loads(line) for line in self.output.splitlines() if event in line]
            return [one for one in events if {"event": event, **fields}.items() <= one.items()]

        return eventually(seen)[0]

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self, seconds: float = 60) -> Outcome:
        """Wait for its end; what it said holds no secret."""
        deadline = time.monotonic() + seconds
        while self.running:
            self.output  # noqa: B018 - a full pipe would hold it up
            assert time.monotonic() < deadline, f"it still runs: {self.output}"
            time.sleep(0.005)
        self.output  # noqa: B018
        outcome = Outcome(self._process.wait(), self._output.decode(), "")
        assert_no_secret(outcome.output, self._password)
        return outcome

    def end(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        self._process.wait()
        os.close(self._reading)


@contextmanager
def started(database: Database, *arguments: str, project: Path = ROOT, **environment: str) -> Iterator[Runner]:
    """A run that goes on; it is killed at the end, should it still run."""
    runner = Runner(database, project, *(arguments or ("upgrade",)), **environment)
    try:
        yield runner
    finally:
        runner.end()


def upgrade(database: Database, project: Path, *arguments: str, **environment: str) -> Outcome:
    """An upgrade, to its end."""
    with started(database, "upgrade", *arguments, project=project, **environment) as runner:
        return runner.finish()


@contextmanager
def transaction(
    database: Database, statement: str, name: str = "reporting"
) -> Iterator[psycopg2.extensions.connection]:
    """A session that has run the statement in a transaction, and leaves that open."""
    session = psycopg2.connect(database.url, application_name=name)
    try:
        with session.cursor() as cursor:
            cursor.execute(statement)
        yield session
    finally:
        session.close()


def eventually(look: Callable[[], Found], seconds: float = 20) -> Found:
    """What ``look`` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not found in {seconds} s"
        time.sleep(0.01)
    return found


def in_statement(database: Database, words: str) -> int:
    """Wait until a session of the runner executes a statement with these words; its process id."""
    statement = f"{SESSIONS} AND state = 'active' AND query LIKE '%{words}%' AND pid <> pg_backend_pid()"
    # A connection for each look would take more of the processor than the run that is waited for.
    with closing(database.connect()) as session, session.cursor() as cursor:

        def seen() -> list[tuple[object, ...]]:
            cursor.execute(statement)
            return cursor.fetchall()

        pid = eventually(seen)[0][0]
    assert isinstance(pid, int)
    return pid


def sessions(database: Database) -> list[tuple[object, ...]]:
    """The runner's sessions, which hold its locks."""
    return database.rows(SESSIONS)


def assert_no_secret(text: str, password: str) -> None:
    """Neither the password nor a half of it is there, however it is written."""
    middle = len(password) // 2
    for secret in (password, password[:middle], password[middle:]):
        assert len(secret) >= 8
        texts = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
        urls = {quote(secret), quote(secret, safe=""), quote_plus(secret)}
        for spelling in {secret} | texts | urls:
            assert not re.search(re.escape(spelling), text, re.IGNORECASE), "a secret is in the output"
            assert json.dumps(spelling)[1:-1].lower() not in text.lower(), "a secret is in the output"
