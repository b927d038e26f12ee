"""How the runner finds its database, waits for it, verifies it, and what it says when it can't."""

from __future__ import annotations

import io
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from cryptography import x509
from sqlalchemy import URL

from local_aws import postgres as local_postgres
from local_aws.postgres import Postgres
from migration_runner.database import connection_refusal, database_failure, sqlalchemy_url, wait_for
from migration_runner.errors import RunError
from migration_runner.report import Report
from migration_runner.settings import RDS_BUNDLE, SettingsError, connection_parameters
from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, ROOT, Project, migrate, run

CANARY = "cAnArY"
SECRET = {"username": "u", "password": CANARY, "host": "db.example.com", "port": 5432, "dbname": "inventory"}


@pytest.fixture(autouse=True)
def no_libpq_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PG", "DATABASE_"))]:
        monkeypatch.delenv(name)


def url_of(environment: dict[str, str]) -> URL:
    """What env.py gets, without what the runner adds for itself."""
    added = {"application_name", "keepalives_idle", "keepalives_interval", "keepalives_count"}
    return sqlalchemy_url({k: v for k, v in connection_parameters(environment).items() if k not in added})


def refusal(parameters: dict[str, str], seconds: float = 20) -> RunError:
    """What the first try to connect ends with; waiting would be a failure."""
    lines = io.StringIO()
    with pytest.raises(RunError) as refused:
        wait_for(parameters, seconds, Report(lines))
    assert lines.getvalue() == ""
    return refused.value


# Settings


def test_a_secret_of_rds_is_all_that_is_needed() -> None:
    url = url_of({"DATABASE_SECRET": json.dumps({**SECRET, "engine": "postgres", "dbInstanceIdentifier": "x"})})
    assert (url.drivername, url.username, url.password) == ("postgresql+psycopg2", "u", CANARY)
    assert (url.host, url.port, url.database) == ("db.example.com", 5432, "inventory")
    assert url.query == {"sslmode": "verify-full", "sslrootcert": RDS_BUNDLE}


def test_variables_beside_the_secret_fill_in_and_override() -> None:
    beside = {"DATABASE_HOST": "other.example.com", "DATABASE_PORT": "6432", "DATABASE_NAME": "orders"}
    for secret in (SECRET, {"username": "u", "password": CANARY}):
        url = url_of({"DATABASE_SECRET": json.dumps(secret), **beside})
        assert (url.host, url.port, url.database) == ("other.example.com", 6432, "orders")


def test_the_port_is_postgresqls_own_unless_told() -> None:
    assert url_of({"DATABASE_SECRET": json.dumps({**SECRET, "port": "5433"})}).port == 5433
    without = {key: value for key, value in SECRET.items() if key != "port"}
    assert url_of({"DATABASE_SECRET": json.dumps(without)}).port == 5432


