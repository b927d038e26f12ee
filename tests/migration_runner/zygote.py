"""``python -m migration_runner``, forked from a process that has imported Alembic, SQLAlchemy and psycopg2.

Importing them takes most of the time of a short run, and the tests start hundreds: a forked run takes 0.1 s instead of
0.5 s, and all of ``make tests`` 617 s of processor time instead of 715 s. Run as a program, this file is the process
that forks: it has one thread, no connection, and none of the runner's modules. What it forks imports those anew,
``__main__`` among them, and is ended by the interpreter as any other. Imported, this is the tests' side.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NoReturn, TypeAlias

# What a run imports of others.
import alembic.command  # noqa: F401
import psycopg2  # noqa: F401
import sqlalchemy.dialects.postgresql.psycopg2  # noqa: F401

ROOT = Path(__file__).parents[2]
# No variable of libpq and none of ours comes from the shell that runs the tests.
BARE_ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
# Read only as a process starts; what is forked has started already.
READ_AT_START = ("PYTHON", "LANG", "LC_", "LD_", "TZ")
# Of a number that goes through a socket.
WIDTH = 8
# More than any process here has open.
DESCRIPTORS = 64

Process: TypeAlias = "subprocess.Popen[bytes] | Forked"


class Forked:
    """A run, with what the tests use of ``subprocess.Popen``; ``returncode`` is None while it goes on."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self.pid = int(told.recv(WIDTH))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Whether and how it has ended."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises TimeoutExpired after ``timeout`` seconds."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("migration_runner", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it, unless the run has ended."""
        if self.poll() is None:
            # It may just have ended, and its end be on the way.
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._told.recv(WIDTH))
            except (BlockingIOError, TimeoutError):
                return None
            self._told.close()
        return self.returncode


class Zygote:
    """The tests' end of the process that forks."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        # Python has looked at what its streams are before they become those of a run: pipes, too.
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env=BARE_ENVIRONMENT,
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

    def fork(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> Forked:
        """Have a run forked."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"\n"], [theirs.fileno(), stdout, stderr])
        ours.sendall(f"{json.dumps([list(arguments), str(cwd), dict(env)])}\n".encode())
        return Forked(ours)

    def end(self) -> None:
        """End it, once all that it has forked has ended."""
        self._control.close()
        assert self._process.communicate() == ("", "")


class Ways:
    """How the runs of a test start."""

    fresh: ClassVar[bool] = True
    zygote: ClassVar[Zygote | None] = None
    lock: ClassVar[threading.Lock] = threading.Lock()


def start(arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdout: int, stderr: int) -> Process:
    """Start a run; the keyword arguments are those of ``subprocess.Popen``.

    It is forked, unless the test is marked ``fresh``, or something in its environment is read as a process starts.
    """
    added = {name for name in env if BARE_ENVIRONMENT.get(name) != env[name]}
    # To fork without exec is not safe where Apple's frameworks are loaded.
    if Ways.fresh or sys.platform != "linux" or any(name.startswith(READ_AT_START) for name in added):
        command = [sys.executable, "-m", "migration_runner", *arguments]
        return subprocess.Popen(command, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    with Ways.lock:
        Ways.zygote = Ways.zygote or Zygote()
    return Ways.zygote.fork(arguments, cwd, env, stdout, stderr)


def complete(
    arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """A run to its end, and to that of its output; raises TimeoutExpired after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    (output, stdout), (errors, stderr) = os.pipe(), os.pipe()
    read = {output: b"", errors: b""}
    try:
        try:
            process = start(arguments, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
        finally:
            os.close(stdout)
            os.close(stderr)
        try:
            with selectors.DefaultSelector() as unended:
                for pipe in read:
                    unended.register(pipe, selectors.EVENT_READ)
                while unended.get_map():
                    ready = unended.select(max(0, deadline - time.monotonic()))
                    if not ready:
                        raise subprocess.TimeoutExpired("migration_runner", timeout)
                    for key, _ in ready:
                        part = os.read(key.fd, 65536)
                        read[key.fd] += part
                        if not part:
                            unended.unregister(key.fd)
            code = process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            process.kill()
            process.wait()
    finally:
        for pipe in read:
            os.close(pipe)
    return subprocess.CompletedProcess(arguments, code, read[output].decode(), read[errors].decode())


# The process that forks.


def main() -> None:
    """Fork what is asked for, and in that run the runner."""
    told, *output = serve()
    if pid := os.fork():
        tell_the_end(pid, told)
    become(told, output)
    runpy.run_module("migration_runner", run_name="__main__", alter_sys=True)


def serve() -> list[int]:
    """Fork for each request: a socket, standard output and standard error; return in what was forked only."""
    # Looking for garbage would write to pages that are shared.
    gc.freeze()
    # Ctrl-C is for the tests, and this ends with them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as control:
        while True:
            _, descriptors, *_ = socket.recv_fds(control, 1, 3)
            if descriptors and os.fork() == 0:
                return descriptors
            for descriptor in descriptors:
                os.close(descriptor)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG if descriptors else 0)[0]:
                    pass
            if not descriptors:
                sys.exit()


def tell_the_end(pid: int, told: int) -> NoReturn:
    """Wait for the run, tell its exit code, and end."""
    # The run alone holds its output.
    os.closerange(0, told)
    os.closerange(told + 1, DESCRIPTORS)
    _, status = os.waitpid(pid, 0)
    # The test may have ended without it.
    with suppress(OSError):
        os.write(told, tell(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def become(told: int, output: Sequence[int]) -> None:
    """Turn this process into the one that was asked for, up to the module that it runs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with socket.socket(fileno=told) as control, control.makefile() as lines:
        arguments, folder, environment = json.loads(lines.readline())
        control.sendall(tell(os.getpid()))
    for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *output]):
        os.dup2(descriptor, number)
    os.closerange(3, DESCRIPTORS)
    os.chdir(folder)
    # Python itself sets LC_CTYPE where there is no locale.
    for name in os.environ.keys() - environment.keys() - {"LC_CTYPE"}:
        del os.environ[name]
    os.environ.update(environment)
    sys.path[0] = str(Path.cwd())
    sys.argv[1:] = arguments


def tell(number: int) -> bytes:
    """A number as it goes through the socket."""
    return f"{number:{WIDTH}}".encode()


if __name__ == "__main__":
    main()
