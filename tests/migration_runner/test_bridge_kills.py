"""Renames under load: whatever ends a run, and whoever is in its way, no client of either release meets an error."""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import psycopg2.errors
import pytest

from local_aws.postgres import Postgres
from tests.conftest import Database
from tests.migration_runner.clients import BOTH_WAYS, EXECUTED, INDIFFERENT, NEW, OLD, TABLES, Seen, clients
from tests.migration_runner.conftest import Outcome, Project, migrate
from tests.migration_runner.processes import Runner, eventually, in_statement, started, transaction

# The revision that each release was made for.
OLDER, NEWER, NEWEST = "aaaa", "bbbb", "cccc"
COMMANDS = {
    "upgrade": ("upgrade", "--contract-follows"),
    "contract": ("contract",),
    "reopen": ("reopen", OLDER),
    "downgrade": ("downgrade", OLDER),
}
# About as many as are seen in a run.
STATEMENTS = {"upgrade": 30, "contract": 20, "reopen": 18, "downgrade": 30}
ENDS = ["SIGKILL", "SIGTERM", "all sessions", "one session"]
# All that a dump would show of the tables, and what is applied.
SCHEMA = """
SELECT 'table', relname::text, relkind::text, relacl::text, obj_description(oid, 'pg_class'), relowner::regrole::text
FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'column', attrelid::regclass::text, rank() OVER (PARTITION BY attrelid ORDER BY attnum) || ' ' || attname,
       format_type(atttypid, atttypmod) || attnotnull || attidentity::text,
       (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef d WHERE (adrelid, adnum) = (attrelid, attnum)),
       col_description(attrelid, attnum)
FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid::text, null, null
FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE relnamespace = 'public'::regnamespace
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated::text, null
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'view', viewname, definition, null, null, null FROM pg_views WHERE schemaname = 'public'
UNION ALL
SELECT 'type', typname, null, null, null, null FROM pg_type WHERE typnamespace = 'public'::regnamespace
UNION ALL
SELECT 'applied', version_table, revision, checksum, null, null FROM migration_runner.applied
UNION ALL
SELECT 'at', version_num, null, null, null, null FROM alembic_version
ORDER BY 1, 2, 3, 4
"""
WAITS = """
SELECT extract(epoch FROM clock_timestamp() - waitstart)::float FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE NOT granted AND locktype = 'relation' AND datname = current_database() AND application_name <> 'migration_runner'
"""
SESSION = """
SELECT pid, query, query_start FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'migration_runner' AND state <> 'idle'
"""


@pytest.fixture
def renames(project: Project) -> Project:
    """A release, one that renames two columns and a table, and what is dropped once the first is gone."""
    project.write(OLDER, None, f"op.execute({TABLES!r})")
    names = [("parents", "name", "sku"), ("children", "name", "sku")]
    there = "; ".join(f"op.alter_column({table!r}, {old!r}, new_column_name={new!r})" for table, old, new in names)
    back = "; ".join(f"op.alter_column({table!r}, {new!r}, new_column_name={old!r})" for table, old, new in names)
    project.write(
        NEWER,
        OLDER,
        f"{there}; op.rename_table('notes', 'remarks')",
        f"op.rename_table('remarks', 'notes'); {back}",
    )
    dropped = "import sqlalchemy as sa; op.add_column('parents', sa.Column('legacy', sa.Text()))"
    project.write(NEWEST, NEWER, "op.drop_column('parents', 'legacy')", dropped, phase="contract")
    return project


@pytest.fixture
def shop(database: Database, renames: Project) -> Database:
    """A database in which the older release's tables are."""
    assert migrate(database, "upgrade", OLDER, project=renames.path).exit_code == 0
    return database


def plain_schemas(postgres: Postgres, database: Database, project: Project) -> tuple[object, object]:
    """What plain migrations lead to: with the newest revision, and back at the first one."""
    name = f"{database.name}_plain"
    postgres.create_database(name, owner=database.user, password=database.password)
    plain = replace(database, name=name)
    try:
        for arguments in (("upgrade", NEWER), ("contract",)):
            assert migrate(plain, *arguments, project=project.path).exit_code == 0
        newest = plain.rows(SCHEMA)
        assert migrate(plain, "downgrade", OLDER, project=project.path).exit_code == 0
        return newest, plain.rows(SCHEMA)
    finally:
        postgres.drop_database(name)


