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
from tests.migration_runner.conftest import ROOT, Outcome, Project, migrate
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
       attnotnull::text || attidentity::text || attgenerated::text || coalesce(attacl::text, ''), pg_get_expr(adbin, adrelid),
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
RECORDS = "SELECT revision, old_name, new_name, closed_at IS NULL FROM migration_runner.renames ORDER BY id"
ITEMS = "op.execute('CREATE TABLE items (id int PRIMARY KEY, name text, size int); INSERT INTO items VALUES (1, $$a$$)')"

ADD = "op.add_column('items', __import__('sqlalchemy').Column('more', __import__('sqlalchemy').Integer))"

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

    def run(
        self, command: str, revision: str | None = None, *, follows: bool = False, lock_wait: float = 5
    ) -> Outcome:
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
        before = self.everything()
        outcome = self.run(command, revision, follows=command == "upgrade")
        assert (outcome.exit_code, outcome.error["kind"]) == (2, kind), outcome.output
        assert outcome.result["applied"] == []
        assert self.everything() == before
        return outcome.error

    def everything(self) -> object:
        """The schema, and what the runner knows of it."""
        recorded = self.rows("SELECT to_regclass('migration_runner.renames') IS NOT NULL")[0][0]
        return self.schema(), self.rows("SELECT * FROM migration_runner.renames") if recorded else []

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


def write_history(project: Project) -> int:
    """Revisions of all kinds of renames, after aaaa that makes the tables; how many renames there are."""
    unescaped = "execution_options={'no_parameters': True}"
    project.write("aaaa", None, f"op.get_bind().exec_driver_sql({TABLES!r}, {unescaped})")
    for number, (what, schema) in enumerate(HISTORY):
        project.write(f"b{number}", f"b{number - 1}" if number else "aaaa", **renaming(*what, schema=schema))
    return sum(len(what) for what, _ in HISTORY)


def test_after_a_contract_and_after_each_way_back_the_schema_is_that_of_plain_migrations(
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


def test_each_older_and_each_newer_name_works_while_it_is_open(release: Release) -> None:
    write_history(release.project)
    release.succeed("upgrade", "aaaa")
    release.succeed("upgrade", follows=True)
    both = {
        "plain": ["a", "b", "x", "y", "z"],
        "other": ["a", "x"],
        **dict.fromkeys(["moved", "moving", "gone"], ["a", "x"]),
        **dict.fromkeys(["whole", "parts"], ["a", "b", "x", "y"]),
        **dict.fromkeys(['"My ""Table"" No"', '"Your \'Table\'"'], ['"Some Column"', '"Another ""One"""']),
        **dict.fromkeys(['"100%.of it"', '"5%(of)s.it"'], ['"a%s"', '"50%(b)s"']),
        '"order"': ['"user"', '"end"'],
        LONG: ["a" * 63, "b" * 63],
        **dict.fromkeys(['"Other s".plain', '"Other s"."very plain"'], ["a", "x"]),
    }
    for table, columns in both.items():
        release.rows(f"SELECT {', '.join(columns)} FROM {table}")
        release.rows(f"UPDATE {table} SET {columns[0]} = NULL WHERE false")


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
    shop.expand("items -> parts", "parts.name -> sku", "others.name -> sku", "parts.size -> length")
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
SELECT relname, array_agg((a.grantee::regrole::text, a.privilege_type, a.is_grantable)::text ORDER BY a::text)
FROM pg_class, aclexplode(coalesce(relacl, acldefault('r', relowner))) a WHERE relname ~ %s GROUP BY 1 ORDER BY 1
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
            cursor.execute(f"SET ROLE {roles.owner}; REVOKE ALL ON items FROM PUBLIC, {roles.reader}, {roles.writer} CASCADE")
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


def test_comments_are_on_every_name(shop: Release) -> None:
    about = "it's 100% \"so\" \\ %s %(x)s\nand ä so on;"
    shop.rows("COMMENT ON TABLE items IS %s", about)
    shop.rows("COMMENT ON COLUMN items.name IS %s", about)
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), ("items", "parts")))
    shop.expand("items.name -> sku", "items -> parts")
    commented = "SELECT relname, attname, coalesce(col_description(attrelid, attnum), '') FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE relname IN ('items', 'parts') AND attname IN ('name', 'sku', 'size') ORDER BY 1, 2"
    assert shop.rows(commented) == [(table, column, about if column != "size" else "") for table in ("items", "parts") for column in ("name", "size", "sku")]
    assert shop.rows("SELECT obj_description('items'::regclass), obj_description('parts'::regclass)") == [(about, about)]


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
    assert shop.rows("SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = 'parts'") == [(True, force != "")]


# What stands against a bridge is found before anything has changed

LIMITED = """
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
CREATE TRIGGER observed BEFORE UPDATE ON observed FOR EACH ROW EXECUTE FUNCTION observe();
""".format(long="t" * 58)
LIMITS = {
    "granted": "granted has GRANTs on columns (size), which a view can't carry",
    "published": "published is in the publication orders, which a view can't carry",
    "split": "split is partitioned, which a view can't carry",
    "part": "part is a partition, which a view can't carry",
    "items": "items has a table that inherits from it, or inherits itself, which a view can't carry",
    "heir": "heir has a table that inherits from it, or inherits itself, which a view can't carry",
    "looked": "looked is a view, which a view can't carry",
    "stored": "stored is a materialized view, which a view can't carry",
    "distant": "distant is a foreign table, which a view can't carry",
    "t" * 58: f"{'t' * 58}__base is longer than the 63 bytes that PostgreSQL takes for a name",
    "taken": "there is a taken__base already",
    "typed": "there is a typed__base already",
    "observed": "the trigger function observe() says new.name, which is gone from the row with the rename",
    "watched": 'the trigger function watch() says OLD."name", which is gone from the row with the rename',
}


