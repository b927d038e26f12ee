"""What the environment says: where the database is, and where to listen."""

import json
import re
from collections.abc import Mapping
from ipaddress import ip_address

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn


class SettingsError(ValueError):
    """The service can't start like this; the message is one sentence for a person and holds no secret."""


def connection_parameters(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the database is, for libpq, which itself reads PGSSLMODE and PGSSLROOTCERT; raises SettingsError.

    Either DATABASE_URL says it or DATABASE_SECRET, the JSON of an RDS secret (username, password, host, port, dbname),
    in which DATABASE_HOST, DATABASE_PORT and DATABASE_NAME fill in or override a field.
    """
    secret, url = environment.get("DATABASE_SECRET"), environment.get("DATABASE_URL")
    if bool(secret) == bool(url):
        raise SettingsError("Set either DATABASE_SECRET (the JSON of an RDS secret) or DATABASE_URL, and not both.")
    source = "DATABASE_URL" if url else "DATABASE_SECRET"
    try:
        given = parse_dsn(url.replace("+psycopg2://", "://", 1)) if url else _from_secret(environment)
    except (ProgrammingError, TypeError, ValueError, RecursionError):
        form = "a postgresql:// URL, %-encoded" if url else "a JSON object, as the secret of an RDS database is"
        raise SettingsError(f"{source} can't be read: it must be {form}.") from None
    required = {"user": "username", "host": "host", "dbname": "dbname"}
    if missing := [field for key, field in required.items() if not given.get(key)]:
        raise SettingsError(f"{source} lacks {' and '.join(missing)}.")
    for key, value in given.items():
        # libpq's texts end at NUL, and JSON may hold half a surrogate pair.
        if "\0" in value or value != value.encode(errors="replace").decode():
            raise SettingsError(f"The database's {key} can't be sent: it holds NUL or is no Unicode.")
    # Without its value: an unescaped password can end up in the port.
    if not _is_port(given.get("port", "5432")):
        raise SettingsError("The database's port must be a number from 1 to 65535.")
    return given


def secret_arn(environment: Mapping[str, str]) -> str:
    """The secret that DATABASE_SECRET is from, as DATABASE_SECRET_ARN names it; "" when none does.

    Raises SettingsError when that is no secret's ARN, which says in which region the secret is.
    """
    arn = environment.get("DATABASE_SECRET_ARN", "") if environment.get("DATABASE_SECRET") else ""
    if arn and not re.fullmatch(r"arn:[^:]+:secretsmanager:[^:]+:\d+:secret:.+", arn):
        raise SettingsError(f"DATABASE_SECRET_ARN must be the ARN of a secret of Secrets Manager, but it is {arn!r}.")
    return arn


def listen_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where to listen: HOST, an IP address (default 0.0.0.0), and PORT (default 8080); raises SettingsError."""
    host, port = environment.get("HOST", "0.0.0.0"), environment.get("PORT", "8080")  # noqa: S104 - in a container
    try:
        ip_address(host)
    except ValueError:
        raise SettingsError(f"HOST must be an IP address such as 0.0.0.0, but it is {host!r}.") from None
    if not _is_port(port):
        raise SettingsError(f"PORT must be a number from 1 to 65535, but it is {port!r}.")
    return host, int(port)


def _from_secret(environment: Mapping[str, str]) -> dict[str, str]:
    fields = dict(json.loads(environment["DATABASE_SECRET"]))
    names = {"host": "DATABASE_HOST", "port": "DATABASE_PORT", "dbname": "DATABASE_NAME"}
    given = {key: environment.get(name) or fields.get(key) for key, name in names.items()}
    given |= {"user": fields.get("username"), "password": fields.get("password")}
    return {key: str(value) for key, value in given.items() if value}


def _is_port(text: str) -> bool:
    # Not the digits alone: int() refuses thousands of them with an error of its own.
    return re.fullmatch("[0-9]{1,5}", text) is not None and 0 < int(text) < 65536
