"""Locks as PostgreSQL takes them, dangers as squawk finds them, and advice that holds when it is followed."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg2.extensions
import pytest
from alembic import command
from alembic.config import Config

from local_aws.postgres import Postgres
from migration_runner.cli import COMMANDS, parser
from migration_runner.errors import RunError
from migration_runner.offline import Statement, split, write_sql
from migration_runner.revisions import RevisionError, read_revisions
from migration_runner.safety import (
    BLOCKS,
    GIVE_OPTION,
    RENAMING,
    Finding,
    SquawkMissingError,
    as_json,
    check,
    findings,
    locks,
    plan,
    plan_as_json,
    render_check,
    render_plan,
    sizes,
    tables,
)
from tests.conftest import Database
from tests.migration_runner.conftest import ROOT, Project, revision, run

RENAME = "49871d03964c_rename_name_to_sku.py"
BACK = "op.execute('SELECT 1')"
# From the weakest to the strongest; ACCESS SHARE, which every read takes, is not told.
MODES = list(BLOCKS)

SCHEMA = """
    CREATE TABLE parent (id int PRIMARY KEY, name text);
    CREATE TABLE child (id int, parent int CONSTRAINT child_parent REFERENCES parent);
    ALTER TABLE child ADD CONSTRAINT positive CHECK (id > 0);
    ALTER TABLE child ADD CONSTRAINT checked CHECK (id < 9) NOT VALID;
    ALTER TABLE child ADD CONSTRAINT child_other FOREIGN KEY (id) REFERENCES parent NOT VALID;
    CREATE TABLE "Odd; name" (id int);
    CREATE TABLE t (id int, a int, b text);
    CREATE UNIQUE INDEX t_a ON t (a);
    CREATE TABLE parts (id int) PARTITION BY RANGE (id);
    CREATE TABLE part PARTITION OF parts FOR VALUES FROM (1) TO (9);
    CREATE TABLE loose (id int);
    CREATE VIEW seen AS SELECT id FROM t;
    CREATE MATERIALIZED VIEW kept AS SELECT id FROM t;
    CREATE UNIQUE INDEX kept_id ON kept (id);
    CREATE TYPE mood AS ENUM ('glad');
    CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER tr AFTER INSERT ON t EXECUTE FUNCTION nothing();
