"""While a rename is bridged, the releases before and after it do what they did; and what they can not, and how else."""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import psycopg
import psycopg.errors
import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column, relationship

from local_aws.postgres import Postgres
from tests.conftest import Database
from tests.migration_runner.conftest import Project, migrate

OLD, NEW = "name", "sku"
MERGE_INTO_VIEWS = 170000

# A shop with all that a table can have. {column} has the older name or the newer one, {table} may stand for a twin.
TABLE = """
CREATE TABLE {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    number serial,
    {column} text NOT NULL CONSTRAINT uq_{table} UNIQUE,
    quantity int NOT NULL DEFAULT 1 CONSTRAINT ck_{table} CHECK (quantity >= 0),
    note text DEFAULT 'none',
    loud text GENERATED ALWAYS AS (upper({column})) STORED,
    box bigint REFERENCES boxes ON DELETE SET NULL,
    tenant text NOT NULL DEFAULT current_user,
    version int NOT NULL DEFAULT 0
);
CREATE INDEX ON {table} (lower({column}));
"""
SHOP = f"""
CREATE TABLE boxes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, label text);
{TABLE.format(table="items", column=OLD)}
{TABLE.format(table="before", column=OLD)}
{TABLE.format(table="after", column=NEW)}
CREATE TABLE lines (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item bigint REFERENCES items ON DELETE CASCADE);
CREATE TABLE has_{OLD} (id bigint, {OLD} text);
CREATE TABLE has_{NEW} (id bigint, {NEW} text);
INSERT INTO items ({OLD}) VALUES ('first'), ('second');
INSERT INTO before ({OLD}) VALUES ('first'), ('second');
INSERT INTO after ({NEW}) VALUES ('first'), ('second');

CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.version := OLD.version + 1; RETURN NEW; END';
CREATE TRIGGER counted BEFORE UPDATE OF {OLD} ON items
    FOR EACH ROW WHEN (NEW.{OLD} <> OLD.{OLD}) EXECUTE FUNCTION count_change();
CREATE TABLE history (of_table text, change text, content jsonb);
CREATE FUNCTION write_history() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO history VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(NEW)); RETURN NULL; END';
CREATE TRIGGER history AFTER INSERT ON items FOR EACH ROW EXECUTE FUNCTION write_history();

CREATE VIEW stock AS SELECT id, {OLD}, quantity FROM items;
CREATE VIEW stock_in_boxes AS
    SELECT i.id, i.{OLD}, count(b.id) FROM items i LEFT JOIN boxes b ON b.id = i.box GROUP BY i.id;
CREATE MATERIALIZED VIEW names AS SELECT {OLD} FROM items;
CREATE FUNCTION by_sql(bigint) RETURNS text LANGUAGE sql AS 'SELECT {OLD} FROM items WHERE id = $1';
CREATE FUNCTION by_atomic(key bigint) RETURNS text LANGUAGE sql
    BEGIN ATOMIC SELECT {OLD} FROM items WHERE id = key; END;
CREATE FUNCTION by_plpgsql(key bigint) RETURNS text LANGUAGE plpgsql AS
    'DECLARE found items.{OLD}%TYPE; BEGIN SELECT {OLD} INTO found FROM items WHERE id = key; RETURN found; END';
CREATE FUNCTION by_rowtype(key bigint) RETURNS text LANGUAGE plpgsql AS
    'DECLARE found items%ROWTYPE; BEGIN SELECT * INTO found FROM items WHERE id = key; RETURN found.{OLD}; END';
CREATE FUNCTION by_loop(key bigint) RETURNS text LANGUAGE plpgsql AS
    'DECLARE r record; BEGIN FOR r IN SELECT * FROM items WHERE id = key LOOP RETURN r.{OLD}; END LOOP; END';
CREATE FUNCTION adds(text) RETURNS bigint LANGUAGE sql AS 'INSERT INTO items ({OLD}) VALUES ($1) RETURNING id';
"""
RENAME = f"op.alter_column('items', {OLD!r}, new_column_name={NEW!r})"
FUNCTIONS = ("by_sql", "by_atomic", "by_plpgsql", "by_rowtype", "by_loop")


def history(path: Path, *, made_by: str = SHOP, rename: str = RENAME) -> Project:
    """A revision that makes the tables, and one that renames."""
    path.mkdir()
    command.init(Config(str(path / "alembic.ini"), stdout=io.StringIO()), str(path / "migrations"))
    project = Project(path)
    project.write("aaaa", None, f"op.execute({made_by!r})")
    project.write("bbbb", "aaaa", rename)
    return project


def expand(database: Database, project: Project, opens: str = f"items.{OLD} -> {NEW}") -> None:
    outcome = migrate(database, "upgrade", "--contract-follows", project=project.path)
    assert (outcome.exit_code, outcome.result["open"]) == (0, [opens])


def contract(database: Database, project: Project) -> None:
    outcome = migrate(database, "contract", project=project.path)
    assert (outcome.exit_code, outcome.result["open"]) == (0, [])


