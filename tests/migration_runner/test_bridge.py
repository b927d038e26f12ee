"""A rename keeps the older name until a contract: what is carried over, what is refused, and what comes afterwards."""

from __future__ import annotations

import io
import re
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from alembic import command as alembic_command
from alembic.config import Config

from local_aws.postgres import Postgres
from migration_runner.report import Report
from migration_runner.runner import run as run_command
from migration_runner.target import Request
from tests.conftest import Database
from tests.migration_runner.conftest import Outcome, Project, migrate
from tests.migration_runner.processes import transaction
from tests.migration_runner.test_env_py import CONNECT, OUTER, edit, env_py, with_template

# All of a schema that somebody could miss, without the runner's own.
CATALOG = """
WITH ours AS (SELECT oid, nspname FROM pg_namespace
              WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'migration_runner')),
     relations AS (SELECT c.*, nspname FROM pg_class c JOIN ours ON ours.oid = relnamespace)
SELECT 'relation', nspname, relname, relkind::text, pg_get_userbyid(relowner), relacl::text,
       relrowsecurity::text || relforcerowsecurity::text, obj_description(oid, 'pg_class')
FROM relations
UNION ALL
SELECT 'column', nspname, relname, attnum || ' ' || attname, format_type(atttypid, atttypmod),
       concat_ws(' ', attnotnull, attidentity, attgenerated, attacl), pg_get_expr(adbin, adrelid),
       col_description(attrelid, attnum)
FROM pg_attribute JOIN relations r ON r.oid = attrelid LEFT JOIN pg_attrdef ON (adrelid, adnum) = (attrelid, attnum)
WHERE attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', nspname, relname, conname, pg_get_constraintdef(c.oid), null, null, null
FROM pg_constraint c JOIN relations r ON r.oid = conrelid
UNION ALL
SELECT 'index', nspname, relname, pg_get_indexdef(oid), null, null, null, null FROM relations WHERE relkind = 'i'
UNION ALL
SELECT 'trigger', nspname, relname, tgname, pg_get_triggerdef(t.oid), null, null, null
FROM pg_trigger t JOIN relations r ON r.oid = tgrelid WHERE NOT tgisinternal
UNION ALL
SELECT 'policy', nspname, relname, polname, polcmd::text || polroles::text, pg_get_expr(polqual, polrelid),
       pg_get_expr(polwithcheck, polrelid), null
FROM pg_policy JOIN relations r ON r.oid = polrelid
UNION ALL
SELECT 'view', nspname, relname, pg_get_viewdef(oid), reloptions::text, null, null, null
FROM relations WHERE relkind IN ('v', 'm')
UNION ALL
SELECT 'type', nspname, typname, typtype::text, typelem::regtype::text, null, null, null
FROM pg_type JOIN ours ON ours.oid = typnamespace
UNION ALL
SELECT 'sequence', nspname, relname, (SELECT refobjid::regclass || ' ' || refobjsubid FROM pg_depend
       WHERE classid = 'pg_class'::regclass AND objid = relations.oid AND deptype IN ('a', 'i')), null, null, null, null
FROM relations WHERE relkind = 'S'
UNION ALL
SELECT 'function', nspname, proname, pg_get_functiondef(p.oid), null, null, null, null
FROM pg_proc p JOIN ours ON ours.oid = pronamespace
ORDER BY 1, 2, 3, 4
"""
KINDS = "SELECT relname, relkind::text FROM pg_class WHERE relname ~ %s AND relkind IN ('r', 'v') ORDER BY 1"
RECORDS = "SELECT * FROM migration_runner.renames ORDER BY id"
ITEMS = (
    "op.execute('CREATE TABLE items (id int PRIMARY KEY, name text, size int); INSERT INTO items VALUES (1, $$a$$)')"
)

SA = "__import__('sqlalchemy')"
# A compound statement on the line of the others.
BATCH = "exec(\"with op.batch_alter_table('items') as batch:"
BLOCK = 'exec("with op.get_context().autocommit_block():'
ADD = f"op.add_column('items', {SA}.Column('more', {SA}.Integer))"

What = tuple[str, str] | tuple[str, str, str]


def renaming(*what: What, schema: str | None = None) -> dict[str, str]:
    """Both functions of a revision of renames: (table, old, new) of a column, (old, new) of a table."""
    inverse = [(*one[:-2], one[-1], one[-2]) for one in reversed(what)]
    return {
        direction: "; ".join(
            f"op.alter_column({one[0]!r}, {one[1]!r}, new_column_name={one[2]!r}, schema={schema!r})"
            if len(one) == 3
            else f"op.rename_table({one[0]!r}, {one[1]!r}, schema={schema!r})"
            for one in steps
        )
        for direction, steps in (("upgrade", what), ("downgrade", inverse))
    }