"""


@pytest.fixture(scope="module")
def schema(postgres: Postgres) -> Iterator[Database]:
    """A database that each test leaves as it was."""
    name = f"test_{secrets.token_hex(6)}"
    postgres.create_database(name, owner=name, password=name)
    database = Database(name=name, user=name, password=name, port=postgres.port, ca_file=postgres.ca_file)
    database.rows(SCHEMA)
    yield database
    postgres.drop_database(name)


def statement(sql: str) -> Statement:
    return Statement(sql, Path("step.py"), 10)


def told(sql: str) -> dict[str, str]:
    return {lock.table: lock.mode for lock in locks(statement(sql))}


def held(database: Database, pid: int, names: set[str]) -> dict[str, str]:
    """The strongest lock of the session on each table, and on each index among ``names``, that the schema has."""
    rows = database.rows(f"""
        SELECT relname, mode FROM pg_locks JOIN pg_class ON pg_class.oid = relation
        WHERE pid = {pid} AND relnamespace = 'public'::regnamespace AND mode <> 'AccessShareLock' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """)
    indexes = {name for (name,) in database.rows("SELECT indexrelid::regclass::text FROM pg_index")} - names
    strongest: dict[str, str] = {}
    for name, mode in rows:
        shown = f'"{name}"' if " " in str(name) else str(name)
        words = "".join(f" {letter}" if letter.isupper() else letter for letter in str(mode)[: -len("Lock")])
        if shown not in indexes:
            strongest[shown] = max(strongest.get(shown, MODES[0]), words.strip().upper(), key=MODES.index)
    return strongest


ACCESS, WRITES, SHARED = "ACCESS EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE"


@pytest.mark.parametrize(
    ("sql", "expected", "untold"),
    [
        ("ALTER TABLE t RENAME a TO c", {"t": ACCESS}, {}),
        ("ALTER TABLE t RENAME TO u", {"t": ACCESS}, {}),
        ("ALTER TABLE t ADD COLUMN c int", {"t": ACCESS}, {}),
        ("ALTER TABLE public.t DROP COLUMN b", {"public.t": ACCESS}, {}),
        ("ALTER TABLE t ALTER COLUMN a TYPE bigint USING (a, 1) IS NULL::int::bigint", {"t": ACCESS}, {}),
        ("ALTER TABLE t ALTER COLUMN a SET NOT NULL", {"t": ACCESS}, {}),
        ("ALTER TABLE IF EXISTS ONLY t ALTER b SET DEFAULT 'x, y'", {"t": ACCESS}, {}),
        ("ALTER TABLE t ALTER COLUMN a SET STATISTICS 9", {"t": SHARED}, {}),
        ("ALTER TABLE t SET (fillfactor = 70, autovacuum_enabled = false)", {"t": SHARED}, {}),
        ("ALTER TABLE t CLUSTER ON t_a", {"t": SHARED}, {}),
        ("ALTER TABLE t DISABLE TRIGGER tr", {"t": WRITES}, {}),
        ("ALTER TABLE t DISABLE TRIGGER tr, ADD COLUMN c int", {"t": ACCESS}, {}),
        ("ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID", {"t": ACCESS}, {}),
        ("ALTER TABLE t ADD CONSTRAINT u UNIQUE USING INDEX t_a", {"t": ACCESS}, {}),
        ("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES parent (id)", {"t": WRITES, "parent": WRITES}, {}),
        ("ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY(a) REFERENCES parent", {"t": WRITES, "parent": WRITES}, {}),
        ("ALTER TABLE t ADD COLUMN c int REFERENCES parent", {"t": ACCESS, "parent": WRITES}, {}),
        ("ALTER TABLE child VALIDATE CONSTRAINT checked", {"child": SHARED}, {}),
        ("ALTER TABLE child VALIDATE CONSTRAINT child_other", {"child": SHARED}, {"parent": "ROW SHARE"}),
        ("ALTER TABLE child DROP CONSTRAINT positive", {"child": ACCESS}, {}),
        ("ALTER TABLE child DROP CONSTRAINT child_parent", {"child": ACCESS}, {"parent": ACCESS}),
        ("ALTER TABLE parts ATTACH PARTITION loose DEFAULT", {"parts": SHARED, "loose": ACCESS}, {}),
        ("ALTER TABLE parts DETACH PARTITION part", {"parts": ACCESS, "part": ACCESS}, {}),
        ('ALTER TABLE "Odd; name" RENAME id TO "to"', {'"Odd; name"': ACCESS}, {}),
        ("ALTER INDEX t_a RENAME TO t_b", {"t_a": SHARED}, {}),
        ("ALTER VIEW seen RENAME TO unseen", {"seen": ACCESS}, {}),
        ("CREATE TABLE n (id int CHECK (id > 0))", {}, {}),
        ("CREATE TABLE n (id int REFERENCES parent, FOREIGN KEY (id) REFERENCES parent)", {"parent": WRITES}, {}),
        ("CREATE TABLE n PARTITION OF parts FOR VALUES FROM (20) TO (30)", {"parts": ACCESS}, {}),
        ("CREATE TABLE n (c int) INHERITS (t, loose)", {"t": SHARED, "loose": SHARED}, {}),
        ("CREATE UNIQUE INDEX i ON t (lower(b)) WHERE b <> ' ON child '", {"t": "SHARE"}, {}),
        ("CREATE INDEX IF NOT EXISTS i ON ONLY t USING btree (a)", {"t": "SHARE"}, {}),
        ("DROP INDEX t_a", {"t_a": ACCESS}, {"t": ACCESS}),
        ("DROP TABLE loose, \"Odd; name\"", {"loose": ACCESS, '"Odd; name"': ACCESS}, {}),
        ("DROP TABLE child", {"child": ACCESS}, {"parent": ACCESS}),
        ("DROP VIEW IF EXISTS seen", {"seen": ACCESS}, {}),
        ("TRUNCATE t, ONLY loose", {"t": ACCESS, "loose": ACCESS}, {}),
        ("LOCK TABLE t, loose IN SHARE MODE", {"t": "SHARE", "loose": "SHARE"}, {}),
        ("LOCK t", {"t": ACCESS}, {}),
        ("CREATE TRIGGER x BEFORE UPDATE OF a ON t EXECUTE FUNCTION nothing()", {"t": WRITES}, {}),
        ("DROP TRIGGER tr ON t", {"t": ACCESS}, {}),
        ("CREATE POLICY p ON t USING (a > 0)", {"t": ACCESS}, {}),
        ("REFRESH MATERIALIZED VIEW kept", {"kept": ACCESS}, {}),
        ("REFRESH MATERIALIZED VIEW CONCURRENTLY kept", {"kept": "EXCLUSIVE"}, {}),
        ("REINDEX TABLE t", {"t": "SHARE"}, {}),
        ("REINDEX INDEX t_a", {"t_a": ACCESS}, {"t": "SHARE"}),
        ("ANALYZE t", {"t": SHARED}, {}),
        ("CLUSTER t USING t_a", {"t": ACCESS}, {}),
        ("COMMENT ON TABLE t IS 'DROP TABLE child'", {"t": SHARED}, {}),
        ("COMMENT ON COLUMN public.t.a IS 'it''s'", {"public.t": SHARED}, {}),
        ("INSERT INTO t VALUES (1, 2, 'UPDATE x') ON CONFLICT (a) DO UPDATE SET b = ''", {"t": "ROW EXCLUSIVE"}, {}),
        ("UPDATE /* the others; */ ONLY t -- all\n SET a = loose.id FROM loose", {"t": "ROW EXCLUSIVE"}, {}),
        ("DELETE FROM t WHERE a IN (SELECT id FROM loose)", {"t": "ROW EXCLUSIVE"}, {}),
        (
            "WITH old AS (DELETE FROM t RETURNING id) INSERT INTO loose SELECT id FROM old",
            {"t": "ROW EXCLUSIVE", "loose": "ROW EXCLUSIVE"},
            {},
        ),
        ("MERGE INTO t USING loose ON t.id = loose.id WHEN MATCHED THEN UPDATE SET a = 1", {"t": "ROW EXCLUSIVE"}, {}),
        ("ALTER TYPE mood ADD VALUE 'sad'", {}, {}),
        ("CREATE VIEW v AS SELECT * FROM t", {}, {}),
        ("SELECT a FROM t", {}, {}),
        ("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $x$ BEGIN DELETE FROM t; END $x$", {}, {}),
    ],
)  # fmt: skip
def test_the_locks_that_are_told_are_those_that_postgresql_takes(
    schema: Database, sql: str, expected: dict[str, str], untold: dict[str, str]
) -> None:
    assert told(sql) == expected
    with closing(schema.connect()) as connection:
        connection.autocommit = False
        before = {str(name) for (name,) in schema.rows("SELECT oid::regclass::text FROM pg_class")}
        with connection.cursor() as cursor:
            cursor.execute(sql)
        names = {name.removeprefix("public.") for name in expected}
        # What the statement itself creates has another oid, which no one else sees yet.
        taken = held(schema, connection.info.backend_pid, names)
        connection.rollback()
    assert names | untold.keys() <= before
    assert taken == {name.removeprefix("public."): mode for name, mode in expected.items()} | untold


@pytest.mark.parametrize(
    ("sql", "undo", "expected", "untold"),
    [
        ("CREATE INDEX CONCURRENTLY i ON t (b)", "DROP INDEX IF EXISTS i", {"t": SHARED}, {}),
        ("DROP INDEX CONCURRENTLY t_a", "CREATE UNIQUE INDEX t_a ON t (a)", {"t_a": SHARED}, {"t": SHARED}),
        ("REINDEX TABLE CONCURRENTLY t", "SELECT 1", {"t": SHARED}, {}),
    ],
)  # fmt: skip
def test_what_runs_concurrently_lets_writers_in(
    schema: Database, sql: str, undo: str, expected: dict[str, str], untold: dict[str, str]
) -> None:
    assert told(sql) == expected
    with closing(schema.connect()) as writer, closing(schema.connect()) as builder:
        # given a writer that the statement has to wait for
        writer.autocommit = False
        with writer.cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (1, 1, 'x')")
        # when it waits
        running = threading.Thread(target=run_in, args=[builder, sql])
        running.start()
        waiting = f"SELECT 1 FROM pg_locks WHERE pid = {builder.info.backend_pid} AND NOT granted"
        deadline = time.monotonic() + 10
        while not schema.rows(waiting) and time.monotonic() < deadline:
            time.sleep(0.02)
        taken = held(schema, builder.info.backend_pid, set(expected))
        writer.rollback()
        running.join(10)
    schema.rows(undo)
    assert taken == expected | untold


def run_in(connection: psycopg2.extensions.connection, sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


def test_what_code_locks_is_said_to_be_unknown() -> None:
    assert told("DO $$ BEGIN DELETE FROM t; END $$") == {"any table": "UNKNOWN LOCKS"}


def test_sizes_are_those_of_postgresql_and_a_table_that_is_not_there_has_none(schema: Database) -> None:
    schema.rows("INSERT INTO loose SELECT * FROM generate_series(1, 500)")
    schema.rows("ANALYZE loose")
    with closing(schema.connect()) as connection:
        found = sizes(connection, ["public.loose", '"Odd; name"', "nosuch", "any table"])
    assert found.keys() == {"public.loose", '"Odd; name"'}
    assert found["public.loose"].rows == 500
    assert schema.rows("SELECT pg_total_relation_size('loose')") == [(found["public.loose"].bytes,)]
    assert found['"Odd; name"'] == (None, 0)


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("SELECT 1;; SELECT 2;", ["SELECT 1", "SELECT 2"]),
        ("SELECT ';', E'\\';', \"a;b\" -- ;\n, 2 /* ; */; -- the end", None),
        ("DO $x$ BEGIN; $$;$$ END; $x$; SELECT 1", ["DO $x$ BEGIN; $$;$$ END; $x$", "SELECT 1"]),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT 2; END;", None),
        ("-- nothing", []),
    ],
)
def test_a_text_is_split_where_postgresql_splits_it(text: str, statements: list[str] | None) -> None:
    assert split(text) == (
        statements if statements is not None else [text.removesuffix("; -- the end").removesuffix(";")]
    )


def config(project: Project) -> Path:
    return project.path / "alembic.ini"


def rules(found: list[Finding]) -> list[str]:
    return [finding.rule for finding in found]


def indented(code: str) -> str:
    return f"{code}\npass".replace("\n", "\n    ")


@pytest.fixture
def unmarked(tmp_path: Path) -> Path:
    """This repository's project, as it would be if nobody had marked anything as safe."""
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (tmp_path / "migrations" / "versions").glob("*.py"):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "# safe:" not in line))
    return tmp_path / "alembic.ini"


