"""Renames under load: whatever ends a run, and whoever is in its way, no client of either release meets an error."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import pytest

from local_aws.postgres import Postgres
from tests.conftest import Database
from tests.migration_runner.clients import BOTH_WAYS, NEW, OLD, TABLES, Seen, clients
from tests.migration_runner.conftest import Outcome, Project, migrate
from tests.migration_runner.processes import Runner, started

# The revision that each release was made for.
OLDER, NEWER, NEWEST = "aaaa", "bbbb", "cccc"
COMMANDS = {
    "upgrade": ("upgrade", "--contract-follows"),
    "contract": ("contract",),
    "reopen": ("reopen", OLDER),
    "downgrade": ("downgrade", OLDER),
}
# About as many as are seen in a run.
STATEMENTS = {"upgrade": 34, "contract": 24, "reopen": 22, "downgrade": 34}
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
    kills, seed = int(os.environ.get("KILLS", "12")), int(os.environ.get("SEED", secrets.randbelow(10**6)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    newest, oldest = plain_schemas(postgres, shop, renames)
    ended, worst, made = Counter[tuple[str, str, int, str]](), 0.0, 0

    def go(command: str) -> None:
        nonlocal worst
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
        nonlocal worst, made
        for one in seen:
            assert not one.errors, f"SEED={seed}: {one.errors[:3]}"
            worst, made = max(worst, one.worst()), made + one.made

    while sum(ended.values()) < kills:
        # given the older release, and while it is replaced the newer one too
        with ExitStack() as new:
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
    assert shop.rows("SELECT sum(made)::int FROM parents") == [(made,)]
    for (command, how, exit_code, where), count in sorted(ended.items()):
        print(f"{command:10} {how:14} {where:14} exit {exit_code:4} {count:4} times")
    print(f"{made} increments, worst latency {worst * 1000:.0f} ms")
    # Most of them must have come in time.
    assert sum(count for (_, _, exit_code, _), count in ended.items() if exit_code) > kills / 2


# P15
@pytest.mark.parametrize("event", ["migration.bridged", "migration.contracted"])
def test_p15_a_crash_between_the_two_tables_of_a_rename_is_finished_by_the_next_run_while_both_releases_work(
    shop: Database, renames: Project, event: str
) -> None:
    command = {"migration.bridged": "upgrade", "migration.contracted": "contract"}[event]
    with clients(shop, OLD) as old, clients(shop, NEW, 0) as _:
        pass


def test_two_tables_that_an_application_locks_in_either_order_are_neither_a_deadlock_nor_a_wait_without_end(
    shop: Database, renames: Project
) -> None:
    took = list[float]()

    def once(command: str) -> None:
        began = time.monotonic()
        outcome = migrate(shop, *COMMANDS[command], project=renames.path)
        took.append(time.monotonic() - began)
        assert outcome.exit_code == 0, outcome.output
        for one in outcome.events:
            if "attempts" in one:
                print(command, one["table"], one["attempts"], one["locked_ms"], one["duration_ms"])

    for _ in range(2):
        with ExitStack() as new:
            with clients(shop, OLD, 4, BOTH_WAYS, pause=0) as old:
                once("upgrade")
                of_new = new.enter_context(clients(shop, NEW, 4, BOTH_WAYS, pause=0))
            once("contract")
            once("reopen")
        with clients(shop, OLD, 4, BOTH_WAYS, pause=0) as again:
            once("downgrade")
        for seen in (old, of_new, again):
            assert not seen.errors, seen.errors[:3]
            print("worst", seen.worst(), len(seen.took))
    print(took)
