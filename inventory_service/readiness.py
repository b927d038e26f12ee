"""Whether the database's schema is what this code needs."""

import logging
from asyncio import to_thread, wait_for
from itertools import dropwhile

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi import Response
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError


class Readiness:
    """Ready means that the schema is not behind: its revision is neither missing nor older than this image needs.

    That is the head without the contract revisions at the end, which wait until no older task is left. A revision that
    this image does not know is newer: the migration makes it while the old tasks still serve.
    An outage, which no new task would mend, leaves the last verdict; without one yet, the service is not ready.
    Raises Alembic's CommandError when the working directory has no alembic.ini, or more than one head.
    """

    def __init__(self, engine: Engine) -> None:
        scripts = ScriptDirectory.from_config(Config("alembic.ini"))
        newest_first = scripts.walk_revisions(head=scripts.get_current_head() or "heads")
        expanding = dropwhile(lambda script: getattr(script.module, "phase", None) == "contract", newest_first)
        self._needed, *older = [script.revision for script in expanding]
        self._older = set(older)
        self._engine = engine
        self._ready = False

    async def report(self, response: Response) -> dict[str, bool | str | None]:
        """Say whether it is ready and why, within two seconds because a health check is waiting."""
        heads: tuple[str, ...] = ()
        try:
            # Not in a thread of the requests: they may all be waiting for a lock.
            heads = await wait_for(to_thread(self._heads), timeout=2)
            self._ready = not self._older.issuperset(heads)
            detail = f"The schema {'has what this code needs' if self._ready else 'is behind: run the migration'}."
        except (OperationalError, TimeoutError) as error:
            detail = "The database does not answer."
            logging.getLogger("uvicorn.error").warning("%s %s", detail, str(error).partition("\n")[0])
        response.status_code = 200 if self._ready else 503
        return {"ready": self._ready, "schema": ", ".join(heads) or None, "needed": self._needed, "detail": detail}

    def _heads(self) -> tuple[str, ...]:
        with self._engine.connect() as connection:
            connection.execute(text("SET LOCAL statement_timeout = '2s'"))
            return MigrationContext.configure(connection).get_current_heads()