def test_the_rename_of_this_project_is_found_with_its_lines_and_its_names(unmarked: Path) -> None:
    found = [one for one in check(unmarked) if one.file.name == RENAME]
    assert [(one.rule, one.revision, one.line) for one in found] == [
        ("renaming-column", "49871d03964c", 19),
        ("renaming-column", "49871d03964c", 20),
    ]
    assert "parent_items.name" in found[0].sentence
    assert found[1].instead.startswith('op.alter_column("child_items", "name", new_column_name="sku")\n# In a revision')


TABLES = (
    "CREATE TABLE items (id bigint, sku varchar(20), n int DEFAULT 1); CREATE INDEX items_n ON items (n);"
    " INSERT INTO items (id, sku) SELECT i, i FROM generate_series(1, 9) i;"
    ' CREATE TABLE "Odd" ("Col" int, other int); CREATE TABLE makers (id bigint PRIMARY KEY);'
    ' INSERT INTO makers SELECT id FROM items; CREATE VIEW seen AS SELECT 1; CREATE TYPE "Mood" AS ENUM ()'
)
HAZARDS = [
    ("require-concurrent-index-creation", 'op.create_index("ix", "items", ["id", "sku"])'),
    ("require-concurrent-index-creation", 'op.create_index("Ix", "Odd", ["Col"], schema="public")'),
    ("require-concurrent-index-creation", 'op.execute("CREATE UNIQUE INDEX ix ON items (lower(sku)) WHERE n > 0")'),
    ("require-concurrent-index-deletion", 'op.drop_index("items_n", table_name="items")'),
    (
        "ban-concurrent-index-creation-in-transaction",
        'op.create_index("ix", "items", ["sku"], postgresql_concurrently=True)',
    ),
    ("require-concurrent-reindex", 'op.execute("REINDEX TABLE items")'),
    ("adding-foreign-key-constraint", 'op.create_foreign_key("fk", "items", "makers", ["id"], ["id"])'),
    (
        "adding-foreign-key-constraint",
        'op.create_foreign_key("fk", "items", "makers", ["id"], ["id"], ondelete="CASCADE")',
    ),
    ("constraint-missing-not-valid", 'op.create_check_constraint("ck", "items", "sku <> \'\' AND (n > 0)")'),
    ("disallowed-unique-constraint", 'op.create_unique_constraint("uq", "items", ["id", "sku"])'),
    ("adding-serial-primary-key-field", 'op.create_primary_key("pk", "items", ["id"])'),
    ("adding-not-nullable-field", 'op.alter_column("items", "sku", nullable=False)'),
    ("adding-not-nullable-field", 'op.alter_column("Odd", "Col", nullable=False, schema="public")'),
    ("adding-required-field", 'op.execute("ALTER TABLE items ADD COLUMN price numeric(10, 2) NOT NULL")'),
    (
        "adding-field-with-default",
        'op.execute("ALTER TABLE items ADD COLUMN token uuid DEFAULT gen_random_uuid() NOT NULL")',
    ),
    ("changing-column-type", 'op.execute("ALTER TABLE items ALTER COLUMN n TYPE bigint")'),
    ("renaming-column", 'op.alter_column("items", "sku", new_column_name="code")'),
    ("renaming-column", 'op.alter_column("Odd", "Col", new_column_name="Row", schema="public")'),
    ("renaming-table", 'op.rename_table("items", "goods")'),
    ("ban-drop-column", 'op.drop_column("items", "sku")'),
    ("ban-drop-column", 'op.execute("ALTER TABLE items DROP COLUMN IF EXISTS sku CASCADE")'),
    ("ban-drop-table", 'op.drop_table("Odd", schema="public")'),
    ("ban-drop-table", "op.execute('DROP TABLE IF EXISTS makers, \"Odd\"')"),
    ("ban-drop-view", 'op.execute("DROP VIEW seen")'),
    ("ban-drop-type", "op.execute('DROP TYPE \"Mood\"')"),
    ("renaming-column", 'op.execute("ALTER TABLE items RENAME COLUMN sku TO code")'),
    ("renaming-table", 'op.execute("ALTER TABLE public.items RENAME TO goods")'),
    ("ban-drop-default", 'op.alter_column("items", "n", server_default=None)'),
]


