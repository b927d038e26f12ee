"""What the runner says: a line per event, and at the end the one result line that the trigger reads.

Away from a terminal every line is a JSON object; on a terminal it is a sentence. What the team's code says, and what
the processes say that it starts, becomes events too.
"""

from __future__ import annotations

import io
import json
import os
import re
import select
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

from migration_runner.errors import ExitCode, RunError

GREEN, RED, PLAIN = "\033[32m", "\033[31m", "\033[0m"
# The begun line gives way to the next one.
CLEAR = "\r\033[K"
BASE = "base"
ENCODER = json.JSONEncoder(separators=(",", ":"))
# Whoever writes much is read this often, and the run itself reads before each of its own lines.
READ_SECONDS = 0.02
LONGEST_LINE = 1 << 20
# The quotation marks of PostgreSQL's messages in its languages.
QUOTES = '"„“”«»'
# Of GitHub's annotations: https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts
MESSAGE_ESCAPED, PLACE_ESCAPED = "%\r\n", "%\r\n:,"


@dataclass
class Result:
    """What a run did; filled in while it goes on, so that it is true whenever the run ends.

    Args:
        command: upgrade, downgrade, stamp and so on.
        start: the revisions of the schema before the run: one, as a rule; none of an empty schema; None when not seen.
        at: the revisions after the run, as for ``start``.
        target: the revision to reach; None for an empty schema.
        applied: the revisions that were run, and stayed, in that order.
        open: what a contract has to do: renames of which the older name still works, and contract revisions; None when
            not seen.
        error: why the target was not reached.
    """

    command: str
    start: Collection[str] | None = None
    at: Collection[str] | None = None
    target: str | None = None
    applied: list[str] = field(default_factory=list)
    open: list[str] | None = None
    error: RunError | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def exit_code(self) -> ExitCode:
        """How the process ends."""
        return self.error.exit_code if self.error else ExitCode.AT_TARGET


