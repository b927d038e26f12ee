"""Clients of a release: processes that read and write one table, and note how long each request took."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Event
from typing import Any, TypeAlias

import psycopg
import psycopg2
import psycopg2.extensions

Connection: TypeAlias = "psycopg.Connection[Any] | psycopg2.extensions.connection"
Cursor: TypeAlias = "psycopg.Cursor[Any] | psycopg2.extensions.cursor"
# Nothing of the measuring process is to be copied into a client.
SPAWN = multiprocessing.get_context("spawn")
# So short that what else the machine does hits each table alike.
TURN_SECONDS = 0.02
# Of ten requests.
MIX = ("read",) * 5 + ("change",) * 2 + ("add",) * 2 + ("remove",)


@dataclass(frozen=True)
class Request:
    """One request: when it began, by the clock that all processes share, how long it took, and what was wrong."""

    began: float
    seconds: float
    error: str
    table: str

    @property
    def ended(self) -> float:
        """When the answer was there."""
        return self.began + self.seconds


@dataclass(frozen=True)
class Client:
    """What a client does.

    Args:
        column: what its release calls the column.
        keys: the highest key that was there before.
        pause: seconds between two requests.
        tables: where it reads and writes, in turn.
        prepares: whether it is psycopg 3, which prepares what it has sent five times; psycopg2 prepares nothing.
    """

    column: str
    keys: int
    pause: float
    tables: Sequence[str]
    prepares: bool = False


class Clients:
    """Clients of one release, connected; they begin together and end together.

    Args:
        url: of the database.
        count: how many.
        client: what each of them does.
    """

    def __init__(self, url: str, count: int, client: Client) -> None:
        self._go, self._halt = SPAWN.Event(), SPAWN.Event()
        self._pipes: list[Pipe] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = SPAWN.Pipe(duplex=False)
            process = SPAWN.Process(target=work, args=(url, client, self._go, self._halt, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def go(self) -> None:
        """Let them begin."""
        self._go.set()

    def halt(self) -> list[Request]:
        """Let them end.

        Returns:
            every request of all of them.
        """
        self._halt.set()
        self.go()
        requests = [Request(*one) for pipe in self._pipes for one in pipe.recv()]
        for process in self._processes:
            process.join()
        return requests

    def end(self) -> None:
        """End those that still run, at once."""
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def clients(url: str, count: int, client: Client) -> Iterator[Clients]:
    """Connected clients, which are gone in the end."""
    made = Clients(url, count, client)
    try:
        yield made
    finally:
        made.end()


def work(url: str, client: Client, go: Event, halt: Event, told: Pipe) -> None:
    """Be a client.

    Args:
        url: of the database.
        client: what to do.
        go: set when to begin.
        halt: set when to end.
        told: gets a word when it is connected, and in the end what ``Request`` is made of.
    """
    connection = connect(url, prepares=client.prepares)
    done: list[tuple[float, float, str, str]] = []
    own: dict[str, list[int]] = {table: [] for table in client.tables}
    told.send("connected")
    go.wait()
    while not halt.is_set():
        began, error = time.monotonic(), ""
        table = client.tables[int(began / TURN_SECONDS) % len(client.tables)]
        try:
            with connection.cursor() as cursor:
                request(cursor, client, table, own[table])
        except (psycopg.Error, psycopg2.Error) as met:
            error = type(met).__name__
        done.append((began, time.monotonic() - began, error, table))
        if connection.closed:
            connection = connect(url, prepares=client.prepares)
        if client.pause:
            time.sleep(client.pause)
    told.send(done)


def request(cursor: Cursor, client: Client, table: str, own: list[int]) -> None:
    """One request, of a kind that chance picks; what it removes is of its own making."""
    column, key = client.column, random.randint(1, client.keys)  # noqa: S311
    match random.choice(MIX):  # noqa: S311
        case "read":
            cursor.execute(f"SELECT id, {column}, updated_at FROM {table} WHERE id = %s", (key,))  # noqa: S608
            cursor.fetchall()
        case "change":
            changes = f"UPDATE {table} SET {column} = %s, updated_at = now() WHERE id = %s"  # noqa: S608
            cursor.execute(changes, (name(), key))
        case "remove" if own:
            cursor.execute(f"DELETE FROM {table} WHERE id = %s RETURNING {column}", (own.pop(),))  # noqa: S608
        case _:
            cursor.execute(f"INSERT INTO {table} ({column}) VALUES (%s) RETURNING id, {column}", (name(),))  # noqa: S608
            own += [made for made, _ in cursor.fetchall()]


def name() -> str:
    """One that nobody else has."""
    return f"new {random.getrandbits(64):016x}"


def connect(url: str, *, prepares: bool = False) -> Connection:
    """A connection in autocommit, of psycopg 3 or of psycopg2."""
    connection: Connection = psycopg.connect(url) if prepares else psycopg2.connect(url)
    connection.autocommit = True
    return connection