@pytest.mark.parametrize(("rule", "hazard"), HAZARDS)
def test_what_is_unsafe_is_found_and_its_advice_is_safe_and_runs(
    database: Database, project: Project, rule: str, hazard: str
) -> None:
    # given a revision that is unsafe for the tables of an earlier one
    project.write("aaaa", None, f"op.execute({TABLES!r})", BACK)
    project.write("bbbb", "aaaa", hazard, BACK)
    [finding] = check(config(project))
    assert (finding.rule, finding.revision, finding.line) == (rule, "bbbb", 10)
    # when the advice is followed instead
    parent = "aaaa"
    for step, code in zip(["bbbb", "cccc", "dddd"], finding.instead.split("# next revision")):  # noqa: B905
        is_whole = "def upgrade" in code
        text = f"# now\n{code}" if step == "bbbb" else f"# now{code}"
        path = project.write(step, parent, "HERE" if is_whole else indented(text), BACK)
        path.write_text(path.read_text().replace("def upgrade():\n    HERE", text))
        parent = step
    # then nothing is unsafe any more
    assert check(config(project), contract_follows=rule in RENAMING) == []
    # and PostgreSQL takes each step
    alembic = Config(str(config(project)))
    alembic.set_main_option(
        "sqlalchemy.url", database.url.replace("postgresql", "postgresql+psycopg2").replace("%", "%%")
    )
    for one in reversed(read_revisions(config(project))):
        command.upgrade(alembic, one.revision)


@pytest.mark.parametrize(
    ("rule", "sql", "words"),
    [
        ("require-concurrent-partition-detach", "ALTER TABLE p DETACH PARTITION q", "q waits for every query on p"),
        (
            "constraint-missing-not-valid",
            "ALTER TABLE t ADD CONSTRAINT x EXCLUDE USING gist (a WITH =)",
            "of t until its",
        ),
        ("adding-field-with-default", "ALTER TABLE t ADD COLUMN c bigserial", "t is rewritten"),
        ("ban-drop-schema", "DROP SCHEMA s", "Dropping a schema"),
        ("ban-truncate-cascade", "TRUNCATE t CASCADE", "CASCADE"),
        ("renaming-object", "ALTER TYPE mood RENAME VALUE 'a' TO 'b'", "Renaming a type value"),
    ],
)
def test_where_there_is_no_code_to_give_there_are_words(rule: str, sql: str, words: str) -> None:
    [finding] = findings([statement(sql)], revision("aaaa"))
    assert finding.rule == rule
    assert words in finding.sentence
    assert finding.instead


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t ADD COLUMN c int",
        "ALTER TABLE t ADD COLUMN c int NOT NULL DEFAULT 1",
        "CREATE TABLE n (id serial PRIMARY KEY, c char(3), at timestamp)",
        "ALTER TYPE mood ADD VALUE 'sad'",
        "UPDATE t SET a = 1",
    ],
)
def test_style_is_not_unsafe(sql: str) -> None:
    assert findings([statement(sql)], revision("aaaa")) == []


@pytest.mark.parametrize("odd", ["FOO BAR", "SELECT 'x", "SELECT ("])
def test_a_statement_that_squawk_can_not_read_hides_no_other(odd: str) -> None:
    found = findings([statement("DROP TABLE t"), statement(odd)], revision("aaaa"))
    assert rules(found) == ["ban-drop-table", "syntax-error"]


OLD_NAMES = [
    'op.drop_column("items", "sku")',
    'op.drop_table("items")',
    'op.alter_column("items", "n", server_default=None)',
    'op.execute("DROP VIEW seen")',
    'op.execute("DROP FUNCTION f(int)")',
    'op.execute("DROP TYPE mood")',
    'op.execute("DROP SEQUENCE s")',
    'op.execute("DROP DOMAIN d")',
    'op.execute("DROP SCHEMA s")',
    'op.execute("DROP EXTENSION e")',
    'op.execute("ALTER TABLE items ALTER COLUMN n DROP EXPRESSION")',
]


