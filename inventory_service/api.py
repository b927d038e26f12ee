"""Parents, children, health and readiness over HTTP."""

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from psycopg2.errors import ForeignKeyViolation, UniqueViolation
from pydantic import BaseModel, Field, StringConstraints
from sqlalchemy import Engine, delete, exc, insert, select, update
from sqlalchemy.orm import Session

from inventory_service.models import ChildItem, ParentItem
from inventory_service.readiness import Readiness

# PostgreSQL can't store NUL, and nobody can read the other control characters.
Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120, pattern=r"^\P{Cc}+$")]
Key = Annotated[int, Field(ge=1, lt=2**63)]
Quantity = Annotated[int, Field(ge=0, lt=2**31)]
Limit = Annotated[int, Query(ge=1, le=500)]
Offset = Annotated[int, Query(ge=0, lt=2**63)]


class NewParent(BaseModel, extra="forbid", strict=True):
    """What a parent is made from, and what can be changed of it."""

    sku: Label


class NewChild(NewParent):
    """What a child is made from."""

    parent_id: Key
    quantity: Quantity = 0


class ChildChanges(NewParent):
    """What can be changed of a child; a field that is absent stays as it is."""

    sku: Label = ""
    quantity: Quantity = 0


class Parent(BaseModel):
    """A parent as it is stored."""

    id: int
    sku: str
    created_at: datetime
    updated_at: datetime


class Child(Parent):
    """A child as it is stored."""

    parent_id: int
    quantity: int


def create_app(engine: Engine) -> FastAPI:
    """The service's application on the inventory's database; raises what Readiness raises."""
    app = FastAPI(title="Inventory", exception_handlers={RequestValidationError: _refuse, exc.SQLAlchemyError: _refuse})
    app.get("/ready")(Readiness(engine).report)

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"alive": True}

    def transaction() -> Iterator[Session]:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    # The scope says when it ends, and so commits: before the answer is sent.
    Transaction = Annotated[Session, Depends(transaction, scope="function")]  # noqa: N806 - it is a type

    @app.post("/parents", status_code=201, response_model=Parent)
    def create_parent(new: NewParent, session: Transaction, response: Response) -> ParentItem:
        parent = session.scalars(insert(ParentItem).values(new.model_dump()).returning(ParentItem)).one()
        response.headers["Location"] = f"/parents/{parent.id}"
        return parent

    @app.get("/parents", response_model=list[Parent])
    def list_parents(session: Transaction, limit: Limit = 100, offset: Offset = 0) -> Sequence[ParentItem]:
        return session.scalars(select(ParentItem).order_by(ParentItem.id).limit(limit).offset(offset)).all()

    @app.get("/parents/{key}", response_model=Parent)
    def get_parent(key: Key, session: Transaction) -> ParentItem:
        return session.get_one(ParentItem, key)

    @app.patch("/parents/{key}", response_model=Parent)
    def update_parent(key: Key, changes: NewParent, session: Transaction) -> ParentItem:
        changed = update(ParentItem).where(ParentItem.id == key).values(changes.model_dump())
        return session.scalars(changed.returning(ParentItem)).one()

    @app.delete("/parents/{key}", status_code=204)
    def delete_parent(key: Key, session: Transaction) -> None:
        session.scalars(delete(ParentItem).where(ParentItem.id == key).returning(ParentItem.id)).one()

    @app.post("/children", status_code=201, response_model=Child)
    def create_child(new: NewChild, session: Transaction, response: Response) -> ChildItem:
        child = session.scalars(insert(ChildItem).values(new.model_dump()).returning(ChildItem)).one()
        response.headers["Location"] = f"/children/{child.id}"
        return child

    @app.get("/children", response_model=list[Child])
    def list_children(
        session: Transaction, parent_id: Key | None = None, limit: Limit = 100, offset: Offset = 0
    ) -> Sequence[ChildItem]:
        children = select(ChildItem) if parent_id is None else select(ChildItem).where(ChildItem.parent_id == parent_id)
        return session.scalars(children.order_by(ChildItem.id).limit(limit).offset(offset)).all()

    @app.get("/children/{key}", response_model=Child)
    def get_child(key: Key, session: Transaction) -> ChildItem:
        return session.get_one(ChildItem, key)

    @app.patch("/children/{key}", response_model=Child)
    def update_child(key: Key, changes: ChildChanges, session: Transaction) -> ChildItem:
        changed = update(ChildItem).where(ChildItem.id == key).values(changes.model_dump(exclude_unset=True))
        return session.scalars(changed.returning(ChildItem)).one()

    @app.delete("/children/{key}", status_code=204)
    def delete_child(key: Key, session: Transaction) -> None:
        session.scalars(delete(ChildItem).where(ChildItem.id == key).returning(ChildItem.id)).one()

    return app


async def _refuse(_request: Request, error: Exception) -> Response:
    detail: object
    match error:
        case RequestValidationError():
            # Without the input, which FastAPI would repeat: it may be NaN or no Unicode, and so no JSON.
            status, detail = 422, [{key: wrong[key] for key in ("loc", "msg", "type")} for wrong in error.errors()]
        case exc.NoResultFound():
            status, detail = 404, "There is no such item."
        case exc.IntegrityError(orig=UniqueViolation()):
            status, detail = 409, "This sku is taken."
        case exc.IntegrityError(orig=ForeignKeyViolation()):
            status, detail = 422, "There is no parent with this parent_id."
        case exc.OperationalError() | exc.InterfaceError() | exc.TimeoutError():
            status, detail = 503, "The database does not answer; try again."
        case exc.DBAPIError():
            status, detail = 500, "Internal Server Error"
        case _:
            raise error
    if status >= 500:
        # Only the first line: the others repeat the statement and the values in it.
        logging.getLogger("uvicorn.error").error("%s %s", detail, str(error).partition("\n")[0])
    headers = {"Retry-After": "1"} if status == 503 else None
    return Response(json.dumps({"detail": detail}), status, headers, "application/json")
