"""How a run ends, and why; light enough for a run that has nothing to do."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a run ended; the trigger decides by it."""

    AT_TARGET = 0
    FAILED = 1
    WRONG_USE = 2
    UNREACHABLE = 3
    LOCKED = 4
    AHEAD = 5
    REFUSED = 6
    INTERRUPTED = 130
    TOLD_TO_STOP = 143


class RunError(Exception):
    """A run can't reach its target.

    Args:
        message: one sentence for a person; never a driver's text, a URL, a parameter or a secret.
        exit_code: how the process ends.
        kind: what is wrong, in one word: PostgreSQL's name of the condition, or the runner's.
        sqlstate: PostgreSQL's code of the condition.
        revision: the revision that was running.
        hint: what to do next.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_code: ExitCode,
        kind: str,
        sqlstate: str | None = None,
        revision: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.kind = kind
        self.sqlstate = sqlstate
        self.revision = revision
        self.hint = hint


def wrong_use(kind: str, message: str, hint: str | None = None) -> RunError:
    """What no database can mend: the command line, the settings, or the image."""
    return RunError(message, exit_code=ExitCode.WRONG_USE, kind=kind, hint=hint)