@pytest.mark.parametrize("code", OLD_NAMES)
def test_what_only_an_older_release_would_miss_is_safe_in_a_contract_revision(project: Project, code: str) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", code, BACK)
    before = check(config(project))
    assert [('phase = "contract"' in one.instead, "def upgrade()" in one.instead) for one in before] == [(True, True)]
    project.write("bbbb", "aaaa", code, BACK, phase="contract")
    assert check(config(project)) == []
    # and a mark on it settles nothing any more
    project.write("bbbb", "aaaa", f"{code}  # safe: {before[0].rule} - nobody reads it", BACK, phase="contract")
    assert rules(check(config(project))) == ["unused-mark"]


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("require-concurrent-index-creation", 'op.create_index("ix", "items", ["id"])'),
        ("adding-not-nullable-field", 'op.alter_column("items", "sku", nullable=False)'),
        ("changing-column-type", 'op.execute("ALTER TABLE items ALTER COLUMN n TYPE bigint")'),
        ("ban-truncate-cascade", 'op.execute("TRUNCATE items CASCADE")'),
        ("renaming-object", 'op.execute("ALTER VIEW seen RENAME TO unseen")'),
        ("ban-set-schema", 'op.execute("ALTER TABLE items SET SCHEMA other")'),
        ("renaming-column", 'op.alter_column("items", "sku", new_column_name="code")'),
        ("renaming-table", 'op.rename_table("items", "goods")'),
    ],
)
def test_what_harms_the_newer_release_is_unsafe_in_a_contract_revision_too(
    project: Project, rule: str, code: str
) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", code, BACK, phase="contract")
    assert rules(check(config(project), contract_follows=True)) == [rule]


COLUMN, TABLE = 'op.alter_column("items", "sku", new_column_name="code")', 'op.rename_table("items", "goods")'
BATCH = (
    "with op.batch_alter_table('items', schema='s') as batch:\n    batch.alter_column('sku', new_column_name='code')"
)


@pytest.mark.parametrize(
    ("code", "bridged"),
    [
        (COLUMN, ["items.sku -> code"]),
        (f"{COLUMN}\n{TABLE}", ["items.sku -> code", "items -> goods"]),
        (BATCH, ["s.items.sku -> code"]),
        ("op.alter_column('a b', 'c\"', new_column_name='RENAME ')", ['a b.c" -> RENAME ']),
        ("op.rename_table('a', 'b', schema='s')", ["s.a -> b"]),
        (f"op.execute('SET LOCAL lock_timeout = 0')\n{COLUMN}", ["items.sku -> code"]),
        (f"with op.get_context().autocommit_block():\n    {COLUMN}", ["items.sku -> code"]),
    ],
)
def test_renames_alone_are_safe_when_a_contract_step_follows(project: Project, code: str, bridged: list[str]) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", indented(code), BACK)
    assert set(rules(check(config(project)))) <= set(RENAMING)
    assert check(config(project), contract_follows=True) == []
    [planned] = plan(config(project), read_revisions(config(project))[:1], contract_follows=True).revisions
    assert [str(rename) for rename in planned.bridged] == bridged
    [plain] = plan(config(project), read_revisions(config(project))[:1]).revisions
    assert plain.bridged == []


@pytest.mark.parametrize(
    "more",
    [
        'op.add_column("items", __import__("sqlalchemy").Column("c"))',
        'op.execute("UPDATE items SET n = 1")',
        'op.execute("ALTER TABLE items RENAME n TO m")',
        'op.execute("ALTER TABLE items RENAME CONSTRAINT n TO m")',
        'op.alter_column("items", "n", new_column_name="m", server_default="x RENAME y")',
        "op.get_bind().execute('SELECT 1').scalar()",
    ],
)
def test_a_revision_that_does_more_than_rename_is_to_be_split_when_a_contract_step_follows(
    project: Project, more: str
) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", indented(f"{COLUMN}\nop.rename_table('a', 'b', schema='s')\n{more}"), BACK)
    assert "mixed-rename" not in rules(check(config(project)))
    [mixed] = [one for one in check(config(project), contract_follows=True) if one.rule == "mixed-rename"]
    assert (mixed.revision, mixed.line) == ("bbbb", 10)
    assert mixed.sentence == "bbbb does more than rename: an upgrade with --contract-follows stops before it."
    # when it is split
    assert mixed.instead.splitlines()[1:3] == [COLUMN, 'op.rename_table("a", "b", schema="s")']
    assert mixed.instead.splitlines()[-1] == "bridge = False"
    calls = "\n".join(
        line for line in mixed.instead.splitlines() if line.startswith(("#", 'op.alter_column("items', "op.rename"))
    )
    project.write("bbbb", "aaaa", indented(calls), BACK)
    assert check(config(project), contract_follows=True) == []


