"""The service outlives the rotation of its secret: a real Secrets Manager's API, database, and process under load."""

from __future__ import annotations

import json
import logging
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import psycopg2
import pytest
from psycopg2 import sql

from inventory_service.database import AWS_SECONDS, READ_AGAIN_SECONDS, READING_SECONDS, Connector
from inventory_service.settings import SettingsError, secret_arn
from local_aws.machine import CLONE, REGION, LocalAws
from local_aws.postgres import HOST
from tests.conftest import Database
from tests.inventory_service.conftest import Serve, Service

# More requests at once than the pool keeps connections: the others are opened, and closed, all the time.
CLIENTS, MORE_CLIENTS = 8, 4
# Between the new password in the database and in the secret: a rotation's setSecret and finishSecret.
UNFINISHED_SECONDS = 1.0


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    """Secrets Manager's API, and a PostgreSQL."""
    machine = LocalAws(tmp_path_factory.mktemp("rotation") / "aws")
    machine.start()
    yield machine
    machine.destroy()


@dataclass
class Secret:
    """The services' secret, and the database in which its role is; it is rotated as Secrets Manager's functions do.

    Those are SecretsManagerRDSPostgreSQLRotationMultiUser and -SingleUser of
    https://github.com/aws-samples/aws-secrets-manager-rotation-lambdas.
    """

    aws: LocalAws
    owner: Database
    user: str = "inventory_service"
    arn: str = ""
    passwords: list[str] = field(default_factory=list)

    @property
    def value(self) -> str:
        """What Secrets Manager keeps."""
        return json.dumps(self.owner.secret | {"username": self.user, "password": self.passwords[-1]})

    @property
    def environment(self) -> dict[str, str]:
        """What ECS gives a task that starts now: the secret's value, its name, and the role's credentials."""
        return {
            "DATABASE_SECRET": self.value,
            "DATABASE_SECRET_ARN": self.arn,
            "AWS_ENDPOINT_URL": self.aws.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }

    def create(self) -> None:
        self.passwords.append(secrets.token_urlsafe(24))
        made = self.aws.client("secretsmanager").create_secret(Name=self.owner.name, SecretString=self.value)
        self.arn = made["ARN"]

    def rotate(self, user: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """A new password for ``user`` in the database, a login with it, and then the secret."""
        self.user = user
        self.passwords.append(secrets.token_urlsafe(24))
        with closing(self.owner.connect()) as connection, connection.cursor() as cursor:
            role = sql.Identifier(user)
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (user,))
            if not cursor.fetchone():
                cursor.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
                base = sql.Identifier(user.removesuffix("_clone"))
                cursor.execute(sql.SQL("GRANT {} TO {}").format(base, role))
            cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD %s").format(role), (self.passwords[-1],))
        replace(self.owner, user=user, password=self.passwords[-1]).rows("SELECT now()")
        meanwhile()
        self.put()

    def put(self) -> None:
        self.aws.client("secretsmanager").put_secret_value(SecretId=self.arn, SecretString=self.value)


@pytest.fixture
def secret(aws: LocalAws) -> Iterator[Secret]:
    """A database that the runner has migrated, and the secret of the services' role."""
    name, password = f"rotation_{secrets.token_hex(6)}", secrets.token_urlsafe(24)
    aws.postgres.create_database(name, owner=name, password=password)
    made = Secret(aws, Database(name, name, password, aws.postgres.port, aws.postgres.ca_file), f"app_{name}")
    made.create()
    subprocess.run(
        [sys.executable, "-m", "migration_runner", "upgrade"],
        cwd=CLONE,
        env={"DATABASE_URL": made.owner.url, "SERVICE_SECRET": made.value},
        check=True,
        capture_output=True,
    )
    yield made
    aws.postgres.drop_database(name)


