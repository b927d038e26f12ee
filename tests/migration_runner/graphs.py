"""Revision graphs as hypothesis draws them, and their files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
Graph = dict[str, tuple[list[str], list[str]]]


def ancestors(graph: Graph, names: Sequence[str]) -> set[str]:
    return set(names).union(*(ancestors(graph, [*graph[name][0], *graph[name][1]]) for name in names))


@st.composite
def graphs(draw: st.DrawFn, largest: int = 8) -> Graph:
    """Parents and dependencies of each revision; with one head, for the last revision joins what is left."""
    names = [f"{chr(97 + number) * 4}" for number in range(draw(st.integers(1, largest)))]
    graph: Graph = {}
    for number, name in enumerate(names):
        earlier = names[:number]
        # Most histories are lines; a merge has two parents or three.
        ways = [earlier[-1:]] * 4 + [[one] for one in earlier]
        if earlier:
            ways.append(draw(st.lists(st.sampled_from(earlier), unique=True, max_size=3)))
        parents = draw(st.sampled_from(ways)) if ways else []
        # Of other branches: Alembic stumbles over a dependency on what is there anyway.
        others = [one for one in earlier if one not in ancestors(graph, parents)]
        needs = draw(st.lists(st.sampled_from(others), unique=True, max_size=2)) if others else []
        graph[name] = (parents, needs)
    children = {parent for parents, _ in graph.values() for parent in parents}
    loose = [name for name in names if name not in children]
    if len(loose) > 1:
        graph["zzzz"] = (loose, [])
    return graph


@st.composite
def phased(draw: st.DrawFn) -> tuple[Graph, set[str]]:
    """A graph, and which of its revisions are contract ones: neither the first nor a merge can be."""
    graph = draw(graphs())
    ones = [name for name, (parents, _) in graph.items() if len(parents) == 1]
    return graph, draw(st.sets(st.sampled_from(ones))) if ones else set()


def written(folder: Path, graph: Graph, contract: Collection[str] = ()) -> Path:
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    for name, (parents, needs) in graph.items():
        (versions / f"{name}.py").write_text(
            f"revision = {name!r}\ndown_revision = {tuple(parents) or None!r}\ndepends_on = {tuple(needs) or None!r}\n"
            f"phase = {'contract' if name in contract else 'expand'!r}\n"
            f"def upgrade():\n    pass\ndef downgrade():\n    pass\n"
        )
    return folder / "alembic.ini"
