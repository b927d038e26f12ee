"""The service as a container runs it: start, stop, wrong settings, and its first release."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from local_aws.machine import CLONE
from local_aws.postgres import free_port
from tests.conftest import Database
from tests.inventory_service.conftest import DEADLINE, Serve, Service, alembic


def test_requests_in_flight_are_answered_after_sigterm_and_new_ones_refused(serve: Serve, inventory: Database) -> None:
    service = serve({"DATABASE_URL": inventory.url})
    with ThreadPoolExecutor(1) as pool, closing(inventory.connect()) as blocker, blocker.cursor() as cursor:
        cursor.execute("BEGIN; LOCK parent_items")
        in_flight = pool.submit(service.client.post, "/parents", json={"sku": "bolt"})
        until(inventory, "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted")
        service.process.terminate()
        until_refused(service)
        assert service.process.poll() is None
        cursor.execute("ROLLBACK")
        assert in_flight.result(DEADLINE).status_code == 201
    assert service.process.wait(DEADLINE) == 0
    assert "Traceback" not in service.log.read_text()


def until_refused(service: Service) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            httpx.get(service.client.base_url.join("/health"))
        except httpx.TransportError:
            return
    pytest.fail("The service still takes requests.")


def until(database: Database, condition: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while database.rows(condition) != [(True,)]:
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def test_no_output_holds_the_password_in_any_form(serve: Serve, database: Database) -> None:
    password = database.password + "canary"  # a wrong one: what the driver says about it must not get out either
    service = serve({"DATABASE_SECRET": json.dumps(database.secret | {"password": password})})
    outputs = [service.client.post("/parents", json={"sku": "bolt"}).text, service.client.get("/ready").text]
    outputs += [service.health_check().stdout]
    assert service.stop() == 0
    outputs.append(service.log.read_text())
    assert "password authentication failed" in outputs[-1]
    for form in ("canary", password, quote(password, safe=""), json.dumps(password), repr(password)):
        assert not [output for output in outputs if form in output]


def test_a_server_whose_certificate_is_not_trusted_is_not_talked_to(serve: Serve, inventory: Database) -> None:
    environment = {"DATABASE_SECRET": json.dumps(inventory.secret), "PGSSLMODE": "verify-full"}
    trusting = serve({**environment, "PGSSLROOTCERT": str(inventory.ca_file)})
    assert trusting.health_check().returncode == 0
    distrusting = serve({**environment, "PGSSLROOTCERT": str(CLONE / "migration_runner/rds-global-bundle.pem")})
    assert distrusting.health_check().returncode == 1
    assert "certificate verify failed" in distrusting.log.read_text()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PORT": "http"}, "PORT must be a number from 1 to 65535, but it is 'http'."),
        ({}, "Set either DATABASE_SECRET (the JSON of an RDS secret) or DATABASE_URL, and not both."),
    ],
)
def test_wrong_settings_end_the_service_with_a_sentence_and_2(environment: dict[str, str], sentence: str) -> None:
    assert run(environment) == (2, "", f"The service can't start: {sentence}\n")


def test_an_image_without_migrations_ends_with_a_sentence_and_2(tmp_path: Path) -> None:
    environment = {"DATABASE_URL": "postgresql://user:canary@localhost/inventory", "PYTHONPATH": str(CLONE)}
    code, output, sentence = run(environment, folder=tmp_path)
    assert (code, output) == (2, "")
    assert sentence.startswith("The service can't start: No 'script_location' key found in configuration")
    assert "canary" not in sentence


def test_the_health_check_of_a_service_that_is_not_there_fails_with_a_sentence() -> None:
    code, sentence, errors = run({"PORT": str(free_port())}, module="inventory_service.ready")
    assert (code, errors) == (1, "")
    assert sentence.startswith("The service does not answer: ")
    assert "Connection refused" in sentence


def run(environment: dict[str, str], folder: Path = CLONE, module: str = "inventory_service") -> tuple[int, str, str]:
    ran = subprocess.run(
        [sys.executable, "-m", module],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return ran.returncode, ran.stdout, ran.stderr


def test_the_word_sku_is_all_that_separates_the_service_from_its_first_release(
    serve: Serve, database: Database, tmp_path: Path
) -> None:
    for part in ("alembic.ini", "migrations", "migration_runner", "inventory_service"):
        (shutil.copytree if (CLONE / part).is_dir() else shutil.copy)(CLONE / part, tmp_path / part)
    (tmp_path / "migrations/versions/49871d03964c_rename_name_to_sku.py").unlink()
    for module in (tmp_path / "inventory_service").glob("*.py"):
        module.write_text(module.read_text().replace("sku", "name"))
    alembic("upgrade", "head", url=database.url, folder=tmp_path)
    alembic("check", url=database.url, folder=tmp_path)

    first = serve({"DATABASE_URL": database.url}, folder=tmp_path)
    parent = first.client.post("/parents", json={"name": "engine"}).json()
    child = first.client.post("/children", json={"parent_id": parent["id"], "name": "bolt"}).json()
    assert first.client.patch(f"/children/{child['id']}", json={"name": "nut"}).json()["name"] == "nut"
    assert first.client.post("/parents", json={"name": "engine"}).json() == {"detail": "This name is taken."}
    assert database.rows("SELECT parent_items.name, child_items.name FROM parent_items, child_items") == [
        ("engine", "nut")
    ]
    assert first.client.get("/ready").json()["schema"] == "48871d03964b"

    # The second release's migration runs while the first still serves.
    alembic("upgrade", "head", url=database.url)
    alembic("check", url=database.url)
    assert first.client.get("/ready").status_code == 200
