"""Waiting until the database answers, and what may be told about its errors."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import Any

import psycopg2
from psycopg2.extensions import connection
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from migration_runner.errors import ExitCode, RunError
from migration_runner.report import Report

DRIVER = "postgresql+psycopg2"
# https://www.postgresql.org/docs/current/errcodes-appendix.html
LOCK_NOT_AVAILABLE = "55P03"
# What such a message quotes is a value: invalid input syntax for type integer: "...".
DATA_EXCEPTION = "22"
# The server ended the session: shutdown, crash, failover, timeouts of idle sessions.
SESSION_ENDED = re.compile(r"08...|57P0[1235]|25P0[34]")

KEEPALIVES = """
SELECT set_config('tcp_keepalives_idle', '30', false), set_config('tcp_keepalives_interval', '10', false),
       set_config('tcp_keepalives_count', '3', false)
"""


def sqlalchemy_url(parameters: Mapping[str, str], driver: str = DRIVER) -> URL:
    """Where the database is, for SQLAlchemy.

    Args:
        parameters: libpq's.
        driver: SQLAlchemy's name of dialect and driver.
    """
    others = dict(parameters)
    user, database = others.pop("user", None), others.pop("dbname", None)
    # Without a user, who then is PGUSER, SQLAlchemy would drop the password.
    password = others.pop("password", None) if user else None
    if re.fullmatch("[A-Za-z0-9._:-]*", others.get("host", "")) and "," not in others.get("port", ""):
        host, port = others.pop("host", None), others.pop("port", None)
        return URL.create(driver, user, password, host, int(port) if port else None, database, others)
    # Several hosts, or a socket's folder: the query holds whatever libpq takes.
    return URL.create(driver, user, password, database=database, query=others)


def connect(parameters: Mapping[str, str], timeout: int) -> connection:
    """A connection in autocommit; after so many seconds, two at least, an address that does not answer is given up."""
    settings: dict[str, Any] = {"connect_timeout": timeout, **parameters}
    answers: SimpleQueue[connection | Exception] = SimpleQueue()

    def attempt() -> None:
        try:
            answers.put(psycopg2.connect(**settings))
        except Exception as error:
            answers.put(error)

    # Python hears of no signal while libpq waits, but while it waits for another thread.
    threading.Thread(target=attempt, daemon=True).start()
    answer = answers.get()
    if isinstance(answer, Exception):
        raise answer
    answer.autocommit = True
    be_noticed_when_lost(answer)
    return answer


def be_noticed_when_lost(session: Any) -> None:
    """Let the server end the session soon when this process or its host is gone.

    https://www.postgresql.org/docs/current/runtime-config-connection.html

    Args:
        session: a connection of psycopg2 or psycopg, or SQLAlchemy's of an asynchronous one; without a transaction.
    """
    cursor = session.cursor()
    try:
        cursor.execute(KEEPALIVES)
        session.commit()
        try:
            # Needs PostgreSQL 14, on Linux or macOS: elsewhere it "must be set to 0 on this platform".
            cursor.execute("SET client_connection_check_interval = '1s'")
        except Exception as error:
            session.rollback()
            if _sqlstate(error) != "22023":
                raise
        session.commit()
    finally:
        cursor.close()


def wait_for(parameters: Mapping[str, str], seconds: float, report: Report) -> connection:
    """A connection, in autocommit, once the database lets us in.

    Args:
        parameters: libpq's.
        seconds: how long to try; there is always one try.
        report: gets a line per failed try.

    Raises:
        RunError: it can't be reached in time, or for a reason that waiting does not mend.
    """
    deadline = time.monotonic() + seconds
    for attempt in count(1):
        left = deadline - time.monotonic()
        # libpq knows no timeout below two seconds.
        timeout = int(max(2, min(10, left)))
        try:
            return connect(parameters, timeout)
        except (psycopg2.Error, UnicodeDecodeError) as error:
            refusal = connection_refusal(error)
            left = deadline - time.monotonic()
            if not isinstance(refusal, UnreachableError) or left <= 0:
                raise refusal from None
            report.event(
                "database.waiting",
                f"Waiting for the database, {left:.0f} s left: {refusal.reason}.",
                attempt=attempt,
                reason=refusal.reason,
                seconds_left=round(left, 1),
            )
            time.sleep(min(left, 2, 0.1 * 2**attempt))
    raise AssertionError


class UnreachableError(RunError):
    """There is no connection now, but there may be one soon."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The database can't be reached: {reason}.",
            exit_code=ExitCode.UNREACHABLE,
            kind="DatabaseUnreachable",
            hint="It is safe to run this again; look at host, port, security groups and whether the database is up.",
        )
        self.reason = reason


def connection_refusal(error: BaseException) -> RunError:
    """Why a connection could not be made.

    libpq hands a failed connection over as text, without SQLSTATE. The text names users and addresses and may come
    from anyone who answers at the address, so it is recognised, and never shown.
    """
    # A server speaks in its own encoding until it has let someone in.
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    for refusal in REFUSALS:
        if re.search(refusal.pattern, text):
            return RunError(
                refusal.message,
                exit_code=refusal.exit_code,
                kind=refusal.kind,
                sqlstate=refusal.sqlstate,
                hint=refusal.hint,
            )
    reasons = (reason for pattern, reason in REASONS_TO_WAIT if re.search(pattern, text))
    return UnreachableError(next(reasons, "no connection could be made"))


