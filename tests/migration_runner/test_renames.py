"""Which names lead where, after any renames that PostgreSQL lets through one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from migration_runner.errors import RunError
from migration_runner.renames import Bridge, Rename, bridges, groups
from tests.migration_runner.graphs import FIXED

NAMES = ["a", "b", "c", "d"]


@dataclass
class Table:
    """A table and all that its columns and it are called, and were; each column is known by its first name.

    Args:
        name: its name now.
        columns: the name now, by the first one.
        former: older names of the table that are to work.
        older: older names of columns that are to work, with the column's first name.
    """

    name: str
    columns: dict[str, str]
    former: list[str] = field(default_factory=list)
    older: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """Renames that PostgreSQL lets through, whether each keeps its older name, and what they lead to.

    Args:
        renames: in their order.
        tables: what there is after them.
        is_clear: whether no older name that is to work is given to something else.
    """

    renames: Sequence[tuple[Rename, bool]]
    tables: Sequence[Table]
    is_clear: bool


@st.composite
def histories(draw: st.DrawFn, keeping: st.SearchStrategy[bool]) -> History:
    tables = [Table(name, {one: one for one in ("x", "y")}) for name in ("a", "b")]
    renames: list[tuple[Rename, bool]] = []
    is_clear = True
    for _ in range(draw(st.integers(1, 6))):
        table, keeps = draw(st.sampled_from(tables)), draw(keeping)
        if draw(st.booleans()):
            new = draw(st.sampled_from([one for one in NAMES if one not in [other.name for other in tables]]))
            is_clear = is_clear and not any(new in other.former for other in tables)
            renames.append((Rename("public", table.name, table.name, new, of_table=True), keeps))
            table.former += [table.name] if keeps else []
            table.name = new
        else:
            column = draw(st.sampled_from(sorted(table.columns)))
            old = table.columns[column]
            new = draw(st.sampled_from([one for one in ["v", "w", "x", "y"] if one not in table.columns.values()]))
            is_clear = is_clear and new not in table.older
            renames.append((Rename("public", table.name, old, new), keeps))
            table.older |= {old: column} if keeps else {}
            table.columns[column] = new
    return History(renames, tables, is_clear)


@FIXED
@given(histories(st.booleans()))
def test_each_older_name_leads_to_what_it_stood_for_or_is_refused(history: History) -> None:
    if not history.is_clear:
        with pytest.raises(RunError) as refused:
            bridges(history.renames)
        assert refused.value.kind == "NameStillOpen"
        return
    made = {bridge.table: bridge for bridge in bridges(history.renames).values()}
    for table in history.tables:
        bridge = made.pop(table.name, None) or Bridge("public", table.name)
        assert bridge.columns == {old: table.columns[column] for old, column in table.older.items()}
        assert bridge.former == table.former
        # the table itself gives way to a view where a column has an older name
        assert bridge.base == (f"{table.name}__base" if table.older else table.name)
        assert bridge.names == {bridge.base, table.name, *table.former}
        assert (bridge.views == []) == (not table.older and not table.former)
    assert not made


@FIXED
@given(histories(st.just(True)))
def test_to_bridge_table_by_table_ends_where_to_bridge_in_order_does(history: History) -> None:
    assume(history.is_clear)
    renames = [one for one, _ in history.renames]
    by_table = groups(renames)
    assert sorted(one for group in by_table for one in group) == sorted(renames)
    whole = bridges(history.renames)
    assert len(by_table) == len(whole)
    assert bridges((one, True) for group in by_table for one in group) == whole


@FIXED
@given(histories(st.booleans()))
def test_what_takes_all_renames_back_ends_where_they_began(history: History) -> None:
    renames = [one for one, _ in history.renames]
    assert [one.inverse.inverse for one in renames] == renames
    there_and_back = [*renames, *(one.inverse for one in reversed(renames))]
    made = bridges((one, False) for one in there_and_back)
    assert {bridge.table for bridge in made.values()} <= {"a", "b"}
    assert [bridge.views for bridge in made.values()] == [[]] * len(made)


def test_a_rename_is_told_with_the_name_of_the_table_when_it_comes() -> None:
    assert str(Rename("public", "items", "name", "sku")) == "items.name -> sku"
    assert str(Rename("public", "items", "items", "parts", of_table=True)) == "items -> parts"


def test_tables_of_the_same_name_in_two_schemas_have_bridges_of_their_own() -> None:
    made = bridges([(Rename(schema, "items", "name", "sku"), True) for schema in ("one", "other")])
    assert [(key, bridge.columns) for key, bridge in made.items()] == [
        (("one", "items"), {"name": "sku"}),
        (("other", "items"), {"name": "sku"}),
    ]