class Report:
    """Writes the lines of one run; once that fails, as when the reader has gone away, the rest is left unsaid.

    Args:
        stream: where the lines go.
        output_format: ``text`` for sentences, ``json`` for an object per line, ``github`` for sentences and GitHub's
            annotations of what is wrong; None for text on a terminal, and JSON elsewhere.
    """

    def __init__(self, stream: TextIO, output_format: str | None = None) -> None:
        self._stream: TextIO | None = stream
        self._on_terminal = stream.isatty()
        chosen = output_format or ("text" if self._on_terminal else "json")
        self._for_person = chosen != "json"
        self._annotates = chosen == "github"
        # Lines come from the run and from the thread that reads what others write.
        self._lock = threading.RLock()
        self._passwords: list[str] = []
        self._pipe: int | None = None
        self._begun = b""
        self._progress = False
        self._annotated = False

    @classmethod
    def of_process(cls, output_format: str | None = None) -> Report:
        """A report to standard output, where from now on nothing else is written.

        Until the process ends, its descriptors 1 and 2, which child processes inherit, lead into a pipe, and each line
        that comes out of it becomes an event. A child that outlives the run is cut off with it, and holds nothing up.
        """
        # A closed one would be given to what is opened next, such as the database's socket.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
        report = cls(os.fdopen(os.dup(1), "w", errors="backslashreplace"), output_format)
        report._pipe, writing = os.pipe()
        os.set_blocking(report._pipe, False)
        for stream in (sys.stdout, sys.stderr):
            # None when it was closed.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        # What a migration forks has no part in the run.
        os.register_at_fork(after_in_child=report._fall_silent)
        threading.Thread(target=report._keep_reading, args=[report._pipe], daemon=True).start()
        return report

    def _fall_silent(self) -> None:
        self._stream = None

    def hide(self, password: str | None) -> None:
        """Show ``***`` from now on wherever output, an error's message or its hint holds this password too."""
        if password and password not in self._passwords:
            # The longest first, as one may contain another.
            self._passwords = sorted([*self._passwords, password], key=len, reverse=True)

    def event(self, name: str, sentence: str, **fields: object) -> None:
        """Say that something happened: the sentence on a terminal, unless it is empty, name and fields elsewhere."""
        with self._lock:
            self._catch_up()
            self._say(name, self._hidden(sentence), **self._hidden(fields))

    def progress(self, name: str, sentence: str, **fields: object) -> None:
        """The same, but on a terminal the sentence stays only until the next one."""
        with self._lock:
            self._catch_up()
            if self._for_person and self._on_terminal:
                self._line(sentence, end="")
                self._progress = True
            else:
                self._say(name, sentence, **fields)

    def annotate(self, message: str, *, title: str, file: Path, line: int) -> None:
        """Show what is wrong beside the code of a pull request; nothing unless that is the format."""
        with self._lock:
            if self._annotates:
                self._line(annotation(self._hidden(message), title=title, file=_in_repository(file), line=line))
                self._annotated = True

    def result(self, result: Result) -> None:
        """Say how the run ended; the last line of a run: what others still write comes too late."""
        with self._lock:
            self._catch_up()
            if self._pipe is not None:
                # Nobody reads the pipe any more when Python flushes its streams at exit: a full one would hold it up.
                with Path(os.devnull).open("wb") as nowhere:
                    os.dup2(nowhere.fileno(), 1)
                    os.dup2(nowhere.fileno(), 2)
                self._catch_up()
            milliseconds = milliseconds_since(result.started)
            if result.error:
                result.error.message = self._redacted(result.error.message)
                result.error.hint = result.error.hint and self._redacted(result.error.hint)
            if self._annotates and not self._annotated and result.error:
                # It has no place in a file, such as a chain with two heads.
                words = " ".join(part for part in (result.error.message, result.error.hint) if part)
                self._line(annotation(words, title=result.error.kind))
            told = _sentence(result, milliseconds) if self._for_person else _result_line(result, milliseconds)
            if told:
                self._line(_coloured(told, result) if self._for_person and self._on_terminal else told)
            self._stream = None

    def _keep_reading(self, pipe: int) -> None:
        """So that whoever writes much is not held up while the run does something else."""
        writers = True
        while writers:
            select.select([pipe], [], [])
            # A line that the run is about to read itself is left to it.
            time.sleep(READ_SECONDS)
            with self._lock:
                writers = self._read()

    def _catch_up(self) -> None:
        """Pass on all that was written before, also a last line that was not ended."""
        if self._pipe is None:
            return
        for stream in (sys.stdout, sys.stderr):
            # The team's code may have closed or replaced it.
            with suppress(AttributeError, OSError, ValueError):
                stream.flush()
        self._read()
        if self._begun:
            self._pass_on(self._begun)
            self._begun = b""

    def _read(self) -> bool:
        """Pass on the whole lines that are there; False when nobody can write any more."""
        if self._pipe is None:
            return False
        while True:
            try:
                text = os.read(self._pipe, 65536)
            except BlockingIOError:
                return True
            if not text:
                return False
            *lines, self._begun = (self._begun + text).split(b"\n")
            for line in lines:
                self._pass_on(line)
            if len(self._begun) > LONGEST_LINE:
                self._pass_on(self._begun)
                self._begun = b""

    def _pass_on(self, line: bytes) -> None:
        text = self._redacted(line.decode(errors="backslashreplace"))
        self._say("migration.output", text, text=text)

    def _redacted(self, text: str) -> str:
        for password in self._passwords:
            text = redacted(text, password)
        return text

    def _hidden(self, told: Any) -> Any:
        """The same with ``***`` for the passwords, which a migration may have written into its own SQL."""
        match told:
            case str():
                for password in self._passwords:
                    told = _spelled(password).sub("***", told)
                return told
            case dict():
                return {key: self._hidden(value) for key, value in told.items()}
            case list():
                return [self._hidden(one) for one in told]
        return told

    def _say(self, name: str, sentence: str, **fields: object) -> None:
        if not self._for_person:
            self._line(_json(event=name, **fields))
        elif sentence:
            self._line(sentence)

    def _line(self, text: str, end: str = "\n") -> None:
        if self._stream:
            try:
                self._stream.write(f"{CLEAR if self._progress else ''}{text}{end}")
                self._stream.flush()
            except OSError:
                # The migration matters more than the words about it, and the exit code still tells.
                self._stream = None
            self._progress = False


