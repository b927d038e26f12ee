"""Connections to the database, also after its secret has been rotated."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping
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
READ_AGAIN_SECONDS = 2.0
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
        self._lock = threading.Lock()
        self._read_at = float("-inf")

    def __call__(self) -> connection:
        """A new connection; raises psycopg2's OperationalError when there is none."""
        tried = self._parameters
        try:
            return _connect(tried)
        except psycopg2.OperationalError as error:
            if not self._secret or not REFUSED.search(str(error)):
                raise
            renewed = self._renewed(tried)
            if renewed == tried:
                raise
        return _connect(renewed)

    def _renewed(self, refused: dict[str, str]) -> dict[str, str]:
        """The parameters that the secret gives now; those that were refused when it gave no others just before."""
        with self._lock:
            # Another thread may have been here in the meantime.
            if self._parameters is refused and time.monotonic() - self._read_at >= READ_AGAIN_SECONDS:
                self._parameters = self._read(refused)
                if self._parameters == refused:
                    # A secret that is wrong is no reason to ask for it with each request.
                    self._read_at = time.monotonic()
            return self._parameters

    def _read(self, refused: dict[str, str]) -> dict[str, str]:
        # Imported only now: most tasks never need it.
        import botocore.config
        import botocore.exceptions
        import botocore.session

        log = logging.getLogger("uvicorn.error")
        try:
            if self._client is None:
                limits = botocore.config.Config(
                    connect_timeout=AWS_SECONDS, read_timeout=AWS_SECONDS, retries={"total_max_attempts": 2}
                )
                region = self._secret.split(":")[3]
                session = botocore.session.get_session()
                self._client = session.create_client("secretsmanager", region_name=region, config=limits)
            answer = self._client.get_secret_value(SecretId=self._secret)
            read = connection_parameters(self._environment | {"DATABASE_SECRET": answer.get("SecretString", "")})
        except botocore.exceptions.ClientError as error:
            reason = error.response["Error"]["Code"]
        except (botocore.exceptions.BotoCoreError, SettingsError) as error:
            reason = type(error).__name__ if isinstance(error, botocore.exceptions.BotoCoreError) else str(error)
        else:
            if read != refused:
                log.info("The database refused the credentials; the secret has been read anew.")
                return read
            reason = "it holds these"
        log.warning("The database refused the credentials, and the secret gives no others: %s.", reason.rstrip("."))
        return refused


def _connect(parameters: dict[str, str]) -> connection:
    settings: dict[str, Any] = PATIENCE | parameters
    opened: connection = psycopg2.connect(**settings)
    return opened
