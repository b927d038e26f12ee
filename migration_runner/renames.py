"""Renamed columns and tables that keep their old names for a while, and what their bridges look like.

Pure: nothing here asks a database. While a bridge is open, the renamed table is called ``<table>__base`` and a view has
its name, with each renamed column under both names; of a renamed table, a view has the old name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from migration_runner.errors import RunError, wrong_use

SUFFIX = "__base"


class Rename(NamedTuple):
    """One rename, as its revision writes it.

    Args:
        schema: of the table.
        table: its name when the revision runs: of a renamed table the old one.
        old: the older name, of the column or of the table.
        new: the newer name.
        of_table: whether it is the table that is renamed.
    """

    schema: str
    table: str
    old: str
    new: str
    of_table: bool = False

    def __str__(self) -> str:
        table = told(self.schema, self.table)
        return f"{table} -> {self.new}" if self.of_table else f"{table}.{self.old} -> {self.new}"

    @property
    def inverse(self) -> Rename:
        """What takes it back."""
        table = self.new if self.of_table else self.table
        return Rename(self.schema, table, self.new, self.old, self.of_table)


class Recorded(NamedTuple):
    """A rename that the ledger knows of.

    Args:
        revision: whose it is.
        position: in that revision, from 0.
        rename: the rename.
        is_closed: whether a contract has taken the older name away.
        is_reverted: whether a downgrade has taken the newer name away, though its revision is still applied.
    """

    revision: str
    position: int
    rename: Rename
    is_closed: bool
    is_reverted: bool

    @property
    def is_open(self) -> bool:
        """Whether both names work."""
        return not self.is_closed and not self.is_reverted


@dataclass
class Bridge:
    """What keeps the older names of one table.

    Args:
        schema: of the table.
        table: the name that it has with plain migrations.
        former: its older names.
        columns: the older names of its columns, and the name that each has now.
        renames: what has led to these names, also what is contracted.
    """

    schema: str
    table: str
    former: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    renames: list[Rename] = field(default_factory=list, compare=False)

    @property
    def base(self) -> str:
        """What the table is called in the database."""
        return f"{self.table}{SUFFIX}" if self.columns else self.table

    @property
    def views(self) -> list[str]:
        """The names that a view has."""
        return [*([self.table] if self.columns else []), *self.former]

    @property
    def names(self) -> set[str]:
        """Every name that leads to the table."""
        return {self.base, *self.views}

    def __str__(self) -> str:
        return told(self.schema, self.table)


def told(schema: str, table: str) -> str:
    """The name of a table for a person, who may be spared the schema that most projects have alone."""
    return table if schema in ("", "public") else f"{schema}.{table}"


def bridges(renames: Iterable[tuple[Rename, bool]]) -> dict[tuple[str, str], Bridge]:
    """The bridges of the tables that were renamed, or have renamed columns, by schema and table.

    Args:
        renames: in the order in which they were made, each with whether its older name is to work.

    Raises:
        RunError: an older name would stand for two things.
    """
    known: dict[tuple[str, str], Bridge] = {}
    for one, keeps_old in renames:
        bridge = known.pop((one.schema, one.table), None) or Bridge(one.schema, one.table)
        if one.of_table:
            others = [other.names for other in known.values() if other.views and other.schema == one.schema]
            if any(one.new in names for names in [*others, bridge.former]):
                raise still_open(one.new, one)
            bridge.table = one.new
            bridge.former += [one.old] if keeps_old else []
        else:
            for name in (one.old, one.new):
                if name in bridge.columns:
                    raise still_open(f"{one.table}.{name}", one)
            bridge.columns = {old: one.new if new == one.old else new for old, new in bridge.columns.items()}
            bridge.columns |= {one.old: one.new} if keeps_old else {}
        bridge.renames.append(one)
        known[bridge.schema, bridge.table] = bridge
    return known


def still_open(name: str, rename: Rename) -> RunError:
    """Why a rename can't be bridged whose name an older release still uses for something else."""
    return wrong_use(
        "NameStillOpen",
        f"The rename {rename} can't be bridged: an older release still uses the name {name} for something else.",
        "Deploy a release without this rename first, whose contract finishes the open ones. Or, once no task of an "
        "older release is left, run: python -m migration_runner contract.",
    )


def groups(renames: Iterable[Rename]) -> list[list[Rename]]:
    """The renames of one revision, those of one table together."""
    found: dict[tuple[str, str], list[Rename]] = {}
    for one in renames:
        members = found.pop((one.schema, one.table), [])
        found[one.schema, one.new if one.of_table else one.table] = [*members, one]
    return list(found.values())