@contextmanager
def watched(database: Database) -> Iterator[Callable[[], bool]]:
    """Within, tells whether a session of the runner has a statement or a transaction that was not seen before."""
    with closing(database.connect()) as session, session.cursor() as cursor:
        seen = set[object]()

        def is_new() -> bool:
            cursor.execute(SESSION)
            found = set(cursor.fetchall()) - seen
            seen.update(found)
            return bool(found)

        yield is_new


def end(runner: Runner, database: Database, how: str) -> None:
    if how in ("SIGKILL", "SIGTERM"):
        runner.send(signal.Signals[how])
        return
    which = "1" if how == "one session" else "ALL"
    database.rows(f"""
        SELECT pg_terminate_backend(pid) FROM (
            SELECT pid FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'migration_runner' ORDER BY random() LIMIT {which}
        ) AS of_runner
    """)


def disturbed(database: Database, project: Project, command: str, how: str, moment: float) -> tuple[Outcome, str]:
    """Start a run and end it: after so many seconds; or, told as a negative number, at its so many-th statement."""
    with started(database, *COMMANDS[command], project=project.path) as runner, watched(database) as is_new:
        runner.until("migration.started")
        if moment < 0:
            left = round(-moment)
            while left and runner.running:
                left -= is_new()
        else:
            time.sleep(moment)
        end(runner, database, how)
        outcome = runner.finish()
    done = [line.partition('"event":"migration.')[2].partition('"')[0] for line in outcome.output.splitlines()]
    steps = [one for one in done if one in ("bridged", "contracted", "reopened", "reverted", "revision")]
    return outcome, f"after {len(steps)} steps"


