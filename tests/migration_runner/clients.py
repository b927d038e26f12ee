"""Clients of a release: threads that read and write the renamed tables, and note what they met."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import psycopg2

from tests.conftest import Database

TABLES = """
CREATE TABLE parents (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_parents PRIMARY KEY, name text NOT NULL, made int DEFAULT 0,
    legacy text
);
CREATE TABLE children (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_children PRIMARY KEY,
    parent bigint NOT NULL CONSTRAINT fk_parent REFERENCES parents ON DELETE CASCADE, name text NOT NULL
);
CREATE TABLE notes (id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_notes PRIMARY KEY, parent bigint, words text);
CREATE UNIQUE INDEX uq_parents ON parents (name);
CREATE INDEX ix_children ON children (parent);
COMMENT ON COLUMN parents.name IS 'what it is called';
"""
# Each is a transaction. {column} and {notes} are the release's names, {key} is the client's own parent.
BOTH_WAYS = (
    ("UPDATE parents SET made = made + 1 WHERE id = {key} AND {column} > ''", "UPDATE children {change}"),
    ("UPDATE children {change}", "UPDATE parents SET made = made + 1 WHERE id = {key} AND {column} > ''"),
    (
        "INSERT INTO children (parent, {column}) VALUES ({key}, 'a child') RETURNING {column}",
        "SELECT {column} FROM parents WHERE id = {key}",
        "UPDATE parents SET made = made + 1 WHERE id = {key}",
    ),
)
PREPARED = (
    "PREPARE read (bigint) AS SELECT p.{column}, c.{column} FROM parents p LEFT JOIN children c ON c.parent = p.id "
    "WHERE p.id = $1",
    "PREPARE write (bigint, text) AS "
    "UPDATE parents SET {column} = $2, made = made + 1 WHERE id = $1 RETURNING id, {column}",
    "PREPARE add (bigint, text) AS INSERT INTO children (parent, {column}) VALUES ($1, $2) RETURNING id, {column}",
    "PREPARE count (bigint) AS SELECT p.made, count(c.id) FROM parents p JOIN children c ON c.parent = p.id "
    "WHERE p.id = $1 GROUP BY p.made",
    "PREPARE touch (bigint) AS UPDATE parents SET made = made WHERE id = $1 RETURNING id, made",
    "PREPARE notice (bigint) AS INSERT INTO {notes} (parent, words) VALUES ($1, 'seen') RETURNING words",
)
EXECUTED = (
    ("EXECUTE read({key})",),
    ("EXECUTE write({key}, 'parent {key}')",),
    ("EXECUTE add({key}, 'another child')", "EXECUTE write({key}, 'parent {key}')"),
    ("EXECUTE notice({key})",),
)
# What both releases call the same.
INDIFFERENT = (
    ("EXECUTE count({key})",),
    ("EXECUTE touch({key})", "EXECUTE count({key})"),
)
EVERYTHING = (
    *BOTH_WAYS,
    *EXECUTED,
    (
        "INSERT INTO parents ({column}) VALUES ('parent {key}') "
        "ON CONFLICT ({column}) DO UPDATE SET made = parents.made + 1 RETURNING id, {column}",
    ),
    ("SELECT id, {column} FROM parents WHERE {column} = 'parent {key}' FOR UPDATE SKIP LOCKED",),
    ("INSERT INTO {notes} (parent, words) VALUES ({key}, 'heard')", "SELECT words FROM {notes} WHERE parent = {key}"),
    ("DELETE FROM children WHERE parent = {key} RETURNING {column}", "DELETE FROM {notes} WHERE parent = {key}"),
)


@dataclass(frozen=True)
class Release:
    """What a release calls the renamed column of the two tables, and the renamed table."""

    column: str
    notes: str


OLD, NEW = Release("name", "notes"), Release("sku", "remarks")


@dataclass
class Seen:
    """What clients have met.

    Attributes:
        took: seconds of each statement, with when it began.
        errors: each with its statement.
        made: how often they have committed ``made = made + 1``.
    """

    took: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    made: int = 0

    def worst(self, since: float = 0, until: float = float("inf")) -> float:
        """The longest time of a statement that was under way in between, in seconds."""
        return max((took for began, took in self.took if began <= until and began + took >= since), default=0.0)


@contextmanager
def clients(
    database: Database,
    release: Release,
    count: int = 2,
    does: Sequence[Sequence[str]] = EVERYTHING,
    pause: float = 0.002,
) -> Iterator[Seen]:
    """Clients of a release, within; on leaving, all of them have ended.

    Args:
        database: where the tables are.
        release: theirs.
        count: how many.
        does: what they do, in the order of chance.
        pause: seconds between two transactions.
    """
    seen, over, ready = [Seen() for _ in range(count)], threading.Event(), threading.Barrier(count + 1)
    met = Seen()
    threads = [
        threading.Thread(target=_work, args=(database, release, does, pause, one, over, ready), daemon=True)
        for one in seen
    ]
    for thread in threads:
        thread.start()
    ready.wait(20)
    try:
        # Each appends to lists of its own; what is told are those of all.
        yield met
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for one in seen:
            met.took += one.took
            met.errors += one.errors
            met.made += one.made


def _work(
    database: Database,
    release: Release,
    does: Sequence[Sequence[str]],
    pause: float,
    seen: Seen,
    over: threading.Event,
    ready: threading.Barrier,
) -> None:
    with closing(database.connect()) as session, session.cursor() as cursor:
        names = {"column": release.column, "notes": release.notes}
        cursor.execute("INSERT INTO parents ({column}) VALUES (gen_random_uuid()) RETURNING id".format(**names))
        (key,) = cursor.fetchone() or (0,)
        names |= {"key": str(key), "change": f"SET {release.column} = 'changed' WHERE parent = {key}"}
        cursor.execute(f"UPDATE parents SET {release.column} = 'parent {key}' WHERE id = {key}")
        for statement in PREPARED:
            cursor.execute(statement.format(**names))
        ready.wait()
        while not over.is_set():
            transaction = [one.format(**names) for one in random.choice(does)]
            statements = ["BEGIN", *transaction, "COMMIT"] if len(transaction) > 1 else transaction
            for statement in statements:
                began = time.monotonic()
                try:
                    cursor.execute(statement)
                except psycopg2.Error as error:
                    seen.errors.append(f"{release.column}: {type(error).__name__}: {error} in {statement}")
                    if session.closed:
                        return
                    session.rollback()
                    cursor.execute("ROLLBACK")
                    break
                finally:
                    seen.took.append((began, time.monotonic() - began))
            else:
                seen.made += any("made + 1" in one or "EXECUTE write" in one for one in transaction)
            if pause:
                time.sleep(pause * random.uniform(0.5, 1.5))
