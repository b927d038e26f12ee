"""The database that the environment names: connection settings, TLS, and waiting until it answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from migration_runner.report import ExitCode, Report, RunError

DRIVER = "postgresql+psycopg2"
# The certificate authorities of Amazon RDS in every region.
RDS_BUNDLE = Path(__file__).with_name("rds-global-bundle.pem")
# The server ended the session: shutdown, crash, failover, timeouts of idle sessions.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
SESSION_ENDED = re.compile(r"08...|57P0[1235]|25P0[34]")


class SettingsError(RunError):
    """The environment does not name a database; the message holds no part of what it says."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=ExitCode.WRONG_USE, kind="SettingsError")


def database_url(environment: Mapping[str, str]) -> URL:
    """Where the database is and how to log in.

    Args:
        environment: with one of two variables. DATABASE_SECRET is the JSON of an RDS secret (username, password, host,
            port, dbname); DATABASE_HOST, DATABASE_PORT and DATABASE_NAME fill in or override the last three, and the
            server's certificate is verified unless PGSSLMODE says otherwise, against PGSSLROOTCERT or the authorities
            of RDS. DATABASE_URL is taken as it is, with libpq's defaults.

    Raises:
        SettingsError: both or none are set, or the one that is set can't be used.
    """
    secret, url = environment.get("DATABASE_SECRET"), environment.get("DATABASE_URL")
    if bool(secret) == bool(url):
        found = "both are" if secret else "neither is"
        raise SettingsError(f"Set either DATABASE_SECRET or DATABASE_URL: {found} set.")
    read = _from_secret(secret, environment) if secret else _from_url(url or "")
    texts = (read.username, read.password, read.host, read.database, *chain(*read.normalized_query.values()))
    if any(re.search("[\0\ud800-\udfff]", text) for text in texts if text):
        name = "DATABASE_SECRET" if secret else "DATABASE_URL"
        raise SettingsError(f"{name} holds a character that PostgreSQL can't take, NUL or a lone surrogate: remove it.")
    return read


def password_of(url: URL, environment: Mapping[str, str]) -> str | None:
    """What libpq logs in with, wherever it stands: in the URL, in its parameters or in PGPASSWORD."""
    among_parameters = url.normalized_query.get("password", ())
    return url.password or "".join(among_parameters) or environment.get("PGPASSWORD")


def wait_for(url: URL, seconds: float, report: Report) -> None:
    """Return once the database lets us in.

    Args:
        url: the database.
        seconds: how long to try; there is always one try.
        report: gets a line per failed try.

    Raises:
        RunError: it can't be reached in time, or for a reason that waiting does not mend.
    """
    deadline = time.monotonic() + seconds
    arguments, parameters = url.get_dialect()().create_connect_args(url)
    for attempt in count(1):
        left = deadline - time.monotonic()
        # libpq knows no timeout below two seconds.
        timeout = int(max(2, min(10, left)))
        try:
            psycopg2.connect(*arguments, **{"connect_timeout": timeout, **parameters}).close()
        except psycopg2.Error as error:
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
        else:
            return


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


def connection_refusal(error: psycopg2.Error) -> RunError:
    """Why a connection could not be made.

    libpq hands a failed connection over as text, without SQLSTATE. The text names users and addresses and may come
    from anyone who answers at the address, so it is recognised, and never shown.
    """
    text = str(error)
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
        error: what was raised, by SQLAlchemy or by psycopg2.
        revision: the revision that was running.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg2.Error):
        return None
    if str(cause).startswith(("connection to server", "could not translate host name")):
        return connection_refusal(cause)
    # psycopg2 raises an OperationalError without SQLSTATE when the connection breaks under it.
    broken = isinstance(cause, psycopg2.OperationalError) and not cause.pgcode
    broken = broken or (isinstance(error, DBAPIError) and error.connection_invalidated)
    if broken or SESSION_ENDED.fullmatch(cause.pgcode or ""):
        return RunError(
            "The session with the database was lost.",
            exit_code=ExitCode.UNREACHABLE,
            kind="SessionLost",
            sqlstate=cause.pgcode,
            revision=revision,
            hint="The transaction was rolled back; it is safe to run this again.",
        )
    if not cause.diag.message_primary:
        return None
    return RunError(
        cause.diag.message_primary,
        exit_code=ExitCode.FAILED,
        kind=type(cause).__name__,
        sqlstate=cause.pgcode,
        revision=revision,
    )


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
        r"root certificate file|invalid \S+ value|invalid (port number|integer value|connection option|dsn)",
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


def _from_secret(secret: str, environment: Mapping[str, str]) -> URL:
    try:
        given = json.loads(secret)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        # Not even the parser's message: it quotes the text.
        raise SettingsError("DATABASE_SECRET is not a JSON object: give it the value of an RDS secret.")
    overrides = {"host": "DATABASE_HOST", "port": "DATABASE_PORT", "dbname": "DATABASE_NAME"}
    fields: dict[str, Any] = {
        "port": 5432,
        **given,
        **{key: environment[name] for key, name in overrides.items() if environment.get(name)},
    }
    missing = [key for key in ("username", "password", "host", "dbname") if not fields.get(key)]
    if missing:
        others = [overrides[key] for key in missing if key in overrides]
        instead = f", or set {' and '.join(others)}" if others else ""
        raise SettingsError(f"DATABASE_SECRET lacks {' and '.join(missing)}: add it{instead}.")
    if not all(isinstance(fields[key], str) for key in ("username", "password", "host", "dbname")):
        raise SettingsError("DATABASE_SECRET must have text as username, password, host and dbname.")
    sslmode = environment.get("PGSSLMODE") or "verify-full"
    query = {"sslmode": sslmode}
    # With a root certificate, libpq verifies even in the mode "require".
    if sslmode.startswith("verify-"):
        query["sslrootcert"] = environment.get("PGSSLROOTCERT") or str(RDS_BUNDLE)
    return URL.create(
        DRIVER,
        username=fields["username"],
        password=fields["password"],
        host=fields["host"],
        port=_port(fields["port"]),
        database=fields["dbname"],
        query=query,
    )


def _port(port: object) -> int:
    text = str(port)
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise SettingsError("The port in DATABASE_SECRET or DATABASE_PORT must be a number from 1 to 65535.")
    return int(text)


def _from_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # An unescaped password can end up in the port, and so in the parser's message.
        raise SettingsError(
            "DATABASE_URL can't be read: write postgresql://user:password@host:5432/dbname, "
            "with %-escapes for special characters."
        ) from None
    if url.drivername not in ("postgres", "postgresql", DRIVER):
        raise SettingsError(f"DATABASE_URL must begin with postgresql://, postgres:// or {DRIVER}://.")
    return url.set(drivername=DRIVER)
