"""A team's own env.py and settings: the session, the lock and the result hold in each, and the schema is Alembic's."""

from __future__ import annotations

import io
import json
import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config

from local_aws.postgres import Postgres
from migration_runner.guard import Guard
from migration_runner.report import Report
from tests.conftest import Database
from tests.migration_runner.conftest import Outcome, Project, migrate, migrate_here
from tests.migration_runner.processes import started

# What a migration sees of its session, and of the lock.
SEEN = """op.execute('''
    CREATE TABLE seen AS SELECT
    current_setting('lock_timeout') AS lock_timeout, current_setting('application_name') AS application_name,
    current_setting('idle_in_transaction_session_timeout') AS idle,
    current_setting('client_connection_check_interval') AS lost_client,
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND database = (
        SELECT oid FROM pg_database WHERE datname = current_database())) AS locks
''')"""
HELD = [("100ms", "migration_runner", "5min", "1s", 1)]
RELATIONS = """
SELECT n.nspname, c.relname, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_|^information_schema$|^migration_runner$' ORDER BY 1, 2
"""


def with_template(folder: Path, template: str, name: str = "alembic.ini") -> Project:
    ini = folder / "project" / name
    ini.parent.mkdir()
    toml = ini.parent / "pyproject.toml"
    config = Config(str(ini), toml_file=str(toml), stdout=io.StringIO())
    command.init(config, str(ini.parent / "migrations"), template=template)
    return Project(ini.parent)


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


def env_py(project: Project) -> Path:
    return project.path / "migrations" / "env.py"


def creates(name: str) -> dict[str, str]:
    return {"upgrade": f"op.execute('CREATE TABLE {name} ()')", "downgrade": f"op.execute('DROP TABLE {name}')"}


def schema(database: Database) -> tuple[object, object]:
    return database.rows("SELECT version_num FROM alembic_version ORDER BY 1"), database.rows(RELATIONS)


def without_secret(database: Database, outcome: Outcome) -> None:
    told = outcome.output + outcome.errors
    assert database.password not in told
    assert json.dumps(database.password)[1:-1] not in told
    assert outcome.errors == ""


@pytest.fixture
def another(postgres: Postgres, database: Database) -> Iterator[Database]:
    """A second database, for what Alembic alone makes of the same project."""
    name = f"test_{secrets.token_hex(6)}"
    postgres.create_database(name, owner=database.user, password=database.password)
    yield replace(database, name=name)
    postgres.drop_database(name)


def alembic(database: Database, project: Project, direction: str, target: str) -> None:
    """Alembic without the runner."""
    config = Config(str(project.path / "alembic.ini"))
    url = re.sub("^postgresql:", "postgresql+psycopg2:", database.url)
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    getattr(command, direction)(config, target)


# As `alembic init` writes them


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("generic", marks=pytest.mark.fresh),
        "pyproject",
        pytest.param("async", marks=pytest.mark.fresh),
        "pyproject_async",
    ],
)
def test_the_env_py_of_each_template_works_unmodified(database: Database, tmp_path: Path, template: str) -> None:
    if not (Path(Config().get_template_directory()) / template).exists():
        pytest.skip(f"this Alembic has no template {template}")
    project = with_template(tmp_path, template)
    project.write("aaaa", None, SEEN, "op.execute('DROP TABLE seen')")
    project.write("bbbb", "aaaa", **creates("t"))

    up = migrate(database, "upgrade", project=project.path)
    assert (up.exit_code, up.result["at"], up.result["applied"]) == (0, "bbbb", ["aaaa", "bbbb"]), up
    assert database.rows("SELECT * FROM seen") == HELD
    status = migrate(database, "status", project=project.path)
    assert (status.exit_code, status.result["at"]) == (0, "bbbb")
    down = migrate(database, "downgrade", "base", project=project.path)
    assert (down.exit_code, down.result["at"], down.result["applied"]) == (0, "base", ["bbbb", "aaaa"])

    project.write("bbbb", "aaaa", "op.execute('CREATE TABLE t ()'); op.execute('SELECT 1 / (SELECT 0)')")
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["kind"], failed.error["revision"]) == (1, "DivisionByZero", "bbbb")
    assert (failed.result["at"], failed.result["applied"]) == ("aaaa", ["aaaa"])
    assert schema(database)[0] == [("aaaa",)]
    assert database.rows("SELECT to_regclass('seen') IS NULL, to_regclass('t') IS NULL") == [(False, True)]
    for outcome in (up, status, down, failed):
        without_secret(database, outcome)


