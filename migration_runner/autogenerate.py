"""What Alembic's autogenerate and ``alembic check`` see of a database with open renames."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from sqlalchemy import Connection

from migration_runner.renames import SUFFIX

BRIDGED = """
SELECT v.relname::text FROM pg_class v JOIN pg_class t USING (relnamespace)
WHERE v.relkind = 'v' AND t.relkind = 'r' AND t.relname = v.relname || %(suffix)s
"""


def without_bridges(connection: Connection) -> Callable[[Any, str | None, str, bool, Any], bool]:
    """Alembic's ``include_object`` that leaves out the tables whose renames are open.

    Such a table is called ``<table>__base`` just now, and a view has its name, so that without this filter autogenerate
    would create the one and drop the other. Once the contract has run, it is compared again.
    https://alembic.sqlalchemy.org/en/latest/api/runtime.html#alembic.runtime.environment.EnvironmentContext.configure

    Args:
        connection: that ``context.configure`` gets; asked when autogenerate comes to the first table.
    """

    @cache
    def bridged() -> set[str]:
        names = {name for (name,) in connection.exec_driver_sql(BRIDGED, {"suffix": SUFFIX})}
        return names | {f"{name}{SUFFIX}" for name in names}

    def include_object(_: Any, name: str | None, kind: str, __: bool, ___: Any) -> bool:
        return kind != "table" or name not in bridged()

    return include_object
