"""Whether the database's schema is what this code needs."""

import logging

from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from anyio import move_on_after
from anyio.to_thread import run_sync
from psycopg2.errors import UndefinedTable
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from inventory_service.settings import SettingsError

log = logging.getLogger("uvicorn.error")


class Readiness:
    """Ready means that the schema is not behind: its revision is neither missing nor older than this image's head.

    A revision that this image does not know is newer: the migration makes it while the old tasks still serve.
    A database that does not answer leaves the last verdict as it was, and at the start there is none. So a task can't
    become ready without a schema, but an outage of the database, which no new task would mend, gets no task killed.

    Args:
        engine: to look at the schema with.

    Raises:
        SettingsError: in the working directory is no alembic.ini with exactly one head.
    """

    def __init__(self, engine: Engine) -> None:
        try:
            scripts = ScriptDirectory.from_config(Config("alembic.ini"))
            self._needed = scripts.get_current_head()
            self._older = {script.revision for script in scripts.walk_revisions()} - {self._needed}
        except CommandError as error:
            raise SettingsError(f"The migrations beside this service can't be used: {error}") from None
        if not self._needed:
            raise SettingsError("There is no revision beside this service: it needs alembic.ini and its migrations.")
        self._engine = engine
        self._ready = False

    async def report(self) -> dict[str, bool | str | None]:
        """Look at the schema, for at most two seconds because a health check is waiting, and say what that means."""
        schema = None
        with move_on_after(2):
            schema = await run_sync(self._schema, abandon_on_cancel=True)
        if schema is None:
            detail = "The database does not answer."
        else:
            self._ready = not schema <= self._older
            detail = (
                "The schema has what this code needs." if self._ready else "The schema is behind: run the migration."
            )
        at = ", ".join(sorted(schema)) if schema else None
        return {"ready": self._ready, "schema": at, "needed": self._needed, "detail": detail}

    def _schema(self) -> set[str] | None:
        try:
            with self._engine.connect() as connection:
                return set(connection.scalars(text("SELECT version_num FROM alembic_version")))
        except OperationalError as error:
            log.warning("The database does not answer: %s", str(error).splitlines()[0])
            return None
        except ProgrammingError as error:
            if isinstance(error.orig, UndefinedTable):
                return set()
            raise