def test_several_databases_are_refused_before_anything_is_done(database: Database, tmp_path: Path) -> None:
    project = with_template(tmp_path, "multidb")
    project.write("aaaa", None)
    refused = migrate(database, "upgrade", project=project.path)
    assert (refused.exit_code, refused.result["from"]) == (2, None)
    assert "multidb" in refused.error["message"]
    assert database.rows(RELATIONS) == []


@pytest.mark.fresh
def test_a_module_that_another_one_needs_is_named(database: Database, project: Project) -> None:
    # as SQLAlchemy says for an asynchronous env.py without greenlet
    needs = "try:\n    import nowhere\nexcept ImportError as error:\n    raise ImportError('install it') from error\n"
    (project.path / "driver.py").write_text(needs)
    env_py(project).write_text(f"import driver\n{env_py(project).read_text()}")
    project.write("aaaa", None)
    failed = migrate(database, "upgrade", project=project.path)
    assert (failed.exit_code, failed.error["kind"]) == (1, "ImportError")
    assert failed.error["message"] == "env.py, line 1 needs nowhere, but there is no such module."


# What teams change in it

CONFIGURE = "connection=connection, target_metadata=target_metadata"
BODY = """        context.configure(
            connection=connection, target_metadata=target_metadata
        )

        with context.begin_transaction():
            context.run_migrations()
"""
CONNECT = "with connectable.connect() as connection:\n"


def sessions_hold(database: Database, project: Project, key: str) -> None:
    """Up, the same again, and down; with the settings and the lock in the migration, and known under this key."""
    project.write("aaaa", None, SEEN, "op.execute('DROP TABLE seen')")
    project.write("bbbb", "aaaa", **creates("t"))
    up = migrate_here(database, "upgrade", project=project.path)
    assert (up.exit_code, up.result["at"], up.result["applied"]) == (0, "bbbb", ["aaaa", "bbbb"]), up
    [(where,)] = database.rows("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'seen'")
    assert database.rows(f"SELECT * FROM {where}.seen") == HELD
    assert set(database.rows("SELECT version_table FROM migration_runner.applied")) == {(key,)}
    again = migrate_here(database, "upgrade", project=project.path)
    assert (again.exit_code, again.result["from"], again.result["applied"]) == (0, "bbbb", [])
    down = migrate_here(database, "downgrade", "base", project=project.path)
    assert (down.exit_code, down.result["at"], down.result["applied"]) == (0, "base", ["bbbb", "aaaa"])


def test_the_version_table_has_a_name_and_a_schema_that_env_py_computes(database: Database, project: Project) -> None:
    database.rows('CREATE SCHEMA "Release s"')
    computed = "version_table='_'.join(['team', 'releases']), version_table_schema=' '.join(['Release', 's'])"
    edit(env_py(project), (CONFIGURE, f"{CONFIGURE}, {computed}"))
    sessions_hold(database, project, "Release s.team_releases")


SET_PATH = "connection.exec_driver_sql('SET search_path TO tenant')"
SET_PATHS = {
    "committed": (BODY, f"        {SET_PATH}\n        connection.commit()\n{BODY}"),
    "committed at the end": (BODY, f"        {SET_PATH}\n{BODY}        connection.commit()\n"),
    "in the transaction": ("            context.run", f"            {SET_PATH}\n            context.run"),
    "of the engine": (
        "poolclass=pool.NullPool,",
        "connect_args={'options': '-csearch_path=tenant -cTimeZone=Asia/Tokyo'},",
    ),
}


