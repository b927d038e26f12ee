"""What the runner says: a line per event, and at the end the one result line that the trigger reads.

Away from a terminal every line is a JSON object; on a terminal it is a sentence.
"""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TextIO
from urllib.parse import quote, quote_plus

GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"


class ExitCode(IntEnum):
    """How a run ended; the trigger decides by it."""

    AT_TARGET = 0
    FAILED = 1
    WRONG_USE = 2
    UNREACHABLE = 3
    AHEAD = 5
    REFUSED = 6


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


@dataclass
class Result:
    """What a run did; filled in while it goes on, so that it is true whenever the run ends.

    Args:
        command: upgrade, downgrade or status.
        start: the revision of the schema before the run; None for an empty schema, or one that was not seen.
        at: the revision after the run; None as for ``start``.
        target: the revision to reach; None for an empty schema.
        applied: the revisions that were run, and stayed, in that order.
        error: why the target was not reached.
    """

    command: str
    start: str | None = None
    at: str | None = None
    target: str | None = None
    applied: list[str] = field(default_factory=list)
    error: RunError | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def exit_code(self) -> ExitCode:
        """How the process ends."""
        return self.error.exit_code if self.error else ExitCode.AT_TARGET


class Report:
    """Writes the lines of one run.

    Args:
        stream: standard output; a sentence per line when it is a terminal, JSON otherwise.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def event(self, name: str, sentence: str, **fields: object) -> None:
        """Say that something happened: the sentence on a terminal, name and fields elsewhere."""
        self._line(sentence if self._stream.isatty() else _json(event=name, **fields))

    def result(self, result: Result) -> None:
        """Say how the run ended; the last line of a run."""
        milliseconds = milliseconds_since(result.started)
        if self._stream.isatty():
            colours = not os.environ.get("NO_COLOR")
            colour = (RED if result.error else GREEN) if colours else ""
            self._line(f"{colour}{_sentence(result, milliseconds)}{PLAIN if colours else ''}")
            return
        error = result.error
        self._line(
            _json(
                **{
                    "event": "migration.result",
                    "status": "failed" if error else "succeeded",
                    "command": result.command,
                    "from": result.start,
                    "at": result.at,
                    "target": result.target,
                    "applied": result.applied,
                    "duration_ms": milliseconds,
                    "error": error
                    and {
                        "kind": error.kind,
                        "sqlstate": error.sqlstate,
                        "revision": error.revision,
                        "message": error.message,
                        "hint": error.hint,
                    },
                }
            )
        )

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Output(io.TextIOBase):
    """Takes what a team's code prints and logs: each line becomes an event, without the password.

    Args:
        report: where the lines go.
        password: what is replaced by ``***`` in all of its spellings.
    """

    def __init__(self, report: Report, password: str | None) -> None:
        self._report = report
        self._spellings = _spellings(password) if password else []
        self._begun = ""

    def write(self, text: str) -> int:
        """Pass on the lines that are complete."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)

    def end_line(self) -> None:
        """Pass on a last line that was not ended."""
        if self._begun:
            self.write("\n")

    def _say(self, line: str) -> None:
        for spelling in self._spellings:
            line = line.replace(spelling, "***")
        self._report.event("migration.output", line, text=line)


def milliseconds_since(started: float) -> int:
    """Whole milliseconds since ``started``, a reading of ``time.monotonic``."""
    return round((time.monotonic() - started) * 1000)


def _json(**fields: object) -> str:
    return json.dumps(fields, separators=(",", ":"))


def _sentence(result: Result, milliseconds: int) -> str:
    at = f"The schema is at {result.at or 'no revision'}."
    if result.error is None:
        count = len(result.applied)
        did = f"{count} revision{'s'[: count != 1]} in {milliseconds} ms. " if count else ""
        return f"{result.command}: {did}{at}"
    error = result.error
    where = f"{error.revision} failed: " if error.revision else ""
    sentences = [f"{result.command}: {where}{error.kind}: {error.message.rstrip('.')}.", at, error.hint]
    return " ".join(sentence for sentence in sentences if sentence)


def _spellings(password: str) -> list[str]:
    """The password as URLs, JSON, Python and ini files write it; the longest first, as one may contain another."""
    urls = {quote(password, safe=safe) for safe in ("", "/", " +")} | {quote_plus(password)}
    texts = {json.dumps(password), json.dumps(password, ensure_ascii=False), repr(password)}
    plain = {password} | urls | {text[1:-1] for text in texts}
    return sorted(plain | {text.replace("%", "%%") for text in plain}, key=len, reverse=True)