class Load:
    """Clients that write and read without a pause, and what they have been answered so far."""

    def __init__(self, service: Service, database: Database) -> None:
        self.answers: Counter[int] = Counter()
        self.last_failure = 0.0
        self._url = service.client.base_url
        self._database = database
        self._over = threading.Event()

    @contextmanager
    def going_on(self) -> Iterator[Load]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._ask_until_the_end) for _ in range(CLIENTS)]
            try:
                yield self
            finally:
                self._over.set()
            for client in clients:
                client.result()

    def need_new_connections(self) -> None:
        """Hold everybody up in the database, and let more clients come, for whom there is no idle connection."""
        with (
            ThreadPoolExecutor(MORE_CLIENTS) as pool,
            closing(self._database.connect()) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("BEGIN; LOCK parent_items")
            waiting, deadline = 0, time.monotonic() + UNFINISHED_SECONDS
            while waiting < CLIENTS and time.monotonic() < deadline:
                time.sleep(0.05)
                cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
                ((waiting,),) = cursor.fetchall()
            more = [pool.submit(self._ask) for _ in range(MORE_CLIENTS)]
            time.sleep(UNFINISHED_SECONDS)
            cursor.execute("ROLLBACK")
            for client in more:
                client.result()

    def _ask_until_the_end(self) -> None:
        while not self._over.is_set():
            self._ask()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            for answer in (
                client.post("/parents", json={"sku": secrets.token_hex(8)}),
                client.get("/parents", params={"limit": 500}),
            ):
                self.answers[answer.status_code] += 1
                if answer.status_code >= 400:
                    self.last_failure = time.monotonic()


def told(service: Service, secret: Secret) -> str:
    """The service's log, which holds no password."""
    log = service.log.read_text()
    assert not [password for password in secret.passwords if password in log]
    assert "Traceback" not in log
    return log


def test_no_request_fails_while_alternating_users_are_rotated(serve: Serve, secret: Secret) -> None:
    # given a service under load that knows the secret with which it was started
    service = serve(secret.environment)
    base, clone = secret.user, f"{secret.user}_clone"
    # when the secret goes to the clone, back, and to the clone again
    with Load(service, secret.owner).going_on() as seen:
        for user in (clone, base, clone):
            time.sleep(0.5)
            secret.rotate(user, seen.need_new_connections)
        time.sleep(1)
    # then not one request has failed, although the database has refused what the service knew
    assert set(seen.answers) == {200, 201}, seen.answers
    assert seen.answers[201] > 3 * CLIENTS
    assert "the secret has been read anew" in told(service, secret)
    assert service.client.get("/ready").status_code == 200


def test_a_single_user_is_refused_until_its_rotation_is_finished_and_no_longer(serve: Serve, secret: Secret) -> None:
    service = serve(secret.environment)
    with Load(service, secret.owner).going_on() as seen:
        time.sleep(0.5)
        secret.rotate(secret.user, seen.need_new_connections)
        finished, deadline = time.monotonic(), time.monotonic() + 20
        # given clients that go on until none has failed for a while
        while time.monotonic() - max(finished, seen.last_failure) < READ_AGAIN_SECONDS + 0.5:
            assert time.monotonic() < deadline, seen.answers
            time.sleep(0.1)
    # then those that needed a new connection meanwhile were told to come again, and no other was
    assert set(seen.answers) == {200, 201, 503}, seen.answers
    assert "the secret has been read anew" in told(service, secret)
    print("single user:", dict(seen.answers), f"last failure {seen.last_failure - finished:+.1f} s")


def test_a_service_that_is_not_told_of_its_secret_reads_none(serve: Serve, secret: Secret) -> None:
    service = serve({"DATABASE_SECRET": secret.value})
    secret.rotate(secret.user)
    assert service.client.get("/parents").status_code == 503
    assert "read anew" not in told(service, secret)


def test_a_secret_that_is_wrong_makes_no_storm(
    secret: Secret, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a secret that the database refuses, in the environment and in Secrets Manager
    for name, value in secret.environment.items():
        monkeypatch.setenv(name, value)
    secret.passwords.append("wrong-and-long-enough")
    secret.put()
    connect = Connector(secret.environment | {"DATABASE_SECRET": secret.value})
    caplog.set_level(logging.INFO, logger="uvicorn.error")
    # when many connections are asked for at once, and again and again
    deadline = time.monotonic() + READ_AGAIN_SECONDS / 2

    def ask(_: int) -> None:
        while time.monotonic() < deadline:
            with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
                connect()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    # then it was read once
    assert [record.message for record in caplog.records] == [
        "The database refused the credentials, and the secret gives no others: it holds these."
    ]


def test_a_secret_that_can_not_be_read_is_said_and_the_refusal_stays(
    secret: Secret, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = secret.environment | {"DATABASE_SECRET": secret.value.replace(secret.passwords[0], "canary")}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    gone = secret.arn.replace("secret:", "secret:no")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        Connector(environment | {"DATABASE_SECRET_ARN": gone})()
    assert caplog.messages == [
        "The database refused the credentials, and the secret gives no others: ResourceNotFoundException."
    ]
    assert "canary" not in caplog.text


class Endpoint(ThreadingHTTPServer):
    """In the place of Secrets Manager, or of the task's credentials: it answers what AWS never does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), Answer)
        self.status, self.body, self.pause, self.asked = 200, b"", 0.0, 0

    def gives(self, secret: str) -> None:
        """From now on the answer is a secret."""
        self.status, self.body, self.pause = 200, json.dumps({"ARN": "a", "SecretString": secret}).encode(), 0.0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """One answer of an Endpoint, byte by byte when it has a pause."""

    server: Endpoint

    def do_POST(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body, pause = self.server.body, self.server.pause
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(OSError):
            for start in range(0, len(body), 1 if pause else len(body)):
                time.sleep(pause)
                self.wfile.write(body[start:][: 1 if pause else None])

    do_GET = do_POST  # noqa: N815 - as the base class has it

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def outdated(secret: Secret, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Connector:
    """What a service connects with whose secret the database refuses, and that reads it from the endpoint."""
    environment = secret.environment | {"AWS_ENDPOINT_URL": endpoint.url}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return Connector(environment | {"DATABASE_SECRET": changed(secret, password="canary")})


def changed(secret: Secret, **fields: object) -> str:
    return json.dumps(json.loads(secret.value) | fields)


def until_it_connects(connect: Connector) -> None:
    deadline = time.monotonic() + READ_AGAIN_SECONDS + 1
    while True:
        try:
            connect().close()
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


Spoil = Callable[[Endpoint, Secret], None]
SPOILT: dict[str, Spoil] = {
    "NUL": lambda endpoint, secret: endpoint.gives(changed(secret, password="canary\0")),
    "half a surrogate pair": lambda endpoint, secret: endpoint.gives(changed(secret, password="canary\ud800")),
    "nested deeply": lambda endpoint, _: endpoint.gives("[" * 100_000),
    "a long port": lambda endpoint, secret: endpoint.gives(changed(secret, port="1" * 5000)),
    "no such keys": lambda endpoint, _: endpoint.gives('{"canary": 1}'),
    "another host": lambda endpoint, secret: endpoint.gives(changed(secret, port=1)),
    "no secret": lambda endpoint, _: vars(endpoint).update(body=b"{}"),
    "no JSON": lambda endpoint, _: vars(endpoint).update(body=b"<html>canary"),
    "no Unicode": lambda endpoint, _: vars(endpoint).update(status=400, body=b"\xff\xfecanary"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_secret_that_is_of_no_use_is_a_refusal_and_is_read_again_until_it_is_mended(
    secret: Secret, endpoint: Endpoint, outdated: Connector, spoil: Spoil, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(endpoint, secret)
    for _ in range(2):
        with pytest.raises(psycopg2.OperationalError):
            outdated()
    assert endpoint.asked == 1
    endpoint.gives(secret.value)
    until_it_connects(outdated)
    assert "canary" not in caplog.text


def test_a_service_whose_secret_is_of_no_use_answers_503_and_goes_on_when_it_is_mended(
    serve: Serve, secret: Secret, endpoint: Endpoint
) -> None:
    environment = secret.environment | {"AWS_ENDPOINT_URL": endpoint.url}
    service = serve(environment | {"DATABASE_SECRET": changed(secret, password="canary")})
    endpoint.gives(changed(secret, password="canary\0"))
    refused = service.client.get("/parents")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    endpoint.gives(secret.value)
    time.sleep(READ_AGAIN_SECONDS)
    assert service.client.get("/parents").status_code == 200
    assert "canary" not in told(service, secret)


def dripping(endpoint: Endpoint, _: pytest.MonkeyPatch) -> None:
    endpoint.body, endpoint.pause = b" " * 60, AWS_SECONDS / 2


def without_credentials(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ECS did not answer the task: each of botocore's attempts waits."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{endpoint.url}/credentials")
    dripping(endpoint, monkeypatch)


@pytest.mark.parametrize("hang", [dripping, without_credentials])
def test_nobody_waits_for_a_secret_for_longer_than_five_seconds(
    secret: Secret,
    endpoint: Endpoint,
    outdated: Connector,
    hang: Callable[[Endpoint, pytest.MonkeyPatch], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given an AWS that never comes to an end
    hang(endpoint, monkeypatch)

    # when many ask at once
    def ask(_: int) -> float:
        began = time.monotonic()
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            outdated()
        return time.monotonic() - began

    with ThreadPoolExecutor(16) as pool:
        waited = list(pool.map(ask, range(16)))
    # then all were refused in time, for one reading
    assert max(waited) < READING_SECONDS + 1
    assert caplog.messages == [
        "The database refused the credentials, and the secret gives no others: AWS has not answered within 5 seconds."
    ]
    # and it goes on when AWS answers again
    for name, value in secret.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.url)
    endpoint.gives(secret.value)
    until_it_connects(outdated)


@pytest.mark.parametrize("arn", ["inventory", "arn:aws:s3:::bucket", f"arn:aws:secretsmanager:{REGION}:x:secret:y"])
def test_a_name_that_is_no_arn_of_a_secret_is_one_sentence(arn: str) -> None:
    with pytest.raises(SettingsError) as refused:
        secret_arn({"DATABASE_SECRET": "{}", "DATABASE_SECRET_ARN": arn})
    sentence = f"DATABASE_SECRET_ARN must be the ARN of a secret of Secrets Manager, but it is {arn!r}."
    assert str(refused.value) == sentence


def test_most_services_never_load_the_client_of_aws() -> None:
    code = "import sys, inventory_service.api, inventory_service.database; print('botocore' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=CLONE, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