@pytest.mark.parametrize("way", SET_PATHS.values(), ids=SET_PATHS)
def test_env_py_sets_the_search_path(database: Database, project: Project, way: tuple[str, str]) -> None:
    database.rows("CREATE SCHEMA tenant")
    edit(env_py(project), way)
    sessions_hold(database, project, "tenant.alembic_version")


def test_what_env_py_sets_survives_a_lock_that_is_not_free_at_once(database: Database, project: Project) -> None:
    database.rows("CREATE SCHEMA tenant")
    database.rows("CREATE TABLE public.busy ()")
    edit(env_py(project), SET_PATHS["in the transaction"])
    project.write("aaaa", None, "op.execute('LOCK TABLE public.busy'); op.execute('CREATE TABLE t ()')")
    with closing(database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE public.busy")
        with started(database, "upgrade", project=project.path) as runner:
            runner.until("migration.locked")
            cursor.execute("ROLLBACK")
            assert runner.finish().exit_code == 0
    assert database.rows("SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 't'") == [("tenant",)]


def test_no_transaction_is_open_while_another_runner_is_waited_for(database: Database, project: Project) -> None:
    edit(env_py(project), SET_PATHS["in the transaction"])
    database.rows("CREATE SCHEMA tenant")
    project.write("aaaa", None)
    with closing(database.connect()) as own:
        Guard(own, Report(io.StringIO())).lock("tenant.alembic_version", 0)
        with started(database, "upgrade", project=project.path) as runner:
            runner.until("migration.waiting")
            sessions = "datname = current_database() AND application_name = 'migration_runner' AND state <> 'active'"
            assert set(database.rows(f"SELECT state FROM pg_stat_activity WHERE {sessions}")) == {("idle",)}
            own.close()
            assert runner.finish().exit_code == 0


def test_what_env_py_forgets_to_commit_is_no_success(database: Database, project: Project) -> None:
    edit(env_py(project), (BODY, f"        connection.exec_driver_sql('SELECT 1')\n{BODY}"))
    project.write("aaaa", None, **creates("t"))
    lost = migrate_here(database, "upgrade", project=project.path)
    assert (lost.exit_code, lost.error["kind"], lost.result["at"]) == (1, "TargetNotReached", "base")
    assert "committed" in lost.error["hint"]


@pytest.mark.parametrize("inherits", ["INHERIT", "NOINHERIT"])
def test_env_py_takes_the_role_of_an_owner(
    database: Database, postgres: Postgres, project: Project, inherits: str
) -> None:
    owner = f"{database.name}_owner"
    with closing(postgres.connect(database.name)) as superuser, superuser.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {owner}")
        cursor.execute(f"ALTER ROLE {database.user} {inherits} NOCREATEROLE")
        cursor.execute(f"GRANT {owner} TO {database.user}")
        cursor.execute(f"CREATE SCHEMA app AUTHORIZATION {owner}; GRANT CREATE ON DATABASE {database.name} TO {owner}")
        cursor.execute(f"ALTER DATABASE {database.name} SET search_path = app")
    try:
        edit(
            env_py(project),
            (
                CONNECT,
                f"{CONNECT}        connection.exec_driver_sql('SET ROLE {owner}')\n        connection.commit()\n",
            ),
        )
        project.write("aaaa", None, **creates("t"))
        up = migrate(database, "upgrade", project=project.path)
        assert (up.exit_code, up.result["at"]) == (0, "aaaa"), up
        status = migrate(database, "status", project=project.path)
        assert (status.exit_code, status.result["at"]) == (0, "aaaa"), status
        query = (
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname IN ('t', 'alembic_version', 'applied')"
        )
        with closing(postgres.connect(database.name)) as superuser, superuser.cursor() as cursor:
            cursor.execute(query)
            assert cursor.fetchall() == [(owner,)]
    finally:
        postgres.drop_database(database.name)
        with closing(postgres.connect()) as superuser, superuser.cursor() as cursor:
            cursor.execute(f"DROP ROLE {owner}")


OUTER = "with connectable.connect() as connection, connection.begin():\n"
TRANSACTIONS = {
    "around all": [(CONNECT, OUTER)],
    "of the engine": [(CONNECT, "with connectable.begin() as connection:\n")],
    "around the migrations": [
        ("with context.begin_transaction():\n            ", "with connection.begin():\n            ")
    ],
    "around Alembic's": [
        (BODY, BODY.replace("        with context", "        with connection.begin(), context")),
    ],
    "none": [("with context.begin_transaction():\n            ", "")],
}


@pytest.mark.parametrize("changes", TRANSACTIONS.values(), ids=TRANSACTIONS)
def test_env_py_begins_the_transaction_itself(
    database: Database, project: Project, changes: list[tuple[str, str]]
) -> None:
    edit(env_py(project), *changes)
    sessions_hold(database, project, "public.alembic_version")


def test_an_env_py_with_two_version_tables_is_refused_and_what_it_has_changed_by_then_is_told(
    database: Database, project: Project
) -> None:
    # given an env.py that migrates one version table after the other
    second = BODY.replace(CONFIGURE, f"{CONFIGURE}, version_table='second'")
    edit(env_py(project), (BODY, BODY + second))
    project.write("aaaa", None, **creates("t"))
    # when the first has something to do, and when it has nothing to do
    first = migrate(database, "upgrade", project=project.path)
    again = migrate(database, "upgrade", project=project.path)
    back = migrate(database, "stamp", "base", project=project.path)
    # then both are refused, but it is wrong use, which stands for "nothing has changed", only of the latter
    sentence = (
        "env.py migrates public.alembic_version and then public.second; the runner migrates one of them in a run."
    )
    for outcome in (first, again, back):
        assert (outcome.error["kind"], outcome.error["message"]) == ("SeveralVersionTables", sentence)
    assert (first.exit_code, first.result["at"], first.result["applied"]) == (1, "aaaa", ["aaaa"])
    assert (again.exit_code, again.result["at"], again.result["applied"]) == (2, "aaaa", [])
    assert (back.exit_code, back.result["from"], back.result["at"]) == (1, "aaaa", "base")
    assert database.rows("SELECT count(*) FROM t") == [(0,)]


def test_env_py_reads_the_databases_url_where_it_likes(database: Database, project: Project) -> None:
    own = "connectable = __import__('sqlalchemy').create_engine(__import__('os').environ['OWN_URL'])"
    edit(env_py(project), ("connectable = engine_from_config(", f"{own}\n    engine_from_config("))
    project.write("aaaa", None, SEEN)
    url = database.url.replace("postgresql:", "postgresql+psycopg2:")
    up = migrate(database, "upgrade", project=project.path, OWN_URL=url)
    assert (up.exit_code, up.result["at"]) == (0, "aaaa"), up
    assert database.rows("SELECT * FROM seen") == HELD


def test_an_env_py_that_migrates_another_database_than_the_one_that_is_named_is_refused(
    database: Database, another: Database, project: Project
) -> None:
    own = "connectable = __import__('sqlalchemy').create_engine(__import__('os').environ['OWN_URL'])"
    edit(env_py(project), ("connectable = engine_from_config(", f"{own}\n    engine_from_config("))
    project.write("aaaa", None, **creates("t"))
    url = another.url.replace("postgresql:", "postgresql+psycopg2:")
    up = migrate(database, "upgrade", project=project.path, OWN_URL=url)
    assert (up.exit_code, up.error["kind"]) == (2, "AnotherDatabase"), up
    assert database.rows(RELATIONS) == another.rows(RELATIONS) == []
    without_secret(database, up)


HOOKS = """
def include_object(object, name, type_, reflected, compare_to):
    return name != "not_ours"

def noted(*, ctx, step, heads, run_args):
    ctx.connection.exec_driver_sql(
        "INSERT INTO noted VALUES (%s, %s, %s, %s)",
        (step.up_revision_id, step.is_upgrade, ",".join(sorted(heads)), step.up_revision.doc))
"""


def test_env_py_has_an_include_object_and_an_on_version_apply_of_its_own(database: Database, project: Project) -> None:
    database.rows("CREATE TABLE noted (revision text, up bool, heads text, doc text)")
    edit(
        env_py(project),
        (CONFIGURE, f"{CONFIGURE}, include_object=include_object, on_version_apply=noted"),
        ("target_metadata = None", f"target_metadata = None\n{HOOKS}"),
    )
    sessions_hold(database, project, "public.alembic_version")
    assert database.rows("SELECT * FROM noted") == [
        ("aaaa", True, "aaaa", "step aaaa"),
        ("bbbb", True, "bbbb", "step bbbb"),
        ("bbbb", False, "aaaa", "step bbbb"),
        ("aaaa", False, "", "step aaaa"),
    ]


@pytest.mark.parametrize("named_by", ["option", "variable"])
def test_the_ini_file_has_another_name(database: Database, tmp_path: Path, named_by: str) -> None:
    project = with_template(tmp_path, "generic", "releases.ini")
    project.write("aaaa", None, SEEN)
    option, variable = (
        (["--config", "releases.ini"], {}) if named_by == "option" else ([], {"ALEMBIC_CONFIG": "releases.ini"})
    )
    up = migrate(database, "upgrade", *option, project=project.path, **variable)
    assert (up.exit_code, up.result["at"]) == (0, "aaaa"), up
    assert database.rows("SELECT * FROM seen") == HELD


# Whole histories, as Alembic applies them


def branched(project: Project) -> list[str]:
    """Two branches with labels in two locations, one of them in folders by year; one needs the other; then a merge."""
    edit(
        project.path / "alembic.ini",
        (
            "path_separator = os",
            "path_separator = newline\nrecursive_version_locations = true\n"
            "version_locations = %(here)s/migrations/versions\n    %(here)s/of_others/versions",
        ),
    )
    revisions: dict[str, dict[str, Any]] = {
        "aaaa": {"parents": None},
        "bbbb": {"parents": "aaaa", "branch_labels": ("left",)},
        "cccc": {"parents": "aaaa", "branch_labels": ("right",)},
        "dddd": {"parents": "cccc", "depends_on": "left"},
        "eeee": {"parents": "bbbb"},
        "ffff": {"parents": ("eeee", "dddd")},
        "gggg": {"parents": "ffff"},
    }
    year = project.path / "of_others" / "versions" / "2026" / "v1.2"
    year.mkdir(parents=True)
    for name, values in revisions.items():
        path = project.write(name, **values, **creates(f"t_{name}"))
        if name in ("cccc", "dddd"):
            path.rename(year / f"2026-03-01_{name}.py")
    return list(revisions)


def test_from_every_state_a_branched_history_ends_where_alembic_ends(
    database: Database, another: Database, project: Project
) -> None:
    names = branched(project)
    for name in names:
        assert migrate_here(database, "upgrade", name, project=project.path).exit_code == 0, name
        alembic(another, project, "upgrade", name)
        assert schema(database) == schema(another), name
        assert migrate_here(database, "upgrade", project=project.path).result["at"] == "gggg"
        alembic(another, project, "upgrade", "head")
        assert schema(database) == schema(another), name
        assert migrate_here(database, "downgrade", name, project=project.path).exit_code == 0, name
        alembic(another, project, "downgrade", name)
        assert schema(database) == schema(another), name
        assert migrate_here(database, "downgrade", "base", project=project.path).result["at"] == "base"
        alembic(another, project, "downgrade", "base")
        assert schema(database) == schema(another), name
