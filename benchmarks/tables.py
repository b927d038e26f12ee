"""The tables: what each measures, and what it has to show."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from statistics import median

from benchmarks.history import Revision, history, mixed, widening
from benchmarks.peers import ALEMBIC, ALEMBIC_WITHOUT_BYTECODE, FLOOR, OURS, PEERS, Tool
from benchmarks.projects import FailedError, Project, Sample, projects
from benchmarks.stall import READER_SECONDS, worst_stall
from local_aws.postgres import Postgres

TOOLS = (OURS, ALEMBIC, ALEMBIC_WITHOUT_BYTECODE, *PEERS, FLOOR)
# In the other tables, bytecode means to Alembic what it means at head.
WITH_BYTECODE = tuple(tool for tool in TOOLS if tool is not ALEMBIC_WITHOUT_BYTECODE)


@dataclass
class Cell:
    """The runs of one tool at one size, and why there are no more."""

    samples: list[Sample] = field(default_factory=list)
    failure: str = ""

    @property
    def seconds(self) -> float:
        """The median; NaN when it failed."""
        return nan if self.failure else median(one.seconds for one in self.samples)

    def __str__(self) -> str:
        if self.failure:
            return "failed"
        seconds = [one.seconds for one in self.samples]
        megabytes = median(one.megabytes for one in self.samples)
        return f"{self.seconds:.3f} ({min(seconds):.3f}..{max(seconds):.3f}) {megabytes:.0f} MB"


Table = dict[tuple[Tool, int], Cell]


@dataclass(frozen=True)
class Promise:
    """A figure of a table, and the limit that it must not exceed."""

    text: str
    figure: float
    limit: float

    @property
    def held(self) -> bool:
        """False also when there is no figure."""
        return self.figure <= self.limit

    def __str__(self) -> str:
        figure = "not measured" if isnan(self.figure) else f"{self.figure:.3f}"
        return f"{self.text}: {figure}, promised at most {self.limit:.3f}: {'held' if self.held else 'NOT held'}"


@dataclass(frozen=True)
class Scenario:
    """What one table shows.

    Args:
        title: the line above it.
        tools: its rows.
        sizes: its columns: numbers of revisions, in rising order.
        kind: the history that the revisions are from.
        prepare: brings a new project to that many revisions.
        before: comes before each run and is not measured; gets the history from the first revision that is not there.
        sample: one run.
        promises: what the table has to show.
    """

    title: str
    tools: Sequence[Tool]
    sizes: Sequence[int]
    kind: Callable[[int], Revision]
    prepare: Callable[[Project, Sequence[Revision]], None]
    before: Callable[[Project, Sequence[Revision]], None]
    sample: Callable[[Project], Sample]
    promises: Callable[[Table, Sequence[int]], list[Promise]]

    def table(self, tools: Sequence[Tool], runs: int, folder: Path, postgres: Postgres) -> Table:
        """Measure.

        Args:
            tools: those that are there.
            runs: how often each of them runs.
            folder: for the projects.
            postgres: for the databases.
        """
        past = history(self.sizes[-1] + runs, self.kind, folder)
        table = {(tool, size): Cell() for tool in tools for size in self.sizes}
        with projects([tool for tool, _ in table], folder, postgres) as made:
            for run in range(runs + 1):
                for project, ((_, size), cell) in zip(made, table.items(), strict=True):
                    self._step(project, cell, run, past[:size], past[size + run - 1 :])
        return table

    def _step(
        self, project: Project, cell: Cell, run: int, past: Sequence[Revision], following: Sequence[Revision]
    ) -> None:
        """One run, or with 0 what comes before all; a project that has failed is left alone."""
        if cell.failure:
            return
        try:
            if run:
                self.before(project, following)
                cell.samples.append(self.sample(project))
            else:
                self.prepare(project, past)
        except FailedError as error:
            cell.failure = str(error)
        outcome = cell.failure or (f"{cell.samples[-1].seconds:.3f} s" if run else "ready")
        tell(f"{self.title}, {len(past):,} revisions, run {run}: {project.tool.name}: {outcome}")

    def lines(self, table: Table, missing: Mapping[Tool, str]) -> Iterator[str]:
        """The table and its promises as text.

        Args:
            table: what was measured.
            missing: the tools that could not be installed, and why.
        """
        yield ""
        yield f"{self.title} (seconds)"
        yield " " * 18 + "".join(f"{size:,} revisions".ljust(32) for size in self.sizes).rstrip()
        for tool in self.tools:
            cells = "".join(f"{table[tool, size]!s:32}" for size in self.sizes if tool not in missing)
            yield f"{tool.name:18}" + (cells.rstrip() or f"not installed: {missing[tool]}")
        for (tool, size), cell in table.items():
            if cell.failure:
                yield f"{tool.name} failed at {size:,}: {cell.failure}"
        yield from map(str, self.promises(table, self.sizes))


def tell(line: str) -> None:
    """Progress, for who waits."""
    print(line, file=sys.stderr, flush=True)


def machine(postgres: Postgres) -> str:
    """Where it was measured."""
    with closing(postgres.connect()) as connection:
        major, minor = divmod(connection.server_version, 10000)
    return (
        f"{os.cpu_count()} cores, {_processor()}, load {os.getloadavg()[0]:.1f}; "
        f"PostgreSQL {major}.{minor}, Python {platform.python_version()}"
    )


def _processor() -> str:
    # platform.processor() says no more than x86_64 on Linux, or nothing.
    facts = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", facts.read_text()) if facts.exists() else None
    return named[1] if named else platform.processor()


def _nothing(_: Project, __: Sequence[Revision]) -> None:
    pass


def _empty(project: Project, _: Sequence[Revision]) -> None:
    project.create_database()


def _add_one(project: Project, following: Sequence[Revision]) -> None:
    project.add(following[:1])


def _at_head(table: Table, sizes: Sequence[int]) -> list[Promise]:
    limits = {10: 1 / 6, 5000: 1 / 20}
    promises = [_beside_alembic(table, size, limits[size]) for size in sizes if size in limits]
    return [*promises, *_flat(table, sizes, 1.15)]


def _pending(table: Table, sizes: Sequence[int]) -> list[Promise]:
    return [_beside_alembic(table, size, 1 / 2) for size in sizes]


def _one_pending(table: Table, sizes: Sequence[int]) -> list[Promise]:
    return _flat(table, sizes, 1.3)


def _stall(table: Table, sizes: Sequence[int]) -> list[Promise]:
    cells = [table[OURS, size] for size in sizes]
    worst = nan if any(cell.failure for cell in cells) else max(one.seconds for cell in cells for one in cell.samples)
    return [Promise(f"{OURS.name}, the slowest of all runs", worst, 0.2)]


def _beside_alembic(table: Table, size: int, limit: float) -> Promise:
    ratio = table[OURS, size].seconds / table[ALEMBIC, size].seconds
    return Promise(f"{OURS.name} / {ALEMBIC.name} at {size:,}", ratio, limit)


def _flat(table: Table, sizes: Sequence[int], limit: float) -> list[Promise]:
    few, many = sizes[0], sizes[-1]
    ratio = table[OURS, many].seconds / table[OURS, few].seconds
    return [Promise(f"{OURS.name} at {many:,} / at {few:,}", ratio, limit)] if few < many else []


SCENARIOS = {
    "at-head": Scenario(
        title="Nothing to do",
        tools=TOOLS,
        sizes=(10, 100, 1000, 5000),
        kind=mixed,
        prepare=Project.add_applied,
        before=_nothing,
        sample=Project.run,
        promises=_at_head,
    ),
    "pending": Scenario(
        title="All pending, one transaction each",
        tools=WITH_BYTECODE,
        sizes=(100, 1000),
        kind=mixed,
        prepare=Project.add,
        before=_empty,
        sample=Project.run,
        promises=_pending,
    ),
    "one-pending": Scenario(
        title="One more pending",
        tools=WITH_BYTECODE,
        sizes=(10, 5000),
        kind=mixed,
        prepare=Project.add_applied,
        before=_add_one,
        sample=Project.run,
        promises=_one_pending,
    ),
    "stall": Scenario(
        title=f"Slowest query of others while ALTER TABLE meets a reader of {READER_SECONDS:.0f} s",
        tools=(OURS, ALEMBIC),
        sizes=(10,),
        kind=widening,
        prepare=Project.add_applied,
        before=_add_one,
        sample=worst_stall,
        promises=_stall,
    ),
}