@dataclass(frozen=True)
class Release:
    """A project with its database; each command runs in this process, to save the time of starting one."""

    database: Database
    project: Project

    def run(self, command: str, revision: str | None = None, *, follows: bool = False, lock_wait: float = 5) -> Outcome:
        """Run a command, to its end."""
        lines = io.StringIO()
        config = self.project.path / "alembic.ini"
        request = Request(command, config, 5, revision, lock_wait, contract_follows=follows)
        exit_code = run_command(request, {"DATABASE_URL": self.database.url}, Report(lines))
        return Outcome(exit_code, lines.getvalue(), "")

    def succeed(self, command: str, revision: str | None = None, *, follows: bool = False) -> Outcome:
        """Run a command that ends well."""
        outcome = self.run(command, revision, follows=follows)
        assert outcome.exit_code == 0, outcome.output
        return outcome

    def expand(self, *left: str) -> Outcome:
        """Upgrade, and leave these renames open."""
        outcome = self.succeed("upgrade", follows=True)
        assert outcome.result["open"] == list(left)
        return outcome

    def contract(self) -> Outcome:
        """Contract, and leave nothing open."""
        outcome = self.succeed("contract")
        assert outcome.result["open"] == []
        return outcome

    def refused(self, command: str = "upgrade", *, kind: str, revision: str | None = None) -> dict[str, Any]:
        """Run a command that refuses before anything has changed; its error."""
        with self.unchanged():
            outcome = self.run(command, revision, follows=command == "upgrade")
        assert (outcome.exit_code, outcome.error["kind"]) == (2, kind), outcome.output
        assert outcome.result["applied"] == []
        return outcome.error

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within, neither the schema changes nor what the runner knows of it."""
        with closing(self.database.connect()) as connection, connection.cursor() as cursor:

            def everything() -> list[tuple[Any, ...]]:
                cursor.execute("SELECT version_num FROM alembic_version")
                seen = cursor.fetchall()
                for query in (CATALOG, RECORDS):
                    cursor.execute(query)
                    seen += cursor.fetchall()
                return seen

            before = everything()
            yield
            assert everything() == before

    def schema(self) -> list[tuple[Any, ...]]:
        """All of the schema, and where the version table says it is."""
        return [*self.rows(CATALOG), *self.rows("SELECT * FROM alembic_version")]

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What a statement returns."""
        with closing(self.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def kinds(self, pattern: str) -> list[tuple[Any, ...]]:
        """The tables and views whose names match, each with its kind."""
        return self.rows(KINDS, pattern)


@pytest.fixture
def release(database: Database, project: Project) -> Release:
    """A project without a revision, and an empty database."""
    return Release(database, project)


@pytest.fixture
def shop(release: Release) -> Release:
    """A table that is in use; its revision is aaaa."""
    release.project.write("aaaa", None, ITEMS, "op.drop_table('items')")
    release.succeed("upgrade")
    return release


@pytest.fixture
def open_shop(shop: Release) -> Release:
    """The same, with a column of the table renamed by revision bbbb, and both names working."""
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    shop.expand("items.name -> sku")
    return shop


@pytest.fixture
def plain(database: Database, project: Project, postgres: Postgres) -> Iterator[Release]:
    """A second database, for what Alembic alone makes of the same project."""
    name = f"{database.name}_plain"
    postgres.create_database(name, owner=database.user, password=database.password)
    yield Release(replace(database, name=name), project)
    postgres.drop_database(name)


@dataclass(frozen=True)
class Roles:
    """Roles beside the one that migrates, one of which owns a table."""

    owner: str
    reader: str
    writer: str

    @property
    def all(self) -> dict[str, str]:
        """For texts with their names in braces."""
        return {"owner": self.owner, "reader": self.reader, "writer": self.writer}


@pytest.fixture(scope="module")
def roles(postgres: Postgres) -> Roles:
    """They live as long as the server."""
    names = [f"{kind}_{secrets.token_hex(4)}" for kind in ("owner", "reader", "writer")]
    with closing(postgres.connect()) as superuser, superuser.cursor() as cursor:
        for name in names:
            cursor.execute(f"CREATE ROLE {name}")
    return Roles(*names)


@contextmanager
def superuser(postgres: Postgres, release: Release) -> Iterator[psycopg2.extensions.cursor]:
    """Who may do what the role that migrates may not."""
    with closing(postgres.connect(release.database.name)) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def of_owner(shop: Release, roles: Roles, postgres: Postgres) -> Release:
    """The table belongs to another role, of which the one that migrates is a member."""
    with superuser(postgres, shop) as cursor:
        cursor.execute(f"GRANT {roles.owner} TO {shop.database.user}; GRANT ALL ON SCHEMA public TO {roles.owner}")
        cursor.execute(f"ALTER TABLE items OWNER TO {roles.owner}")
    return shop


def alembic(release: Release, direction: str, target: str) -> None:
    """Alembic without the runner."""
    config = Config(str(release.project.path / "alembic.ini"))
    url = re.sub("^postgresql:", "postgresql+psycopg2:", release.database.url)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    getattr(alembic_command, direction)(config, target)


# What is renamed, and what is left of it

LONG = "a_name_of_fifty_seven_bytes_which_is_the_longest_of_all__"
TABLES = f"""
CREATE TABLE plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text UNIQUE, b int CHECK (b > 0));
CREATE TABLE other (id serial PRIMARY KEY, a text REFERENCES plain (a), "50%" text);
CREATE TABLE moved (id int, a text);
CREATE TABLE whole (id int, a text, b text);
CREATE TABLE "My ""Table"" No" ("Some Column" text, id int);
CREATE TABLE "100%.of it" ("a%s" text, id int);
CREATE TABLE "order" ("user" text, id int);
CREATE TABLE {LONG} ({"a" * 63} text, id int);
CREATE SCHEMA "Other s";
CREATE TABLE "Other s".plain (id int, a text);
CREATE INDEX ON plain (lower(a));
CREATE VIEW seen AS SELECT p.a, o."50%" FROM plain p JOIN other o ON o.a = p.a;
COMMENT ON TABLE plain IS 'it''s 100%s "plain"';
COMMENT ON COLUMN plain.a IS E'one\\ntwo \\\\ %(s)s';
"""
HISTORY: list[tuple[list[What], str | None]] = [
    ([("plain", "a", "x"), ("plain", "b", "y"), ("other", "a", "x")], None),
    ([("moved", "moving")], None),
    ([("moving", "a", "x"), ("plain", "x", "z")], None),
    ([("whole", "a", "x"), ("whole", "parts"), ("parts", "b", "y")], None),
    ([("moving", "gone")], None),
    ([('My "Table" No', "Some Column", 'Another "One"'), ('My "Table" No', "Your 'Table'")], None),
    ([("100%.of it", "a%s", "50%(b)s"), ("100%.of it", "5%(of)s.it"), ("order", "user", "end")], None),
    ([(LONG, "a" * 63, "b" * 63)], None),
    ([("plain", "a", "x"), ("plain", "very plain")], "Other s"),
]

EACH_NAME: dict[tuple[str, ...], list[str]] = {
    ("plain",): ["a", "b", "x", "y", "z"],
    ("other",): ["a", "x"],
    ("moved", "moving", "gone"): ["a", "x"],
    ("whole", "parts"): ["a", "b", "x", "y"],
    ('"My ""Table"" No"', "\"Your 'Table'\""): ['"Some Column"', '"Another ""One"""'],
    ('"100%.of it"', '"5%(of)s.it"'): ['"a%s"', '"50%(b)s"'],
    ('"order"',): ['"user"', '"end"'],
    (LONG,): ["a" * 63, "b" * 63],
    ('"Other s".plain', '"Other s"."very plain"'): ["a", "x"],
}


def write_history(project: Project) -> int:
    """Revisions of all kinds of renames, after aaaa that makes the tables; how many renames there are."""
    unescaped = "execution_options={'no_parameters': True}"
    project.write("aaaa", None, f"op.get_bind().exec_driver_sql({TABLES!r}, {unescaped})")
    for number, (what, schema) in enumerate(HISTORY):
        project.write(f"b{number}", f"b{number - 1}" if number else "aaaa", **renaming(*what, schema=schema))
    return sum(len(what) for what, _ in HISTORY)


def test_every_name_works_while_it_is_open_and_afterwards_the_schema_is_that_of_plain_migrations(
    release: Release, plain: Release
) -> None:
    many = write_history(release.project)
    release.succeed("upgrade", "aaaa")
    alembic(plain, "upgrade", "aaaa")
    before = plain.schema()
    assert release.schema() == before
    alembic(plain, "upgrade", "head")
    # when it is opened and contracted, opened again and taken back
    opened = release.succeed("upgrade", follows=True).result["open"]
    assert len(opened) == many
    bridged = release.schema()
    for tables, columns in EACH_NAME.items():
        for table in tables:
            release.rows(f"SELECT {', '.join(columns)} FROM {table}")
            release.rows(f"UPDATE {table} SET {columns[0]} = NULL WHERE false")
    release.contract()
    assert release.schema() == plain.schema()
    assert release.succeed("reopen", "aaaa").result["open"] == opened
    assert release.schema() == bridged
    release.succeed("downgrade", "aaaa")
    assert release.schema() == before
    # and once more, taken back when it has been contracted
    release.expand(*opened)
    assert release.schema() == bridged
    release.contract()
    release.succeed("downgrade", "aaaa")
    assert release.schema() == before


def test_the_rename_of_this_repository_keeps_both_names_until_its_contract(database: Database) -> None:
    assert migrate(database, "upgrade", "48871d03964b").exit_code == 0
    database.rows("INSERT INTO parent_items (name) VALUES ('of the older release')")
    up = migrate(database, "upgrade", MIGRATION_CONTRACT_FOLLOWS="true")
    left = ["parent_items.name -> sku", "child_items.name -> sku"]
    assert (up.exit_code, up.result["at"], up.result["open"]) == (0, "49871d03964c", left)
    assert [one["renames"] for one in up.named("migration.bridged")] == [[one] for one in left]
    assert database.rows("SELECT name, sku FROM parent_items") == [("of the older release",) * 2]
    down = migrate(database, "contract")
    assert (down.exit_code, down.result["at"], down.result["open"]) == (0, "49871d03964c", [])
    assert [one["table"] for one in down.named("migration.contracted")] == ["public.parent_items", "public.child_items"]
    assert database.rows("SELECT to_jsonb(p) ? 'name', sku FROM parent_items p") == [(False, "of the older release")]
    again = migrate(database, "contract")
    assert (again.exit_code, again.result["open"], again.named("migration.contracted")) == (0, [], [])
    assert again.named("migration.nothing_to_do")


def test_without_a_contract_that_follows_a_rename_is_a_plain_one(shop: Release) -> None:
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), ("items", "parts")))
    assert shop.succeed("upgrade").result["open"] == []
    assert shop.kinds("^(items|parts)") == [("parts", "r")]
    assert shop.rows("SELECT * FROM migration_runner.renames") == []