def database_failure(error: BaseException, revision: str | None) -> RunError | None:
    """What may be told about an error of PostgreSQL or its driver; None for any other.

    That is SQLSTATE and the server's primary message: detail, hint, context and the driver's text hold values.

    Args:
        error: what was raised, by SQLAlchemy, psycopg2 or psycopg.
        revision: the revision that was running.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    sqlstate = _sqlstate(cause)
    diagnosis = getattr(cause, "diag", None)
    if cause is None or diagnosis is None:
        return None
    if str(cause).startswith(("connection to server", "could not translate host name", "connection failed")):
        return connection_refusal(cause)
    # Both raise an OperationalError without SQLSTATE when the connection breaks under them.
    broken = type(cause).__name__ == "OperationalError" and not sqlstate
    # And psycopg2 an InterfaceError once it knows.
    broken = broken or str(cause) == "connection already closed"
    broken = broken or (isinstance(error, DBAPIError) and error.connection_invalidated)
    if broken or SESSION_ENDED.fullmatch(sqlstate or ""):
        return RunError(
            "The session with the database was lost.",
            exit_code=ExitCode.UNREACHABLE,
            kind="SessionLost",
            sqlstate=sqlstate,
            revision=revision,
            hint="It is safe to run this again.",
        )
    if not diagnosis.message_primary:
        return None
    message = diagnosis.message_primary
    return RunError(
        re.sub('"[^"]*"', '"***"', message) if (sqlstate or "").startswith(DATA_EXCEPTION) else message,
        exit_code=ExitCode.LOCKED if sqlstate == LOCK_NOT_AVAILABLE else ExitCode.FAILED,
        kind=type(cause).__name__,
        sqlstate=sqlstate,
        revision=revision,
    )


def _sqlstate(error: BaseException | None) -> str | None:
    # psycopg2 and psycopg name the class of an error alike, but not its code.
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)


@dataclass(frozen=True)
class Refusal:
    """A reason against a connection that waiting does not mend, and how to recognise it in libpq's text."""

    pattern: str
    exit_code: ExitCode
    kind: str
    message: str
    hint: str
    sqlstate: str | None = None


REFUSALS = (
    Refusal(
        r"certificate verify failed",
        ExitCode.UNREACHABLE,
        "CertificateUntrusted",
        "The server's certificate is signed by an authority that is not trusted.",
        "Let PGSSLROOTCERT name the file of the authority that signed it.",
    ),
    Refusal(
        r"does not match host name",
        ExitCode.UNREACHABLE,
        "HostNameMismatch",
        "The server's certificate is for another host name than the one connected to.",
        "Connect to a host name that the certificate carries, such as the endpoint that RDS shows.",
    ),
    Refusal(
        r"server does not support SSL",
        ExitCode.UNREACHABLE,
        "TLSUnavailable",
        "The server offers no TLS, but sslmode requires it.",
        "Turn TLS on in the server.",
    ),
    # Before the next ones: with sslmode=prefer, libpq tries again without TLS, and its text names both refusals.
    Refusal(
        r"password authentication failed|no password supplied",
        ExitCode.REFUSED,
        "CredentialsRefused",
        "The database refused the credentials.",
        "If the secret was rotated just now, run this again with the new one; otherwise correct it.",
        sqlstate="28P01",
    ),
    Refusal(
        r"(?s)^(?!.*SSL encryption).*no pg_hba\.conf entry .*no encryption",
        ExitCode.UNREACHABLE,
        "TLSRequired",
        "The server accepts no connection without TLS.",
        "Set sslmode, or PGSSLMODE, to verify-full.",
    ),
    Refusal(
        r'authentication failed|no pg_hba\.conf entry|is not permitted to log in|role ".*" does not exist',
        ExitCode.REFUSED,
        "CredentialsRefused",
        "The database does not let this user in.",
        "Look at the user's right to log in, and at the server's rules for its address (pg_hba.conf).",
        sqlstate="28000",
    ),
    Refusal(
        r"SSL error: (?!unexpected eof)",
        ExitCode.UNREACHABLE,
        "TLSFailed",
        "The server and libpq could not agree on TLS.",
        "Compare the TLS versions that both allow.",
    ),
    Refusal(
        r'database ".*" does not exist',
        ExitCode.WRONG_USE,
        "SettingsError",
        "The server has no database of the name that is set.",
        "Correct dbname in the secret, DATABASE_NAME or DATABASE_URL, or create the database.",
        sqlstate="3D000",
    ),
    Refusal(
        r"permission denied for database",
        ExitCode.REFUSED,
        "CredentialsRefused",
        "The user may not connect to this database.",
        "Let an administrator run GRANT CONNECT ON DATABASE ... TO the user.",
        sqlstate="42501",
    ),
    Refusal(
        r"root certificate file|unrecognized configuration parameter|for parameter|definition of service"
        r"|invalid \S+ value|invalid (port number|integer value|connection option|dsn)",
        ExitCode.WRONG_USE,
        "SettingsError",
        "libpq can't use a connection parameter.",
        "Look at the PG* variables, the file of PGSSLROOTCERT, and the parameters of DATABASE_URL.",
    ),
)

REASONS_TO_WAIT = (
    (r"could not translate host name", "its host name is not known"),
    (r"Connection refused", "nothing listens at its port"),
    (r"timeout expired|timed out", "it does not answer"),
    (r"starting up|shutting down|recovery|not yet accepting", "it is starting or stopping"),
    (r"too many (clients|connections)|connection slots", "it has no connection free"),
)