def test_what_a_mixed_revision_does_besides_is_found_as_ever(project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", f'{COLUMN}; op.drop_table("t"); op.execute("ALTER TABLE u RENAME a TO b")', BACK)
    found = check(config(project), contract_follows=True)
    assert rules(found) == ["mixed-rename", "ban-drop-table"]


@pytest.mark.parametrize(
    ("rename", "more", "words"),
    [
        ('op.execute("ALTER TABLE items RENAME sku TO code")', {}, COLUMN),
        ('op.execute("ALTER TABLE ONLY items RENAME COLUMN sku TO code")', {}, COLUMN),
        ('op.execute("ALTER TABLE items RENAME TO goods")', {}, TABLE),
        (
            COLUMN,
            {"bridge": False},
            f"# in a revision without bridge = False\n{COLUMN}\n# In a revision of renames alone",
        ),
        (f'{COLUMN}; op.execute("SELECT 1")', {"bridge": False}, f"# in a revision without bridge = False\n{COLUMN}"),
    ],
)
def test_a_rename_that_will_not_be_bridged_stays_unsafe_when_a_contract_step_follows(
    project: Project, rename: str, more: dict[str, bool], words: str
) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", rename, BACK, **more)
    found = check(config(project), contract_follows=True)
    assert [replace(one, instead=f"{one.instead}{GIVE_OPTION}") for one in found] == check(config(project))
    assert [one.rule in RENAMING and one.instead.startswith(words) for one in found] == [True]
    assert plan(config(project), read_revisions(config(project))[:1], contract_follows=True).revisions[0].bridged == []


def test_without_a_contract_step_a_rename_is_unsafe_and_the_step_is_the_way_out(project: Project) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", COLUMN, BACK)
    [finding] = check(config(project))
    assert finding.rule == "renaming-column"
    for words in (
        "migration.contract_after(service)",
        "`upgrade --contract-follows`",
        "`contract`",
        "--contract-follows, too",
    ):
        assert words in finding.instead


def test_a_mark_on_a_rename_is_needed_where_no_contract_step_follows_and_does_no_harm_where_one_does(
    project: Project,
) -> None:
    project.write("aaaa", None)
    project.write("bbbb", "aaaa", f"{COLUMN}  # safe: renaming-column - the service is stopped", BACK)
    assert check(config(project)) == check(config(project), contract_follows=True) == []
    # and of a revision that does more, another one is wanted
    more = f"{COLUMN}; op.execute('SELECT 1')"
    project.write("bbbb", "aaaa", f"{more}  # safe: renaming-column - the service is stopped", BACK)
    assert rules(check(config(project), contract_follows=True)) == ["mixed-rename"]
    project.write("bbbb", "aaaa", f"{more}  # safe: renaming-column, mixed-rename - applied everywhere", BACK)
    assert check(config(project), contract_follows=True) == []


@pytest.mark.usefixtures("no_squawk")
def test_a_plan_tells_which_renames_keep_their_names_and_what_the_contract_step_does(project: Project) -> None:
    project.write("aaaa", None, f"{COLUMN}; {TABLE}", BACK)
    project.write("bbbb", "aaaa", 'op.drop_column("goods", "n")', BACK, phase="contract")
    project.write("cccc", "bbbb", f'{TABLE}; op.execute("SELECT 1")', BACK)
    planned = plan(config(project), read_revisions(config(project))[::-1], contract_follows=True)
    shown = render_plan(planned, {})
    assert "    items.sku -> code: both names work until the contract step\n    items -> goods: both names" in shown
    assert "bbbb step bbbb (by the contract step)\n    ALTER TABLE goods DROP COLUMN n;" in shown
    assert [(one["phase"], one["bridged"]) for one in plan_as_json(planned, {})] == [
        ("expand", ["items.sku -> code", "items -> goods"]),
        ("contract", []),
        ("expand", []),
    ]
    # also without squawk
    assert [rules(one.findings) for one in planned.revisions] == [[], [], ["mixed-rename"]]


def test_validating_in_the_transaction_that_adds_is_unsafe() -> None:
    texts = ["ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0) NOT VALID", "ALTER TABLE t VALIDATE CONSTRAINT c"]
    [finding] = findings([statement(text) for text in texts], revision("aaaa"))
    assert (finding.rule, "c is held until every row of t" in finding.sentence) == (
        "constraint-missing-not-valid",
        True,
    )


def test_a_table_that_the_revision_makes_is_not_in_use_yet(project: Project) -> None:
    made = 'op.execute("CREATE TABLE n (id int, a int)"); op.create_index("n_a", "n", ["a"]);'
    changed = 'op.alter_column("n", "a", new_column_name="b"); op.drop_column("n", "b"); op.drop_table("n")'
    project.write("aaaa", None, made + changed, BACK)
    assert check(config(project)) == []
    [planned] = plan(config(project), read_revisions(config(project))).revisions
    assert [taken for _, taken in planned.statements] == [[]] * 5


def test_concurrently_is_for_autocommit_blocks_which_leave_the_transaction(project: Project) -> None:
    create = 'op.create_index("i", "t", ["a"], postgresql_concurrently=True)'
    project.write("aaaa", None, indented(f"with op.get_context().autocommit_block():\n    {create}\n{create}"), BACK)
    [finding] = check(config(project))
    assert (finding.rule, finding.line) == ("ban-concurrent-index-creation-in-transaction", 12)
    [script] = write_sql(config(project), read_revisions(config(project)))
    assert [one.sql.split()[0] for one in script.statements] == ["COMMIT", "CREATE", "BEGIN", "CREATE"]


def test_each_statement_has_the_line_of_the_call_in_the_revision_file(project: Project) -> None:
    lines = [
        "op.create_table(",
        "    'n',",
        ")",
        "with op.batch_alter_table('t') as batch:",
        "    batch.drop_column('a')",
        "op.execute('SELECT 1; SELECT 2')",
        "op.get_bind().exec_driver_sql if 0 else op.bulk_insert(__import__('sqlalchemy').table('n'), [])",
    ]
    project.write("aaaa", None, indented("\n".join(lines)), BACK)
    [script] = write_sql(config(project), read_revisions(config(project)))
    assert [(one.line, " ".join(one.sql.split())) for one in script.statements] == [
        (10, "CREATE TABLE n ( )"),
        (13, "ALTER TABLE t DROP COLUMN a"),
        (15, "SELECT 1"),
        (15, "SELECT 2"),
    ]
    assert script.stopped is None


@pytest.mark.parametrize("template", ["generic", "pyproject", "async", "pyproject_async"])
def test_every_env_py_that_alembic_writes_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "said").open("w") as said:
        command.init(Config(str(tmp_path / "alembic.ini"), toml_file=str(tmp_path / "pyproject.toml"), stdout=said),
                     str(tmp_path / "migrations"), template=template)  # fmt: skip
    ini = tmp_path / "alembic.ini"
    Project(tmp_path).write("aaaa", None, 'op.drop_table("t")', BACK)
    assert rules(check(ini)) == ["ban-drop-table"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("op.get_bind().execute('SELECT 1').scalar()", "AttributeError"),
        ("[row for row in op.get_bind().exec_driver_sql('SELECT 1')]", "AttributeError"),
        ("__import__('sqlalchemy').inspect(op.get_bind())", "NoInspectionAvailable"),
        ("import sys; sys.exit(0)", "SystemExit"),
    ],
)
def test_a_revision_that_reads_the_database_is_one_finding(project: Project, code: str, kind: str) -> None:
    project.write("aaaa", None, indented(f"op.execute('SELECT 2')\n{code}\nop.drop_table('t')"), BACK)
    [finding] = check(config(project))
    assert (finding.rule, finding.line) == ("needs-a-database", 11)
    assert finding.sentence.startswith(f"Line 11 raises {kind} ")