def test_an_empty_database_gets_everything_and_no_bridges(release: Release) -> None:
    release.project.write("aaaa", None, ITEMS)
    release.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    release.project.write("cccc", "bbbb", "op.drop_column('items', 'size')", phase="contract")
    assert release.expand().result["at"] == "cccc"
    assert release.kinds("items") == [("items", "r")]


# Other ways of env.py

SET_PATH = "connection.exec_driver_sql('SET search_path TO tenant, public'); connection.commit()"


def test_a_table_is_found_where_env_pys_search_path_leads(shop: Release) -> None:
    shop.rows("CREATE SCHEMA tenant; CREATE TABLE tenant.others (id int, name text)")
    shop.rows("CREATE TABLE tenant.alembic_version AS SELECT * FROM alembic_version")
    edit(env_py(shop.project), (CONNECT, f"{CONNECT}        {SET_PATH}\n"))
    # the first lies in the second schema, also under its newer name
    shop.project.write(
        "bbbb", "aaaa", **renaming(("items", "parts"), ("parts", "name", "sku"), ("others", "name", "sku"))
    )
    shop.project.write("cccc", "bbbb", **renaming(("parts", "size", "length")))
    shop.expand("items -> parts", "parts.name -> sku", "tenant.others.name -> sku", "parts.size -> length")
    assert shop.rows("SELECT name, sku, size, length FROM public.items") == [("a", "a", None, None)]
    assert shop.rows("SELECT name, sku FROM tenant.others") == []
    shop.contract()
    assert shop.rows("SELECT sku, length FROM public.parts") == [("a", None)]
    shop.rows("SELECT sku FROM tenant.others")


def test_bridges_belong_to_the_role_that_env_py_takes(of_owner: Release, roles: Roles, postgres: Postgres) -> None:
    with superuser(postgres, of_owner) as cursor:
        cursor.execute(f"GRANT ALL ON DATABASE {of_owner.database.name} TO {roles.owner}")
        cursor.execute(f"ALTER TABLE alembic_version OWNER TO {roles.owner}")
        cursor.execute(f"ALTER SCHEMA migration_runner OWNER TO {roles.owner}")
        cursor.execute(f"REASSIGN OWNED BY {of_owner.database.user} TO {roles.owner}")
    take = f"connection.exec_driver_sql('SET ROLE {roles.owner}'); connection.commit()"
    edit(env_py(of_owner.project), (CONNECT, f"{CONNECT}        {take}\n"))
    of_owner.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    of_owner.expand("items.name -> sku")
    assert of_owner.rows(OWNERS) == [("items", roles.owner), ("items__base", roles.owner)]


def test_an_asynchronous_env_py_bridges_too(database: Database, tmp_path: Path) -> None:
    release = Release(database, with_template(tmp_path, "async"))
    release.project.write("aaaa", None, f"op.execute({'CREATE TABLE items (id int, name text)'!r})")
    release.succeed("upgrade")
    release.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    release.project.write("cccc", "bbbb", ADD)
    release.expand("items.name -> sku")
    assert release.rows("SELECT name, sku, more FROM items") == []
    release.contract()


def test_a_transaction_around_all_revisions_is_refused(shop: Release) -> None:
    edit(env_py(shop.project), (CONNECT, OUTER))
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    told = shop.refused(kind="ExternalTransaction")
    assert told["message"] == "bbbb can't be bridged, for env.py has begun a transaction around all revisions."


# What the table has, its names have too

OWNERS = "SELECT relname, pg_get_userbyid(relowner)::text FROM pg_class WHERE relname ~ '^items(__base)?$' ORDER BY 1"
ACL = """
SELECT relname, array_agg(DISTINCT (a.grantee::regrole::text, a.privilege_type, a.is_grantable)::text)
FROM pg_class LEFT JOIN aclexplode(coalesce(relacl, acldefault('r', relowner))) a ON true
WHERE relname ~ %s GROUP BY 1 ORDER BY 1
"""


GRANTS = {
    "none": "",
    "to a role": "GRANT SELECT, UPDATE ON items TO {reader}; GRANT INSERT ON items TO {reader} WITH GRANT OPTION",
    "to everybody": "GRANT SELECT ON items TO PUBLIC",
    "not to the owner": "REVOKE ALL ON items FROM {owner}; GRANT SELECT ON items TO {reader}",
    "some to the owner": "REVOKE TRUNCATE, DELETE ON items FROM {owner}",
    "from a role that may": (
        "GRANT SELECT ON items TO {writer} WITH GRANT OPTION; SET ROLE {writer}; GRANT SELECT ON items TO {reader}"
    ),
    "all to nobody": "REVOKE ALL ON items FROM {owner}",
}


@pytest.fixture
def defaults(of_owner: Release, roles: Roles) -> Release:
    """What the role that migrates makes, everybody may read: what it has made before, not."""
    of_owner.rows(f"""
        ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC;
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {roles.reader} WITH GRANT OPTION;
        ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM {of_owner.database.user};
    """)
    return of_owner


def test_grants_are_those_of_the_table_whatever_the_default_is(
    defaults: Release, roles: Roles, postgres: Postgres
) -> None:
    defaults.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), ("items", "parts")))
    for kind, granted in GRANTS.items():
        with superuser(postgres, defaults) as cursor:
            cursor.execute(
                f"SET ROLE {roles.owner}; REVOKE ALL ON items FROM PUBLIC, {roles.reader}, {roles.writer} CASCADE"
            )
            cursor.execute(f"GRANT ALL ON items TO {roles.owner}; {granted.format(**roles.all)}")
            cursor.execute("RESET ROLE")
        ((_, before),) = defaults.rows(ACL, "^items$")
        defaults.expand("items.name -> sku", "items -> parts")
        # the newer table, its view, and the view of the older name
        assert dict(defaults.rows(ACL, "^(items|parts|parts__base)$")) == dict.fromkeys(
            ["items", "parts", "parts__base"], before
        ), kind
        assert defaults.rows(OWNERS) == [("items", roles.owner)]
        defaults.succeed("downgrade", "aaaa")
        assert defaults.rows(ACL, "^items$") == [("items", before)], kind