@pytest.fixture(scope="module")
def limited(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A database that refusals leave as it is: tables with everything that a bridge could not carry."""
    with standing(postgres, tmp_path_factory.mktemp("limited"), f"{ITEMS}; op.execute({LIMITED!r})") as release:
        with superuser(postgres, release) as cursor:
            cursor.execute(f"CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere; GRANT USAGE ON FOREIGN SERVER nowhere TO {release.database.user}")
        release.rows("CREATE FOREIGN TABLE distant (id int, name text) SERVER nowhere; CREATE TABLE first (id int, name text); CREATE TABLE second (id int, name text)")
        release.succeed("upgrade")
        yield release


@contextmanager
def standing(postgres: Postgres, folder: Path, upgrade: str) -> Iterator[Release]:
    """A database and a project of a whole module."""
    name = f"test_{secrets.token_hex(6)}"
    postgres.create_database(name, owner=name, password=name)
    database = Database(name=name, user=name, password=name, port=postgres.port, ca_file=postgres.ca_file)
    release = Release(database, with_template(folder, "generic"))
    release.project.write("aaaa", None, upgrade)
    release.succeed("upgrade")
    yield release
    postgres.drop_database(name)


def no_bridge(release: Release, table: str, reason: str) -> None:
    release.project.write("bbbb", "aaaa", **renaming(("first", "name", "sku")))
    release.project.write("cccc", "bbbb", **renaming((table, "name", "sku")))
    told = release.refused(kind="NoBridge")
    assert told["message"] == f"The rename {table}.name -> sku can't be bridged: {reason}."
    assert "rite bridge = False into the revision" in told["hint"]


@pytest.mark.parametrize(("table", "reason"), LIMITS.items())
def test_what_a_view_can_not_carry_is_told_before_an_earlier_rename_is_made(
    limited: Release, table: str, reason: str
) -> None:
    no_bridge(limited, table, reason)


@pytest.mark.parametrize("what", ["ALL TABLES", "TABLES IN SCHEMA public"])
def test_a_publication_of_everything_is_one_of_the_table(limited: Release, postgres: Postgres, what: str) -> None:
    with superuser(postgres, limited) as cursor:
        cursor.execute(f"CREATE PUBLICATION everything FOR {what}")
        try:
            no_bridge(limited, "first", "first is in the publication everything, which a view can't carry")
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
    before = limited.everything()
    errors = []
    for follows in (False, True):
        limited.project.write("bbbb", "aaaa", **renaming(("second", "name", "sku"), *what))
        outcome = limited.run("upgrade", "bbbb", follows=follows)
        assert (outcome.exit_code, outcome.result["at"], outcome.result["open"]) == (1, "aaaa", [])
        errors.append(outcome.error)
        assert limited.everything() == before
    assert errors[0] == errors[1]


def test_a_postgresql_whose_views_do_not_look_at_the_readers_rights_is_too_old(
    limited: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migration_runner.bridge.FIRST_VERSION", 990000)
    limited.project.write("bbbb", "aaaa", **renaming(("first", "name", "sku")))
    told = limited.refused(kind="NoBridge", revision="bbbb")
    assert "security_invoker" in told["message"]
    assert told["hint"].startswith("Upgrade PostgreSQL to 15 or later, or write bridge = False into the revision")


def test_bridge_false_makes_plain_renames_of_what_can_not_be_bridged(
    shop: Release, plain: Release
) -> None:
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
    "a type": "op.alter_column('items', 'size', new_column_name='length', type_=__import__('sqlalchemy').BigInteger())",
    "a comment": "op.alter_column('items', 'size', new_column_name='length', comment='in mm')",
    "a table": "op.create_table('t')",
    "a query": "op.get_bind().exec_driver_sql('SELECT 1').scalar()",
    "a batch": "exec(\"with op.batch_alter_table('items') as batch: batch.alter_column('size', new_column_name='length'); batch.drop_column('name')\")",
    "a block": "exec(\"with op.get_context().autocommit_block(): op.execute('CREATE TABLE t ()')\")",
    "a setting": "op.execute('SET search_path TO public')",
    "an operation of the team": (
        "from alembic.operations import MigrateOperation, Operations; "
        "own = type('Own', (MigrateOperation,), {'own': classmethod(lambda cls, to: to.invoke(cls()))}); "
        "Operations.register_operation('own', replace=True)(own); "
        "Operations.implementation_for(own, replace=True)(lambda to, _: to.execute('SELECT 1')); op.own()"
    ),
    "an operation and settings": "op.execute('SET lock_timeout = 1; CREATE TABLE t ()')",
}


@pytest.mark.parametrize("first", [True, False], ids=["rename first", "rename last"])
@pytest.mark.parametrize("other", ANYTHING.values(), ids=ANYTHING)
def test_a_revision_that_does_more_than_rename_stops_before_anything_has_changed(
    limited: Release, other: str, first: bool
) -> None:
    rename = renaming(("second", "name", "sku"))["upgrade"]
    limited.project.write("bbbb", "aaaa", **renaming(("first", "name", "sku")))
    limited.project.write("cccc", "bbbb", "; ".join([rename, other] if first else [other, rename]))
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
