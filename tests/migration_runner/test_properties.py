"""What holds for any revision graph, and for any setting."""

from __future__ import annotations

import io
import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pytest
from alembic.config import Config
from alembic.runtime.migration import HeadMaintainer, MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from sqlalchemy import URL, engine_from_config
from sqlalchemy.pool import NullPool

from local_aws.postgres import HOST, Postgres
from migration_runner.database import sqlalchemy_url, wait_for
from migration_runner.errors import RunError
from migration_runner.report import Report
from migration_runner.revisions import Revision, RevisionError, head, lineage, read_revisions
from migration_runner.settings import connection_parameters
from migration_runner.steps import Journey, steps_of
from migration_runner.target import Request, destination, is_at, pending_contract
from tests.conftest import Database
from tests.migration_runner.graphs import FIXED, Graph, graphs, phased, written

Refusal = TypeVar("Refusal", bound=Exception)


@contextmanager
def project_of(graph: Graph) -> Iterator[tuple[Path, ScriptDirectory]]:
    with tempfile.TemporaryDirectory() as folder:
        ini = written(Path(folder), graph)
        yield ini, ScriptDirectory.from_config(Config(str(ini)))


def told(
    steps: Callable[[], Iterable[Any]], heads: Sequence[str]
) -> tuple[list[tuple[str, bool]], str, list[str]] | None:
    """The steps in their order, what Alembic writes into its table on the way, and what is in it at the end.

    None where Alembic itself stumbles, as it does over some dependencies on what is there anyway.
    """
    sql = io.StringIO()
    context = MigrationContext.configure(dialect_name="postgresql", opts={"as_sql": True, "output_buffer": sql})
    maintainer = HeadMaintainer(context, heads)
    taken = []
    try:
        for step in steps():
            maintainer.update_to_step(step)
            taken.append((step.revision.revision, step.is_upgrade))
    except (KeyError, CommandError):
        return None
    return taken, sql.getvalue(), sorted(maintainer.heads)


@settings(FIXED, max_examples=100)
@given(graph=graphs(), data=st.data())
def test_a_run_takes_alembics_steps_in_alembics_order(graph: Graph, data: st.DataObject) -> None:
    with project_of(graph) as (ini, script):
        revisions = read_revisions(ini)
        by_id = {one.revision: one for one in revisions}
        heads: tuple[str, ...] = ()
        # A walk through the history, up and down, as releases and rollbacks make it.
        for _ in range(3):
            target = data.draw(st.sampled_from([*graph, None]), label="target")
            command = data.draw(st.sampled_from(["upgrade", "downgrade"]), label="command")
            try:
                to = destination(
                    Request(command, ini, 0, target or ("base" if command == "downgrade" else None)), revisions, heads
                )
            except RunError:
                continue
            if is_at(to, heads, revisions):
                continue
            move: Any = {"upgrade": script._upgrade_revs, "downgrade": script._downgrade_revs}[command]
            expected = told(partial(move, to or "base", heads[0] if len(heads) == 1 else heads), heads)
            assert told(partial(steps_of, Journey(command, to), heads, by_id, script), heads) == expected
            if expected is None:
                return
            heads = tuple(expected[2])
            assert is_at(to, heads, revisions)


def rows(revisions: Sequence[Revision], been: set[str]) -> list[str]:
    """What Alembic's table holds for it."""
    others = {one for each in revisions if each.revision in been for one in (*each.down_revisions, *each.depends_on)}
    return sorted(been - others)


