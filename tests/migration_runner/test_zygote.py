"""A forked run is the process that a fresh one is."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.conftest import Database
from tests.migration_runner.conftest import Outcome, Project, migrate
from tests.migration_runner.processes import eventually, in_statement, sessions, started
from tests.migration_runner.zygote import Ways

# What a process has from its start, as a migration sees it.
FACTS = """
import gc, locale, os, signal, sys, threading, warnings
print("arguments", sys.argv, sys.flags, sys.warnoptions, sys.modules["__main__"].__spec__.name)
print("path", sys.path)
print("folder", os.getcwd(), os.umask(0o022))
print("environment", sorted((name, value) for name, value in os.environ.items() if name != "KIND"))
print("locale", locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), sys.getfilesystemencoding())
for one in sorted(os.listdir("/proc/self/fd"), key=int):
    if os.path.exists(f"/proc/self/fd/{one}"):
        kind = os.readlink(f"/proc/self/fd/{one}").partition(":")[0]
        print("descriptor", one, kind, os.get_inheritable(int(one)))
print("input", repr(sys.stdin.read()))
print("streams", [(one.encoding, one.errors, one.line_buffering, one.seekable()) for one in (sys.stdout, sys.stderr)])
print("signals", [(one.name, str(signal.getsignal(one)).partition(" at ")[0]) for one in sorted(signal.valid_signals())
                  if isinstance(one, signal.Signals)])
print("blocked", signal.pthread_sigmask(signal.SIG_BLOCK, []))
print("group", os.getpgrp(), os.getsid(0))
print("threads", sorted(one.name for one in threading.enumerate()))
print("garbage", gc.isenabled(), gc.get_threshold())
print("warnings", warnings.filters)
print("modules", sorted(one for one in sys.modules if one.startswith("migration_runner")))
"""


def of_both(database: Database, project: Project, monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[Outcome]:
    """What a fresh and a forked upgrade leave behind."""
    outcomes = []
    for fresh in (True, False):
        monkeypatch.setattr(Ways, "fresh", fresh)
        outcomes.append(
            migrate(database, "upgrade", "--wait", "5", project=project.path, KIND=f"{fresh}", **environment)
        )
    return outcomes


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every run is fresh")


def test_a_migration_finds_the_same_process(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("aaaa", None, f"exec({FACTS!r}, {{}}); raise SystemExit(7)")
    fresh, forked = of_both(database, project, monkeypatch, OURS="é", PGAPPNAME="x")
    told = [[one["text"] for one in outcome.named("migration.output")] for outcome in (fresh, forked)]
    assert len(told[0]) >= 18
    assert told[1] == told[0]
    assert (forked.exit_code, forked.errors) == (fresh.exit_code, fresh.errors)


@pytest.mark.parametrize(
    "end",
    [
        "import os; os.kill(os.getpid(), 9)",
        "import os; os._exit(42)",
        "import os, signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)",
        "import atexit, os; atexit.register(open, 'told ' + os.environ['KIND'], 'w')",
        "import threading, time; threading.Thread(target=time.sleep, args=[0.2]).start()",
    ],
)
def test_it_ends_in_the_same_way(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    project.write("aaaa", None, f"{end}; op.execute('SELECT nosuch')")
    fresh, forked = of_both(database, project, monkeypatch)
    seen = [(one.exit_code, one.errors, [event["event"] for event in one.events]) for one in (fresh, forked)]
    assert seen[1] == seen[0]
    assert len(list(project.path.glob("told *"))) == (2 if "atexit" in end else 0)


def test_what_is_read_at_start_makes_it_fresh(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("aaaa", None, "import sys; print(sys.flags.optimize)")
    monkeypatch.setattr(Ways, "fresh", False)
    done = migrate(database, "upgrade", project=project.path, PYTHONOPTIMIZE="1")
    assert "1" in [one["text"] for one in done.named("migration.output")]


def test_each_is_a_process_that_a_signal_ends_alone(
    database: Database, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ways, "fresh", False)
    project.write("aaaa", None, "op.execute('SELECT pg_sleep(60)')")
    with started(database, project=project.path) as first, started(database, project=project.path) as second:
        in_statement(database, "pg_sleep")
        assert first.pid != second.pid
        first.send(signal.SIGKILL)
        assert first.finish().exit_code == -signal.SIGKILL
        second.send(signal.SIGKILL)
        assert second.finish().exit_code == -signal.SIGKILL
    eventually(lambda: not sessions(database), 5)
