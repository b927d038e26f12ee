"""The services' role reads and writes data, changes no schema, and survives the rotation of its secret."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.errors import InsufficientPrivilege

from local_aws.postgres import Postgres
from migration_runner.revisions import write_manifest
from migration_runner.settings import SettingsError, service_login
from tests.conftest import Database
from tests.migration_runner.conftest import BARE_ENVIRONMENT, Outcome, Project, migrate
from tests.migration_runner.processes import assert_no_secret

TABLES = (
    "op.execute('CREATE TABLE items (id int GENERATED ALWAYS AS IDENTITY, name text) PARTITION BY RANGE (id);"
    " CREATE TABLE items_1 PARTITION OF items DEFAULT; CREATE VIEW named AS SELECT name FROM items;"
    " CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM items; CREATE SEQUENCE numbers')"
)
DML = "INSERT INTO {0} (name) VALUES ('bolt'); UPDATE {0} SET name = 'nut'; DELETE FROM {0}; SELECT * FROM {0}"


@dataclass(frozen=True)
class Service:
    """What the services know: who they are, and where the database is."""

    database: Database
    user: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """For the runner."""
        return {"SERVICE_SECRET": json.dumps({"username": self.user, "password": self.password, "engine": "postgres"})}

    def run(self, statement: str) -> list[tuple[object, ...]]:
        """What a statement returns to the services."""
        return replace(self.database, user=self.user, password=self.password).rows(statement)

    def upgrade(self, project: Project, *arguments: str) -> Outcome:
        """An upgrade that looks after the role; neither password is in what it says."""
        outcome = migrate(self.database, "upgrade", *arguments, project=project.path, **self.environment)
        for password in (self.password, self.database.password):
            assert_no_secret(outcome.output + outcome.errors, password)
        return outcome


def did(outcome: Outcome) -> list[str]:
    """What was done for the role."""
    assert outcome.exit_code == 0, outcome.output
    return [told for event in outcome.named("migration.service_role") for told in event["did"]]


def administer(postgres: Postgres, database: str, *statements: str) -> None:
    with closing(postgres.connect(database)) as superuser, superuser.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture
def service(database: Database, postgres: Postgres) -> Iterator[Service]:
    """A secret whose role is not there yet."""
    user = f"app-{secrets.token_hex(4)}"
    yield Service(database, user, secrets.token_urlsafe(12) + "%@:/?#\"\\ '&=+é")
    with closing(postgres.connect(database.name)) as superuser, superuser.cursor() as cursor:
        cursor.execute("SELECT rolname FROM pg_roles WHERE rolname IN (%s, %s)", (user, f"{user}_clone"))
        for (name,) in cursor.fetchall():
            cursor.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


@pytest.fixture
def tables(project: Project) -> Project:
    """A project whose first revision makes one of each kind of relation."""
    project.write("aaaa", None, TABLES)
    return project


def test_the_role_reads_and_writes_what_is_there_and_what_comes_later(
    service: Service, tables: Project, database: Database
) -> None:
    # given nothing, when the first upgrade has run
    made = did(service.upgrade(tables))
    # then the services read and write every kind of relation
    assert made[0] == f"created {service.user}"
    for name in ("items", "items_1", "named"):
        service.run(DML.format(name) if name != "items_1" else "UPDATE items_1 SET name = 'nut'; TABLE items_1")
    service.run("SELECT nextval('numbers'), currval('numbers')")
    assert service.run("SELECT * FROM counted") == [(0,)]
    # and what a later revision makes
    tables.write("bbbb", "aaaa", "op.execute('CREATE TABLE later (name text); CREATE SEQUENCE later_numbers')")
    assert did(service.upgrade(tables)) == []
    service.run(DML.format("later"))
    # also when Alembic alone has run it
    tables.write("cccc", "bbbb", "op.execute('CREATE TABLE last (name text)')")
    ini = tables.path / "alembic.ini"
    ini.write_text(ini.read_text().replace("driver://user:pass@localhost/dbname", database.url.replace("%", "%%")))
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(command, cwd=tables.path, env=BARE_ENVIRONMENT, check=True, capture_output=True)
    service.run(DML.format("last"))


NOT_FOR_SERVICES = (
    "CREATE TABLE mine ()",
    "CREATE SCHEMA mine",
    "ALTER TABLE items ADD COLUMN more text",
    "ALTER SEQUENCE numbers RESTART",
    "DROP TABLE items",
    "DROP VIEW named",
    "TRUNCATE items",
    "TRUNCATE later",
    "CREATE INDEX ON items_1 (name)",
    "CREATE TRIGGER mine BEFORE INSERT ON later EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "SELECT setval('numbers', 7)",
    "UPDATE alembic_version SET version_num = 'x'",
    "DELETE FROM alembic_version",
    "INSERT INTO alembic_version VALUES ('x')",
    "SELECT * FROM migration_runner.applied",
    "SET ROLE {owner}",
    "CREATE ROLE mine",
)


def test_the_role_changes_no_schema_and_no_records(service: Service, tables: Project) -> None:
    # given a role and a table that comes after it
    service.upgrade(tables)
    tables.write("bbbb", "aaaa", "op.execute('CREATE TABLE later (name text)')")
    service.upgrade(tables)
    # when the services try what is not theirs, then all of it is refused
    allowed = []
    for statement in NOT_FOR_SERVICES:
        try:
            service.run(statement.format(owner=f'"{service.database.user}"'))
        except InsufficientPrivilege:
            continue
        allowed.append(statement)
    assert allowed == []
    # but they may see whether the schema is ready for them
    assert service.run("SELECT version_num FROM alembic_version") == [("bbbb",)]


def test_a_second_run_changes_nothing_also_with_a_manifest(service: Service, tables: Project) -> None:
    write_manifest(tables.path / "alembic.ini")
    assert did(service.upgrade(tables)) != []
    before = service.database.rows(
        "SELECT oid, relacl FROM pg_class UNION ALL SELECT oid, defaclacl FROM pg_default_acl"
    )
    again = service.upgrade(tables)
    assert did(again) == []
    assert again.named("migration.nothing_to_do") != []
    after = service.database.rows(
        "SELECT oid, relacl FROM pg_class UNION ALL SELECT oid, defaclacl FROM pg_default_acl"
    )
    assert after == before


def test_what_is_missing_is_given_back_though_no_revision_is_pending(service: Service, tables: Project) -> None:
    # given a database at the head whose role has lost rights and got one that it must not have
    write_manifest(tables.path / "alembic.ini")
    service.upgrade(tables)
    user = f'"{service.user}"'
    service.database.rows(f"REVOKE ALL ON items, numbers FROM {user}; GRANT DELETE ON alembic_version TO {user}")
    service.database.rows(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public REVOKE INSERT ON TABLES FROM {user}")
    service.database.rows(f"REVOKE CONNECT ON DATABASE {service.database.name} FROM PUBLIC, {user}")
    # when the next deployment runs it
    done = did(service.upgrade(tables))
    # then all is as it was
    assert [told.partition(" ")[0] for told in done] == ["granted"] * 4 + ["revoked"]
    service.run(DML.format("items"))
    service.run("SELECT nextval('numbers')")
    with pytest.raises(InsufficientPrivilege):
        service.run("DELETE FROM alembic_version")
    assert did(service.upgrade(tables)) == []


def rotate(service: Service, master: Database) -> Service:
    """One rotation, as the function for alternating users does it.

    SecretsManagerRDSPostgreSQLRotationMultiUser in aws-samples/aws-secrets-manager-rotation-lambdas.
    """
    user = service.user.removesuffix("_clone") if service.user.endswith("_clone") else f"{service.user}_clone"
    pending = replace(service, user=user, password=secrets.token_urlsafe(16))
    service.run("SELECT 1")
    with closing(master.connect()) as connection, connection.cursor() as cursor:
        role, current = sql.Identifier(user), sql.Identifier(service.user)
        cursor.execute("SELECT 1 FROM pg_roles where rolname = %s", (user,))
        if not cursor.fetchone():
            cursor.execute(sql.SQL("CREATE ROLE {} WITH LOGIN PASSWORD %s").format(role), (pending.password,))
            cursor.execute(sql.SQL("GRANT {} TO {}").format(current, role))
        else:
            cursor.execute(sql.SQL("ALTER USER {} WITH PASSWORD %s").format(role), (pending.password,))
    pending.run("SELECT now()")
    return pending


def test_alternating_users_go_on_working_through_rotations_and_migrations(service: Service, tables: Project) -> None:
    first = service
    did(first.upgrade(tables))
    # when the secret is rotated to the clone, then the clone works and so does who still has the first one
    clone = rotate(first, service.database)
    for known in (first, clone):
        known.run(DML.format("items"))
    # and a migration with the clone's secret changes nothing, and its tables are the clone's too
    tables.write("bbbb", "aaaa", "op.execute('CREATE TABLE later (name text)')")
    assert did(clone.upgrade(tables)) == []
    clone.run(DML.format("later"))
    # when it is rotated back, with tasks that still have the clone's, then both work, and again nothing is to be done
    third = rotate(clone, service.database)
    assert third.user == first.user
    for known in (clone, third):
        known.run(DML.format("later"))
    assert did(third.upgrade(tables)) == []
    with pytest.raises(psycopg2.OperationalError):
        first.run("SELECT 1")


def test_a_clone_whose_database_knows_neither_role_is_made_with_the_role_that_rotation_goes_back_to(
    service: Service, tables: Project
) -> None:
    # given a secret that is the clone's now, and a new database
    clone = replace(service, user=f"{service.user}_clone")
    made = did(clone.upgrade(tables))
    # then both are made, the clone has its rights from the role, and the next rotation works
    assert made[:3] == [f"created {service.user}", f"created {clone.user}", f"granted {service.user} to {clone.user}"]
    clone.run(DML.format("items"))
    rotate(clone, service.database).run(DML.format("items"))


def test_a_clone_that_is_no_member_is_made_one_before_a_rotation_needs_it(service: Service, tables: Project) -> None:
    did(service.upgrade(tables))
    service.database.rows(f'CREATE ROLE "{service.user}_clone" LOGIN')
    assert did(service.upgrade(tables)) == [f"granted {service.user} to {service.user}_clone"]
    rotate(service, service.database).run(DML.format("items"))


def test_a_secret_that_was_made_anew_heals_with_the_next_run(service: Service, tables: Project) -> None:
    did(service.upgrade(tables))
    renewed = replace(service, password=secrets.token_urlsafe(16))
    assert did(renewed.upgrade(tables)) == [f"set the password of {service.user}"]
    renewed.run(DML.format("items"))
    service.database.rows(f'ALTER ROLE "{service.user}" NOLOGIN')
    assert did(renewed.upgrade(tables)) == [f"set the password of {service.user}"]
    renewed.run(DML.format("items"))


def test_a_rotation_during_the_run_is_not_undone(service: Service, tables: Project) -> None:
    # given a password that the rotation of a single user changes while a revision runs
    did(service.upgrade(tables))
    rotated = replace(service, password=secrets.token_urlsafe(16))
    change = f"""op.execute('ALTER ROLE "{service.user}" PASSWORD $${rotated.password}$$')"""
    tables.write("bbbb", "aaaa", change)
    # when the run, which knows the former one, ends, then the new one is still the role's
    assert did(service.upgrade(tables)) == []
    rotated.run("SELECT 1")


def test_the_password_is_neither_in_a_statement_nor_in_the_servers_log(
    service: Service, tables: Project, postgres: Postgres
) -> None:
    # given a server that logs every statement, and a revision that shows what it can
    for name, value in {"log_statement": "all", "log_min_duration_statement": "0"}.items():
        administer(postgres, "postgres", f"ALTER DATABASE {service.database.name} SET {name} = '{value}'")
    show = "import os, json; print(os.environ['SERVICE_SECRET'], json.loads(os.environ['SERVICE_SECRET'])); "
    tables.write("bbbb", "aaaa", show + "op.execute('SELECT pg_sleep(0)')")
    # when the role is made, and its password set
    assert did(service.upgrade(tables))[0].startswith("created")
    renewed = replace(service, password=secrets.token_urlsafe(16) + "%@'é")
    assert did(renewed.upgrade(tables)) == [f"set the password of {service.user}"]
    # then the log holds what was run, with a verifier in the password's place
    log = postgres.log.read_text()
    assert "PASSWORD 'SCRAM-SHA-256$" in log
    for one in (service, renewed):
        assert_no_secret(log, one.password)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER ROLE {user} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {user} CREATEROLE", "may create roles"),
        ("GRANT {owner} TO {user}", "is a member of the role that migrates"),
        (
            "ALTER DATABASE {database} OWNER TO {user}; GRANT ALL ON SCHEMA public TO {owner}",
            "owns the database",
        ),
        ("CREATE TABLE theirs (); ALTER TABLE theirs OWNER TO {user}", "owns objects in the schema"),
        ("CREATE SCHEMA theirs AUTHORIZATION {user}", "owns objects in the schema"),
    ],
)
def test_a_role_that_is_more_than_a_services_is_refused_before_anything_has_changed(
    service: Service, tables: Project, postgres: Postgres, change: str, reason: str
) -> None:
    names = {"user": f'"{service.user}"', "owner": service.database.user, "database": service.database.name}
    administer(postgres, service.database.name, f'CREATE ROLE "{service.user}" LOGIN', change.format(**names))
    refused = service.upgrade(tables)
    administer(postgres, service.database.name, f"ALTER DATABASE {names['database']} OWNER TO {names['owner']}")
    assert (refused.exit_code, refused.error["kind"]) == (2, "ServiceRoleUnfit")
    assert (
        refused.error["message"] == f"The services can't have the role {service.user}, because {service.user} {reason}."
    )
    assert (refused.result["at"], refused.result["applied"]) == ("base", [])


@pytest.mark.parametrize("suffix", ["", "_clone"])
def test_the_role_that_migrates_is_refused(database: Database, tables: Project, suffix: str) -> None:
    refused = Service(database, f"{database.user}{suffix}", database.password).upgrade(tables)
    assert (refused.exit_code, refused.error["kind"]) == (2, "ServiceRoleUnfit")
    assert refused.error["message"].endswith(f"because {database.user} is the role that migrates.")
    assert refused.result["applied"] == []


def test_who_may_not_manage_roles_is_told_what_an_administrator_runs(
    service: Service, tables: Project, postgres: Postgres
) -> None:
    owner = service.database.user
    administer(postgres, "postgres", f"ALTER ROLE {owner} NOCREATEROLE")
    refused = service.upgrade(tables)
    assert (refused.exit_code, refused.error["kind"]) == (2, "MayNotManageRoles")
    assert refused.error["hint"] == f'Let an administrator run ALTER ROLE "{owner}" CREATEROLE.'
    assert refused.result["applied"] == []
    # when an administrator has made the role instead, then nothing of that is needed
    password = service.password.replace("'", "''")
    administer(postgres, "postgres", f"CREATE ROLE \"{service.user}\" LOGIN PASSWORD '{password}'")
    assert did(service.upgrade(tables))[0].startswith("granted")
    service.run(DML.format("items"))
    # and a password that is to be set takes the ADMIN OPTION, which whoever made the role has
    administer(postgres, "postgres", f"ALTER ROLE {owner} CREATEROLE")
    renewed = replace(service, password=secrets.token_urlsafe(16))
    hint = renewed.upgrade(tables).error["hint"]
    assert hint == f'Let an administrator run GRANT "{service.user}" TO "{owner}" WITH ADMIN OPTION.'
    administer(postgres, "postgres", f'GRANT "{service.user}" TO "{owner}" WITH ADMIN OPTION')
    assert did(renewed.upgrade(tables)) == [f"set the password of {service.user}"]


def test_the_owner_that_env_py_becomes_grants_and_who_logs_in_makes_the_role(
    service: Service, tables: Project, postgres: Postgres
) -> None:
    # given an env.py that takes the role of the tables' owner, which may not make roles
    owner, login = f"owner_{secrets.token_hex(4)}", service.database.user
    administer(
        postgres,
        service.database.name,
        f"CREATE ROLE {owner}",
        f"GRANT {owner} TO {login}",
        f"GRANT CREATE ON DATABASE {service.database.name} TO {owner}",
        f"GRANT ALL ON SCHEMA public TO {owner}",
    )
    env = tables.path / "migrations" / "env.py"
    connect = "    with connectable.connect() as connection:\n"
    set_role = f"        connection.exec_driver_sql('SET ROLE {owner}')\n        connection.commit()\n"
    env.write_text(env.read_text().replace(connect, connect + set_role))
    try:
        # then the role is made, and reads and writes what the owner has made
        assert did(service.upgrade(tables))[0] == f"created {service.user}"
        service.run(DML.format("items"))
        assert did(service.upgrade(tables)) == []
    finally:
        administer(postgres, service.database.name, f"DROP OWNED BY {owner} CASCADE", f"DROP ROLE {owner}")


def test_a_role_that_a_revision_makes_unfit_fails_the_run_and_the_revision_stays(
    service: Service, tables: Project
) -> None:
    tables.write("bbbb", "aaaa", f"""op.execute('CREATE ROLE "{service.user}" LOGIN CREATEROLE')""")
    failed = service.upgrade(tables)
    assert (failed.exit_code, failed.error["kind"]) == (1, "ServiceRoleUnfit")
    assert (failed.result["at"], failed.result["applied"]) == ("bbbb", ["aaaa", "bbbb"])


def test_a_schema_of_somebody_elses_is_named_with_what_its_owner_runs_and_the_revisions_stay(
    service: Service, project: Project, postgres: Postgres
) -> None:
    owner = service.database.user
    administer(postgres, service.database.name, "CREATE SCHEMA theirs", f"GRANT ALL ON SCHEMA theirs TO {owner}")
    project.write("aaaa", None, "op.execute('CREATE TABLE theirs.items (name text)')")
    failed = service.upgrade(project)
    assert (failed.exit_code, failed.error["kind"]) == (1, "InsufficientPrivilege")
    grant = f'GRANT USAGE ON SCHEMA theirs TO "{service.user}"'
    assert failed.error["hint"] == f"Let the owner run {grant}; then run this again."
    assert (failed.result["at"], failed.result["applied"]) == ("aaaa", ["aaaa"])
    administer(postgres, service.database.name, grant)
    assert did(service.upgrade(project)) != []
    service.run(DML.format("theirs.items"))


def test_a_schema_in_which_everybody_may_create_is_named(service: Service, tables: Project, postgres: Postgres) -> None:
    administer(postgres, service.database.name, "GRANT CREATE ON SCHEMA public TO PUBLIC")  # as before PostgreSQL 15
    told = service.upgrade(tables).named("migration.service_role_may_create")
    assert [(event["role"], event["schema"]) for event in told] == [(service.user, "public")]


def test_version_tables_of_other_projects_stay_theirs(service: Service, tables: Project, tmp_path: Path) -> None:
    # given a second project in the same database
    other = Project(tmp_path / "other")
    shutil.copytree(tables.path, other.path)
    ini = other.path / "alembic.ini"
    ini.write_text(ini.read_text().replace(str(tables.path), str(other.path)))
    env = other.path / "migrations" / "env.py"
    env.write_text(env.read_text().replace("target_metadata=target_metadata", "version_table='other_version'"))
    (other.path / "migrations" / "versions" / "aaaa_step.py").unlink()
    other.write("zzzz", None, "op.execute('CREATE TABLE others (name text)')")
    # when both have run, then neither gives the services the right to write the other's records
    for project in (tables, other, tables):
        assert service.upgrade(project).exit_code == 0
    for table in ("alembic_version", "other_version"):
        with pytest.raises(InsufficientPrivilege):
            service.run(f"DELETE FROM {table}")


def test_other_commands_do_without_the_secret_but_do_not_show_it(service: Service, tables: Project) -> None:
    env = tables.path / "migrations" / "env.py"
    env.write_text(f"import os\nprint(os.environ['SERVICE_SECRET'])\n{env.read_text()}")
    told = migrate(service.database, "status", "--json", project=tables.path, **service.environment)
    assert (told.exit_code, told.errors) == (1, "")
    assert_no_secret(told.output, service.password)
    assert migrate(service.database, "status", project=tables.path, SERVICE_SECRET="canary").exit_code == 1
    with pytest.raises(psycopg2.OperationalError):
        service.run("SELECT 1")


@pytest.mark.parametrize(
    ("secret", "sentence"),
    [
        ("canary", "SERVICE_SECRET is not a JSON object: give it the value of an RDS secret."),
        ('["canary"]', "SERVICE_SECRET is not a JSON object: give it the value of an RDS secret."),
        ('{"username": "app"}', "SERVICE_SECRET must have text as username and password."),
        ('{"username": "app", "password": ""}', "SERVICE_SECRET must have text as username and password."),
        ('{"username": 7, "password": "canary"}', "SERVICE_SECRET must have text as username and password."),
        (
            '{"username": "app", "password": "canary\\u0000"}',
            "SERVICE_SECRET holds a character that PostgreSQL can't take, NUL or a lone surrogate: remove it.",
        ),
        (
            json.dumps({"username": "ü" * 32, "password": "canary"}),
            "The username in SERVICE_SECRET is longer than 63 bytes, PostgreSQL's limit: shorten it.",
        ),
    ],
)
def test_a_secret_that_can_not_be_used_is_one_sentence_without_it(secret: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        service_login({"SERVICE_SECRET": secret})
    assert str(refused.value) == sentence


def test_a_secret_that_can_not_be_used_ends_an_upgrade_before_it_begins(database: Database, tables: Project) -> None:
    refused = migrate(database, "upgrade", project=tables.path, SERVICE_SECRET="canary")
    assert (refused.exit_code, refused.error["kind"]) == (2, "SettingsError")
    assert "canary" not in refused.output
    assert database.rows("SELECT to_regclass('alembic_version')") == [(None,)]