@settings(FIXED, max_examples=100)
@given(drawn=phased(), data=st.data())
def test_whatever_the_phases_contract_revisions_are_applied_by_contracts_alone_and_the_head_is_reached(
    drawn: tuple[Graph, set[str]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        revisions = read_revisions(written(Path(folder), *drawn))
    phases = {one.revision: one.phase for one in revisions}

    def run(command: str, been: set[str], revision: str | None = None) -> set[str]:
        """What the schema has been through afterwards."""
        to = destination(Request(command, Path(), revision=revision), revisions, rows(revisions, been))
        new = lineage(revisions, [to] if to else []) - been
        if been:
            assert {phases[one] for one in new} <= {"contract" if command == "contract" else "expand"}
        return been | new

    # given a schema that some release has left somewhere
    been = lineage(revisions, [data.draw(st.sampled_from(revisions), label="at").revision])
    # when each upgrade is followed by a contract, and a refused one does as it is told
    for _ in revisions:
        refusal, after = refused(RunError, partial(run, "upgrade", been))
        if refusal:
            assert refusal.kind == "ContractPending"
            for by_hand in re.findall(r"migration_runner upgrade (\w+)", str(refusal.hint)):
                been = run("upgrade", been, by_hand)
            assert pending_contract(revisions, rows(revisions, been))
        else:
            been = after
            at = rows(revisions, been)
            assert is_at(destination(Request("upgrade", Path()), revisions, at), at, revisions)
        been = run("contract", been)
    # then all of it has been applied
    assert been == phases.keys()
    assert pending_contract(revisions, rows(revisions, been)) == []
    # and at once where nobody uses the schema
    assert run("upgrade", set()) == phases.keys()


def refused(kind: type[Refusal], action: Callable[[], Any]) -> tuple[Refusal | None, Any]:
    try:
        return None, action()
    except kind as refusal:
        return refusal, None


# Any files

IDS = st.sampled_from(["aaaa", "bbbb", "cccc", "dddd", "eeee", "ff-ff", "label", ""])
REFERENCES = st.one_of(st.none(), IDS, st.lists(IDS, max_size=3), st.lists(IDS, max_size=2).map(tuple))
# What stands in the file: a literal, or something else.
VALUES = st.one_of(
    REFERENCES.map(repr),
    st.sampled_from(["0", "{}", "new_id()", "'a' 'b'", "f'{1}'", "['aaaa', 5]", "'a' + 'b'", "..."]),
)
LABELS = st.sampled_from(["None", "'label'", "('label', 'other')", "'aaaa'"])
FILES = st.lists(
    st.fixed_dictionaries(
        {
            "revision": st.one_of(IDS.map(repr), IDS.map(repr), VALUES),
            "down_revision": st.one_of(REFERENCES.map(repr), VALUES),
        },
        optional={"depends_on": VALUES, "branch_labels": st.one_of(LABELS, LABELS, VALUES)},
    ),
    max_size=6,
)


@settings(FIXED, max_examples=100)
@given(files=FILES)
def test_whatever_the_files_say_it_is_what_alembic_sees_or_one_sentence(files: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ini = written(Path(folder), {})
        for number, values in enumerate(files):
            lines = [f"{name} = {value}" for name, value in values.items()]
            (Path(folder) / "migrations" / "versions" / f"{number}.py").write_text("\n".join(lines))
        refusal, revisions = refused(RevisionError, partial(read_revisions, ini))
        if refusal:
            assert re.fullmatch(r"[^\n]+[.`]", str(refusal))
            return
        script = ScriptDirectory.from_config(Config(str(ini)))
        theirs = list(script.walk_revisions())
        assert head(revisions) == script.get_current_head()
        assert {one.revision for one in revisions} == {one.revision for one in theirs}
        order = [one.revision for one in revisions]
        for one in theirs:
            assert all(order.index(parent) > order.index(one.revision) for parent in one._all_down_revisions)
            ancestors = {
                each.revision for each in script.revision_map.iterate_revisions(one.revision, "base", inclusive=True)
            }
            assert ancestors <= lineage(revisions, [one.revision])


# Any settings

CANARY = "cAnArY"
ODD = st.text(st.one_of(st.characters(), st.sampled_from("%@:/?#[]\"\\ '&=+,;{}$\0\n")), max_size=12)
TELLING = ODD.map(lambda text: f"{text}{CANARY}")
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TELLING, st.just(""), st.just(10**4000)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TELLING, inner, max_size=3)),
    max_leaves=4,
)
SECRETS = st.one_of(
    TELLING,
    st.fixed_dictionaries(
        {"username": TELLING, "password": TELLING, "host": TELLING, "dbname": TELLING, "port": st.integers(1, 65535)}
    ).map(json.dumps),
    JSON.map(json.dumps),
    st.fixed_dictionaries(
        {},
        optional={
            "username": st.one_of(TELLING, TELLING, JSON),
            "password": st.one_of(TELLING, TELLING, JSON),
            "host": st.one_of(TELLING, TELLING, JSON),
            "port": st.one_of(st.integers(0, 70000), JSON),
            "dbname": st.one_of(TELLING, TELLING, JSON),
            "engine": JSON,
        },
    ).map(json.dumps),
    st.sampled_from(["{}", "null"]),
    # Huge, or deep.
    st.sampled_from(["[", '{"a":', CANARY, '"']).map(lambda text: text * 100_000),
    st.just({"username": "u", "host": "h", "dbname": "d"}).map(
        lambda secret: json.dumps({**secret, "password": CANARY * 100_000})
    ),
)
PARTS = st.one_of(ODD, TELLING, TELLING.map(lambda text: quote(text.encode(errors="surrogatepass"))))
URLS = st.one_of(
    TELLING,
    st.builds(
        "{}://{}:{}@{}{}/{}{}".format,
        st.sampled_from(["postgresql", "postgres", "postgresql+psycopg2", "postgresql+asyncpg", "mysql"]),
        PARTS,
        PARTS,
        st.one_of(PARTS, st.sampled_from(["", "h", "h1,h2", "[::1]", "[::1]:5432,h", "%2Ftmp"])),
        st.sampled_from(["", ":5432", ":", ":0", ":65536", ":5432,5433", ":,", ":x"]),
        PARTS,
        st.one_of(
            st.just(""), st.builds("?{}={}".format, st.sampled_from(["sslmode", "host", "port", "options", "x"]), PARTS)
        ),
    ),
)
ENVIRONMENTS = st.fixed_dictionaries(
    {},
    optional={
        "DATABASE_SECRET": SECRETS,
        "DATABASE_URL": URLS,
        "DATABASE_HOST": TELLING,
        "DATABASE_PORT": st.one_of(TELLING, st.sampled_from(["5432", "0", "\u0665", "1_0", "9" * 5000])),
        "DATABASE_NAME": TELLING,
        "PGSSLMODE": st.sampled_from(["require", "verify-full", ""]),
    },
)