def test_an_env_py_without_an_offline_mode_is_one_sentence(project: Project) -> None:
    project.write("aaaa", None, BACK, BACK)
    (project.path / "migrations/env.py").write_text("from alembic import context\n")
    with pytest.raises(RunError, match="does not write SQL when"):
        check(config(project))


def test_an_env_py_that_connects_all_the_same_is_one_sentence(project: Project) -> None:
    project.write("aaaa", None, BACK, BACK)
    env = project.path / "migrations/env.py"
    env.write_text(env.read_text().replace("if context.is_offline_mode():", "if False:"))
    ini = config(project)
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", "postgresql+psycopg2://"))
    with pytest.raises(RunError, match="does not write SQL when"):
        check(ini)


def test_only_the_files_that_are_asked_for_are_imported(project: Project) -> None:
    path = project.write("aaaa", None, BACK, BACK)
    path.write_text(path.read_text() + "\nraise SystemExit('imported')\n")
    project.write("bbbb", "aaaa", BACK, BACK)
    [planned] = plan(config(project), read_revisions(config(project))[:1]).revisions
    assert planned.revision.revision == "bbbb"


def test_a_broken_chain_is_told_as_everywhere(project: Project) -> None:
    project.write("aaaa", "zzzz", BACK, BACK)
    with pytest.raises(RevisionError, match="comes after zzzz"):
        check(config(project))


@pytest.mark.parametrize(
    ("upgrade", "downgrade", "expected"),
    [
        (BACK, "pass", ["irreversible"]),
        (BACK, "raise NotImplementedError", ["irreversible"]),
        (BACK, "'nothing'; ...", ["irreversible"]),
        (BACK, f"{BACK}; raise NotImplementedError", []),
        ("pass", "pass", []),
    ],
)
def test_a_way_back_that_does_nothing_is_found(
    project: Project, upgrade: str, downgrade: str, expected: list[str]
) -> None:
    project.write("aaaa", None, upgrade, downgrade)
    assert rules(check(config(project))) == expected


@pytest.mark.parametrize("name", ["upgrade", "downgrade"])
def test_a_direction_that_is_missing_is_found(project: Project, name: str) -> None:
    path = project.write("aaaa", None, BACK, BACK)
    path.write_text(path.read_text().replace(f"def {name}(", f"def {name}_("))
    [finding] = check(config(project))
    assert finding.rule == "missing-direction"
    assert finding.sentence == f"There is no {name}(), so Alembic can't {name} through aaaa."


def test_a_revision_can_be_marked_as_irreversible(project: Project) -> None:
    path = project.write("aaaa", None, BACK, "raise NotImplementedError")
    mark = "# safe: irreversible - the rows are gone\n"
    path.write_text(path.read_text().replace("def downgrade", f"{mark}def downgrade"))
    assert check(config(project)) == []


@pytest.mark.parametrize(
    "code",
    [
        "op.drop_table('t')  # safe: ban-drop-table - nobody reads it",
        "# safe: ban-drop-table - nobody reads it\n\n# and a word more\nop.drop_table('t')",
        "op.drop_table(\n    't',\n)  # safe: ban-drop-table - nobody reads it",
        "op.drop_table(  # safe: ban-drop-table \N{EM DASH} nobody reads it\n    't',\n)",
        "# safe: ban-drop-table, ban-drop-column - nobody reads it\nop.drop_table('t'); op.drop_column('u', 'a')",
        "# safe: needs-a-database - it runs before the release\nop.get_bind().execute('SELECT 1').scalar()",
    ],
)
def test_a_mark_with_a_reason_settles_what_it_stands_at(project: Project, code: str) -> None:
    project.write("aaaa", None, indented(code), BACK)
    assert check(config(project)) == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("op.drop_table('t')  # safe: ban-drop-table", ["mark-without-reason"]),
        ("op.drop_table('t')  # safe: ban-drop-table -", ["mark-without-reason"]),
        ("op.drop_table('t')  # safe:", ["ban-drop-table", "mark-without-reason"]),
        ("op.drop_table('t')  # safe: ban-drop-column - nobody reads it", ["ban-drop-table", "unused-mark"]),
        ("op.drop_table('t')\n# safe: ban-drop-table - too late", ["ban-drop-table", "unused-mark"]),
        ("op.execute('# safe: ban-drop-table - a text')\nop.drop_table('t')", ["syntax-error", "ban-drop-table"]),
        ("# it is safe: really\nop.drop_table('t')", ["ban-drop-table"]),
        (f"# safe: nosuch-rule - whatever\n{BACK}", ["unused-mark"]),
    ],
)
def test_a_mark_that_gives_no_reason_or_settles_nothing_is_a_finding(
    project: Project, code: str, expected: list[str]
) -> None:
    project.write("aaaa", None, indented(code), BACK)
    assert rules(check(config(project))) == expected


@pytest.fixture
def no_squawk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))


def test_the_revisions_of_this_repository_have_no_findings_when_a_contract_step_follows() -> None:
    assert check(ROOT / "alembic.ini", contract_follows=True) == []


