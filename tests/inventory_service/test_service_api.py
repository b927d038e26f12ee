"""Parents and children through HTTP, on a real database."""

from __future__ import annotations

import json

import pytest

from local_aws.postgres import Postgres
from tests.conftest import Database
from tests.inventory_service.conftest import Service, unreachable

KINDS = ["/parents", "/children"]
TOO_BIG = 2**63


@pytest.fixture(autouse=True)
def empty(inventory: Database) -> None:
    inventory.rows("TRUNCATE parent_items RESTART IDENTITY CASCADE")


@pytest.fixture
def parent(service: Service) -> int:
    created = service.client.post("/parents", json={"sku": "engine"})
    return int(created.json()["id"])


def new(kind: str, parent: int, sku: str = "bolt") -> dict[str, object]:
    return {"sku": sku} if kind == "/parents" else {"sku": sku, "parent_id": parent}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_can_be_read_where_its_location_says(service: Service, parent: int, kind: str) -> None:
    created = service.client.post(kind, json=new(kind, parent, sku="  Ölfilter 10 µm 🔩 "))
    assert created.status_code == 201
    assert created.json()["sku"] == "Ölfilter 10 µm 🔩"
    read = service.client.get(created.headers["Location"])
    assert read.status_code == 200
    assert read.json() == created.json()


def test_a_child_has_the_quantity_it_is_given_or_none(service: Service, parent: int) -> None:
    given = service.client.post("/children", json={"parent_id": parent, "sku": "bolt", "quantity": 12}).json()
    assert (given["parent_id"], given["quantity"]) == (parent, 12)
    assert service.client.post("/children", json={"parent_id": parent, "sku": "nut"}).json()["quantity"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_stored_and_moves_only_updated_at(service: Service, parent: int, kind: str) -> None:
    created = service.client.post(kind, json=new(kind, parent))
    changed = service.client.patch(created.headers["Location"], json={"sku": "screw"})
    assert changed.status_code == 200
    assert changed.json() == created.json() | {"sku": "screw", "updated_at": changed.json()["updated_at"]}
    assert changed.json()["updated_at"] > created.json()["updated_at"]
    assert service.client.get(created.headers["Location"]).json() == changed.json()


def test_a_child_keeps_the_fields_that_a_change_leaves_out(service: Service, parent: int) -> None:
    child = service.client.post("/children", json={"parent_id": parent, "sku": "bolt", "quantity": 12})
    location = child.headers["Location"]
    assert service.client.patch(location, json={"quantity": 0}).json()["sku"] == "bolt"
    assert service.client.patch(location, json={"sku": "nut"}).json()["quantity"] == 0
    assert service.client.patch(location, json={}).json()["sku"] == "nut"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_deleted_is_gone(service: Service, parent: int, kind: str) -> None:
    location = service.client.post(kind, json=new(kind, parent)).headers["Location"]
    deleted = service.client.delete(location)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert service.client.get(location).status_code == 404


def test_children_go_with_their_parent(service: Service, parent: int) -> None:
    child = service.client.post("/children", json=new("/children", parent)).headers["Location"]
    service.client.delete(f"/parents/{parent}")
    assert service.client.get(child).status_code == 404


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_paged_oldest_first(service: Service, parent: int, kind: str) -> None:
    for sku in ("a", "b", "c"):
        service.client.post(kind, json=new(kind, parent, sku=sku))
    everything = service.client.get(kind).json()
    assert [item["sku"] for item in everything][-3:] == ["a", "b", "c"]
    assert service.client.get(kind, params={"limit": 2, "offset": 1}).json() == everything[1:3]
    assert service.client.get(kind, params={"offset": 50}).json() == []


def test_children_can_be_listed_of_one_parent(service: Service, parent: int) -> None:
    other = service.client.post("/parents", json={"sku": "gearbox"}).json()["id"]
    for owner in (parent, other):
        service.client.post("/children", json=new("/children", owner))
    assert [child["parent_id"] for child in service.client.get("/children", params={"parent_id": other}).json()] == [
        other
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_an_unknown_item_is_a_404(service: Service, kind: str, method: str) -> None:
    body = {"sku": "bolt"} if method == "PATCH" else None
    answer = service.client.request(method, f"{kind}/4711", json=body)
    assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such item."})


@pytest.mark.parametrize("kind", KINDS)
def test_a_duplicate_is_a_409_whether_created_or_changed_into(service: Service, parent: int, kind: str) -> None:
    service.client.post(kind, json=new(kind, parent, sku="bolt"))
    nut = service.client.post(kind, json=new(kind, parent, sku="nut")).headers["Location"]
    for answer in (
        service.client.post(kind, json=new(kind, parent, sku="bolt")),
        service.client.patch(nut, json={"sku": "bolt"}),
    ):
        assert (answer.status_code, answer.json()) == (409, {"detail": "This sku is taken."})


def test_the_same_child_may_stand_below_two_parents(service: Service, parent: int) -> None:
    other = service.client.post("/parents", json={"sku": "gearbox"}).json()["id"]
    created = [service.client.post("/children", json=new("/children", owner)) for owner in (parent, other)]
    assert [answer.status_code for answer in created] == [201, 201]


def test_a_child_of_an_unknown_parent_is_a_422(service: Service) -> None:
    answer = service.client.post("/children", json=new("/children", 4711))
    assert (answer.status_code, answer.json()) == (422, {"detail": "There is no parent with this parent_id."})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"sku": None},
        {"sku": 7},
        {"sku": "  "},
        {"sku": "x" * 121},
        {"sku": "nul\0nul"},
        {"sku": "\ud800"},
        {"quantity": -1},
        {"quantity": 2**31},
        {"quantity": True},
        {"parent_id": TOO_BIG},
        {"quantity": float("nan")},
        {"colour": "red"},
    ],
    ids=repr,
)
def test_a_wrong_field_is_a_422_and_changes_nothing(
    service: Service, inventory: Database, parent: int, kind: str, wrong: dict[str, object]
) -> None:
    location = service.client.post(kind, json=new(kind, parent)).headers["Location"]
    before = service.client.get(location).json()
    for method, path, body in (("POST", kind, new(kind, parent, sku="other") | wrong), ("PATCH", location, wrong)):
        # Not httpx's own JSON: it refuses to write the lone surrogate.
        headers = {"Content-Type": "application/json"}
        answer = service.client.request(method, path, content=json.dumps(body), headers=headers)
        assert answer.status_code == 422
        assert {tuple(error["loc"]) for error in answer.json()["detail"]} >= {("body", *wrong)}
    assert service.client.get(location).json() == before
    assert inventory.rows("SELECT 1 FROM parent_items NATURAL FULL JOIN child_items WHERE sku = 'other'") == []