def test_whatever_ends_a_run_no_client_meets_an_error_and_one_more_run_ends_at_the_schema_of_plain_migrations(
    shop: Database, postgres: Postgres, renames: Project
) -> None:
    kills, seed = int(os.environ.get("KILLS", "4")), int(os.environ.get("SEED", secrets.randbelow(10**6)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    newest, oldest = plain_schemas(postgres, shop, renames)
    ended, longest, made = Counter[tuple[str, str, int, str]](), 0.0, 0

    def go(command: str) -> None:
        number = sum(ended.values())
        how = ENDS[(number + number // 4) % 4]
        moment = chance.uniform(0, 0.15) if chance.random() < 0.3 else -chance.randint(1, STATEMENTS[command])
        told = f"SEED={seed}, {number}: {command}, {how} at {moment:.3f}"
        # when a run is ended
        outcome, where = disturbed(shop, renames, command, how, moment)
        ends = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143}
        late = how == "SIGTERM" and '"status":"succeeded"' in outcome.output
        assert outcome.exit_code in (0, -signal.SIGTERM if late else ends.get(how, 3)), f"{told}: {outcome.output}"
        ended[command, how, outcome.exit_code, where] += 1
        # then one more goes on, and comes to its end
        again = migrate(shop, *COMMANDS[command], project=renames.path)
        assert again.exit_code == 0, f"{told}: {again.output}"

    def over(*seen: Seen) -> None:
        nonlocal made
        for one in seen:
            assert not one.errors, f"SEED={seed}: {one.errors[:3]}"
            made += one.made

    while sum(ended.values()) < kills:
        # given the older release, and while it is replaced the newer one too
        with waits(shop) as waited, ExitStack() as new:
            with clients(shop, OLD) as old:
                go("upgrade")
                of_new = new.enter_context(clients(shop, NEW))
            over(old)
            go("contract")
            assert shop.rows(SCHEMA) == newest, f"SEED={seed}"
            go("reopen")
            with clients(shop, OLD) as old:
                time.sleep(0.05)
                new.close()
                over(of_new)
                go("downgrade")
            over(old)
            assert shop.rows(SCHEMA) == oldest, f"SEED={seed}"
        longest = max([longest, *waited])
    assert shop.rows("SELECT sum(made)::int FROM parents") == [(made,)]
    for (command, how, exit_code, where), count in sorted(ended.items()):
        print(f"{command:10} {how:14} {where:14} exit {exit_code:4} {count:4} times")
    print(f"{made} increments; nobody waited for a table longer than {longest * 1000:.0f} ms")
    assert longest < 0.2
    # Enough of them must have come in time.
    assert sum(count for (_, _, exit_code, _), count in ended.items() if exit_code) > kills / 4


# P15
@pytest.mark.parametrize(("command", "event"), [("upgrade", "migration.bridged"), ("contract", "migration.contracted")])
def test_p15_after_a_crash_between_two_tables_of_a_rename_the_next_run_finishes_and_no_client_meets_an_error(
    shop: Database, renames: Project, command: str, event: str
) -> None:
    if command == "contract":
        assert migrate(shop, *COMMANDS["upgrade"], project=renames.path).exit_code == 0
    with clients(shop, OLD) if command == "upgrade" else clients(shop, NEW) as seen:
        # given a run that is killed when it has told of its first table
        with (
            transaction(shop, "SELECT id FROM children"),
            started(shop, *COMMANDS[command], project=renames.path) as runner,
        ):
            runner.until(event, table="public.parents")
            time.sleep(0.2)
            runner.send(signal.SIGKILL)
            assert [one["table"] for one in runner.finish().named(event)] == ["public.parents"]
        views = {name for (name,) in shop.rows("SELECT viewname FROM pg_views WHERE schemaname = 'public'")}
        assert views == ({"parents"} if command == "upgrade" else {"children", "notes"})
        # when another one comes
        outcome = migrate(shop, *COMMANDS[command], project=renames.path)
        # then it does the rest
        assert [one["table"] for one in outcome.named(event)] == ["public.children", "public.remarks"]
        assert outcome.exit_code == 0
    assert seen.errors == []


@contextmanager
def waits(database: Database) -> Iterator[list[float]]:
    """For how long others than the runner wait for a table, in seconds: each such wait, again and again.

    It is what the server sees; how long an answer takes depends on what else the machine has to do.
    """
    seen, over = list[float](), threading.Event()

    def look() -> None:
        with closing(database.connect()) as session, session.cursor() as cursor:
            while not over.wait(0.003):
                cursor.execute(WAITS)
                seen.extend(waited for (waited,) in cursor.fetchall())

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield seen
        finally:
            over.set()
            looking.result()


def test_two_tables_that_an_application_locks_in_either_order_are_neither_a_deadlock_nor_a_wait_without_end(
    shop: Database, renames: Project
) -> None:
    with ExitStack() as new, waits(shop) as waited:
        with clients(shop, OLD, 3, BOTH_WAYS) as old:
            outcomes = [migrate(shop, *COMMANDS["upgrade"], project=renames.path)]
            of_new = new.enter_context(clients(shop, NEW, 3, BOTH_WAYS))
        outcomes.append(migrate(shop, "contract", project=renames.path))
        new.close()
    assert old.errors + of_new.errors == []
    assert max(waited, default=0) < 0.15
    print(f"worst latency {max(old.worst(), of_new.worst()) * 1000:.0f} ms")
    for outcome in outcomes:
        assert outcome.exit_code == 0
        assert outcome.result["duration_ms"] < 15_000


def test_behind_a_long_reader_a_run_waits_and_names_it_and_holds_up_others_for_a_moment_only(
    shop: Database, renames: Project
) -> None:
    for command, release, seconds in (("upgrade", OLD, 1), ("contract", NEW, 3)):
        with (
            clients(shop, release) as seen,
            transaction(shop, f"SELECT {release.column} FROM parents") as reader,
            waits(shop) as waited,
            started(shop, *COMMANDS[command], project=renames.path) as runner,
        ):
            time.sleep(seconds)
            told = runner.until("migration.locked")
            pid = reader.info.backend_pid
            reader.rollback()
            outcome = runner.finish()
        assert outcome.exit_code == 0
        assert told["blockers"][0].startswith(f"session {pid} (reporting, idle in transaction, ")
        assert seen.errors == []
        assert max(waited, default=0) < 0.15


def test_transactions_that_come_one_over_the_other_do_not_keep_a_run_waiting(shop: Database, renames: Project) -> None:
    # The second one locks the table behind the view, and not the view.
    does = (
        "SELECT {column} FROM parents WHERE id = {key}",
        "INSERT INTO children (parent, {column}) VALUES ({key}, '')",
    )
    reads = [(one, f"SELECT pg_sleep({seconds})") for one in does for seconds in (0.06, 0.08)]
    for command, release in (("upgrade", OLD), ("contract", NEW)):
        with (
            clients(shop, release, 6, reads, pause=0) as readers,
            clients(shop, release) as seen,
            waits(shop) as waited,
        ):
            outcome = migrate(shop, *COMMANDS[command], project=renames.path)
        assert outcome.exit_code == 0
        assert outcome.result["duration_ms"] < 20_000
        assert readers.errors + seen.errors == []
        assert max(waited, default=0) < 0.15


def test_a_session_that_never_ends_is_named_when_the_wait_is_over_and_nothing_has_changed(
    shop: Database, renames: Project
) -> None:
    for command in ("upgrade", "contract"):
        before = shop.rows(SCHEMA)
        with transaction(shop, "SELECT id FROM parents FOR UPDATE") as idle:
            outcome = migrate(shop, *COMMANDS[command], "--lock-wait", "0.5", project=renames.path)
            told = f"In the way: session {idle.info.backend_pid} (reporting, idle in transaction, "
        assert (outcome.exit_code, outcome.error["kind"]) == (4, "LockNotAvailable")
        assert told in outcome.error["message"]
        assert shop.rows(SCHEMA) == before
        assert migrate(shop, *COMMANDS[command], project=renames.path).exit_code == 0


@pytest.mark.slow
def test_a_run_that_waits_for_a_vacuum_names_it_and_holds_up_nobody(shop: Database, renames: Project) -> None:
    shop.rows("INSERT INTO parents (name) SELECT 'parent' || n FROM generate_series(1, 20000) n")
    with closing(shop.connect()) as session, session.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        # given a VACUUM that takes its time
        cursor.execute("SET vacuum_cost_delay = 20; SET vacuum_cost_limit = 1")
        vacuum = pool.submit(cursor.execute, "VACUUM parents")
        eventually(lambda: shop.rows("SELECT 1 FROM pg_stat_progress_vacuum"))
        # when a run waits for it
        with clients(shop, OLD) as seen, waits(shop) as waited:
            outcome = migrate(shop, *COMMANDS["upgrade"], "--lock-wait", "0.5", project=renames.path)
        session.cancel()
        assert isinstance(vacuum.exception(), psycopg2.errors.QueryCanceled)
    # then it says so, and others don't notice
    assert outcome.exit_code == 4
    assert "VACUUM parents" in outcome.error["message"]
    assert seen.errors == []
    assert waited == []


@pytest.mark.slow
def test_an_autovacuum_gives_way(shop: Database, postgres: Postgres, renames: Project) -> None:
    # given an autovacuum that would take minutes
    with closing(postgres.connect()) as session, session.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET autovacuum_naptime = '1s'")
        cursor.execute("SELECT pg_reload_conf()")
        shop.rows("""
            ALTER TABLE parents SET (autovacuum_vacuum_threshold = 0, autovacuum_vacuum_scale_factor = 0,
                autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1);
            INSERT INTO parents (name) SELECT 'parent' || n FROM generate_series(1, 5000) n;
            DELETE FROM parents
        """)

        def vacuumed() -> bool:
            cursor.execute(
                "SELECT FROM pg_stat_activity WHERE datname = %s AND backend_type = 'autovacuum worker' "
                "AND query LIKE '%%public.parents%%'",
                (shop.name,),
            )
            return bool(cursor.fetchall())

        try:
            eventually(vacuumed, 30)
            # when a rename comes, then it goes through, and holds up nobody
            with clients(shop, OLD) as seen, waits(shop) as waited:
                outcome = migrate(shop, *COMMANDS["upgrade"], "--lock-wait", "5", project=renames.path)
        finally:
            cursor.execute("ALTER SYSTEM RESET autovacuum_naptime")
            cursor.execute("SELECT pg_reload_conf()")
    assert outcome.exit_code == 0, outcome.output
    assert seen.errors == []
    assert max(waited, default=0) < 0.15


def test_prepared_statements_go_on_working(shop: Database, renames: Project) -> None:
    with clients(shop, OLD, 1, INDIFFERENT) as indifferent:
        with clients(shop, OLD, 2, EXECUTED) as old:
            assert migrate(shop, *COMMANDS["upgrade"], project=renames.path).exit_code == 0
            time.sleep(0.1)
        with clients(shop, NEW, 2, EXECUTED) as new:
            assert migrate(shop, *COMMANDS["contract"], project=renames.path).exit_code == 0
            time.sleep(0.1)
    assert old.errors + new.errors + indifferent.errors == []


def test_a_runner_that_gets_little_processor_time_holds_up_nobody_for_that(shop: Database, renames: Project) -> None:
    held = list[float]()
    for command, release in (("upgrade", OLD), ("contract", NEW)):
        with clients(shop, release) as seen, started(shop, *COMMANDS[command], project=renames.path) as runner:
            # given a container that may run for a quarter of the time
            while runner.running:
                time.sleep(0.01)
                runner.send(signal.SIGSTOP)
                time.sleep(0.03)
                runner.send(signal.SIGCONT)
            outcome = runner.finish()
        assert outcome.exit_code == 0
        assert seen.errors == []
        held += [one["locked_ms"] for one in outcome.events if "locked_ms" in one]
    # then the server has done what is done under a lock meanwhile
    print(f"locked for {sorted(held)} ms")
    assert sorted(held)[len(held) // 2] < 15


def test_a_column_that_somebody_adds_while_a_run_waits_is_in_its_views(shop: Database, renames: Project) -> None:
    shop.rows(f"ALTER ROLE {shop.user} SET default_transaction_isolation = 'serializable'")
    with (
        transaction(shop, "ALTER TABLE parents ADD extra int") as other,
        started(shop, *COMMANDS["upgrade"], project=renames.path) as runner,
    ):
        in_statement(shop, "SHARE UPDATE EXCLUSIVE")
        time.sleep(0.1)
        other.commit()
        assert runner.finish().exit_code == 0
    assert shop.rows("SELECT extra, name, sku FROM parents") == []


@pytest.mark.parametrize("holds", ["SELECT id FROM children", "LOCK TABLE children IN SHARE UPDATE EXCLUSIVE MODE"])
def test_told_to_stop_while_it_waits_a_run_ends_at_once_and_the_next_one_goes_on(
    shop: Database, renames: Project, holds: str
) -> None:
    with transaction(shop, holds), started(shop, *COMMANDS["upgrade"], project=renames.path) as runner:
        runner.until("migration.bridged", table="public.parents")
        time.sleep(0.3)
        runner.send(signal.SIGTERM)
        outcome = runner.finish(2)
    assert (outcome.exit_code, outcome.result["open"]) == (143, ["parents.name -> sku"])
    assert "no lock is left" in outcome.error["message"]
    again = migrate(shop, *COMMANDS["upgrade"], project=renames.path)
    assert [one["table"] for one in again.named("migration.bridged")] == ["public.children", "public.remarks"]


def test_a_run_does_without_the_session_that_looks_who_is_in_the_way(shop: Database, renames: Project) -> None:
    with (
        transaction(shop, "SELECT id FROM parents") as reader,
        started(shop, *COMMANDS["upgrade"], project=renames.path) as runner,
    ):
        # given that it is ended while the run waits
        condition = "query LIKE '%pg_locks%' AND application_name = 'migration_runner'"
        eventually(lambda: shop.rows(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {condition}"))
        runner.until("migration.locked")
        reader.rollback()
        # then it only does not know whom it waits for
        assert runner.finish().exit_code == 0
