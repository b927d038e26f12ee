"""The database that the environment names, as libpq's parameters; light, for every run begins with it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import psycopg2
from psycopg2.extensions import parse_dsn

from migration_runner.errors import ExitCode, RunError

# The certificate authorities of Amazon RDS in every region.
RDS_BUNDLE = os.path.join(os.path.dirname(__file__), "rds-global-bundle.pem")  # noqa: PTH118, PTH120 - pathlib is slow
NAME = "migration_runner"
# Whether somebody builds it now, or is attaching it to a partitioned one, or owns it alone, is no concern of a run.
INVALID_INDEXES = """
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
WHERE NOT i.indisvalid AND c.relkind = 'i' AND pg_has_role(t.relowner, 'USAGE')
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.relid = i.indrelid)
"""
# A host that is lost is noticed within a minute; libpq's own default is the system's, two hours.
KEEPALIVES = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
LONGEST_USERNAME, SHORTEST_PASSWORD = 57, 8
UNUSABLE = re.compile("[\0\ud800-\udfff]")
DRIVERS = re.compile(r"(postgres|postgresql|postgresql\+psycopg2)://")


class SettingsError(RunError):
    """What the environment says can't be used; the message holds no part of a URL or a secret."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=ExitCode.WRONG_USE, kind="SettingsError")


def connection_parameters(environment: Mapping[str, str]) -> dict[str, str]:
    """Where the database is and how to log in, under libpq's names.

    https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS

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
    if any(map(UNUSABLE.search, read.values())):
        name = "DATABASE_SECRET" if secret else "DATABASE_URL"
        raise SettingsError(f"{name} holds a character that PostgreSQL can't take, NUL or a lone surrogate: remove it.")
    return {"application_name": NAME, **KEEPALIVES, **read}


def contract_follows(environment: Mapping[str, str]) -> bool:
    """Whether a contract step comes later, as MIGRATION_CONTRACT_FOLLOWS says.

    Raises:
        SettingsError: it is neither true nor false.
    """
    value = environment.get("MIGRATION_CONTRACT_FOLLOWS") or "false"
    if value not in ("true", "false"):
        raise SettingsError(f"MIGRATION_CONTRACT_FOLLOWS is {value!r}, but must be 'true' or 'false'.")
    return value == "true"


def service_login(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Who the services log in as, and with which password; None when the runner has no role to look after.

    Args:
        environment: SERVICE_SECRET in it is the JSON of an RDS secret, of which username and password count.

    Raises:
        SettingsError: it can't be used.
    """
    secret = environment.get("SERVICE_SECRET")
    if not secret:
        return None
    fields = _json_object("SERVICE_SECRET", secret)
    username, password = fields.get("username"), fields.get("password")
    if not (username and password and isinstance(username, str) and isinstance(password, str)):
        raise SettingsError("SERVICE_SECRET must have text as username and password.")
    if UNUSABLE.search(username + password):
        raise SettingsError(
            "SERVICE_SECRET holds a character that PostgreSQL can't take, NUL or a lone surrogate: remove it."
        )
    if len(username.removesuffix("_clone").encode()) > LONGEST_USERNAME:
        raise SettingsError(
            f"The username in SERVICE_SECRET is longer than {LONGEST_USERNAME} bytes, which leave room for _clone "
            "within PostgreSQL's limit of 63: shorten it."
        )
    if username.startswith("pg_") or username in ("public", "none"):
        raise SettingsError(
            "The username in SERVICE_SECRET is one that PostgreSQL keeps for itself, as pg_..., public and none: take "
            "another one."
        )
    # Hidden wherever it is said: a short one, or a part of a name, would be hidden in words that are no secret.
    if len(password) < SHORTEST_PASSWORD:
        raise SettingsError(
            f"The password in SERVICE_SECRET is shorter than {SHORTEST_PASSWORD} characters: make a longer one."
        )
    if password.lower() in username.lower():
        raise SettingsError("The password in SERVICE_SECRET stands in the username too: make another one.")
    return username, password


def _json_object(name: str, secret: str) -> dict[str, Any]:
    try:
        given = json.loads(secret)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        # Not even the parser's message: it quotes the text.
        raise SettingsError(f"{name} is not a JSON object: give it the value of an RDS secret.")
    return given


def _from_secret(secret: str, environment: Mapping[str, str]) -> dict[str, str]:
    given = _json_object("DATABASE_SECRET", secret)
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
    port = str(fields["port"])
    if not _is_port(port):
        raise SettingsError("The port in DATABASE_SECRET or DATABASE_PORT must be a number from 1 to 65535.")
    sslmode = environment.get("PGSSLMODE") or "verify-full"
    read = {"user": fields["username"], "password": fields["password"], "host": fields["host"], "port": port}
    read |= {"dbname": fields["dbname"], "sslmode": sslmode}
    # With a root certificate, libpq verifies even in the mode "require".
    if sslmode.startswith("verify-"):
        read["sslrootcert"] = environment.get("PGSSLROOTCERT") or RDS_BUNDLE
    return read


def _from_url(url: str) -> dict[str, str]:
    scheme = DRIVERS.match(url)
    if not scheme and "://" in url:
        raise SettingsError("DATABASE_URL must begin with postgresql://, postgres:// or postgresql+psycopg2://.")
    try:
        read: dict[str, str] = parse_dsn(f"postgresql://{url[scheme.end() :]}") if scheme else {}
    except (psycopg2.Error, ValueError):
        # libpq's message quotes the URL, with the password in it.
        read = {}
    hosts, ports = ((read.get(name) or "").split(",") for name in ("host", "port"))
    if not read or not all(map(_is_port, filter(None, ports))) or len(ports) not in (1, len(hosts)):
        raise SettingsError(
            "DATABASE_URL can't be read: write postgresql://user:password@host:5432/dbname, "
            "with %-escapes for special characters."
        )
    return read


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536
