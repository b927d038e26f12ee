"""SIGTERM and Ctrl-C end what runs in the database at once, and then the run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

AGAIN_SECONDS = 0.2


class StoppedError(KeyboardInterrupt):
    """The run was told to stop; a KeyboardInterrupt, for asyncio and the team's code know what that is."""


class Stop:
    """Whether the run was told to stop.

    Python runs a signal's handler only between two of its own instructions, so a long statement would be waited for.
    That is why a thread hears of the signal first, and cancels the statement.

    Attributes:
        signal: by which the run was told to stop; None so far.
        sessions: the connections whose statements are to be cancelled.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.sessions: list[Any] = []
        self._over = threading.Event()
        self._deaf = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, either signal raises StoppedError in the main thread, once."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        former = {one: signal.signal(one, self._heard) for one in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        listener = threading.Thread(target=self._listen, args=[reading], daemon=True)
        listener.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            self._over.set()
            os.close(writing)
            listener.join()
            os.close(reading)
            for one, handler in former.items():
                signal.signal(one, handler)

    def finish(self) -> None:
        """From now on nothing is left to stop: a signal is not heard any more."""
        self._deaf = True

    def _heard(self, number: int, _: object) -> None:
        if self.signal is None and not self._deaf:
            self.signal = signal.Signals(number)
            raise StoppedError

    def _listen(self, pipe: int) -> None:
        told = os.read(pipe, 1)
        if not told:
            return
        # A request to cancel that comes between two statements has no effect.
        while True:
            # Nor is a signal heard that comes just before a call that waits.
            if self.signal is None and not self._deaf:
                signal.pthread_kill(threading.main_thread().ident or 0, told[0])
            for session in list(self.sessions):
                # It may just have been closed.
                with suppress(Exception):
                    session.cancel()
            if self._over.wait(AGAIN_SECONDS):
                return
