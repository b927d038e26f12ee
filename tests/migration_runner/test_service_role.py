"""The services' role reads and writes data, changes no schema, and survives the rotation of its secret."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import threading
import time
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
    assert [told.partition(" ")[0] for told in done] == ["granted"] * 4 + ["revoked"], done
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


def test_a_password_is_never_overwritten_and_a_secret_that_was_made_anew_is_let_in_when_told_to(
    service: Service, tables: Project
) -> None:
    # given a password that was rotated after the task had got its secret
    did(service.upgrade(tables))
    rotated = replace(service, password=secrets.token_urlsafe(16))
    service.database.rows(f"""ALTER ROLE "{service.user}" PASSWORD '{rotated.password}'""")
    tables.write("bbbb", "aaaa", "op.execute('CREATE TABLE later (name text)')")
    # when that task runs, then it is refused as with stale credentials of its own, and nothing has changed
    refused = service.upgrade(tables)
    assert (refused.exit_code, refused.error["kind"]) == (6, "ServiceCredentialsRefused")
    assert (refused.result["at"], refused.result["applied"]) == ("aaaa", [])
    rotated.run(DML.format("items"))
    # and the task that the trigger starts next, which reads the secret anew, goes on
    assert did(rotated.upgrade(tables)) == []
    # when the secret was made anew instead, then what the hint says lets it in
    renewed = replace(service, password=secrets.token_urlsafe(16))
    cure = f'ALTER ROLE "{service.user}" NOLOGIN'
    assert cure in renewed.upgrade(tables).error["hint"]
    service.database.rows(cure)
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
    service.database.rows(f'ALTER ROLE "{service.user}" NOLOGIN')
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
        ("ALTER ROLE {user} CREATEDB", "may create databases"),
        ("ALTER ROLE {user} REPLICATION", "may replicate the server"),
        ("ALTER ROLE {user} BYPASSRLS", "is above row-level security"),
        ("GRANT postgres TO {user}", "is a member of postgres, which is a superuser"),
        ("ALTER ROLE {user} NOINHERIT; GRANT postgres TO {user}", "is a member of postgres, which is a superuser"),
        (
            "CREATE ROLE {group} IN ROLE pg_write_all_data; GRANT {group} TO {user}",
            "is a member of pg_write_all_data, which is one of the server's own",
        ),
        (
            "GRANT pg_execute_server_program TO {user}",
            "is a member of pg_execute_server_program, which is one of the server's own",
        ),
        ("CREATE ROLE {group} CREATEROLE; GRANT {group} TO {user}", "is a member of {group}, which may create roles"),
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
    names["group"] = f"group_{secrets.token_hex(4)}"
    administer(postgres, service.database.name, f'CREATE ROLE "{service.user}" LOGIN', change.format(**names))
    refused = service.upgrade(tables)
    administer(
        postgres,
        service.database.name,
        f"ALTER DATABASE {names['database']} OWNER TO {names['owner']}",
        f"DROP ROLE IF EXISTS {names['group']}",
    )
    assert (refused.exit_code, refused.error["kind"]) == (2, "ServiceRoleUnfit")
    because = f"{service.user} {reason.format(**names)}."
    assert refused.error["message"] == f"The services can't have the role {service.user}, because {because}"
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
    administer(postgres, "postgres", f'ALTER ROLE "{service.user}" NOLOGIN')
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
    tables.write("bbbb", "aaaa", f"""op.execute('ALTER ROLE "{service.user}" CREATEROLE')""")
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
    told = service.upgrade(tables).named("migration.service_role_exceeds")
    assert [(event["role"], event["may"], event["on"]) for event in told] == [(service.user, ["CREATE"], ["public"])]
    assert told[0]["hint"] == "To end that, let who granted it run REVOKE CREATE ON SCHEMA public FROM PUBLIC."


def test_a_clone_that_inherits_nothing_gets_its_rights(service: Service, tables: Project) -> None:
    did(service.upgrade(tables))
    clone = replace(service, user=f"{service.user}_clone", password=secrets.token_urlsafe(16))
    service.database.rows(
        f"""CREATE ROLE "{clone.user}" LOGIN NOINHERIT PASSWORD '{clone.password}';"""
        f""" GRANT "{service.user}" TO "{clone.user}\""""
    )
    assert did(clone.upgrade(tables)) == [f"granted {service.user} to {clone.user}"]
    clone.run(DML.format("items"))
    assert did(clone.upgrade(tables)) == []


