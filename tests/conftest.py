"""What every test may use: one PostgreSQL for the run, and a fresh database owned by a plain role for a test."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg2
import psycopg2.extensions
import pytest

from local_aws.machine import CLONE
from local_aws.postgres import HOST, Postgres

# Read when aws_cdk is imported: the Node of this environment, and no rule engine (seconds in each process).
os.environ.setdefault("JSII_NODE", str(Path(sys.executable).parent / "node"))
os.environ.setdefault("JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION", "true")
os.environ.setdefault("CDK_VALIDATION", "false")
# The library keeps a cache in the home folder; here it stays in the clone. pip needs the real one: its settings, cache.
os.environ.setdefault("HOME_OF_USER", str(Path.home()))
os.environ["HOME"] = str(CLONE / ".local" / "home")

# A shell that starts pytest in the background lets it ignore Ctrl-C, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Database:
    """A database of one test; its owner is no superuser, as on RDS."""

    name: str
    user: str
    password: str
    port: int
    ca_file: Path
    host: str = HOST

    @property
    def url(self) -> str:
        """For DATABASE_URL."""
        return f"postgresql://{self.user}:{quote(self.password, safe='')}@{self.host}:{self.port}/{self.name}"

    @property
    def secret(self) -> dict[str, str | int]:
        """The fields of an RDS secret, for DATABASE_SECRET."""
        return {
            "engine": "postgres",
            "username": self.user,
            "password": self.password,
            "host": self.host,
            "port": self.port,
            "dbname": self.name,
        }

    def connect(self) -> psycopg2.extensions.connection:
        """A connection as the owner, in autocommit."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        return connection

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """What the query returns; none for a statement that returns nothing."""
        connection = self.connect()
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL server of this test process."""
    server = Postgres(tmp_path_factory.mktemp("postgres"))
    server.start(with_parent=True)
    yield server
    server.stop()


@pytest.fixture
def database(postgres: Postgres) -> Iterator[Database]:
    """An empty database, dropped after the test."""
    name = f"test_{secrets.token_hex(6)}"
    # Every character that has ever broken a URL, an ini file or a shell.
    password = secrets.token_urlsafe(8) + "%@:/?#\"\\ '&=+é"
    postgres.create_database(name, owner=name, password=password)
    yield Database(name=name, user=name, password=password, port=postgres.port, ca_file=postgres.ca_file)
    postgres.drop_database(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that deploy or install go first: at the end they would keep one worker waiting for the other."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