@pytest.mark.parametrize(
    ("variables", "query"),
    [
        ({"PGSSLMODE": "verify-ca"}, {"sslmode": "verify-ca", "sslrootcert": RDS_BUNDLE}),
        ({"PGSSLROOTCERT": "own.pem"}, {"sslmode": "verify-full", "sslrootcert": "own.pem"}),
        ({"PGSSLMODE": "require"}, {"sslmode": "require"}),
        ({"PGSSLMODE": "disable"}, {"sslmode": "disable"}),
    ],
)
def test_libpqs_variables_decide_how_the_server_is_verified(variables: dict[str, str], query: dict[str, str]) -> None:
    assert url_of({"DATABASE_SECRET": json.dumps(SECRET), **variables}).query == query


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_a_url_keeps_its_parameters_and_means_psycopg2(scheme: str) -> None:
    url = url_of({"DATABASE_URL": f"{scheme}://u:p%40ss@db.example.com:6432/inventory?sslmode=require"})
    assert url.render_as_string(hide_password=False) == (
        "postgresql+psycopg2://u:p%40ss@db.example.com:6432/inventory?sslmode=require"
    )


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "neither is set"),
        ({"DATABASE_URL": f"postgresql://u:{CANARY}@h/d", "DATABASE_SECRET": json.dumps(SECRET)}, "both are set"),
        ({"DATABASE_SECRET": f'{{"password": {CANARY}'}, "DATABASE_SECRET is not a JSON object"),
        ({"DATABASE_SECRET": f'["{CANARY}"]'}, "DATABASE_SECRET is not a JSON object"),
        ({"DATABASE_SECRET": json.dumps({**SECRET, "username": ""})}, "DATABASE_SECRET lacks username"),
        (
            {"DATABASE_SECRET": json.dumps({"username": "u", "password": CANARY})},
            "lacks host and dbname: add it, or set DATABASE_HOST and DATABASE_NAME.",
        ),
        ({"DATABASE_SECRET": json.dumps({**SECRET, "password": [CANARY]})}, "must have text as username"),
        ({"DATABASE_SECRET": json.dumps({**SECRET, "port": CANARY})}, "must be a number from 1 to 65535"),
        ({"DATABASE_SECRET": json.dumps({**SECRET, "port": 0})}, "must be a number from 1 to 65535"),
        ({"DATABASE_SECRET": json.dumps(SECRET), "DATABASE_PORT": "65536"}, "must be a number from 1 to 65535"),
        ({"DATABASE_SECRET": json.dumps({**SECRET, "password": f"{CANARY}\0"})}, "DATABASE_SECRET holds a character"),
        ({"DATABASE_SECRET": json.dumps({**SECRET, "dbname": f"{CANARY}\ud800"})}, "DATABASE_SECRET holds a character"),
        ({"DATABASE_URL": f"postgresql://u:{CANARY}%00@h/d"}, "DATABASE_URL can't be read"),
        ({"DATABASE_URL": f"postgresql://u:{CANARY}\ud800@h/d"}, "DATABASE_URL"),
        ({"DATABASE_URL": f"postgresql://u:p@h/d?{CANARY}=1"}, "DATABASE_URL can't be read"),
        ({"DATABASE_URL": f"postgresql://u:p@h:{CANARY}/d"}, "DATABASE_URL can't be read"),
        ({"DATABASE_URL": CANARY}, "DATABASE_URL can't be read"),
        ({"DATABASE_URL": f"mysql://u:{CANARY}@h/d"}, "DATABASE_URL must begin with postgresql://"),
        ({"DATABASE_URL": f"{CANARY}://h/d"}, "DATABASE_URL must begin with postgresql://"),
    ],
)  # fmt: skip
def test_settings_that_can_not_be_used_are_refused_without_showing_them(
    environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        connection_parameters(environment)
    assert sentence in refused.value.message
    assert refused.value.exit_code == 2
    assert CANARY.lower() not in repr(refused.value).lower()


def test_bad_settings_end_the_run_with_2() -> None:
    outcome = run("upgrade", environment={})
    assert (outcome.exit_code, outcome.error["kind"]) == (2, "SettingsError")
    assert outcome.errors == ""


# TLS


def test_the_bundle_holds_the_authorities_of_rds_and_all_are_valid() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(RDS_BUNDLE)
    certificates = x509.load_pem_x509_certificates(Path(RDS_BUNDLE).read_bytes())
    assert len(certificates) == len(context.get_ca_certs())
    for certificate in certificates:
        name = certificate.subject.rfc4514_string()
        assert "O=Amazon Web Services" in name
        assert certificate.issuer == certificate.subject
        assert certificate.not_valid_after_utc > datetime.now(UTC), name
        assert f"# {name}" in Path(RDS_BUNDLE).read_text()


def test_a_secret_means_verified_tls(database: Database, project: Project) -> None:
    project.write(
        "aaaa", None, 'op.execute("CREATE TABLE t AS SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")'
    )
    secret = {"DATABASE_SECRET": json.dumps(database.secret), "PGSSLROOTCERT": str(database.ca_file)}
    outcome = run("upgrade", project=project.path, environment=secret)
    assert outcome.exit_code == 0
    assert database.rows("SELECT ssl FROM t") == [(True,)]
    assert database.password not in outcome.output


def test_a_server_that_an_unknown_authority_vouches_for_is_refused_at_once(database: Database) -> None:
    outcome = run("upgrade", environment={"DATABASE_SECRET": json.dumps(database.secret)})
    assert (outcome.exit_code, outcome.error["kind"]) == (3, "CertificateUntrusted")
    assert not outcome.named("database.waiting")


def test_a_server_with_a_certificate_for_another_host_is_refused_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOSTADDR", database.host)
    secret = {**database.secret, "host": "db.example.com"}
    secret_of = {"DATABASE_SECRET": json.dumps(secret), "PGSSLROOTCERT": str(database.ca_file)}
    refused = refusal(connection_parameters(secret_of))
    assert (refused.exit_code, refused.kind) == (3, "HostNameMismatch")


@pytest.mark.parametrize(
    "variables", [{"PGSSLMODE": "verify-everything"}, {"PGSSLROOTCERT": "/nowhere/ca.pem"}], ids=["mode", "file"]
)
def test_a_parameter_that_libpq_can_not_use_is_wrong_use(database: Database, variables: dict[str, str]) -> None:
    refused = refusal(connection_parameters({"DATABASE_SECRET": json.dumps(database.secret), **variables}))
    assert (refused.exit_code, refused.kind) == (2, "SettingsError")


# A server of its own: it is stopped, started late, and started without TLS.


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, Database]]:
    """A server that accepts TLS only, as RDS does, and a database in it."""
    server = Postgres(tmp_path_factory.mktemp("strict"), force_tls=True)
    server.start(with_parent=True)
    try:
        server.create_database("inventory", owner="owner", password=CANARY)
        yield server, Database("inventory", "owner", CANARY, server.port, server.ca_file)
    finally:
        server.stop()