def test_tables_of_another_owner_are_granted_where_that_is_allowed_and_named_otherwise(
    service: Service, tables: Project, postgres: Postgres
) -> None:
    # given tables of an administrator beside ours, one with the GRANT OPTION, and the version table
    owner = service.database.user
    service.database.rows("CREATE TABLE alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY)")
    administer(
        postgres,
        service.database.name,
        "CREATE TABLE theirs (name text)",
        "CREATE TABLE shared (name text)",
        f"GRANT ALL ON shared TO {owner} WITH GRANT OPTION",
        "ALTER TABLE alembic_version OWNER TO postgres",
        f"GRANT ALL ON alembic_version TO {owner}",
    )
    ran = service.upgrade(tables)
    # then the services have what could be granted, and what could not is told with the words for it
    assert ran.exit_code == 0
    service.run(DML.format("shared"))
    grants = [
        f'If the services need it, let the owner run GRANT {privileges} ON TABLE {table} TO "{service.user}".'
        for privileges, table in (
            ("SELECT", "public.alembic_version"),
            ("SELECT, INSERT, UPDATE, DELETE", "public.theirs"),
        )
    ]
    assert [event["hint"] for event in ran.named("migration.service_role_lacks")] == grants
    # when the owner has run one of them, then it is told no more
    administer(postgres, service.database.name, f'GRANT SELECT ON alembic_version TO "{service.user}"')
    assert [event["hint"] for event in service.upgrade(tables).named("migration.service_role_lacks")] == grants[1:]
    administer(postgres, service.database.name, "DROP TABLE shared")


def test_a_schema_that_holds_only_types_can_be_used_too(service: Service, project: Project) -> None:
    kinds = "CREATE SCHEMA kinds; CREATE DOMAIN kinds.color AS text; CREATE TABLE items (color kinds.color)"
    project.write("aaaa", None, f"op.execute('{kinds}')")
    did(service.upgrade(project))
    service.run("INSERT INTO items VALUES ('red'::kinds.color)")
    assert did(service.upgrade(project)) == []


BEYOND = {
    "GRANT ALL ON items, numbers TO {user}": "TRUNCATE items",
    "GRANT CREATE ON SCHEMA public TO {user}": "CREATE TABLE mine ()",
    "GRANT CREATE ON DATABASE {database} TO {user}": "CREATE SCHEMA mine",
    "GRANT UPDATE (version_num) ON alembic_version TO {user}": "UPDATE alembic_version SET version_num = 'x'",
    "GRANT ALL ON SCHEMA migration_runner TO {user}": "CREATE TABLE migration_runner.mine ()",
    "GRANT USAGE ON SCHEMA migration_runner TO {user}; GRANT ALL ON migration_runner.applied TO {user}": (
        "DELETE FROM migration_runner.applied"
    ),
    "GRANT TRUNCATE ON items TO {clone}": "TRUNCATE items",
}


def test_rights_beyond_those_of_a_service_are_revoked(service: Service, tables: Project) -> None:
    # given rights that were granted to the role, and to its clone
    did(service.upgrade(tables))
    clone = rotate(service, service.database)
    names = {"user": f'"{service.user}"', "clone": f'"{clone.user}"', "database": service.database.name}
    for statement in BEYOND:
        service.database.rows(statement.format(**names))
    # when the next upgrade has run, then they are gone, and those of a service are not
    assert {told.partition(" ")[0] for told in did(clone.upgrade(tables))} == {"revoked"}
    for statement in BEYOND.values():
        with pytest.raises(InsufficientPrivilege):
            clone.run(statement)
    clone.run(DML.format("items"))
    assert did(clone.upgrade(tables)) == []


def test_rights_beyond_those_of_a_service_that_others_have_too_are_named(service: Service, tables: Project) -> None:
    did(service.upgrade(tables))
    service.database.rows("GRANT INSERT, DELETE ON alembic_version TO PUBLIC; GRANT TRUNCATE ON items, named TO PUBLIC")
    ran = service.upgrade(tables)
    assert did(ran) == []
    assert [event["hint"] for event in ran.named("migration.service_role_exceeds")] == [
        f"To end that, let who granted it run REVOKE {words} FROM PUBLIC."
        for words in (
            "DELETE, INSERT ON TABLE public.alembic_version",
            "TRUNCATE ON TABLE public.items, public.named",
        )
    ]


