"""How long a run waits, and for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg2

from migration_runner.errors import ExitCode, RunError
from migration_runner.guard import Guard

SAMPLE_SECONDS = 0.03


@dataclass(frozen=True)
class Limits:
    """How long a run may take.

    Args:
        lock_wait: how long to wait for a lock, in seconds.
        deadline: when all must have ended, as ``time.monotonic`` counts; None for no such time.
    """

    lock_wait: float
    deadline: float | None = None

    @property
    def patience(self) -> float:
        """How long to wait for a lock that is needed now, in seconds."""
        return self.lock_wait if self.deadline is None else max(0.0, min(self.lock_wait, self.left))

    @property
    def left(self) -> float:
        """How many seconds there are until the deadline."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()


class Sampler:
    """Looks from the runner's own connection who stands in the way.

    Args:
        guard: the runner's connection.
        sessions: the server's process ids of those who wait.

    Attributes:
        seen: who did, each in words.
    """

    def __init__(self, guard: Guard, sessions: Sequence[int]) -> None:
        self._guard = guard
        self._sessions = sessions
        self._over = threading.Event()
        self.seen: set[str] = set()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Look again and again, within."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _sample(self) -> None:
        # That the connection is lost is told before the next migration.
        with suppress(RunError, psycopg2.Error):
            while not self._over.wait(SAMPLE_SECONDS):
                self.seen = set(self._guard.blockers(self._sessions)) or self.seen


def locked_out(told: RunError, seconds: float, attempts: int, blockers: Sequence[str]) -> RunError:
    """Why a migration is given up.

    Args:
        told: the server's last refusal.
        seconds: how long it was tried.
        attempts: how often.
        blockers: who was in the way, each in words.
    """
    in_the_way = f" In the way: {'; '.join(blockers)}." if blockers else ""
    return RunError(
        f"A lock was not free in {seconds:.0f} s, {attempts} tries: {told.message}.{in_the_way}",
        exit_code=ExitCode.LOCKED,
        kind=told.kind,
        sqlstate=told.sqlstate,
        revision=told.revision,
        hint="End what stands in the way, or wait for it; then run this again.",
    )
