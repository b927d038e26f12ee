"""What users do that nobody has meant: each is answered with a sentence, and none of it loses a name."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local_aws.postgres import Postgres
from tests.conftest import Database
from tests.migration_runner.conftest import migrate
from tests.migration_runner.processes import transaction
from tests.migration_runner.test_bridge import (
    BOXES_LEFT,
    ITEMS_LEFT,
    SA,
    Release,
    interrupt,
    open_shop,
    release,
    renaming,
    shop,
    standing,
    two,
    works,
)
from tests.migration_runner.test_env_py import edit, env_py, with_template

__all__ = ["open_shop", "release", "shop", "two"]

BLOCK = "exec(\"with op.get_context().autocommit_block(): op.execute('CREATE TABLE kept ()')\")"
ASKED = "op.get_bind().exec_driver_sql('SELECT 1').all()"


@pytest.fixture
def other(open_shop: Release, tmp_path: Path) -> Release:
    """Another project on the database, with a version table of its own."""
    (tmp_path / "other").mkdir()
    made = Release(open_shop.database, with_template(tmp_path / "other", "generic"))
    edit(env_py(made.project), ("target_metadata=target_metadata", "target_metadata=None, version_table='others'"))
    made.project.write("xxxx", None)
    made.succeed("upgrade")
    return made


# The environment


@pytest.mark.parametrize("command", ["upgrade", "plan", "check"])
def test_whether_a_contract_follows_is_said_as_true_or_false_and_in_no_other_way(
    database: Database, command: str
) -> None:
    refused = migrate(database, command, "--output-format", "json", MIGRATION_CONTRACT_FOLLOWS="TRUE")
    assert (refused.exit_code, refused.error["kind"]) == (2, "SettingsError")
    assert refused.error["message"] == "MIGRATION_CONTRACT_FOLLOWS is 'TRUE', but must be 'true' or 'false'."
    assert "Traceback" not in refused.errors


@pytest.mark.parametrize(("value", "left"), {"": [], "false": [], "true": [ITEMS_LEFT]}.items())
def test_an_empty_or_false_word_sets_nothing(shop: Release, value: str, left: list[str]) -> None:
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    done = migrate(shop.database, "upgrade", project=shop.project.path, MIGRATION_CONTRACT_FOLLOWS=value)
    assert done.result["open"] == left


# What somebody has changed by hand


def test_a_view_that_was_dropped_by_hand_is_told_by_every_command_and_mended_by_a_contract(
    open_shop: Release, tmp_path: Path
) -> None:
    open_shop.rows("DROP VIEW items")
    told = "The view public.items is gone, through which items__base has its older names."
    status = open_shop.run("status")
    assert (status.exit_code, status.error["kind"], status.error["message"]) == (1, "BridgeDamaged", told)
    assert status.named("migration.status")[0]["damaged"] == [told]
    with open_shop.unchanged():
        up = open_shop.run("upgrade", follows=True)
    assert (up.exit_code, up.error["kind"], up.error["message"]) == (1, "BridgeDamaged", told)
    assert up.error["hint"].endswith("mend it with: python -m migration_runner contract")
    (tmp_path / "older").mkdir()
    older = Release(open_shop.database, with_template(tmp_path / "older", "generic"))
    older.project.write("aaaa", None)
    ahead = older.run("upgrade")
    assert (ahead.exit_code, told in ahead.error["hint"]) == (5, True)
    open_shop.contract()
    works(open_shop, "items", "sku")


def test_a_table_that_is_gone_from_behind_its_view_stops_upgrade_and_contract(open_shop: Release) -> None:
    open_shop.rows("ALTER TABLE items__base RENAME TO elsewhere")
    for command in ("upgrade", "contract"):
        with open_shop.unchanged():
            failed = open_shop.run(command)
        assert (failed.exit_code, failed.error["kind"]) == (1, "BridgeDamaged")
        assert failed.error["message"] == "The table public.items__base is gone, whose older names are open."


# Other version tables


def test_what_another_version_table_has_open_is_not_changed_and_gets_columns(
    open_shop: Release, other: Release
) -> None:
    bridged = open_shop.rows("SELECT * FROM migration_runner.renames")
    for upgrade in (
        renaming(("items", "size", "width"))["upgrade"],
        "op.drop_column('items', 'size')",
        "op.execute('UPDATE items SET size = 1')",
        f"{ASKED}; op.execute('UPDATE items SET size = 1')",
    ):
        other.project.write("yyyy", "xxxx", upgrade)
        for follows in (False, True):
            refused = other.run("upgrade", follows=follows)
            assert (refused.exit_code, refused.error["kind"], refused.result["at"]) == (2, "RenameOpen", "xxxx")
            assert refused.error["hint"] == (
                "It was made with another version table of this database: the contract of that project finishes it."
            )
    other.project.write("yyyy", "xxxx", f"op.add_column('items', {SA}.Column('more', {SA}.Integer))")
    assert other.succeed("upgrade").result["open"] == []
    for command, revision in (("contract", None), ("reopen", "base"), ("downgrade", "base")):
        other.project.write("yyyy", "xxxx", "pass")
        other.succeed(command, revision)
        assert open_shop.rows("SELECT * FROM migration_runner.renames") == bridged
        open_shop.rows("SELECT name, sku, more FROM items")
    open_shop.contract()
    works(open_shop, "items", "sku")


# Exit code 2 is for a run that has changed nothing


@pytest.mark.parametrize(
    "then", ["op.execute('UPDATE it' + 'ems SET size = 1')", "getattr(op, 'rename_' + 'table')('a', 'b')"]
)
def test_what_is_found_out_after_something_was_committed_is_no_wrong_use(open_shop: Release, then: str) -> None:
    open_shop.project.write("cccc", "bbbb", f"{BLOCK}; {ASKED}; {then}")
    failed = open_shop.run("upgrade", follows=True)
    assert (failed.exit_code, failed.error["revision"]) == (1, "cccc")
    open_shop.rows("SELECT FROM kept")


def test_a_run_that_has_taken_renames_back_before_it_was_refused_is_no_wrong_use(two: Release) -> None:
    interrupt(two, "boxes", "upgrade")
    two.project.write("bbbb", "aaaa", f"{ASKED}; getattr(op, 'rename_' + 'table')('items', 'parts')")
    failed = two.run("upgrade", follows=True)
    assert (failed.exit_code, failed.error["kind"], failed.result["open"]) == (1, "MixedRename", [])


def test_a_contract_that_is_told_to_stop_says_what_stays(two: Release) -> None:
    two.expand(ITEMS_LEFT, BOXES_LEFT)
    with transaction(two.database, "SELECT FROM boxes"), soon_stopped(two):
        stopped = two.run("contract", lock_wait=60)
    assert stopped.exit_code == 143
    assert stopped.error["message"] == (
        f"The run was told to stop (SIGTERM); {ITEMS_LEFT} is contracted, which stays so; what was under way was "
        "rolled back, and no lock is left."
    )
    assert stopped.result["open"] == [BOXES_LEFT]


@contextmanager
def soon_stopped(release: Release) -> Iterator[None]:
    """Within, the process gets SIGTERM when the first of its tables is contracted."""

    def stop() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if release.rows("SELECT 1 FROM migration_runner.renames WHERE closed_at IS NOT NULL"):
                break
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# A name that would stand for two things


def test_two_revisions_that_pass_a_name_on_are_told_to_take_two_deployments(shop: Release) -> None:
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    shop.project.write("cccc", "bbbb", **renaming(("items", "size", "name")))
    told = shop.refused(kind="NameStillOpen")
    assert told["revision"] == "cccc"
    assert told["hint"].startswith(
        "bbbb and cccc need two deployments: python -m migration_runner upgrade bbbb, then contract"
    )
    # which is true
    shop.succeed("upgrade", "bbbb", follows=True)
    assert "bbbb" not in shop.refused(kind="NameStillOpen")["hint"]
    shop.contract()
    shop.expand("items.size -> name")


def test_a_swap_within_one_revision_is_told_to_be_split_and_found_by_check_and_plan(shop: Release) -> None:
    shop.project.write(
        "bbbb", "aaaa", **renaming(("items", "name", "t"), ("items", "size", "name"), ("items", "t", "size"))
    )
    assert shop.refused(kind="NameStillOpen")["hint"].startswith("bbbb gives and takes the same name: split it")
    for command in ("check", "plan"):
        looked = shop.run(command, follows=True)
        (event,) = looked.named("migration.findings") or looked.named("migration.plan")
        found = event["findings"] if command == "check" else event["revisions"][0]["findings"]
        assert [one["rule"] for one in found] == ["name-used-twice"]
        assert "bridge = False" in found[0]["instead"]


def test_a_plan_says_what_an_upgrade_would_stop_for(open_shop: Release) -> None:
    open_shop.project.write("cccc", "bbbb", "op.drop_column('items', 'size')")
    [plan] = open_shop.succeed("plan").named("migration.plan")
    assert plan["stop"] == open_shop.refused(kind="RenameOpen")["message"]
    open_shop.project.write("cccc", "bbbb", "op.create_table('more')")
    [plan] = open_shop.succeed("plan", follows=True).named("migration.plan")
    assert plan["stop"] is None


# The version table, written to by hand


@pytest.mark.parametrize("at", ["DELETE FROM alembic_version", "UPDATE alembic_version SET version_num = 'aaaa'"])
def test_a_version_table_that_lacks_what_was_applied_takes_no_bridge_back(open_shop: Release, at: str) -> None:
    open_shop.rows(at)
    for command, revision in (("upgrade", None), ("downgrade", "base"), ("contract", None)):
        with open_shop.unchanged():
            failed = open_shop.run(command, revision)
        assert (failed.exit_code, failed.error["kind"]) == (1, "VersionTableBehind"), failed.output
        assert failed.error["hint"].endswith("python -m migration_runner stamp bbbb")
    stamped = open_shop.succeed("stamp", "bbbb")
    assert stamped.named("migration.stays_open")[0]["renames"] == [ITEMS_LEFT]
    open_shop.contract()


# Names and their schemas


@pytest.fixture(scope="module")
def schemas(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """One of two tables of the same name is open."""
    made = "CREATE SCHEMA one; CREATE SCHEMA other; CREATE TABLE one.items (id int, name text, size int); "
    made += "CREATE TABLE other.items (id int, name text, size int)"
    with standing(postgres, tmp_path_factory.mktemp("schemas"), f"op.execute({made!r})") as release:
        release.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku"), schema="one"))
        release.expand("one.items.name -> sku")
        yield release


def test_a_table_of_the_same_name_in_another_schema_is_another_table(schemas: Release) -> None:
    done = [
        f"op.add_column('items', {SA}.Column('title', {SA}.Integer), schema='other')",
        "op.alter_column('items', 'title', new_column_name='sku', schema='other')",
        "op.drop_column('items', 'size', schema='other')",
        "op.execute('UPDATE other.items SET id = 1')",
        "op.execute('CREATE TABLE items (id int)')",
        "op.execute('DROP TABLE items')",
    ]
    for number, upgrade in enumerate(done):
        schemas.project.write(f"c{number}", f"c{number - 1}" if number else "bbbb", upgrade)
    schemas.succeed("upgrade")
    for number, upgrade in enumerate(
        (
            "op.drop_column('items', 'size', schema='one')",
            "op.execute('UPDATE one.items SET id = 1')",
            "op.execute('SET LOCAL search_path = one; UPDATE items SET id = 1')",
            'op.execute(\'UPDATE "one" . "items" SET id = 1\')',
        )
    ):
        schemas.project.write("dddd", f"c{len(done) - 1}", upgrade)
        told = schemas.refused(kind="RenameOpen")
        assert told["message"].startswith("dddd changes one.items, whose rename is still open"), number


def test_a_column_that_is_called_like_the_table_is_another_thing(open_shop: Release) -> None:
    open_shop.project.write(
        "cccc",
        "bbbb",
        f"op.create_table('orders', {SA}.Column('items', {SA}.Integer), {SA}.Column('items__base', {SA}.Text)); "
        f"op.add_column('orders', {SA}.Column('more', {SA}.Integer)); "
        "op.execute('CREATE TABLE baskets (); ALTER TABLE baskets ADD COLUMN items int')",
    )
    open_shop.expand(ITEMS_LEFT)
    for upgrade in (
        "op.execute('CREATE TABLE copied (LIKE items)')",
        "op.execute('CREATE TABLE copied (id int, of int REFERENCES items)')",
        "op.execute('CREATE TABLE copied (id) AS SELECT o.more FROM (orders o CROSS JOIN items)')",
    ):
        open_shop.project.write("dddd", "cccc", upgrade)
        open_shop.refused(kind="RenameOpen")


# What can't be told ahead


UNFORESEEN = {
    "a query": (
        f"op.get_bind().exec_driver_sql('SELECT 1').scalar(); {renaming(('items', 'name', 'sku'))['upgrade']}",
        "bbbb asks the database, so what it renames can't be told ahead: only a revision of renames alone can be "
        "bridged.",
    ),
    "a branch": (
        f"exec(\"if op.get_bind().scalar({SA}.text('SELECT 1')): op.rename_table('items', 'parts')\")",
        "bbbb asks the database, so what it renames can't be told ahead: only a revision of renames alone can be "
        "bridged.",
    ),
    "another file": (
        "getattr(op, 'rename_' + 'table')('items', 'parts')",
        "bbbb renames a column or a table, and its own file does not say so (new_column_name or rename_table): it "
        "can't be told ahead.",
    ),
}


@pytest.mark.parametrize(("upgrade", "message"), UNFORESEEN.values(), ids=UNFORESEEN)
def test_why_a_rename_was_not_seen_is_told(shop: Release, upgrade: str, message: str) -> None:
    shop.project.write("bbbb", "aaaa", upgrade)
    told = shop.refused(kind="MixedRename")
    assert (told["revision"], told["message"]) == ("bbbb", message)
    assert "bridge = False" in told["hint"]


PLAIN = "op.execute('ALTER TABLE ONLY public.items RENAME COLUMN name TO sku')"


def test_a_rename_in_a_statement_of_its_own_is_said_to_be_plain(shop: Release) -> None:
    shop.project.write("bbbb", "aaaa", PLAIN)
    for follows in (False, True):
        found = shop.run("check", follows=follows).named("migration.findings")[0]["findings"]
        [renamed] = [one for one in found if one["rule"] == "renaming-column"]
        assert ("Give check the option" in renamed["instead"]) == (not follows)
    up = shop.expand()
    assert [one["revision"] for one in up.named("migration.plain_rename")] == ["bbbb"]
    shop.project.write("cccc", "bbbb", "op.execute('ALTER TABLE items RENAME CONSTRAINT items_pkey TO pk')")
    shop.project.write("dddd", "cccc", "op.execute('ALTER TABLE items RENAME sku TO code')", bridge=False)
    assert not shop.expand().named("migration.plain_rename")