@pytest.mark.parametrize("later", [False, True], ids=["a new database", "a later revision"])
def test_what_a_revision_takes_from_the_role_stays_taken(service: Service, tables: Project, later: bool) -> None:
    # given a revision that lets the services only add to a table, in a database that may know them or not
    if later:
        did(service.upgrade(tables))
    user = f'"{service.user}"'
    audit = f"CREATE TABLE audit (name text); REVOKE ALL ON audit FROM {user}; GRANT SELECT, INSERT ON audit TO {user}"
    tables.write("bbbb", "aaaa", f"op.execute('{audit}')")
    # when that run has ended, and the next one
    for _ in range(2):
        did(service.upgrade(tables))
        # then they may do just that
        service.run("INSERT INTO audit VALUES ('bolt'); TABLE audit")
        for statement in ("DELETE FROM audit", "UPDATE audit SET name = 'nut'", "TRUNCATE audit"):
            with pytest.raises(InsufficientPrivilege):
                service.run(statement)


def test_a_lock_that_is_not_free_is_waited_for_as_long_as_for_a_revision_and_its_holder_is_named(
    service: Service, tables: Project
) -> None:
    # given a table with rights to be granted, which another session alters
    migrate(service.database, "upgrade", project=tables.path)
    with closing(service.database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN; ALTER TABLE items ADD COLUMN more text")
        began = time.monotonic()
        failed = service.upgrade(tables, "--lock-wait", "0")
        # then nothing is waited for, and it is told who was in the way
        assert time.monotonic() - began < 20
        assert (failed.exit_code, failed.error["kind"]) == (4, "LockNotAvailable")
        assert f"In the way: session {connection.info.backend_pid} (" in failed.error["message"]
        assert failed.error["hint"] == "End what stands in the way, or wait for it; then run this again."
        assert failed.result["at"] == "aaaa"
        # when it ends in time, then the run goes on
        timer = threading.Timer(3, cursor.execute, ["ROLLBACK"])
        timer.start()
        assert did(service.upgrade(tables)) != []
        timer.join()
    service.run(DML.format("items"))


def test_the_runs_timeout_is_told_as_such(service: Service, tables: Project, postgres: Postgres) -> None:
    administer(
        postgres,
        service.database.name,
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(30); END'",
        "CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('GRANT') EXECUTE FUNCTION slow()",
    )
    failed = service.upgrade(tables, "--timeout", "4")
    assert (failed.exit_code, failed.error["kind"]) == (1, "TimedOut")
    assert failed.error["hint"] == "Raise the timeout; the revisions that were applied stay."


def test_a_username_that_the_databases_encoding_can_not_write_is_refused(
    service: Service, tables: Project, postgres: Postgres
) -> None:
    owner, name = service.database.user, f"latin_{secrets.token_hex(4)}"
    create = f"CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"
    administer(postgres, "postgres", create)
    try:
        latin = replace(service, user="\u65e5\u672c", database=replace(service.database, name=name))
        refused = latin.upgrade(tables)
    finally:
        administer(postgres, "postgres", f"DROP DATABASE {name}")
    assert (refused.exit_code, refused.error["kind"]) == (2, "ServiceRoleUnwritable")
    sentence = "The username in SERVICE_SECRET must be ASCII, because the database's encoding is LATIN1."
    assert (refused.error["message"], refused.result["applied"]) == (sentence, [])


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
    told = migrate(service.database, "status", "--output-format", "json", project=tables.path, **service.environment)
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
            json.dumps({"username": "ü" * 29, "password": "canary"}),
            "The username in SERVICE_SECRET is longer than 57 bytes, which leave room for _clone within PostgreSQL's"
            " limit of 63: shorten it.",
        ),
        *[
            (
                json.dumps({"username": name, "password": "canary"}),
                "The username in SERVICE_SECRET is one that PostgreSQL keeps for itself, as pg_..., public and none:"
                " take another one.",
            )
            for name in ("pg_app", "public", "none")
        ],
        (
            '{"username": "app", "password": "canary7"}',
            "The password in SERVICE_SECRET is shorter than 8 characters: make a longer one.",
        ),
        (
            '{"username": "The_Canary_clone", "password": "the_canary"}',
            "The password in SERVICE_SECRET stands in the username too: make another one.",
        ),
    ],
)
def test_a_secret_that_can_not_be_used_is_one_sentence_without_it(secret: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refused:
        service_login({"SERVICE_SECRET": secret})
    assert str(refused.value) == sentence


def test_the_longest_username_leaves_room_for_its_clone() -> None:
    for name in ("x" * 57, "x" * 57 + "_clone"):
        assert service_login({"SERVICE_SECRET": json.dumps({"username": name, "password": "long enough"})})


def test_a_secret_that_can_not_be_used_ends_an_upgrade_before_it_begins(database: Database, tables: Project) -> None:
    refused = migrate(database, "upgrade", project=tables.path, SERVICE_SECRET="canary")
    assert (refused.exit_code, refused.error["kind"]) == (2, "SettingsError")
    assert "canary" not in refused.output
    assert database.rows("SELECT to_regclass('alembic_version')") == [(None,)]