@settings(FIXED, max_examples=200)
@given(environment=ENVIRONMENTS)
@example({"DATABASE_URL": f"postgresql://u:{CANARY}@/d?host=h1,h2,h3&port=1,2"})
@example({"DATABASE_URL": f"postgresql://u:{CANARY}@[::1],h2:5432,/d"})
@example({"DATABASE_URL": f"postgresql://:{CANARY}@h/d"})
def test_any_settings_name_a_database_or_are_refused_without_being_shown(environment: dict[str, str]) -> None:
    # An environment can hold neither.
    environment = {name: re.sub("[\0\ud800-\udfff]", "", value) for name, value in environment.items()}
    refusal, parameters = refused(RunError, partial(connection_parameters, environment))
    if refusal:
        assert (refusal.exit_code, refusal.kind) == (2, "SettingsError")
        assert re.fullmatch(r"[^\n]+\.", refusal.message)
        assert CANARY.lower() not in f"{refusal.message}{refusal.hint}{refusal!r}".lower()
        return
    assert all(isinstance(value, str) for value in parameters.values())
    for driver in ("postgresql+psycopg2", "postgresql+psycopg"):
        assert given_to(driver, sqlalchemy_url(parameters, driver)) == given_to_libpq(parameters)


def given_to(driver: str, url: URL) -> dict[str, str]:
    """What the driver gets of an engine that env.py makes of the URL in Alembic's configuration."""
    config = Config()
    config.set_main_option("sqlalchemy.url", url.render_as_string(hide_password=False).replace("%", "%%"))
    engine = engine_from_config(config.get_section("alembic", {}), "sqlalchemy.")
    assert f"{engine.dialect.name}+{engine.dialect.driver}" == driver
    _, arguments = engine.dialect.create_connect_args(engine.url)
    names = {"database": "dbname"}
    return given_to_libpq({names.get(name, name): str(value) for name, value in arguments.items() if name != "context"})


def given_to_libpq(parameters: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value}


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=15)


@settings(FIXED, max_examples=15)
@given(password=NAMES)
def test_any_password_lets_in_and_a_wrong_one_is_refused(database: Database, password: str) -> None:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(database.user), sql.Literal(password))
        )
    own = replace(database, password=password)
    secret = {"DATABASE_SECRET": json.dumps(own.secret), "PGSSLMODE": "require"}
    for environment in (secret, {"DATABASE_URL": own.url}):
        assert logged_in(environment) == (database.user, database.name)
    object.__setattr__(database, "password", password)
    with pytest.raises(RunError) as told_off:
        wait_for(
            connection_parameters({"DATABASE_URL": replace(own, password=f"{password}x").url}), 5, Report(io.StringIO())
        )
    assert (told_off.value.exit_code, told_off.value.kind) == (6, "CredentialsRefused")


@settings(FIXED, max_examples=8)
@given(user=NAMES, name=NAMES)
def test_any_user_and_any_database_can_be_named(postgres: Postgres, user: str, name: str) -> None:
    assume(not {user, name} & {"postgres", "template0", "template1", "none", "public"} and not user.startswith("pg_"))
    password = secrets.token_urlsafe()
    postgres.create_database(name, owner=user, password=password)
    try:
        own = {"username": user, "password": password, "host": HOST, "port": postgres.port, "dbname": name}
        url = f"postgresql://{quote(user, safe='')}:{password}@{HOST}:{postgres.port}/{quote(name, safe='')}"
        for environment in ({"DATABASE_SECRET": json.dumps(own), "PGSSLMODE": "require"}, {"DATABASE_URL": url}):
            assert logged_in(environment) == (user, name)
    finally:
        postgres.drop_database(name)
        with closing(postgres.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(user)))


def logged_in(environment: dict[str, str]) -> tuple[str, str]:
    """Who it is, and where: the same on the runner's own connection and on those of an env.py."""
    parameters = connection_parameters(environment)
    query = "SELECT current_user::text, current_database()::text"
    with closing(wait_for(parameters, 5, Report(io.StringIO()))) as own, own.cursor() as cursor:
        cursor.execute(query)
        found = cursor.fetchone()
    for driver in ("postgresql+psycopg2", "postgresql+psycopg"):
        config = Config()
        url = sqlalchemy_url(parameters, driver).render_as_string(hide_password=False)
        config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
        engine = engine_from_config(config.get_section("alembic", {}), "sqlalchemy.", poolclass=NullPool)
        with engine.connect() as connection:
            assert connection.exec_driver_sql(query).one() == found
    assert found
    return found[0], found[1]