def test_a_table_that_was_never_granted_keeps_what_its_owner_may(shop: Release, roles: Roles) -> None:
    shop.rows(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO {roles.reader}")
    shop.rows(f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM {shop.database.user}")
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    shop.expand("items.name -> sku")
    (_, table), (_, view) = shop.rows(ACL, "^items(__base)?$")
    assert table == view
    shop.contract()
    assert shop.rows("SELECT relacl FROM pg_class WHERE relname = 'items'") == [(None,)]


def test_an_owner_who_may_not_read_the_table_adds_columns_to_it_all_the_same(shop: Release) -> None:
    shop.rows("REVOKE ALL ON items FROM CURRENT_USER")
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), ("items", "parts")))
    shop.project.write("cccc", "bbbb", ADD.replace("items", "parts"))
    shop.expand("items.name -> sku", "items -> parts")
    added = "SELECT attrelid::regclass::text FROM pg_attribute WHERE attname = 'more' ORDER BY 1"
    assert shop.rows(added) == [("items",), ("parts",), ("parts__base",)]
    shop.contract()


def test_comments_are_on_every_name(shop: Release) -> None:
    about = 'it\'s 100% "so" \\ %s %(x)s\nand ä so on;'
    shop.rows("COMMENT ON TABLE items IS %s", about)
    shop.rows("COMMENT ON COLUMN items.name IS %s", about)
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), ("items", "parts")))
    shop.expand("items.name -> sku", "items -> parts")
    for table in ("items", "parts"):
        commented = f"""
            SELECT attname, col_description(attrelid, attnum) FROM pg_attribute
            WHERE attrelid = '{table}'::regclass AND attnum > 0 ORDER BY attname
        """
        assert shop.rows(commented) == [("id", None), ("name", about), ("size", None), ("sku", about)]
        assert shop.rows(f"SELECT obj_description('{table}'::regclass)") == [(about,)]


@pytest.mark.parametrize("force", ["", "; ALTER TABLE items FORCE ROW LEVEL SECURITY"], ids=["", "forced"])
def test_policies_hold_through_every_name(shop: Release, roles: Roles, postgres: Postgres, force: str) -> None:
    shop.rows(f"""
        INSERT INTO items VALUES (2, 'b'), (3, 'c'); ALTER TABLE items ENABLE ROW LEVEL SECURITY{force};
        GRANT SELECT, INSERT ON items TO {roles.reader}, {roles.writer};
        CREATE POLICY one ON items TO {roles.reader} USING (name = 'a');
        CREATE POLICY others ON items TO {roles.writer} USING (name > 'a') WITH CHECK (id > 100);
    """)
    own = [] if force else ["a", "b", "c"]
    expected = {roles.reader: ["a"], roles.writer: ["b", "c"], shop.database.user: own}
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), ("items", "parts")))
    shop.expand("items.name -> sku", "items -> parts")
    with superuser(postgres, shop) as cursor:
        for role, seen in expected.items():
            cursor.execute(f"SET ROLE {role}")
            for table in ("items", "parts"):
                cursor.execute(f"SELECT coalesce(array_agg(name ORDER BY sku), '{{}}') FROM {table}")
                assert cursor.fetchall() == [(seen,)], (table, role)
                if role == roles.writer:
                    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security policy"):
                        cursor.execute(f"INSERT INTO {table} VALUES (4, 'd')")
    shop.contract()
    assert shop.rows("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = 'parts'") == [
        (True, force != "")
    ]


# What stands against a bridge is found before anything has changed

LIMITED = """
CREATE TABLE first (id int, name text); CREATE TABLE second (id int, name text);
CREATE TABLE granted (id int, name text, size int); GRANT SELECT (size) ON granted TO PUBLIC;
CREATE TABLE published (id int, name text); CREATE PUBLICATION orders FOR TABLE published;
CREATE TABLE split (id int, name text) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF split DEFAULT;
CREATE TABLE heir (more int) INHERITS (items);
CREATE VIEW looked AS SELECT id, name FROM granted;
CREATE MATERIALIZED VIEW stored AS SELECT id, name FROM granted;
CREATE TABLE {long} (id int, name text);
CREATE TABLE taken (id int, name text); CREATE TABLE taken__base ();
CREATE TABLE typed (id int, name text); CREATE TYPE typed__base AS ENUM ();
CREATE TABLE observed (id int, name text);
CREATE FUNCTION observe() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN new.name := upper(name.x); RETURN NEW; END';
CREATE TABLE watched (id int, name text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD."name"; END';
CREATE TRIGGER watched BEFORE UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION watch();
CREATE TABLE searched (id int, name text, words tsvector);
CREATE TRIGGER searched BEFORE UPDATE ON searched FOR EACH ROW
    EXECUTE FUNCTION tsvector_update_trigger(words, 'pg_catalog.english', name);
CREATE TABLE counted (id int, name text);
CREATE FUNCTION count_names() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM count(name) FROM new_rows; RETURN NULL; END';
CREATE TRIGGER counted AFTER INSERT ON counted REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION count_names();
CREATE TABLE returned (id int, name text);
CREATE FUNCTION all_returned() RETURNS SETOF returned LANGUAGE sql AS 'SELECT * FROM returned';
CREATE TABLE kept (id int, name text); CREATE TABLE copies (id int, one kept[]);
CREATE TRIGGER observed BEFORE UPDATE ON observed FOR EACH ROW EXECUTE FUNCTION observe();
""".format(long="t" * 58)
LIMITS = {
    "granted": "granted has GRANTs on columns (size), which a view can't carry",
    "published": "published is in the publication orders, which a view can't carry",
    "split": "split is partitioned, which a view can't carry",
    "part": "part is a partition, which a view can't carry",
    "items": "items has a table that inherits from it, or inherits itself, which a view can't carry",
    "heir": "heir has a table that inherits from it, or inherits itself, which a view can't carry",
    "looked": "looked is a view: only tables can be bridged",
    "stored": "stored is a materialized view: only tables can be bridged",
    "distant": "distant is a foreign table, which a view can't carry",
    "t" * 58: f"{'t' * 58}__base is longer than the 63 bytes that PostgreSQL takes for a name",
    "taken": "there is a taken__base already",
    "typed": "there is a typed__base already",
    "observed": "the trigger observed knows the column as name, which is gone from its rows with the rename",
    "searched": "the trigger searched knows the column as name, which is gone from its rows with the rename",
    "counted": "the trigger counted knows the column as name, which is gone from its rows with the rename",
    "returned": "function all_returned() needs the type of its rows, and those of a view have another",
    "kept": "column one of table copies needs the type of its rows, and those of a view have another",
    "watched": "the trigger watched knows the column as name, which is gone from its rows with the rename",
}


