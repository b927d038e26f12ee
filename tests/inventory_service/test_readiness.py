"""Ready means that the schema is not behind what the code needs."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from local_aws import release
from local_aws.postgres import Postgres
from tests.conftest import Database
from tests.inventory_service.conftest import Serve, Service, unreachable

NEEDED = "49871d03964c"
OLDER = "48871d03964b"
UNKNOWN = "5f00c0ffee00"


@pytest.fixture(autouse=True)
def at_needed(inventory: Database) -> None:
    stamp(inventory, NEEDED)


def stamp(database: Database, revision: str) -> None:
    database.rows(f"TRUNCATE alembic_version; INSERT INTO alembic_version VALUES ('{revision}')")


def readiness(service: Service) -> tuple[int, object, object, object]:
    answer = service.client.get("/ready")
    report = answer.json()
    return answer.status_code, report["ready"], report["schema"], report["needed"]


@pytest.mark.parametrize("revision", [NEEDED, UNKNOWN])
def test_a_schema_that_is_as_needed_or_newer_is_ready(service: Service, inventory: Database, revision: str) -> None:
    stamp(inventory, revision)
    assert readiness(service) == (200, True, revision, NEEDED)


def test_contract_revisions_at_the_end_are_not_waited_for(serve: Serve, inventory: Database, tmp_path: Path) -> None:
    release.copy(tmp_path / "app")
    release.break_contract(tmp_path / "app")
    serving = serve({"DATABASE_SECRET": json.dumps(inventory.secret)}, tmp_path / "app")
    assert readiness(serving) == (200, True, NEEDED, NEEDED)
    stamp(inventory, OLDER)
    assert readiness(serving) == (503, False, OLDER, NEEDED)


def test_a_schema_that_is_behind_is_not_ready_until_it_is_migrated(service: Service, inventory: Database) -> None:
    stamp(inventory, OLDER)
    assert readiness(service) == (503, False, OLDER, NEEDED)
    assert service.client.get("/ready").json()["detail"] == "The schema is behind: run the migration."
    assert service.client.get("/health").status_code == 200
    stamp(inventory, NEEDED)
    assert readiness(service)[0] == 200


@pytest.mark.parametrize(
    ("spoil", "repair"),
    [
        ("ALTER TABLE alembic_version RENAME TO hidden", "ALTER TABLE hidden RENAME TO alembic_version"),
        ("TRUNCATE alembic_version", "SELECT 1"),
    ],
    ids=["no version table", "no version"],
)
def test_a_database_without_a_schema_is_not_ready(
    service: Service, inventory: Database, spoil: str, repair: str
) -> None:
    inventory.rows(spoil)
    try:
        assert readiness(service) == (503, False, None, NEEDED)
    finally:
        inventory.rows(repair)


def test_an_outage_leaves_a_ready_service_ready(service: Service, inventory: Database, postgres: Postgres) -> None:
    assert readiness(service)[0] == 200
    with unreachable(inventory, postgres):
        assert readiness(service) == (200, True, None, NEEDED)
        assert service.client.get("/ready").json()["detail"] == "The database does not answer."
        assert service.health_check().returncode == 0


def test_a_database_that_hangs_keeps_no_health_check_waiting(service: Service, inventory: Database) -> None:
    assert readiness(service)[0] == 200
    with closing(inventory.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; LOCK alembic_version")
        assert service.client.get("/ready", timeout=4).status_code == 200
        cursor.execute("ROLLBACK")


def test_requests_that_all_wait_for_a_lock_keep_no_health_check_waiting(service: Service, inventory: Database) -> None:
    with ThreadPoolExecutor(50) as pool, closing(inventory.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; LOCK parent_items")
        waiting = [pool.submit(service.client.get, "/parents") for _ in range(50)]
        time.sleep(0.5)
        assert service.client.get("/ready", timeout=4).status_code == 200
        assert not any(request.done() for request in waiting)
        cursor.execute("ROLLBACK")
        assert {request.result().status_code for request in waiting} == {200}


def test_a_service_that_has_not_seen_its_schema_yet_is_not_ready(
    serve: Serve, inventory: Database, postgres: Postgres
) -> None:
    with unreachable(inventory, postgres):
        late = serve({"DATABASE_SECRET": json.dumps(inventory.secret)})
        assert readiness(late) == (503, False, None, NEEDED)
        check = late.health_check()
        assert (check.returncode, check.stderr) == (1, "")
        assert "The database does not answer." in check.stdout
    check = late.health_check()
    assert (check.returncode, check.stderr) == (0, "")
