"""What holds for any revision graph, and for any setting."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alembic.config import Config
from alembic.runtime.migration import HeadMaintainer, MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from hypothesis import given, settings
from hypothesis import strategies as st

from migration_runner.errors import RunError
from migration_runner.project import Journey, Limits
from migration_runner.project import Project as Runners
from migration_runner.report import Report
from migration_runner.revisions import read_revisions
from migration_runner.runner import Request, _is_at, destination
from migration_runner.stop import Stop
from tests.migration_runner.graphs import FIXED, Graph, graphs, written


@contextmanager
def project_of(graph: Graph) -> Iterator[tuple[Path, ScriptDirectory]]:
    with tempfile.TemporaryDirectory() as folder:
        ini = written(Path(folder), graph)
        yield ini, ScriptDirectory.from_config(Config(str(ini)))


def told(
    steps: Callable[[], Iterable[Any]], heads: Sequence[str]
) -> tuple[list[tuple[str, bool]], str, list[str]] | None:
    """The steps in their order, what Alembic writes into its table on the way, and what is in it at the end.

    None where Alembic itself stumbles, as it does over some dependencies on what is there anyway.
    """
    sql = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": sql})
    maintainer = HeadMaintainer(context, heads)
    taken = []
    try:
        for step in steps():
            maintainer.update_to_step(step)
            taken.append((step.revision.revision, step.is_upgrade))
    except (KeyError, CommandError):
        return None
    return taken, sql.getvalue(), sorted(maintainer.heads)


@settings(FIXED, max_examples=int(__import__("os").environ.get("N", "100")))
@given(graph=graphs(), data=st.data())
def test_a_run_takes_alembics_steps_in_alembics_order(graph: Graph, data: st.DataObject) -> None:
    with project_of(graph) as (ini, script):
        revisions = read_revisions(ini)
        runners = Runners(ini, {"dbname": "d"}, revisions, None, Report(io.StringIO()), Stop(), Limits(0))  # type: ignore[arg-type]
        context: Any = SimpleNamespace(script=script)
        heads: tuple[str, ...] = ()
        # A walk through the history, up and down, as releases and rollbacks make it.
        for _ in range(3):
            target = data.draw(st.sampled_from([*graph, None]), label="target")
            command = data.draw(st.sampled_from(["upgrade", "downgrade"]), label="command")
            try:
                to = destination(
                    Request(command, ini, 0, target or ("base" if command == "downgrade" else None)), revisions, heads
                )
            except RunError:
                continue
            if _is_at(to, heads, revisions):
                continue
            move: Any = {"upgrade": script._upgrade_revs, "downgrade": script._downgrade_revs}[command]
            expected = told(partial(move, to or "base", heads[0] if len(heads) == 1 else heads), heads)
            assert told(partial(runners._steps, Journey(command, to), heads, context), heads) == expected
            if expected is None:
                return
            heads = tuple(expected[2])
            assert _is_at(to, heads, revisions)