def test_a_field_whose_name_is_no_unicode_is_a_422(service: Service) -> None:
    headers = {"Content-Type": "application/json"}
    assert service.client.post("/parents", content=r'{"sku": "bolt", "\ud800": 1}', headers=headers).status_code == 422


@pytest.mark.parametrize(
    "path",
    [
        "/parents/x",
        "/parents/0",
        f"/children/{TOO_BIG}",
        "/parents?limit=0",
        "/children?limit=501",
        f"/parents?offset={TOO_BIG}",
    ],
)
def test_a_wrong_number_in_the_path_is_a_422(service: Service, path: str) -> None:
    assert service.client.get(path).status_code == 422


def test_a_database_that_is_gone_is_a_503_and_its_return_needs_no_restart(
    service: Service, inventory: Database, postgres: Postgres
) -> None:
    assert service.client.get("/parents").status_code == 200
    with unreachable(inventory, postgres):
        answer = service.client.post("/parents", json={"sku": "bolt"})
        assert (answer.status_code, answer.json()) == (503, {"detail": "The database does not answer; try again."})
        assert answer.headers["Retry-After"] == "1"
        assert service.client.get("/health").status_code == 200
    assert service.client.post("/parents", json={"sku": "bolt"}).status_code == 201


def test_sessions_that_the_server_has_ended_cost_no_request(
    service: Service, inventory: Database, postgres: Postgres
) -> None:
    assert service.client.get("/parents").status_code == 200
    with unreachable(inventory, postgres):
        pass
    assert service.client.get("/parents").status_code == 200


def test_an_unforeseen_error_shows_no_sql_and_logs_no_values(service: Service, inventory: Database) -> None:
    inventory.rows("ALTER TABLE parent_items RENAME sku TO something_else")
    try:
        answer = service.client.post("/parents", json={"sku": "canary-value"})
    finally:
        inventory.rows("ALTER TABLE parent_items RENAME something_else TO sku")
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
    log = service.log.read_text()
    assert 'UndefinedColumn) column "sku" of relation "parent_items" does not exist' in log
    assert "canary-value" not in log
