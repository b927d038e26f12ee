"""The service as a process of its own, on a real database."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from local_aws.machine import CLONE
from local_aws.postgres import HOST, Postgres, free_port
from tests.conftest import Database

DEADLINE = 30


class Service:
    """``python -m inventory_service`` in ``folder``, with nothing but ``environment``, a host and a free port."""

    def __init__(self, folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self.folder = folder
        self.environment = {**environment, "HOST": HOST, "PORT": str(free_port())}
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "inventory_service"],
                cwd=folder,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        self.client = httpx.Client(base_url=f"http://{HOST}:{self.environment['PORT']}", timeout=DEADLINE)

    def wait_until_alive(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.client.get("/health").raise_for_status()
            except httpx.ConnectError:
                time.sleep(0.02)
            else:
                return
        pytest.fail(f"The service did not start: {self.log.read_text()}")

    def health_check(self) -> subprocess.CompletedProcess[str]:
        """The command that the container's health check runs."""
        command = [sys.executable, "-W", "error", "-m", "inventory_service.ready"]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )

    def stop(self) -> int:
        """Send SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE)

    def clean_up(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(DEADLINE)


Serve = Callable[..., Service]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start the service with an environment; every one that is started is ended with the module."""
    services: list[Service] = []

    def start(environment: Mapping[str, str], folder: Path = CLONE) -> Service:
        services.append(Service(folder, environment, tmp_path_factory.mktemp("service") / "log"))
        services[-1].wait_until_alive()
        return services[-1]

    yield start
    for service in services:
        service.clean_up()


def alembic(*arguments: str, url: str, folder: Path = CLONE) -> None:
    """Run alembic in the folder of a release."""
    command = [sys.executable, "-m", "alembic", *arguments]
    ran = subprocess.run(
        command, cwd=folder, env={**os.environ, "DATABASE_URL": url}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.fixture(scope="module")
def inventory(postgres: Postgres) -> Iterator[Database]:
    """The database of a module's tests, at the head revision."""
    name = f"inventory_{secrets.token_hex(6)}"
    password = secrets.token_urlsafe(8) + "%@:/?#\"\\ '&=+é"
    postgres.create_database(name, owner=name, password=password)
    database = Database(name=name, user=name, password=password, port=postgres.port, ca_file=postgres.ca_file)
    alembic("upgrade", "head", url=database.url)
    yield database
    postgres.drop_database(name)


@pytest.fixture(scope="module")
def service(inventory: Database, serve: Serve) -> Service:
    """The service of a module's tests."""
    return serve({"DATABASE_SECRET": json.dumps(inventory.secret)})


@contextmanager
def unreachable(database: Database, postgres: Postgres) -> Iterator[None]:
    """End every session of the database, and let none in until the block ends."""
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS false')
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database.name,))
        try:
            yield
        finally:
            cursor.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS true')
