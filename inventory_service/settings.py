"""What the environment says: where the database is, and where to listen."""

import json
from collections.abc import Mapping
from ipaddress import ip_address

from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn


class SettingsError(ValueError):
    """The service can't start like this; the message is one sentence for a person and holds no secret."""


def connection_parameters(environment: Mapping[str, str]) -> dict[str, str]:
    """The database's connection parameters for libpq, which itself reads PGSSLMODE and PGSSLROOTCERT.

    Args:
        environment: has either DATABASE_URL or DATABASE_SECRET, the JSON of an RDS secret (username, password, host,
            port, dbname), in which DATABASE_HOST, DATABASE_PORT and DATABASE_NAME fill in or override a field.

    Raises:
        SettingsError: both or none of them are set, or the one that is set can't be used.
    """
    secret, url = environment.get("DATABASE_SECRET"), environment.get("DATABASE_URL")
    if secret and url:
        raise SettingsError("DATABASE_SECRET and DATABASE_URL are both set: keep one of them.")
    if url:
        parameters = _from_url(url)
    elif secret:
        overrides = {"host": "DATABASE_HOST", "port": "DATABASE_PORT", "dbname": "DATABASE_NAME"}
        parameters = _from_secret(secret) | {k: environment[v] for k, v in overrides.items() if environment.get(v)}
    else:
        raise SettingsError(
            "No database is configured: set DATABASE_SECRET (the JSON of an RDS secret) or DATABASE_URL."
        )
    required = {"user": "username", "host": "host", "dbname": "dbname"}
    if missing := [field for key, field in required.items() if not parameters.get(key)]:
        raise SettingsError(f"{'DATABASE_URL' if url else 'DATABASE_SECRET'} lacks {' and '.join(missing)}.")
    # Without its value: an unescaped password can end up in the port.
    if _port(parameters.get("port", "5432")) is None:
        raise SettingsError("The database's port must be a number from 1 to 65535.")
    return parameters


def listen_address(environment: Mapping[str, str]) -> tuple[str, int]:
    """Where to listen: HOST, an IP address (default 0.0.0.0), and PORT (default 8080); raises SettingsError."""
    host = environment.get("HOST", "0.0.0.0")  # noqa: S104 - a container is reached from outside
    try:
        ip_address(host)
    except ValueError:
        raise SettingsError(f"HOST must be an IP address such as 0.0.0.0, but it is {host!r}.") from None
    port = environment.get("PORT", "8080")
    if (number := _port(port)) is None:
        raise SettingsError(f"PORT must be a number from 1 to 65535, but it is {port!r}.")
    return host, number


def _from_url(url: str) -> dict[str, str]:
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgres", "postgresql", "postgresql+psycopg2"):
        raise SettingsError("DATABASE_URL must begin with postgresql:// or postgres://.")
    try:
        return parse_dsn(f"postgresql://{rest}")
    except (ProgrammingError, UnicodeError):
        raise SettingsError("DATABASE_URL can't be read: is every special character in it %-encoded?") from None


def _from_secret(secret: str) -> dict[str, str]:
    try:
        fields = dict(json.loads(secret))
    except (ValueError, TypeError):
        raise SettingsError("DATABASE_SECRET is not a JSON object, as the secret of an RDS database is.") from None
    fields["user"] = fields.pop("username", "")
    return {key: str(fields[key]) for key in ("user", "password", "host", "port", "dbname") if fields.get(key)}


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 65536 else None