@pytest.mark.usefixtures("no_squawk")
def test_without_squawk_check_says_what_to_install_and_plan_goes_on() -> None:
    with pytest.raises(SquawkMissingError) as refused:
        check(ROOT / "alembic.ini")
    assert (refused.value.exit_code, refused.value.hint) == (2, "Run: pip install squawk-cli")
    shown = render_plan(plan(ROOT / "alembic.ini", read_revisions(ROOT / "alembic.ini")[:1]), {})
    assert "ALTER TABLE parent_items RENAME name TO sku;" in shown
    assert "squawk, which finds what is unsafe, is not installed. Run: pip install squawk-cli" in shown
    assert "renaming-column" not in shown


def test_a_plan_shows_the_sql_with_locks_sizes_and_dangers(database: Database, unmarked: Path) -> None:
    database.rows("CREATE TABLE parent_items (id int PRIMARY KEY)")
    planned = plan(unmarked, read_revisions(unmarked)[:1])
    assert tables(planned) == {"parent_items", "child_items"}
    with closing(database.connect()) as connection:
        measured = sizes(connection, tables(planned))
    shown = render_plan(planned, measured)
    assert shown.startswith("49871d03964c rename name to sku\n    ALTER TABLE parent_items RENAME name TO sku;\n")
    assert "ACCESS EXCLUSIVE on parent_items (number of rows unknown, 8 kB): blocks reads and writes\n" in shown
    assert "ACCESS EXCLUSIVE on child_items: blocks reads and writes\n" in shown
    assert "49871d03964c_rename_name_to_sku.py:19: renaming-column\n" in shown
    [machine] = json.loads(json.dumps(plan_as_json(planned, measured)))
    assert machine["statements"][0]["locks"] == [
        {
            "table": "parent_items",
            "mode": "ACCESS EXCLUSIVE",
            "blocks": "blocks reads and writes",
            "rows": None,
            "bytes": 8192,
        }
    ]
    assert [one["line"] for one in machine["findings"]] == [19, 20]


def test_a_check_tells_file_line_danger_and_what_to_write(monkeypatch: pytest.MonkeyPatch, unmarked: Path) -> None:
    monkeypatch.chdir(unmarked.parent)
    found = check(Path("alembic.ini"))
    shown = render_check(found)
    assert shown.startswith("migrations/versions/49871d03964c_rename_name_to_sku.py:19: renaming-column\n  Each query")
    assert "# safe: renaming-column - the reason" in shown
    assert shown.endswith("2 findings.\n")
    assert render_check([]) == "No findings.\n"
    assert json.loads(json.dumps(as_json(found[0])))["file"] == "migrations/versions/49871d03964c_rename_name_to_sku.py"


def test_of_the_files_that_are_named_alone_something_is_said(unmarked: Path) -> None:
    files = sorted((unmarked.parent / "migrations" / "versions").glob("*.py"))
    assert [file.name for file in files] == ["48871d03964b_create_items.py", RENAME]
    assert check(unmarked, files[:1]) == []
    assert rules(check(unmarked, files[1:])) == rules(check(unmarked, files)) == ["renaming-column", "renaming-column"]


def test_a_file_that_is_no_revision_of_the_project_is_wrong_use(
    unmarked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unmarked.parent)
    with pytest.raises(RunError) as refused:
        check(unmarked, [Path("migrations/env.py"), Path("migrations/versions/gone.py")])
    assert (refused.value.exit_code, refused.value.kind) == (2, "NotARevision")
    assert refused.value.message == "migrations/env.py and migrations/versions/gone.py are no revision of this project."
    assert refused.value.hint == "Its revisions are in migrations/versions."


def test_for_github_a_finding_is_an_annotation_after_the_text(project: Project) -> None:
    path = project.write("aaaa", None, 'op.execute("ALTER TABLE \\"100%, a:b\\" RENAME TO c")', "op.f('c')")
    written = run("check", str(path), "--output-format", "github", project=project.path, environment={})
    text, _, annotations = written.output.partition("::error ")
    place = "migrations/versions/aaaa_step.py"
    assert written.exit_code == 1
    assert f"{place}:10: renaming-table\n  Each query" in text
    first, last = annotations.splitlines()
    assert first.startswith(
        f"file={place},line=10,title=renaming-table::Each query of the running release on 100%25, a:b"
    )
    # What it does, what to write instead, and how to allow it: on one line, or GitHub would show the first alone.
    assert '%0AInstead:%0A    op.rename_table("100%25, a:b", "c")%0A    # In a revision' in first
    assert first.endswith("say so in that line or above it: # safe: renaming-table - the reason")
    assert last.startswith("check: UnsafeRevisions: ")


def test_for_github_a_file_is_named_from_the_root_of_the_repository(project: Project) -> None:
    project.write("aaaa", None, 'op.drop_table("t")')
    root = project.path.parent
    in_folder = run(
        "check", "--output-format=github", project=project.path, environment={"GITHUB_WORKSPACE": str(root)}
    )
    assert (
        f"::error file={project.path.name}/migrations/versions/aaaa_step.py,line=10,title=ban-drop-table::"
        in in_folder.output
    )


def test_for_github_a_chain_that_is_broken_is_an_annotation_too_whatever_file_is_named(project: Project) -> None:
    first = project.write("aaaa", None)
    project.write("bbbb", "gone")
    broken = run("check", str(first), "--output-format", "github", project=project.path, environment={})
    assert broken.exit_code == 2
    assert broken.output.startswith("::error title=RevisionError::")
    assert "gone" in broken.output.splitlines()[0]


def test_only_check_has_something_to_tell_github(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = parser().parse_args(["check", "--output-format", "github"])
    assert chosen.output_format == "github"
    for name, *_ in COMMANDS:
        if name != "check":
            with pytest.raises(SystemExit) as ended:
                parser().parse_args([name, "--output-format", "github"])
            assert ended.value.code == 2
            assert "argument --output-format: invalid choice: 'github'" in capsys.readouterr().err