@dataclass(frozen=True)
class Release:
    """A connection of a release, and what it calls the column."""

    column: str
    connection: psycopg2.extensions.connection

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What the statement returns, with this release's name for {column}."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement.replace("{column}", self.column), values or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *values: object) -> Any:
        """The only value that the statement returns."""
        ((value,),) = self.rows(statement, *values)
        return value

    def add(self, **values: object) -> int:
        """A new item under a name of its own, or with these values; its key."""
        values = {"{column}": fresh(), **values}
        marks = ", ".join(["%s"] * len(values))
        key: int = self.one(f"INSERT INTO items ({', '.join(values)}) VALUES ({marks}) RETURNING id", *values.values())
        return key


def fresh() -> str:
    return f"item-{secrets.token_hex(4)}"


@contextmanager
def undone(connection: psycopg2.extensions.connection) -> Iterator[psycopg2.extensions.cursor]:
    """A transaction that is rolled back."""
    connection.autocommit = False
    try:
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.rollback()
        connection.autocommit = True


@pytest.fixture(scope="module")
def shop(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The shop, with its rename bridged."""
    name, tenant = f"test_{secrets.token_hex(6)}", f"tenant_{secrets.token_hex(6)}"
    postgres.create_database(name, owner=name, password=name)
    shop = Database(name=name, user=name, password=name, port=postgres.port, ca_file=postgres.ca_file)
    project = history(tmp_path_factory.mktemp("both_names") / "project")
    migrate(shop, "upgrade", "aaaa", project=project.path)
    shop.rows(f"""
        CREATE ROLE {tenant}; GRANT {tenant} TO {name};
        ALTER TABLE items ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own ON items TO {tenant} USING (tenant = current_user AND {OLD} NOT LIKE 'secret%');
        GRANT SELECT, INSERT, UPDATE, DELETE ON items TO {tenant};
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {tenant};
        GRANT INSERT ON history TO {tenant};
    """)
    expand(shop, project)
    yield shop
    postgres.drop_database(name)
    with closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE {tenant}")


@pytest.fixture(params=[(OLD, NEW), (NEW, OLD)], ids=["old_first", "new_first"])
def releases(request: pytest.FixtureRequest, shop: Database) -> Iterator[tuple[Release, Release]]:
    """Two releases, each with a connection of its own."""
    columns: tuple[str, str] = request.param
    with closing(shop.connect()) as one, closing(shop.connect()) as other:
        yield Release(columns[0], one), Release(columns[1], other)


Releases = tuple[Release, Release]


# What both releases do.


def test_what_one_release_writes_the_other_reads_changes_and_deletes(releases: Releases) -> None:
    one, other = releases
    name, again = fresh(), fresh()
    ((key, quantity, loud, shown),) = one.rows(
        "INSERT INTO items ({column}) VALUES (%s) RETURNING id, quantity, loud, {column}", name
    )
    assert (quantity, loud, shown) == (1, name.upper(), name)
    assert other.rows("SELECT id, {column} FROM items WHERE {column} = %s", name) == [(key, name)]
    assert other.rows("UPDATE items SET {column} = %s WHERE {column} = %s RETURNING {column}", again, name) == [
        (again,)
    ]
    assert one.rows("DELETE FROM items WHERE {column} = %s RETURNING id, {column}", again) == [(key, again)]
    assert other.rows("SELECT id FROM items WHERE id = %s", key) == []


def test_on_conflict_finds_the_row_of_the_other_release(releases: Releases) -> None:
    one, other = releases
    name = fresh()
    key = other.add(**{"{column}": name})
    upsert = "INSERT INTO items ({column}, quantity) VALUES (%s, 5) ON CONFLICT ({column}) DO "
    assert one.rows(f"{upsert} NOTHING RETURNING id", name) == []
    updated = one.rows(
        f"{upsert} UPDATE SET quantity = items.quantity + excluded.quantity, {{column}} = excluded.{{column}} "
        "RETURNING id, quantity, {column}",
        name,
    )
    assert updated == [(key, 6, name)]
    assert one.rows("INSERT INTO items ({column}) VALUES (%s) ON CONFLICT DO NOTHING RETURNING id", name) == []


def test_merge_works_since_postgresql_17(releases: Releases) -> None:
    one, other = releases
    name = fresh()
    merge = (
        "MERGE INTO items USING (VALUES (%s, 7)) AS given (text, quantity) ON {column} = text "
        "WHEN MATCHED THEN UPDATE SET quantity = given.quantity "
        "WHEN NOT MATCHED THEN INSERT ({column}) VALUES (text)"
    )
    if one.connection.server_version < MERGE_INTO_VIEWS:
        with pytest.raises(psycopg2.errors.FeatureNotSupported, match='cannot execute MERGE on relation "items"'):
            one.rows(merge, name)
        return
    one.rows(merge, name)
    assert other.rows("SELECT quantity FROM items WHERE {column} = %s", name) == [(1,)]
    other.rows(merge, name)
    assert one.rows("SELECT quantity FROM items WHERE {column} = %s", name) == [(7,)]


def test_a_row_that_one_release_has_locked_is_skipped_by_the_other(releases: Releases) -> None:
    one, other = releases
    names = [fresh(), fresh()]
    for name in names:
        one.add(**{"{column}": name})
    work = "SELECT {column} FROM items WHERE {column} = ANY (%s) ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1"
    with undone(one.connection):
        assert one.rows(work, names) == [(names[0],)]
        assert other.rows(work, names) == [(names[1],)]
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            other.rows("SELECT id FROM items WHERE {column} = %s FOR UPDATE NOWAIT", names[0])


def test_a_table_that_one_release_has_locked_is_locked_for_the_other(releases: Releases) -> None:
    one, other = releases
    with undone(one.connection):
        one.rows("LOCK TABLE items IN SHARE ROW EXCLUSIVE MODE")
        other.rows("SET lock_timeout = '50ms'")
        with pytest.raises(psycopg2.errors.LockNotAvailable):
            other.add()


def test_what_both_releases_count_up_is_counted_twice(releases: Releases) -> None:
    one, other = releases
    key = one.add(quantity=0)
    with undone(one.connection), undone(other.connection):
        one.rows("UPDATE items SET quantity = quantity + 1 WHERE id = %s", key)
        one.connection.commit()
        other.rows("UPDATE items SET quantity = quantity + 1 WHERE id = %s", key)
        other.connection.commit()
    assert one.one("SELECT quantity FROM items WHERE id = %s", key) == 2


def test_foreign_keys_hold_in_both_directions(releases: Releases) -> None:
    one, other = releases
    box = one.one("INSERT INTO boxes (label) VALUES ('box') RETURNING id")
    key = one.add(box=box)
    other.rows("INSERT INTO lines (item) VALUES (%s)", key)
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        other.rows("INSERT INTO lines (item) VALUES (-1)")
    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        other.add(box=-1)
    other.rows("DELETE FROM boxes WHERE id = %s", box)
    assert one.rows("SELECT box FROM items WHERE id = %s", key) == [(None,)]
    other.rows("DELETE FROM items WHERE id = %s", key)
    assert one.rows("SELECT id FROM lines WHERE item = %s", key) == []


def test_what_the_table_forbids_is_forbidden_in_the_same_words(releases: Releases) -> None:
    one, other = releases
    name = fresh()
    one.add(**{"{column}": name})
    with pytest.raises(psycopg2.errors.NotNullViolation):
        other.rows("INSERT INTO items (quantity) VALUES (1)")
    with pytest.raises(psycopg2.errors.UniqueViolation) as taken:
        other.add(**{"{column}": name})
    with pytest.raises(psycopg2.errors.CheckViolation) as negative:
        other.add(quantity=-1)
    with pytest.raises(psycopg2.errors.GeneratedAlways):
        other.add(loud="QUIET")
    with pytest.raises(psycopg2.errors.GeneratedAlways):
        other.add(id=1)
    assert (taken.value.diag.constraint_name, negative.value.diag.constraint_name) == ("uq_items", "ck_items")


def test_defaults_identity_and_serial_are_those_of_the_table(releases: Releases) -> None:
    one, other = releases
    made = [
        row
        for release in (one, other)
        for row in release.rows(
            "INSERT INTO items ({column}, quantity, note) VALUES (%s, DEFAULT, DEFAULT), (%s, 3, DEFAULT) "
            "RETURNING id, number, quantity, note, tenant, loud = upper({column})",
            fresh(),
            fresh(),
        )
    ]
    keys, numbers = [row[0] for row in made], [row[1] for row in made]
    assert keys == list(range(keys[0], keys[0] + 4))
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    tenant = one.one("SELECT current_user::text")
    assert [row[2:] for row in made] == [(1, "none", tenant, True), (3, "none", tenant, True)] * 2
    assert other.one("SELECT currval('items_id_seq')") == keys[-1]
    assert (
        one.one(
            "INSERT INTO items (id, {column}) OVERRIDING SYSTEM VALUE VALUES (-%s, %s) RETURNING id", keys[0], fresh()
        )
        < 0
    )


def test_values_in_the_order_of_the_columns_still_fit(releases: Releases) -> None:
    one, other = releases
    name = fresh()
    one.rows("INSERT INTO items VALUES (DEFAULT, DEFAULT, %s, 4)", name)
    assert other.rows("SELECT quantity FROM items WHERE {column} = %s", name) == [(4,)]


def test_a_trigger_of_the_column_fires_whatever_its_name_is(releases: Releases) -> None:
    one, other = releases
    key = one.add()
    for release in (one, other):
        release.rows("UPDATE items SET {column} = %s WHERE id = %s", fresh(), key)
        release.rows("UPDATE items SET quantity = 9 WHERE id = %s", key)
    assert other.one("SELECT version FROM items WHERE id = %s", key) == 2


def test_a_policy_holds_for_both_names(releases: Releases) -> None:
    # given a row of the owner, and two of a tenant, who may not see one of them
    one, other = releases
    tenant = one.one("SELECT roles[1]::text FROM pg_policies WHERE tablename LIKE 'items%%'")
    mine, hidden = fresh(), f"secret-{fresh()}"
    others = one.add()
    keys = [one.add(tenant=tenant, **{"{column}": name}) for name in (mine, hidden)]
    # when the tenant comes in either release
    for release in (one, other):
        release.rows(f"SET ROLE {tenant}")
    # then each sees and changes the one row, and may lock the table
    for release in (one, other):
        with undone(release.connection):
            release.rows("LOCK TABLE items IN ROW EXCLUSIVE MODE")
        assert release.rows("SELECT {column} FROM items WHERE id = ANY (%s)", [others, *keys]) == [(mine,)]
        assert release.rows("UPDATE items SET quantity = 8 WHERE id = ANY (%s) RETURNING id", [others, *keys]) == [
            (keys[0],)
        ]
        assert release.rows("DELETE FROM items WHERE id = %s RETURNING id", others) == []
        assert release.add() > 0
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            release.add(tenant="somebody else")


def test_views_and_functions_that_were_made_before_give_what_they_gave(releases: Releases) -> None:
    one, other = releases
    name = fresh()
    key = one.add(**{"{column}": name})
    other.rows("REFRESH MATERIALIZED VIEW names")
    assert other.rows(f"SELECT {OLD} FROM names WHERE {OLD} = %s", name) == [(name,)]
    assert other.rows("SELECT * FROM stock WHERE id = %s", key) == [(key, name, 1)]
    assert other.rows("SELECT * FROM stock_in_boxes WHERE id = %s", key) == [(key, name, 0)]
    other.rows(f"UPDATE stock SET {OLD} = %s, quantity = 2 WHERE id = %s", (again := fresh()), key)
    assert one.rows("SELECT {column}, quantity FROM items WHERE id = %s", key) == [(again, 2)]
    assert [other.one(f"SELECT {function}(%s)", key) for function in FUNCTIONS] == [again] * len(FUNCTIONS)
    assert one.rows("SELECT {column} FROM items WHERE id = (SELECT adds(%s))", fresh()) == []


def test_of_a_renamed_table_the_new_name_can_all_and_the_old_one_what_a_view_can(
    database: Database, tmp_path: Path
) -> None:
    # given a table that is renamed
    project = history(tmp_path / "project", rename="op.rename_table('items', 'parts')")
    migrate(database, "upgrade", "aaaa", project=project.path)
    expand(database, project, opens="items -> parts")
    with closing(database.connect()) as one, closing(database.connect()) as other:
        old, new = Release(OLD, one), Release(OLD, other)
        # then both releases write what the other reads
        for writer, mine, reader, theirs in ((old, "items", new, "parts"), (new, "parts", old, "items")):
            name = fresh()
            add = f"INSERT INTO {mine} ({{column}}) VALUES (%s) ON CONFLICT ({{column}}) DO UPDATE SET quantity = 5"
            key = writer.one(f"{add} RETURNING id", name)
            assert reader.rows(f"SELECT quantity, note FROM {theirs} WHERE {{column}} = %s", name) == [(1, "none")]
            assert writer.one(f"{add} RETURNING quantity", name) == 5
            with undone(reader.connection):
                reader.rows(f"SELECT id FROM {theirs} WHERE id = %s FOR UPDATE", key)
                assert writer.rows(f"SELECT id FROM {mine} WHERE id = %s FOR UPDATE SKIP LOCKED", key) == []
            assert reader.rows(f"DELETE FROM {theirs} WHERE id = %s RETURNING {{column}}", key) == [(name,)]
        # and only the older name is a view
        grouped = "SELECT {column}, count(*) FROM {table} GROUP BY id"
        assert new.rows(grouped.replace("{table}", "parts"))
        with pytest.raises(psycopg2.errors.GroupingError):
            old.rows(grouped.replace("{table}", "items"))
        contract(database, project)
        assert new.rows("SELECT id FROM parts WHERE id = 1") == [(1,)]
        with pytest.raises(psycopg2.errors.UndefinedTable):
            old.rows("SELECT id FROM items")


# SQLAlchemy


@dataclass(frozen=True)
class Models:
    """What a release maps."""

    box: Any
    item: Any
    line: Any


def models(column: str) -> Models:
    """The models of a release that has given the column this name; in Python it is ``text`` in both."""

    class Base(DeclarativeBase):
        pass

    class Box(Base):
        __tablename__ = "boxes"
        id = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
        label = mapped_column(sa.Text)

    class Line(Base):
        __tablename__ = "lines"
        id = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
        item = mapped_column(sa.ForeignKey("items.id"))

    class Item(Base):
        __tablename__ = "items"
        id = mapped_column(sa.BigInteger, sa.Identity(always=True), primary_key=True)
        number = mapped_column(sa.Integer, server_default=sa.FetchedValue())
        text = mapped_column(column, sa.Text, nullable=False)
        quantity = mapped_column(sa.Integer, server_default="1")
        loud = mapped_column(sa.Text, sa.Computed(f"upper({column})"))
        box_id = mapped_column("box", sa.ForeignKey(Box.id))
        version = mapped_column(sa.Integer, server_default="0")
        box = relationship(Box)
        lines = relationship(Line, passive_deletes=True)

    return Models(Box, Item, Line)


RELEASES = {column: models(column) for column in (OLD, NEW)}


@pytest.fixture(params=["psycopg2", "psycopg"])
def sessions(request: pytest.FixtureRequest, shop: Database) -> Iterator[dict[str, Session]]:
    """An ORM session of each release."""
    url = sa.make_url(shop.url).set(drivername=f"postgresql+{request.param}")
    # It would take what a driver prepares by itself with it to the next test.
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with Session(engine) as old, Session(engine) as new:
        yield {OLD: old, NEW: new}


@pytest.mark.parametrize(("mine", "theirs"), [(OLD, NEW), (NEW, OLD)])
def test_the_orm_of_each_release_reads_and_changes_what_the_other_has_made(
    sessions: dict[str, Session], mine: str, theirs: str
) -> None:
    # given an item in a box, with lines
    one, other = RELEASES[mine], RELEASES[theirs]
    texts = [fresh(), fresh()]
    made = one.item(text=texts[0], box=one.box(label="box"), lines=[one.line(), one.line()])
    with sessions[mine] as session:
        session.add(made)
        session.commit()
        key, number = made.id, made.number
    # when the other release finds it, changes it and locks it
    with sessions[theirs] as session:
        loads = sa.orm.selectinload(other.item.lines), sa.orm.joinedload(other.item.box)
        found = session.scalars(sa.select(other.item).where(other.item.text == texts[0]).options(*loads)).one()
        assert (found.id, found.number, found.loud, len(found.lines)) == (key, number, texts[0].upper(), 2)
        assert (found.box.label, found.quantity) == ("box", 1)
        found.text = texts[1]
        session.commit()
        locking = sa.select(other.item).where(other.item.id == key).with_for_update(of=other.item, skip_locked=True)
        assert session.scalars(locking.execution_options(populate_existing=True)).one() is found
        assert (found.loud, found.version) == (texts[1].upper(), 1)
    # then the first one sees that, and deletes it with its lines
    with sessions[mine] as session:
        again = session.get(one.item, key)
        assert again is not None
        assert again.text == texts[1]
        session.delete(again)
        session.commit()
        assert session.scalars(sa.select(one.line).where(one.line.item == key)).all() == []


@pytest.mark.parametrize(("mine", "theirs"), [(OLD, NEW), (NEW, OLD)])
def test_the_orm_of_each_release_writes_many_rows_at_once(sessions: dict[str, Session], mine: str, theirs: str) -> None:
    one, other = RELEASES[mine], RELEASES[theirs]
    texts = [fresh() for _ in range(30)]
    with sessions[mine] as session:
        # given rows of every kind of bulk insert: by the unit of work, returned in order, and only written
        session.add_all(one.item(text=text) for text in texts[:10])
        session.commit()
        rows = [{"text": text, "quantity": 2} for text in texts[10:20]]
        returning = sa.insert(one.item).returning(one.item.text, sort_by_parameter_order=True)
        assert session.scalars(returning, rows).all() == texts[10:20]
        session.execute(sa.insert(one.item), [{"text": text} for text in texts[20:]])
        session.commit()
    with sessions[theirs] as session:
        # when the other release changes all of them, also by an upsert
        upsert = postgresql.insert(other.item).values([{"text": text, "quantity": 3} for text in texts])
        changed = upsert.on_conflict_do_update(
            index_elements=[other.item.text], set_={"quantity": upsert.excluded.quantity}
        )
        session.execute(changed)
        query = sa.select(other.item).where(other.item.text.in_(texts)).order_by(other.item.id)
        keys = [(found.id, found.text) for found in session.scalars(query)]
        session.execute(sa.update(other.item), [{"id": key, "text": f"{text}-"} for key, text in keys])
        session.commit()
    with sessions[mine] as session:
        # then the first one finds them as they are now, and deletes them
        mine_now = one.item.text.in_([f"{text}-" for text in texts])
        assert session.scalars(sa.select(one.item.quantity).where(mine_now)).all() == [3] * len(texts)
        assert len(session.scalars(sa.delete(one.item).where(mine_now).returning(one.item.id)).all()) == len(texts)
        session.commit()


# What was prepared


def test_what_psycopg_has_prepared_works_through_the_bridge_and_after_it(database: Database, tmp_path: Path) -> None:
    # given a release with statements that the server has prepared
    project = history(tmp_path / "project")
    migrate(database, "upgrade", "aaaa", project=project.path)
    of_both, of_old, of_new = (f"SELECT id, quantity FROM items WHERE {one} = %s" for one in ("note", OLD, NEW))
    adds = f"INSERT INTO items ({OLD}) VALUES (%s) RETURNING {OLD}"
    with psycopg.connect(database.url, autocommit=True) as old, psycopg.connect(database.url, autocommit=True) as new:

        def rows(connection: psycopg.Connection, statement: str, value: str) -> list[tuple[Any, ...]]:
            return connection.execute(statement, [value], prepare=True).fetchall()

        before = rows(old, of_both, "none")
        assert rows(old, of_old, "first") == before[:1]
        assert rows(old, adds, "third") == [("third",)]
        # when the rename comes
        expand(database, project)
        # then they go on, and the next release prepares its own
        assert rows(old, of_both, "none")[:2] == before
        assert rows(old, of_old, "first") == rows(new, of_new, "first") == before[:1]
        assert rows(old, adds, "fourth") == [("fourth",)]
        # and after the contract only the old name is gone
        contract(database, project)
        assert rows(old, of_both, "none")[:2] == rows(new, of_both, "none")[:2] == before
        assert rows(new, of_new, "first") == before[:1]
        with pytest.raises(psycopg.errors.UndefinedColumn):
            rows(old, of_old, "first")


def test_what_asyncpg_has_prepared_works_through_the_bridge_and_after_it(database: Database, tmp_path: Path) -> None:
    project = history(tmp_path / "project")
    migrate(database, "upgrade", "aaaa", project=project.path)
    of_both, of_old, of_new = (f"SELECT id, quantity FROM items WHERE {one} = $1" for one in ("note", OLD, NEW))

    async def live() -> None:
        # given a release with prepared statements, its own and those that the driver keeps
        where = {"host": database.host, "port": database.port, "database": database.name}
        old = await asyncpg.connect(user=database.user, password=database.password, **where)
        new = await asyncpg.connect(user=database.user, password=database.password, **where)
        stays, goes = await old.prepare(of_both), await old.prepare(of_old)
        before = await stays.fetch("none")
        assert await goes.fetch("first") == await old.fetch(of_old, "first") == before[:1]
        # when the rename comes
        await asyncio.to_thread(expand, database, project)
        # then they go on, and the next release prepares its own
        comes = await new.prepare(of_new)
        assert await stays.fetch("none") == before
        assert await goes.fetch("first") == await comes.fetch("first") == before[:1]
        assert await old.fetch(of_old, "first") == await new.fetch(of_new, "first") == before[:1]
        # and after the contract only the old name is gone
        await asyncio.to_thread(contract, database, project)
        assert await stays.fetch("none") == before
        assert await comes.fetch("first") == await new.fetch(of_new, "first") == before[:1]
        with pytest.raises(asyncpg.UndefinedColumnError):
            await goes.fetch("first")
        await old.close()
        await new.close()

    asyncio.run(live())


def test_what_a_session_has_run_before_the_rename_it_goes_on_running(database: Database, tmp_path: Path) -> None:
    # given a session whose functions and foreign keys have plans
    project = history(tmp_path / "project")
    migrate(database, "upgrade", "aaaa", project=project.path)
    with closing(database.connect()) as connection:
        old, new = Release(OLD, connection), Release(NEW, connection)
        functions = f"SELECT {', '.join(f'{function}(1)' for function in FUNCTIONS)}"

        def write(release: Release) -> None:
            line = "INSERT INTO lines (item) VALUES (%s)"
            release.rows(line, key := release.add())
            release.rows("DELETE FROM items WHERE id = %s", key)
            with pytest.raises(psycopg2.errors.ForeignKeyViolation):
                release.rows(line, key)

        assert old.rows(functions) == [("first",) * len(FUNCTIONS)]
        write(old)
        # when the rename comes, and its contract
        expand(database, project)
        # then they go on
        assert old.rows(functions) == [("first",) * len(FUNCTIONS)]
        write(old)
        write(new)
        contract(database, project)
        write(new)
        # but a function that says the older name needs the bridge, unless the catalog knows what it means
        assert new.one("SELECT by_atomic(1)") == "first"
        for function in set(FUNCTIONS) - {"by_atomic"}:
            with pytest.raises(psycopg2.errors.UndefinedColumn):
                new.rows(f"SELECT {function}(1)")


# What a bridge can't do. Each has its sentence in docs/DATABASE_MIGRATIONS.md.


@dataclass(frozen=True)
class Limit:
    """A statement that works with the table and not with the bridge.

    Args:
        name: of the case.
        statement: {table} stands for the table or its twin, {column} for the release's name, {other} for the other one.
        error: what PostgreSQL says.
        instead: what works with both.
    """

    name: str
    statement: str
    error: str
    instead: str


LIMITS = [
    Limit(
        "copy to",
        "COPY {table} TO STDOUT",
        'cannot copy from view "items"',
        "COPY (SELECT id, {column}, quantity FROM {table}) TO STDOUT",
    ),
    Limit(
        "copy from",
        "COPY {table} ({column}) FROM STDIN",
        'cannot copy to view "items"',
        "CREATE TEMP TABLE incoming (value text) ON COMMIT DROP;COPY incoming FROM STDIN;"
        "INSERT INTO {table} ({column}) SELECT value FROM incoming",
    ),
    Limit("truncate", "TRUNCATE {table}", '"items" is not a table', "DELETE FROM {table}"),
    Limit(
        "on conflict on constraint",
        "INSERT INTO {table} ({column}) VALUES ('first') ON CONFLICT ON CONSTRAINT uq_{table} DO NOTHING",
        'constraint "uq_items" for table "items" does not exist',
        "INSERT INTO {table} ({column}) VALUES ('first') ON CONFLICT ({column}) DO NOTHING",
    ),
    Limit(
        "group by the key",
        "SELECT id, {column}, count(*) FROM {table} GROUP BY id",
        'column "items.{column}" must appear in the GROUP BY clause',
        "SELECT id, {column}, count(*) FROM {table} GROUP BY id, {column}",
    ),
    Limit(
        "tablesample",
        "SELECT id FROM {table} TABLESAMPLE SYSTEM (10)",
        "TABLESAMPLE clause can only be applied to tables",
        "SELECT id FROM {table} WHERE random() < 0.1",
    ),
    Limit(
        "where current of",
        "DECLARE work CURSOR FOR SELECT id FROM {table} FOR UPDATE;MOVE work;"
        "UPDATE {table} SET quantity = 2 WHERE CURRENT OF work",
        "WHERE CURRENT OF on a view is not implemented",
        "UPDATE {table} SET quantity = 2 WHERE id = 1",
    ),
    Limit(
        "xmax",
        "INSERT INTO {table} ({column}) VALUES ('first') ON CONFLICT ({column}) DO UPDATE SET quantity = 2 "
        "RETURNING xmax = 0",
        'column "xmax" does not exist',
        "INSERT INTO {table} AS t ({column}) VALUES ('first') ON CONFLICT ({column}) "
        "DO UPDATE SET version = t.version + 1 RETURNING version = 0",
    ),
    Limit(
        "xmin",
        "SELECT xmin FROM {table}",
        'column "xmin" does not exist',
        "SELECT version FROM {table}",
    ),
    Limit(
        "ctid",
        "DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM {table} LIMIT 1)",
        'column "ctid" does not exist',
        "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} LIMIT 1)",
    ),
    Limit(
        "tableoid",
        "SELECT tableoid FROM {table}",
        'column "tableoid" does not exist',
        "SELECT '{table}' FROM {table}",
    ),
    Limit(
        "a new foreign key",
        "CREATE TABLE more (item bigint REFERENCES {table})",
        'referenced relation "items" is not a table',
        "CREATE TABLE more (item bigint)",
    ),
    Limit(
        "insert select star",
        "CREATE TEMP TABLE archive (LIKE {twin}) ON COMMIT DROP;INSERT INTO archive SELECT * FROM {table}",
        "INSERT has more expressions than target columns",
        "CREATE TEMP TABLE archive (LIKE {twin}) ON COMMIT DROP;"
        "INSERT INTO archive (id, number, {column}, quantity, tenant, version) "
        "SELECT id, number, {column}, quantity, tenant, version FROM {table}",
    ),
    Limit(
        "union of stars",
        "SELECT * FROM {table} UNION ALL SELECT * FROM {twin}",
        "each UNION query must have the same number of columns",
        "SELECT id, {column} FROM {table} UNION ALL SELECT id, {column} FROM {twin}",
    ),
    Limit(
        "a column of another table, without its table",
        "SELECT {other} FROM {table} JOIN has_{other} USING (id)",
        'column reference "{other}" is ambiguous',
        "SELECT h.{other} FROM {table} JOIN has_{other} AS h USING (id)",
    ),
]
TWINS = {OLD: "before", NEW: "after"}


def execute(cursor: psycopg2.extensions.cursor, statements: str) -> None:
    for statement in statements.split(";"):
        if statement.startswith("COPY"):
            cursor.copy_expert(statement, io.StringIO())
        else:
            cursor.execute(statement)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda one: one.name)
@pytest.mark.parametrize(("mine", "theirs"), [(OLD, NEW), (NEW, OLD)])
def test_what_a_bridge_can_not_do_has_another_way(shop: Database, limit: Limit, mine: str, theirs: str) -> None:
    names = {"column": mine, "other": theirs, "twin": TWINS[mine]}
    with closing(shop.connect()) as connection:
        # given a statement that a table executes
        with undone(connection) as cursor:
            execute(cursor, limit.statement.format(table=TWINS[mine], **names))
        # when it comes to a bridge
        with undone(connection) as cursor, pytest.raises(psycopg2.DatabaseError) as met:
            execute(cursor, limit.statement.format(table="items", **names))
        # then it fails in words that the documents name, and another does it, with the table too
        assert limit.error.format(**names) in str(met.value)
        for table in ("items", TWINS[mine]):
            with undone(connection) as cursor:
                execute(cursor, limit.instead.format(table=table, **names))


def test_a_statement_can_not_give_both_names_a_value(shop: Database) -> None:
    for statement in (
        f"INSERT INTO items ({OLD}, {NEW}) VALUES ('both', 'both')",
        f"UPDATE items SET {OLD} = 'both', {NEW} = 'both'",
        "INSERT INTO items SELECT * FROM items",
    ):
        with pytest.raises(psycopg2.errors.SyntaxError, match=f'multiple assignments to same column "{NEW}"'):
            shop.rows(statement)


def test_an_update_to_the_default_takes_the_default_of_the_table(releases: Releases) -> None:
    one, _ = releases
    key = one.add(note="kept", quantity=5)
    changed = "UPDATE items SET quantity = DEFAULT, note = DEFAULT WHERE id = %s RETURNING quantity, note"
    assert one.rows(changed, key) == [(1, "none")]


def test_a_star_shows_both_names_with_the_old_one_last(shop: Database) -> None:
    columns = []
    with closing(shop.connect()) as connection, connection.cursor() as cursor:
        for table in ("items", "after"):
            cursor.execute(f"SELECT * FROM {table}")
            columns.append([column.name for column in cursor.description or ()])
    assert columns[0] == [*columns[1], OLD]


def test_a_natural_join_meets_the_other_name_too(shop: Database) -> None:
    # given a table that has the new name, and shares with the table before the rename nothing but the key
    shop.rows(f"INSERT INTO has_{NEW} VALUES (1, 'something else')")
    assert shop.rows(f"SELECT id FROM before NATURAL JOIN has_{NEW}") == [(1,)]
    # then the bridge joins by the name as well; with USING it does not
    assert shop.rows(f"SELECT id FROM items NATURAL JOIN has_{NEW}") == []
    assert shop.rows(f"SELECT id FROM items JOIN has_{NEW} USING (id)") == [(1,)]


def test_the_sequence_of_a_column_is_found_by_its_name_only(shop: Database) -> None:
    assert shop.rows("SELECT pg_get_serial_sequence('before', 'id'), pg_get_serial_sequence('before', 'number')") == [
        ("public.before_id_seq", "public.before_number_seq")
    ]
    assert shop.rows("SELECT pg_get_serial_sequence('items', 'id'), pg_get_serial_sequence('items', 'number')") == [
        (None, None)
    ]
    assert shop.rows("SELECT nextval('items_id_seq') > 0, nextval('items_number_seq') > 0") == [(True, True)]


def test_maintenance_and_sizes_ask_for_the_table_itself(shop: Database) -> None:
    with closing(shop.connect()) as connection, connection.cursor() as cursor:
        for statement in ("VACUUM items", "ANALYZE items"):
            cursor.execute(statement)
            assert "cannot" in connection.notices[-1] or "skipping" in connection.notices[-1]
        cursor.execute("VACUUM ANALYZE items__base")
    assert shop.rows("SELECT pg_total_relation_size('items'), pg_total_relation_size('items__base') > 0") == [(0, True)]


def test_what_looks_at_the_schema_sees_a_view_without_keys_and_defaults(shop: Database) -> None:
    engine = sa.create_engine(sa.make_url(shop.url).set(drivername="postgresql+psycopg2"), poolclass=sa.NullPool)
    found = sa.inspect(engine)
    assert "items" not in found.get_table_names()
    assert {"items", "stock"} <= set(found.get_view_names())
    assert found.get_pk_constraint("items")["constrained_columns"] == []
    assert found.get_pk_constraint("items__base")["constrained_columns"] == ["id"]


def test_an_error_names_the_table_and_the_column_as_they_are(releases: Releases) -> None:
    one, _ = releases
    with pytest.raises(psycopg2.errors.NotNullViolation) as met:
        one.rows("INSERT INTO items ({column}) VALUES (NULL)")
    assert (met.value.diag.table_name, met.value.diag.column_name) == ("items__base", NEW)


def test_a_trigger_sees_the_table_and_the_row_as_they_are(releases: Releases) -> None:
    one, _ = releases
    key = one.add()
    ((table, has_old, has_new),) = one.rows(
        f"SELECT of_table, content ? '{OLD}', content ? '{NEW}' FROM history WHERE content->>'id' = %s", str(key)
    )
    assert (table, has_old, has_new) == ("items__base", False, True)


def test_a_prepared_star_fails_with_psycopg_and_asyncpg_prepares_it_anew(database: Database, tmp_path: Path) -> None:
    # given a star that both drivers have prepared
    project = history(tmp_path / "project")
    migrate(database, "upgrade", "aaaa", project=project.path)
    star = "SELECT * FROM items WHERE id = "

    async def live() -> None:
        where = {"host": database.host, "port": database.port, "database": database.name}
        connection = await asyncpg.connect(user=database.user, password=database.password, **where)
        before = await connection.fetchrow(f"{star} $1", 1)
        # when it has one column more
        await asyncio.to_thread(expand, database, project)
        # then asyncpg asks once more by itself, but in a transaction it can't
        async with connection.transaction():
            with pytest.raises(asyncpg.InvalidCachedStatementError):
                await connection.fetchrow(f"{star} $1", 1)
        after = await connection.fetchrow(f"{star} $1", 1)
        assert (len(after), after[OLD], after[NEW]) == (len(before) + 1, before[OLD], before[OLD])
        await connection.close()

    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(f"{star} %s", [1], prepare=True)
        asyncio.run(live())
        # and psycopg goes on with what it has prepared, until it is told to forget it
        for _ in range(2):
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="cached plan must not change result type"):
                connection.execute(f"{star} %s", [1])
        connection.execute("DEALLOCATE ALL")
        connection.execute(f"{star} %s", [1])