@pytest.fixture(scope="module")
def limited(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A database that refusals leave as it is: tables with everything that a bridge could not carry."""
    with standing(postgres, tmp_path_factory.mktemp("limited"), f"{ITEMS}; op.execute({LIMITED!r})") as release:
        with superuser(postgres, release) as cursor:
            cursor.execute("CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere")
            cursor.execute(f"GRANT USAGE ON FOREIGN SERVER nowhere TO {release.database.user}")
        release.rows("CREATE FOREIGN TABLE distant (id int, name text) SERVER nowhere")
        release.succeed("upgrade")
        yield release


@contextmanager
def standing(postgres: Postgres, folder: Path, upgrade: str) -> Iterator[Release]:
    """A database and a project of a whole module."""
    name, password = f"test_{secrets.token_hex(6)}", secrets.token_hex(8)
    postgres.create_database(name, owner=name, password=password)
    database = Database(name=name, user=name, password=password, port=postgres.port, ca_file=postgres.ca_file)
    release = Release(database, with_template(folder, "generic"))
    release.project.write("aaaa", None, upgrade)
    release.succeed("upgrade")
    yield release
    postgres.drop_database(name)


def no_bridge(release: Release, table: str, reason: str, revision: str = "cccc") -> None:
    release.project.write("bbbb", "aaaa", **renaming(("first", "name", "sku")))
    release.project.write("cccc", "bbbb", **renaming((table, "name", "sku")))
    told = release.refused(kind="NoBridge")
    assert (told["revision"], told["message"]) == (
        revision,
        f"The rename {table}.name -> sku of {revision} can't be bridged: {reason}.",
    )
    assert "rite bridge = False into the revision" in told["hint"]


@pytest.mark.parametrize(("table", "reason"), LIMITS.items())
def test_what_a_view_can_not_carry_is_told_before_an_earlier_rename_is_made(
    limited: Release, table: str, reason: str
) -> None:
    no_bridge(limited, table, reason)


def test_who_may_not_make_a_view_beside_the_table_is_told_what_to_grant(
    limited: Release, roles: Roles, postgres: Postgres
) -> None:
    user = limited.database.user
    with superuser(postgres, limited) as cursor:
        cursor.execute("CREATE SCHEMA guarded; CREATE TABLE guarded.items (id int, name text)")
        cursor.execute(f"GRANT {roles.owner} TO {user}; GRANT USAGE ON SCHEMA guarded TO {user}, {roles.owner}")
        cursor.execute(f"ALTER TABLE guarded.items OWNER TO {roles.owner}")
    limited.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), schema="guarded"))
    both = sorted([roles.owner, user])
    told = limited.refused(kind="NoBridge", revision="bbbb")
    assert f": {' and '.join(both)} may not make a view in the schema guarded." in told["message"]
    assert told["hint"].startswith(f'GRANT CREATE ON SCHEMA "guarded" TO {both[0]}, {both[1]}, or write bridge = False')


@pytest.mark.parametrize("what", ["ALL TABLES", "TABLES IN SCHEMA public"])
def test_a_publication_of_everything_is_one_of_the_table(limited: Release, postgres: Postgres, what: str) -> None:
    with superuser(postgres, limited) as cursor:
        cursor.execute(f"CREATE PUBLICATION everything FOR {what}")
        try:
            no_bridge(limited, "first", "first is in the publication everything, which a view can't carry", "bbbb")
        finally:
            cursor.execute("DROP PUBLICATION everything")


@pytest.mark.parametrize(
    "what",
    [
        [("first", "nothing", "sku")],
        [("nothing", "name", "sku")],
        [("nothing", "anything")],
        [("first", "name", "id")],
        [("first", "items")],
    ],
)
def test_what_is_not_there_or_is_taken_is_told_as_postgresql_tells_it(limited: Release, what: list[What]) -> None:
    limited.project.write("bbbb", "aaaa", **renaming(("second", "name", "sku"), *what))
    with limited.unchanged():
        outcomes = [limited.run("upgrade", "bbbb", follows=follows) for follows in (False, True)]
    plain, bridged = outcomes
    assert (bridged.exit_code, bridged.result["at"], bridged.result["open"]) == (1, "aaaa", [])
    assert bridged.error == plain.error


def test_a_postgresql_whose_views_do_not_look_at_the_readers_rights_is_too_old(
    limited: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migration_runner.obstacles.FIRST_VERSION", 990000)
    limited.project.write("bbbb", "aaaa", **renaming(("first", "name", "sku")))
    told = limited.refused(kind="NoBridge", revision="bbbb")
    assert "security_invoker" in told["message"]
    assert told["hint"].startswith("Upgrade PostgreSQL to 15 or later, or write bridge = False into the revision")


def test_bridge_false_makes_plain_renames_of_what_can_not_be_bridged(shop: Release, plain: Release) -> None:
    tables = [table for table in LIMITS if table not in ("distant", "part", "heir")]
    shop.project.write("bbbb", "aaaa", f"op.execute({LIMITED!r})")
    shop.project.write("cccc", "bbbb", **renaming(*((table, "name", "sku") for table in tables)), bridge=False)
    assert shop.succeed("upgrade", follows=True).result["open"] == []
    alembic(plain, "upgrade", "head")
    assert shop.schema() == plain.schema()


# A revision of renames alone is bridged, and one that does more is not run

ANYTHING = {
    "a statement": "op.execute('UPDATE items SET size = 1')",
    "a column": ADD,
    "a type": f"op.alter_column('items', 'size', new_column_name='length', type_={SA}.BigInteger())",
    "a comment": "op.alter_column('items', 'size', new_column_name='length', comment='in mm')",
    "a table": "op.create_table('t')",
    "a batch": f"{BATCH} batch.alter_column('size', new_column_name='length'); batch.drop_column('name')\")",
    "a block": f"{BLOCK} op.execute('CREATE TABLE t ()')\")",
    "a setting": "op.execute('SET search_path TO public')",
    "an operation of the team": (
        "from alembic.operations import MigrateOperation, Operations; "
        "own = type('Own', (MigrateOperation,), {'own': classmethod(lambda cls, to: to.invoke(cls()))}); "
        "Operations.register_operation('own')(own) if not hasattr(op, 'own') else None; "
        "Operations.implementation_for(own, replace=True)(lambda to, _: to.execute('SELECT 1')); op.own()"
    ),
    "an operation and settings": "op.execute('SET lock_timeout = 1; CREATE TABLE t ()')",
}


@pytest.mark.parametrize("other", ANYTHING.values(), ids=ANYTHING)
def test_a_revision_that_does_more_than_rename_stops_before_anything_has_changed(limited: Release, other: str) -> None:
    limited.project.write("bbbb", "aaaa", **renaming(("first", "name", "sku")))
    # a rename that comes after a query is not seen beforehand
    limited.project.write("cccc", "bbbb", f"{other}; {renaming(('second', 'name', 'sku'))['upgrade']}")
    told = limited.refused(kind="MixedRename")
    assert told["revision"] == "cccc"
    assert told["message"].startswith("cccc renames a column or a table, and does something else too")
    assert "bridge = False" in told["hint"]


def test_batches_and_timeouts_are_harmless(shop: Release) -> None:
    shop.project.write(
        "bbbb",
        "aaaa",
        "op.execute(\"SET LOCAL lock_timeout = '1s'\"); op.execute('set statement_timeout to 5000'); "
        "exec(\"with op.batch_alter_table('items') as batch: batch.alter_column('name', new_column_name='sku'); "
        "batch.alter_column('size', new_column_name='length')\"); exec("
        "\"with op.get_context().autocommit_block(): op.rename_table('items', 'parts')\")",
    )
    shop.expand("items.name -> sku", "items.size -> length", "items -> parts")
    assert shop.rows("SELECT sku, size FROM items, LATERAL (SELECT length FROM parts) p") == [("a", None)]


def test_to_find_out_what_a_revision_does_changes_nothing(shop: Release) -> None:
    # a connection that is not op's own reaches the database
    counted = "from alembic import context; context.get_bind().exec_driver_sql('INSERT INTO items VALUES (2)')"
    shop.project.write("bbbb", "aaaa", f"{counted}; {renaming(('items', 'name', 'sku'))['upgrade']}")
    shop.refused(kind="MixedRename")
    assert shop.rows("SELECT count(*) FROM items") == [(1,)]


# A run that comes to no end is finished, or taken back, by the next one

TWO = "CREATE TABLE items (id int PRIMARY KEY, name text, size int); CREATE TABLE boxes (id int, name text)"
BOTH: list[What] = [("items", "name", "sku"), ("boxes", "name", "sku")]
ITEMS_LEFT, BOXES_LEFT = "items.name -> sku", "boxes.name -> sku"


@pytest.fixture
def two(release: Release) -> Release:
    """Two tables, of which revision bbbb renames a column each."""
    release.project.write("aaaa", None, f"op.execute({TWO!r})", "op.execute('DROP TABLE items, boxes')")
    release.succeed("upgrade")
    release.project.write("bbbb", "aaaa", **renaming(*BOTH))
    return release


def interrupt(release: Release, table: str, command: str, revision: str | None = None) -> Outcome:
    """Run a command that gets no lock of the table within half a second."""
    with transaction(release.database, f"SELECT FROM {table}"):
        outcome = release.run(command, revision, follows=command == "upgrade", lock_wait=0.1)
    assert (outcome.exit_code, outcome.error["kind"]) == (4, "LockNotAvailable")
    assert re.search(
        r"In the way: session \d+ \(reporting, idle in transaction, \d+ s old, SELECT FROM", outcome.error["message"]
    )
    assert outcome.named("migration.locked")[0]["table"] == table
    return outcome


def works(release: Release, table: str, *columns: str) -> None:
    """The table has these columns of name and sku, and no other one."""
    seen = release.rows(f"""
        SELECT attname FROM pg_attribute
        WHERE attrelid = '{table}'::regclass AND attname IN ('name', 'sku') ORDER BY attname
    """)
    assert seen == [(one,) for one in columns]
    release.rows(f"SELECT {', '.join(columns)} FROM {table}")


@pytest.fixture
def half_open(two: Release) -> Release:
    """An upgrade came to no end: one of the tables has both names, the other one the older name."""
    half = interrupt(two, "boxes", "upgrade")
    assert (half.result["at"], half.result["open"], half.error["revision"]) == ("aaaa", [ITEMS_LEFT], "bbbb")
    works(two, "items", "name", "sku")
    works(two, "boxes", "name")
    return two


def test_what_an_upgrade_has_begun_the_next_one_finishes_and_a_contract_leaves_alone(half_open: Release) -> None:
    untouched = half_open.succeed("contract")
    assert (untouched.result["at"], untouched.result["open"]) == ("aaaa", [ITEMS_LEFT])
    [left] = untouched.named("migration.left_open")
    assert left["renames"] == [ITEMS_LEFT]
    half_open.expand(ITEMS_LEFT, BOXES_LEFT)
    works(half_open, "items", "name", "sku")
    works(half_open, "boxes", "name", "sku")


@pytest.mark.parametrize("target", ["aaaa", "base"])
def test_what_an_upgrade_has_begun_a_downgrade_takes_back(half_open: Release, target: str) -> None:
    half_open.project.write("aaaa", None, "pass", "op.drop_column('items', 'size'); op.drop_table('boxes')")
    assert half_open.succeed("downgrade", target).result["open"] == []
    works(half_open, "items", "name")
    assert half_open.kinds("^(items|boxes)$") == [("boxes", "r"), ("items", "r")][target == "base" :]


def test_what_an_upgrade_has_begun_one_without_a_contract_makes_plain(half_open: Release) -> None:
    assert half_open.succeed("upgrade").result["open"] == []
    assert half_open.kinds("^(items|boxes)") == [("boxes", "r"), ("items", "r")]
    works(half_open, "items", "sku")


EDITED: dict[str, tuple[list[What], list[str]]] = {
    "another name": ([("boxes", "name", "sku"), ("items", "name", "code")], [BOXES_LEFT, "items.name -> code"]),
    "another order": (BOTH[::-1], [BOXES_LEFT, ITEMS_LEFT]),
    "another column": ([("items", "size", "length")], ["items.size -> length"]),
    "the table instead": ([("items", "parts")], ["items -> parts"]),
    "the table too": ([("items", "name", "sku"), ("items", "parts")], [ITEMS_LEFT, "items -> parts"]),
}


@pytest.mark.parametrize(("what", "left"), EDITED.values(), ids=EDITED)
def test_a_file_that_was_edited_after_an_interrupted_run_is_bridged_as_it_is_now(
    half_open: Release, plain: Release, what: list[What], left: list[str]
) -> None:
    half_open.project.write("bbbb", "aaaa", **renaming(*what))
    half_open.expand(*left)
    half_open.contract()
    alembic(plain, "upgrade", "head")
    assert half_open.schema() == plain.schema()


def test_a_contract_a_reopen_and_a_downgrade_that_come_to_no_end_are_finished_by_the_next_one(two: Release) -> None:
    before = two.schema()
    two.expand(ITEMS_LEFT, BOXES_LEFT)
    # one contracted, one open; the older release still finds its names where it can
    half = interrupt(two, "boxes", "contract")
    assert (half.result["at"], half.result["open"]) == ("bbbb", [BOXES_LEFT])
    works(two, "items", "sku")
    works(two, "boxes", "name", "sku")
    two.contract()
    works(two, "boxes", "sku")
    half = interrupt(two, "boxes", "reopen", "aaaa")
    assert (half.result["at"], half.result["open"]) == ("bbbb", [ITEMS_LEFT])
    assert two.succeed("reopen", "aaaa").result["open"] == [ITEMS_LEFT, BOXES_LEFT]
    # the last one first
    half = interrupt(two, "items", "downgrade", "aaaa")
    assert (half.result["at"], half.result["open"]) == ("bbbb", [ITEMS_LEFT])
    works(two, "items", "name", "sku")
    works(two, "boxes", "name")
    # which an upgrade mends, for its revision is still applied
    two.expand(ITEMS_LEFT, BOXES_LEFT)
    works(two, "boxes", "name", "sku")
    interrupt(two, "items", "downgrade", "aaaa")
    two.succeed("downgrade", "aaaa")
    assert two.schema() == before
    assert two.rows("SELECT * FROM migration_runner.renames") == []


def test_a_half_contracted_revision_is_taken_back_as_well(two: Release) -> None:
    before = two.schema()
    two.expand(ITEMS_LEFT, BOXES_LEFT)
    interrupt(two, "boxes", "contract")
    two.succeed("downgrade", "aaaa")
    assert two.schema() == before


# What may be done to a table while its rename is open

HARMLESS = [
    "op.create_table('more'); op.execute('SELECT 1 FROM more')",
    ADD,
    (f"op.add_column('items', {SA}.Column('most', {SA}.Integer, server_default='1', nullable=False, comment='100%'))"),
    "op.create_index('by_sku', 'items', ['sku'])",
    (
        'exec("with op.get_context().autocommit_block(): '
        "op.create_index('by_more', 'items', ['more'], postgresql_concurrently=True)\")"
    ),
    "op.get_bind().exec_driver_sql('SELECT 1 FROM more').all(); op.create_table('and_more')",
]


def test_columns_and_indexes_may_be_added_to_a_table_whose_rename_is_open(
    two: Release, plain: Release, roles: Roles
) -> None:
    has = f"GRANT SELECT ON items TO {roles.reader}; COMMENT ON TABLE items IS 'of mine'"
    two.rows(has)
    two.expand(ITEMS_LEFT, BOXES_LEFT)
    for number, upgrade in enumerate(HARMLESS):
        two.project.write(f"c{number}", f"c{number - 1}" if number else "bbbb", upgrade)
    two.expand(ITEMS_LEFT, BOXES_LEFT)
    assert two.rows("SELECT name, sku, more, most FROM items") == []
    assert two.rows("SELECT col_description('items'::regclass, 5), obj_description('items'::regclass)") == [
        ("100%", "of mine")
    ]
    assert two.rows(f"SELECT has_table_privilege('{roles.reader}', 'items', 'SELECT')") == [(True,)]
    two.contract()
    alembic(plain, "upgrade", "aaaa")
    plain.rows(has)
    alembic(plain, "upgrade", "head")
    assert two.schema() == plain.schema()


TOUCHING = {
    "a column is dropped": "op.drop_column('items', 'size')",
    "a type is changed": f"op.alter_column('items', 'size', type_={SA}.BigInteger())",
    "a default is changed": "op.alter_column('items', 'size', server_default='1')",
    "a foreign key to it": "op.create_foreign_key('fk', 'boxes', 'items', ['id'], ['id'])",
    "a unique constraint": "op.create_unique_constraint('uq', 'items', ['sku'])",
    "rows are changed": "op.execute('UPDATE items SET size = 1')",
    "an anonymous block": "op.execute('DO $$ BEGIN UPDATE items SET size = 1; END $$')",
    "an anonymous block with quotes": "op.execute(\"DO 'BEGIN UPDATE items SET size = 1; END'\")",
    "a query": "op.get_bind().exec_driver_sql('SELECT count(*) FROM items').scalar()",
    "a query of text": f"op.get_bind().execute({SA}.text('UPDATE items SET size = :size'), {{'size': 1}}).rowcount",
    "a query of tables": f"op.get_bind().scalar({SA}.select({SA}.table('items', {SA}.column('id'))))",
    "the table is dropped": "op.drop_table('items')",
    "the table behind is dropped": "op.drop_table('items__base')",
    "a batch": f"{BATCH} batch.drop_column('size')\")",
    "a column of a batch": f"{BATCH} batch.add_column({SA}.Column('more', {SA}.Integer))\")",
    "a column with a foreign key": (
        f"op.add_column('items', {SA}.Column('more', {SA}.Integer, {SA}.ForeignKey('boxes.id')))"
    ),
    "a unique column": f"op.add_column('items', {SA}.Column('more', {SA}.Integer, unique=True))",
    "a checked column": f"op.add_column('items', {SA}.Column('more', {SA}.Integer, {SA}.CheckConstraint('more > 0')))",
    "an identity": f"op.add_column('items', {SA}.Column('more', {SA}.Integer, {SA}.Identity()))",
    "an indexed column": f"op.add_column('items', {SA}.Column('more', {SA}.Integer, index=True))",
    "a column of an older name": f"op.add_column('items', {SA}.Column('name', {SA}.Integer))",
    "a table of an older name": "op.create_table('items')",
    "an index without a name": "op.create_index(None, 'items', ['sku'])",
}


@pytest.fixture(scope="module")
def opened(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A database that refusals leave as it is: a rename is open."""
    with standing(postgres, tmp_path_factory.mktemp("opened"), f"op.execute({TWO!r})") as release:
        release.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
        release.expand(ITEMS_LEFT)
        yield release


@pytest.mark.parametrize("upgrade", TOUCHING.values(), ids=TOUCHING)
def test_what_else_is_done_to_it_waits_for_the_contract_and_so_does_what_comes_before(
    opened: Release, upgrade: str
) -> None:
    opened.project.write("cccc", "bbbb", "op.create_table('harmless')")
    opened.project.write("dddd", "cccc", upgrade)
    told = opened.refused(kind="RenameOpen")
    assert told["revision"] == "dddd"
    assert (
        told["message"]
        == "dddd changes items, whose rename is still open: meanwhile it may only get columns and indexes."
    )
    assert told["hint"] == (
        "Deploy a release without this revision first, whose contract finishes the rename. Or, once no task of an "
        "older release is left, run: python -m migration_runner contract."
    )


def test_a_plain_rename_of_a_table_whose_rename_is_open_waits_for_the_contract(opened: Release) -> None:
    opened.project.write("cccc", "bbbb", **renaming(("items", "size", "length")), bridge=False)
    assert opened.refused(kind="RenameOpen", revision="cccc")["revision"] == "cccc"


def test_a_query_that_was_not_foreseen_is_stopped_when_it_comes(opened: Release) -> None:
    later = (
        "op.get_bind().exec_driver_sql('SELECT 1').all(); op.create_table('t'); op.execute('UPDATE items SET size = 1')"
    )
    opened.project.write("cccc", "bbbb", later)
    assert opened.refused(kind="RenameOpen", revision="cccc")["revision"] == "cccc"


def test_a_rename_and_a_column_of_the_same_table_come_in_one_run(two: Release, plain: Release) -> None:
    two.project.write("cccc", "bbbb", ADD)
    two.project.write("dddd", "cccc", **renaming(("items", "more", "much"), ("boxes", "crates")))
    left = [ITEMS_LEFT, BOXES_LEFT, "items.more -> much", "boxes -> crates"]
    two.expand(*left)
    two.rows("SELECT name, sku, more, much FROM items; SELECT b.name, c.sku FROM boxes b, crates c")
    two.contract()
    alembic(plain, "upgrade", "head")
    assert two.schema() == plain.schema()


def test_a_name_that_an_older_release_uses_for_something_else_is_not_given_away(opened: Release) -> None:
    for what in (
        [("items", "size", "name")],
        [("boxes", "crates"), ("items", "boxes")],
        [("boxes", "x", "y"), ("boxes", "y", "x")],
    ):
        opened.project.write("cccc", "bbbb", **renaming(*what))
        told = opened.refused(kind="NameStillOpen", revision="cccc")
        assert "an older release still uses the name" in told["message"]


def test_a_name_that_an_earlier_pending_rename_leaves_to_the_older_release_is_not_given_away(two: Release) -> None:
    two.project.write("cccc", "bbbb", **renaming(("items", "sku", "name")))
    two.refused(kind="NameStillOpen")


# The other commands


def test_commands_that_look_show_what_is_open(open_shop: Release) -> None:
    left = ["items.name -> sku"]
    status = open_shop.succeed("status")
    assert (status.result["open"], status.named("migration.status")[0]["open"]) == (left, left)
    plan = open_shop.succeed("plan")
    assert (plan.result["open"], plan.named("migration.plan")[0]["open"]) == (left, left)
    assert open_shop.succeed("history").result["open"] == left
    assert open_shop.run("check").result["open"] is None
    open_shop.project.write("cccc", "bbbb", "op.drop_column('items', 'size')", phase="contract")
    assert open_shop.succeed("status").result["open"] == [*left, "cccc step cccc"]


def test_an_upgrade_that_has_nothing_to_do_leaves_bridges_open(open_shop: Release) -> None:
    for follows in (False, True):
        again = open_shop.succeed("upgrade", follows=follows)
        assert (again.result["applied"], again.result["open"]) == ([], ["items.name -> sku"])
        assert again.named("migration.nothing_to_do")


def test_a_stamp_leaves_the_schema_and_its_bridges_alone(open_shop: Release) -> None:
    bridged = open_shop.rows(CATALOG)
    open_shop.succeed("stamp", "aaaa")
    assert open_shop.rows(CATALOG) == bridged
    # and from there an upgrade finds what it would make
    open_shop.expand("items.name -> sku")
    assert open_shop.rows(CATALOG) == bridged


def test_an_older_release_passes_a_newer_database_as_long_as_its_names_work(open_shop: Release, tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    older = Release(open_shop.database, with_template(tmp_path / "older", "generic"))
    older.project.write("aaaa", None, ITEMS, "op.drop_table('items')")
    bridged = open_shop.schema()
    for command in ("upgrade", "contract"):
        passed = older.succeed(command, follows=command == "upgrade")
        assert (passed.result["at"], passed.result["target"], passed.result["applied"]) == ("bbbb", "aaaa", [])
        assert passed.result["open"] == ["items.name -> sku"]
        [told] = passed.named("migration.ahead_but_bridged")
        assert told["at"] == "bbbb"
        assert open_shop.schema() == bridged
    # but neither once it is contracted, nor with a newer revision that is no rename
    open_shop.contract()
    for command in ("upgrade", "contract"):
        refused = older.run(command)
        assert (refused.exit_code, refused.error["hint"]) == (
            5,
            "Only renames make it newer. Let a task of the newer image run: python -m migration_runner reopen aaaa. "
            "Then this release may pass.",
        )
    open_shop.succeed("reopen", "aaaa")
    assert older.succeed("upgrade").result["at"] == "bbbb"
    open_shop.project.write("cccc", "bbbb", "op.create_table('more')")
    open_shop.expand("items.name -> sku")
    for command in ("upgrade", "contract"):
        assert older.run(command).exit_code == 5


# A contract, and the way back from it


def test_a_table_that_was_published_while_its_rename_was_open_keeps_its_name_until_that_has_ended(
    open_shop: Release,
) -> None:
    open_shop.rows("CREATE PUBLICATION late FOR TABLE items__base")
    refused = open_shop.run("contract")
    assert (refused.exit_code, refused.error["kind"]) == (1, "Published")
    assert refused.error["message"].startswith(
        "items__base was put into the publication late while its rename was open"
    )
    works(open_shop, "items", "name", "sku")
    open_shop.rows("DROP PUBLICATION late")
    open_shop.contract()


def test_a_contract_applies_the_contract_revisions_that_come_next(open_shop: Release, plain: Release) -> None:
    open_shop.project.write("cccc", "bbbb", "op.drop_column('items', 'size')", phase="contract")
    open_shop.project.write("dddd", "cccc", "op.create_table('more')", phase="contract")
    assert open_shop.expand("items.name -> sku", "cccc step cccc", "dddd step dddd").result["at"] == "bbbb"
    done = open_shop.contract()
    assert (done.result["at"], done.result["applied"]) == ("dddd", ["cccc", "dddd"])
    alembic(plain, "upgrade", "head")
    assert open_shop.schema() == plain.schema()
    assert open_shop.contract().result["applied"] == []


def test_what_was_made_before_is_named_and_lives_on_and_what_was_made_of_the_bridge_stops_the_contract(
    shop: Release,
) -> None:
    shop.rows("""
        CREATE VIEW seen AS SELECT name FROM items; CREATE MATERIALIZED VIEW stored AS SELECT name FROM items;
        CREATE FUNCTION named(int) RETURNS text LANGUAGE sql AS 'SELECT name FROM items WHERE id = $1';
    """)
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    [told] = shop.expand("items.name -> sku").named("migration.bridge_users")
    assert told["users"] == ["function named(integer)", "materialized view stored", "view seen"]
    assert shop.rows("SELECT name, named(1) FROM seen") == [("a", "a")]
    shop.rows("""
        CREATE VIEW "Made since" AS SELECT sku FROM items;
        CREATE FUNCTION made(items[]) RETURNS int LANGUAGE sql AS 'SELECT 1';
    """)
    for _ in range(2):
        with shop.unchanged():
            failed = shop.run("contract")
        assert (failed.exit_code, failed.error["kind"]) == (1, "DependentObjectsStillExist")
        assert failed.error["message"] == (
            'The view that stands for items can\'t go: function made(items[]) and view "Made since" were made of it '
            "while the rename was open."
        )
        assert failed.result["open"] == ["items.name -> sku"]
    shop.rows('DROP VIEW "Made since"; DROP FUNCTION made')
    shop.contract()
    assert shop.rows("SELECT name FROM seen") == [("a",)]


def test_a_reopened_rename_works_again_and_to_reopen_is_idempotent(open_shop: Release) -> None:
    bridged = open_shop.schema()
    open_shop.contract()
    contracted = open_shop.schema()
    for at in ("aaaa", "base", "aaaa"):
        assert open_shop.succeed("reopen", at).result["open"] == ["items.name -> sku"]
        assert open_shop.schema() == bridged
    assert open_shop.succeed("reopen", "bbbb").named("migration.nothing_to_do")
    open_shop.contract()
    assert open_shop.schema() == contracted
    assert open_shop.succeed("reopen", "bbbb").named("migration.nothing_to_do")
    assert open_shop.schema() == contracted


GONE = {
    "op.drop_column('items', 'sku')": "public.items has no column sku any more, so its older name name can't work.",
    "op.drop_table('items')": "There is no table public.items any more, so its older names can't work.",
    f"op.add_column('items', {SA}.Column('name', {SA}.Text))": (
        "public.items has another column name by now, so this can't be the older name of sku."
    ),
}


@pytest.mark.parametrize(("upgrade", "message"), GONE.items(), ids=["column", "table", "name"])
def test_what_was_dropped_after_a_contract_can_not_be_reopened(open_shop: Release, upgrade: str, message: str) -> None:
    open_shop.project.write("cccc", "bbbb", upgrade, phase="contract")
    open_shop.contract()
    with open_shop.unchanged():
        failed = open_shop.run("reopen", "aaaa")
    assert (failed.exit_code, failed.error["message"], failed.result["open"]) == (1, message, [])
    assert failed.error["hint"] == "A later revision has done that. Bring back a release that needs only what is there."


# Back


@pytest.mark.parametrize(
    "downgrade",
    [
        "op.alter_column('items', 'sku', new_column_name='name'); op.drop_column('items', 'size')",
        "op.alter_column('items', 'sku', new_column_name='label')",
        "pass",
        "op.get_bind().exec_driver_sql('SELECT 1').all(); op.alter_column('items', 'sku', new_column_name='name')",
    ],
)
def test_a_downgrade_that_does_more_than_to_take_its_renames_back_waits_for_the_contract(
    opened: Release, downgrade: str
) -> None:
    up = renaming(("items", "name", "sku"))["upgrade"]
    path = opened.project.write("bbbb", "aaaa", up, downgrade)
    for name in ("cccc", "dddd"):
        path.with_name(f"{name}_step.py").unlink(missing_ok=True)
    told = opened.refused("downgrade", revision="aaaa", kind="RenameOpen")
    assert told["revision"] == "bbbb"
