"""What the queries of others suffer while a migration waits for its lock behind a long reader."""

from __future__ import annotations

import threading
from contextlib import ExitStack, closing
from time import perf_counter

import psycopg2.extensions

from benchmarks.projects import Project, Sample

READER_SECONDS = 3.0
SESSIONS = 4
PAUSE_SECONDS = 0.01
QUERY = "SELECT count(*) FROM orders_1"


def worst_stall(project: Project) -> Sample:
    """Migrate while one transaction has read the table and stays open, and other sessions read it all the time.

    Returns:
        the longest that a query of those sessions took, and the memory of the migration.
    """
    over = threading.Event()
    latencies: list[float] = []

    def query(connection: psycopg2.extensions.connection) -> None:
        with connection.cursor() as cursor:
            while not over.is_set():
                started = perf_counter()
                cursor.execute(QUERY)
                latencies.append(perf_counter() - started)
                over.wait(PAUSE_SECONDS)

    with ExitStack() as stack:
        others = [stack.enter_context(closing(project.connect())) for _ in range(SESSIONS)]
        reader = stack.enter_context(closing(project.connect()))
        reader.autocommit = False
        reader.cursor().execute(QUERY)
        end_of_reader = threading.Timer(READER_SECONDS, reader.rollback)
        threads = [end_of_reader, *(threading.Thread(target=query, args=[one]) for one in others)]
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        migration = project.run()
    return Sample(max(latencies), migration.megabytes)