def redacted(text: str, password: str) -> str:
    """The text with ``***`` for the password in any spelling, and for the parts of it that the text quotes.

    PostgreSQL quotes what it has stumbled over: of ``hunter2@x``, unquoted in a statement, "hunter2". A part has four
    characters or more; case does not matter, since identifiers are turned to lower case.
    """
    if not password:
        return text

    def part(word: re.Match[str]) -> str:
        return "***" if word[0].lower() in password.lower() else word[0]

    def parts(quoted: re.Match[str]) -> str:
        return re.sub(rf"[^\s'{QUOTES}]{{4,}}", part, quoted[0])

    return re.sub(f"(?s)[{QUOTES}].*[{QUOTES}]", parts, _spelled(password).sub("***", text))


def annotation(message: str, *, title: str, file: str | None = None, line: int | None = None) -> str:
    """The line that GitHub Actions turns into an error of the run, and beside the code where there is a file."""

    def escaped(text: object, characters: str) -> str:
        return re.sub(f"[{characters}]", lambda found: f"%{ord(found[0]):02X}", str(text))

    given = {"file": file, "line": line, "title": title}
    place = [f"{name}={escaped(value, PLACE_ESCAPED)}" for name, value in given.items() if value is not None]
    return f"::error {','.join(place)}::{escaped(message, MESSAGE_ESCAPED)}"


def _in_repository(file: Path) -> str:
    """As GitHub knows the file, also where the project is a folder of its repository."""
    root = Path(os.environ.get("GITHUB_WORKSPACE") or ".").resolve()
    return file.resolve().relative_to(root).as_posix() if file.resolve().is_relative_to(root) else str(file)


def milliseconds_since(started: float) -> int:
    """Whole milliseconds since ``started``, a reading of ``time.monotonic``."""
    return round((time.monotonic() - started) * 1000)


def _json(**fields: object) -> str:
    return ENCODER.encode(fields)


def shown(current: Collection[str] | None) -> str | None:
    """The revisions that a schema is at, as one text: "base" when there is none, None when it was not seen."""
    return None if current is None else ", ".join(sorted(map(str, current))) or BASE


def _result_line(result: Result, milliseconds: int) -> str:
    error = result.error
    return _json(
        **{
            "event": "migration.result",
            "status": "failed" if error else "succeeded",
            "command": result.command,
            "from": shown(result.start),
            "at": shown(result.at),
            "target": result.target,
            "applied": result.applied,
            "open": result.open,
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


def _coloured(sentence: str, result: Result) -> str:
    return sentence if os.environ.get("NO_COLOR") else f"{RED if result.error else GREEN}{sentence}{PLAIN}"


def _sentence(result: Result, milliseconds: int) -> str:
    at = "" if result.at is None else f"The schema is at {shown(result.at)}."
    error = result.error
    if error is None:
        count = len(result.applied)
        did = f"{count} revision{'s'[: count != 1]} in {milliseconds} ms. " if count else ""
        left = f" Open until the contract: {', '.join(result.open)}." if result.open else ""
        return f"{result.command}: {did}{at}{left}" if did or at else ""
    where = f"{error.revision} failed: " if error.revision else ""
    sentences = [f"{result.command}: {where}{error.kind}: {error.message.rstrip('.')}.", at, error.hint]
    return " ".join(sentence for sentence in sentences if sentence)


@cache
def _spelled(password: str) -> re.Pattern[str]:
    """The password as URLs, JSON, Python and ini files write it; the longest first, as one may contain another."""
    urls = {quote(password, safe=safe) for safe in ("", "/", " +")} | {quote_plus(password)}
    texts = {json.dumps(password), json.dumps(password, ensure_ascii=False), repr(password)}
    plain = {password, password.replace("'", "''"), repr(password.encode())[2:-1]} | urls
    plain |= {text[1:-1] for text in texts}
    spellings = sorted(plain | {text.replace("%", "%%") for text in plain}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings)), re.IGNORECASE)
