"""Connections to the database, also after its secret has been rotated."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import psycopg2
from psycopg2.extensions import connection

from inventory_service.settings import SettingsError, connection_parameters, secret_arn

# A host that has vanished is noticed within seconds, not when TCP gives up after a quarter of an hour.
PATIENCE = {"connect_timeout": "5", "tcp_user_timeout": "5000", "keepalives_idle": "5"}
# SQLSTATE 28P01 and 28000, which libpq tells of a connection that it could not make only in words.
REFUSED = re.compile(
    r"authentication failed|no password supplied|is not permitted to log in"
    r'|role ".*" does not exist|no pg_hba\.conf entry'
)
LOG = logging.getLogger("uvicorn.error")
# Between two readings of the secret; for all of one; and for one of its packets.
READ_AGAIN_SECONDS = 2.0
READING_SECONDS = 5.0
AWS_SECONDS = 2


class Connector:
    """Opens connections; when the database refuses the credentials, it reads the secret anew and tries once more.

    ECS gives a task its secret when it starts, and a rotation while it runs goes unnoticed. Sessions that are open
    outlive it, so only new ones are refused.

    Args:
        environment: names the database, and in DATABASE_SECRET_ARN the secret that DATABASE_SECRET is from. Without
            that, nothing is read anew.

    Raises:
        SettingsError: the environment can't be understood.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._parameters = connection_parameters(environment)
        self._secret = secret_arn(environment)
        self._client: Any = None
        # Held for moments only, never while AWS is asked.
        self._lock = threading.Lock()
        self._reading: Future[dict[str, str]] = Future()
        self._read_at = float("-inf")

    def __call__(self) -> connection:
        """A new connection; raises psycopg2's OperationalError, and nothing else, when there is none."""
        tried = self._parameters
        try:
            return _connect(tried)
        except psycopg2.OperationalError as error:
            if not self._secret or not REFUSED.search(str(error)):
                raise
            renewed = self._renewed(tried)
            if renewed == tried:
                raise
        opened = _connect(renewed)
        with self._lock:
            # Only now: what has let nobody in is read again. And the next rotation may come at once.
            self._parameters, self._read_at = renewed, float("-inf")
        return opened

    def _renewed(self, refused: dict[str, str]) -> dict[str, str]:
        """The parameters that the secret gives now; those that were refused when it gives no others in time."""
        with self._lock:
            # Another thread may have been here in the meantime.
            if self._parameters is not refused:
                return self._parameters
            now = time.monotonic()
            # A secret that is wrong is no reason to ask for it with each request.
            first = now - self._read_at >= (READ_AGAIN_SECONDS if self._reading.done() else READING_SECONDS)
            if first:
                self._reading, self._read_at = Future(), now
                # The timeouts of botocore hold for a packet, and those of the task's credentials are its own. A
                # thread of a pool would be waited for when the service ends.
                threading.Thread(target=self._read, args=(refused, self._reading), daemon=True).start()
            reading, rest = self._reading, self._read_at + READING_SECONDS - now
        try:
            return reading.result(max(rest, 0))
        except TimeoutError:
            if first:
                _warn(f"AWS has not answered within {READING_SECONDS:.0f} seconds")
            return refused

    def _read(self, refused: dict[str, str], reading: Future[dict[str, str]]) -> None:
        found = refused
        try:
            found = connection_parameters(self._environment | {"DATABASE_SECRET": self._value()})
        except SettingsError as error:
            _warn(str(error))
        except Exception as error:
            # Also what botocore does not foresee: an answer that is not AWS's.
            from botocore.exceptions import ClientError

            _warn(error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__)
        else:
            if found == refused:
                _warn("it holds these")
            else:
                LOG.info("The database refused the credentials; the secret has been read anew.")
        finally:
            reading.set_result(found)

    def _value(self) -> str:
        # Imported only now: most tasks never need it.
        import botocore.config
        import botocore.session

        client = self._client
        if client is None:
            limits = botocore.config.Config(
                connect_timeout=AWS_SECONDS, read_timeout=AWS_SECONDS, retries={"total_max_attempts": 2}
            )
            region = self._secret.split(":")[3]
            client = botocore.session.get_session().create_client("secretsmanager", region_name=region, config=limits)
        answer = client.get_secret_value(SecretId=self._secret)
        # Only now: one that was made without credentials would never look for them again.
        self._client = client
        value: str = answer.get("SecretString", "")
        return value


def _warn(reason: str) -> None:
    LOG.warning("The database refused the credentials, and the secret gives no others: %s.", reason.rstrip("."))


def _connect(parameters: dict[str, str]) -> connection:
    settings: dict[str, Any] = PATIENCE | parameters
    opened: connection = psycopg2.connect(**settings)
    return opened