def test_a_server_that_insists_on_tls_is_told_from_one_that_refuses_the_password(
    strict: tuple[Postgres, Database],
) -> None:
    _, database = strict
    plain = refusal(connection_parameters({"DATABASE_URL": f"{database.url}?sslmode=disable"}))
    assert (plain.exit_code, plain.kind) == (3, "TLSRequired")
    # libpq's default tries with TLS first, and then, in vain, without
    wrong = refusal(connection_parameters({"DATABASE_URL": replace(database, password="wrong").url}))
    assert (wrong.exit_code, wrong.sqlstate) == (6, "28P01")


def test_a_database_that_starts_late_is_waited_for(
    strict: tuple[Postgres, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that is down
    server, database = strict
    monkeypatch.setattr(local_postgres, "free_port", lambda: database.port)
    server.stop()
    runner = subprocess.Popen(
        [sys.executable, "-m", "migration_runner", "upgrade", "--wait", "40"],
        cwd=ROOT,
        env={**BARE_ENVIRONMENT, "DATABASE_URL": database.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    with runner:
        try:
            # when it starts after the runner has begun to wait
            assert runner.stdout
            first = [json.loads(runner.stdout.readline()) for _ in range(2)]
            assert [one["event"] for one in first] == ["migration.started", "database.waiting"]
            assert first[1]["reason"] == "nothing listens at its port"
            server.start(with_parent=True)
            rest = [json.loads(line) for line in runner.stdout]
        finally:
            runner.kill()
    # then the run goes on, and was told about once per try
    assert rest[-1]["status"] == "succeeded"
    tries = [one["attempt"] for one in [*first, *rest] if one["event"] == "database.waiting"]
    assert tries == list(range(1, len(tries) + 1))


def test_a_server_without_tls_is_refused_at_once(
    strict: tuple[Postgres, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, database = strict
    monkeypatch.setattr(local_postgres, "free_port", lambda: database.port)
    # without TLS it would let nobody in, and so never be ready
    hba = server.data / "pg_hba.conf"
    strictly = hba.read_text()
    hba.write_text(strictly.replace("hostssl", "host"))
    server.stop()
    popen = subprocess.Popen

    def without_tls(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return popen([part.replace("ssl=on", "ssl=off") for part in command], **options)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", without_tls)
            server.start(with_parent=True)
        refused = refusal(connection_parameters({"DATABASE_URL": f"{database.url}?sslmode=require"}))
        assert (refused.exit_code, refused.kind) == (3, "TLSUnavailable")
    finally:
        server.stop()
        hba.write_text(strictly)
        server.start(with_parent=True)


# Waiting


def test_a_database_that_never_answers_is_given_up_at_the_deadline() -> None:
    port = local_postgres.free_port()
    started = time.monotonic()
    outcome = run(
        "upgrade", "--wait", "0.5", environment={"DATABASE_URL": f"postgresql://u:{CANARY}@127.0.0.1:{port}/x"}
    )
    assert (outcome.exit_code, outcome.error["kind"]) == (3, "DatabaseUnreachable")
    assert "nothing listens at its port" in outcome.error["message"]
    assert "safe to run this again" in outcome.error["hint"]
    assert len(outcome.named("database.waiting")) >= 2
    assert 0.5 <= time.monotonic() - started < 10


def test_an_unknown_host_name_is_waited_for() -> None:
    with pytest.raises(RunError) as refused:
        wait_for({"host": "nowhere.invalid", "dbname": "x"}, 0, Report(io.StringIO()))
    assert refused.value.message == "The database can't be reached: its host name is not known."


def test_a_wrong_password_is_not_waited_for(database: Database) -> None:
    refused = migrate(replace(database, password=f"{CANARY}@wrong"), "upgrade")
    assert (refused.exit_code, refused.error["kind"], refused.error["sqlstate"]) == (6, "CredentialsRefused", "28P01")
    assert not refused.named("database.waiting")
    assert CANARY not in refused.output + refused.errors
    assert database.user not in refused.output + refused.errors


def test_what_waiting_does_not_mend_is_not_waited_for(database: Database, postgres: Postgres) -> None:
    odd = refusal({**connection_parameters({"DATABASE_URL": database.url}), "options": "-cjunk=1"})
    assert (odd.exit_code, odd.kind) == (2, "SettingsError")
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
        cursor.execute(f"ALTER DATABASE {database.name} OWNER TO CURRENT_USER")
    refused = refusal(connection_parameters({"DATABASE_URL": database.url}))
    assert (refused.exit_code, refused.sqlstate) == (6, "42501")


def test_a_refusal_in_another_encoding_is_understood() -> None:
    told = 'FATAL:  password authentication failed for user "jos\xe9"'.encode("latin-1")
    with pytest.raises(UnicodeDecodeError) as undecoded:
        told.decode()
    assert connection_refusal(undecoded.value).sqlstate == "28P01"


def test_the_server_notices_within_a_minute_that_the_runners_own_connection_is_lost(database: Database) -> None:  # P6
    with closing(wait_for(connection_parameters({"DATABASE_URL": database.url}), 5, Report(io.StringIO()))) as own:
        assert own.autocommit
        with own.cursor() as cursor:
            names = "tcp_keepalives_idle tcp_keepalives_interval tcp_keepalives_count client_connection_check_interval"
            cursor.execute("SELECT array_agg(current_setting(name)) FROM unnest(%s) AS name", [names.split()])
            assert cursor.fetchone() == (["30", "10", "3", "1s"],)


def test_a_role_that_may_not_log_in_is_refused_credentials(database: Database, postgres: Postgres) -> None:
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f'ALTER ROLE "{database.user}" NOLOGIN')
    refused = refusal(connection_parameters({"DATABASE_URL": database.url}))
    assert (refused.exit_code, refused.sqlstate) == (6, "28000")


def test_a_database_that_does_not_exist_is_wrong_use(database: Database) -> None:
    refused = refusal(connection_parameters({"DATABASE_URL": replace(database, name="nosuch").url}))
    assert (refused.exit_code, refused.sqlstate) == (2, "3D000")


@pytest.mark.parametrize(
    ("statement", "sqlstate"),
    [
        # the SQLSTATE does not always arrive before the connection is gone, so the two are told apart
        ("SELECT pg_terminate_backend(pg_backend_pid())", None),
        ("DO $$ BEGIN RAISE 'shutdown' USING ERRCODE = '57P01'; END $$", "57P01"),
        ("DO $$ BEGIN RAISE 'idle' USING ERRCODE = '25P03'; END $$", "25P03"),
    ],
    ids=["ended", "shutdown", "idle"],
)
def test_a_session_that_the_server_ends_is_lost_also_below_sqlalchemy(
    database: Database, statement: str, sqlstate: str | None
) -> None:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        with pytest.raises(psycopg2.Error) as ended:
            cursor.execute(statement)
        told = database_failure(ended.value, "aaaa")
    assert told
    assert (told.exit_code, told.kind, told.revision) == (3, "SessionLost", "aaaa")
    assert told.sqlstate in (sqlstate, "57P01")
