"""The environment is understood, or refused in one sentence that holds nothing secret."""

from __future__ import annotations

import json

import pytest

from inventory_service.settings import SettingsError, connection_parameters, listen_address

SECRET = {
    "engine": "postgres",
    "username": "app",
    "password": "canary",
    "host": "db",
    "port": 5433,
    "dbname": "inventory",
}
PARAMETERS = {"user": "app", "password": "canary", "host": "db", "port": "5433", "dbname": "inventory"}


def secret(**changes: object) -> str:
    return json.dumps(SECRET | changes)


def test_an_rds_secret_says_everything() -> None:
    assert connection_parameters({"DATABASE_SECRET": secret()}) == PARAMETERS


def test_variables_fill_in_and_override_the_secret() -> None:
    environment = {"DATABASE_HOST": "other", "DATABASE_PORT": "5434", "DATABASE_NAME": "stock"}
    beside = {"host": "other", "port": "5434", "dbname": "stock"}
    assert connection_parameters({"DATABASE_SECRET": secret(), **environment}) == PARAMETERS | beside
    managed = json.dumps({"username": "app", "password": "canary"})
    assert connection_parameters({"DATABASE_SECRET": managed, **environment}) == PARAMETERS | beside


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_a_url_says_everything(scheme: str) -> None:
    assert connection_parameters({"DATABASE_URL": f"{scheme}://app:canary@db:5433/inventory"}) == PARAMETERS


def test_a_url_may_say_more_to_libpq() -> None:
    url = "postgresql://app:c%40n%2Fry@db/inventory?sslmode=require"
    parameters = connection_parameters({"DATABASE_URL": url})
    assert (parameters["password"], parameters["sslmode"]) == ("c@n/ry", "require")


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "Set either DATABASE_SECRET (the JSON of an RDS secret) or DATABASE_URL, and not both."),
        (
            {"DATABASE_SECRET": secret(), "DATABASE_URL": "postgresql://app:canary@db/inventory"},
            "Set either DATABASE_SECRET (the JSON of an RDS secret) or DATABASE_URL, and not both.",
        ),
        *(
            (
                {"DATABASE_SECRET": value},
                "DATABASE_SECRET can't be read: it must be a JSON object, as the secret of an RDS database is.",
            )
            for value in ("canary", '"canary"', "7", "null", "[7]", secret()[:-1], "[" * 100_000)
        ),
        ({"DATABASE_SECRET": '{"password": "canary"}'}, "DATABASE_SECRET lacks username and host and dbname."),
        ({"DATABASE_SECRET": secret(port="canary")}, "The database's port must be a number from 1 to 65535."),
        ({"DATABASE_SECRET": secret(port="1" * 5000)}, "The database's port must be a number from 1 to 65535."),
        *(
            (
                {"DATABASE_SECRET": secret(password=value)},
                "The database's password can't be sent: it holds NUL or is no Unicode.",
            )
            for value in ("canary\0", "canary\ud800")
        ),
        ({"DATABASE_SECRET": secret(), "DATABASE_PORT": "0"}, "The database's port must be a number from 1 to 65535."),
        ({"DATABASE_URL": "host=db password=canary"}, "DATABASE_URL lacks username and dbname."),
        ({"DATABASE_URL": "postgresql://app:canary@db"}, "DATABASE_URL lacks dbname."),
        (
            {"DATABASE_URL": "postgresql://app:can/ary@db/inventory?user=app"},
            "The database's port must be a number from 1 to 65535.",
        ),
        *(
            ({"DATABASE_URL": url}, "DATABASE_URL can't be read: it must be a postgresql:// URL, %-encoded.")
            for url in (
                "mysql://app:canary@db/inventory",
                "postgresql://app:canary%zz@db/inventory",
                "postgresql://app:canary@db/inventory?canary=1",
                "postgresql://app:canary\udc80@db/inventory",
            )
        ),
    ],
)
def test_a_database_that_can_not_be_understood_is_one_sentence(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        connection_parameters(environment)
    assert str(refused.value) == sentence
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_the_service_listens_everywhere_on_8080_unless_told_otherwise() -> None:
    assert listen_address({}) == ("0.0.0.0", 8080)
    assert listen_address({"HOST": "::1", "PORT": "9000"}) == ("::1", 9000)


@pytest.mark.parametrize("port", ["0", "65536", "-1", "", "8080 ", "\u0663", "http"])
def test_a_wrong_port_is_one_sentence(port: str) -> None:
    with pytest.raises(SettingsError) as refused:
        listen_address({"PORT": port})
    assert str(refused.value) == f"PORT must be a number from 1 to 65535, but it is {port!r}."


@pytest.mark.parametrize("host", ["", "localhost", "300.0.0.1"])
def test_a_host_that_is_no_address_is_one_sentence(host: str) -> None:
    with pytest.raises(SettingsError) as refused:
        listen_address({"HOST": host})
    assert str(refused.value) == f"HOST must be an IP address such as 0.0.0.0, but it is {host!r}."
