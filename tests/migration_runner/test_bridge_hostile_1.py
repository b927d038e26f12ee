"""What stands in the way of a bridge, or was done to it by hand, is told in a sentence, and nothing is lost."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing

import pytest

from local_aws.postgres import Postgres
from migration_runner.bridge import Bridges
from migration_runner.guard import Guard
from migration_runner.patience import Limits
from migration_runner.report import Report
from migration_runner.stop import Stop
from tests.migration_runner.test_bridge import (
    ITEMS,
    Release,
    Roles,
    What,
    open_shop,
    release,
    renaming,
    roles,
    shop,
    standing,
    superuser,
    works,
)
from tests.migration_runner.test_env_py import CONFIGURE, edit, env_py

# Fixtures.
__all__ = ["open_shop", "release", "roles", "shop"]

LEFT = "items.name -> sku"


def bridge_items(shop: Release, *what: What) -> None:
    """Renames of revision bbbb, bridged."""
    shop.project.write("bbbb", "aaaa", **renaming(*what))
    shop.succeed("upgrade", follows=True)


# Records and catalog


def damage(
    release: Release, *, version_table: str = "public.alembic_version", before_contract: bool = False
) -> list[str]:
    """What the runner finds."""
    with closing(release.database.connect()) as own:
        own.autocommit = True
        report = Report(io.StringIO())
        bridges = Bridges(Guard(own, report), {}, version_table, Limits(1, None), report, Stop())
        return bridges.damage(before_contract=before_contract)


TABLE_GONE = "The table public.items__base is gone, whose older names are open."
VIEW_GONE = "The view public.items is gone, through which items__base has its older names."
UNRECORDED = (
    "The view public.items stands for items__base, but no rename is recorded as open there: restore the records, or "
    "drop the view and give the table its name once no task of an older release is left."
)
DAMAGES = {
    "a view was dropped": ("DROP VIEW items", [VIEW_GONE], []),
    "the base was renamed": ("ALTER TABLE items__base RENAME TO other", [TABLE_GONE], [TABLE_GONE]),
    "contracted by hand": (
        "DROP VIEW items; ALTER TABLE items__base RENAME TO items",
        [TABLE_GONE, VIEW_GONE],
        [],
    ),
    "replaced by a table": ("DROP VIEW items; CREATE TABLE items ()", [VIEW_GONE], [VIEW_GONE]),
    "closed by hand": ("UPDATE migration_runner.renames SET closed_at = now()", [UNRECORDED], [UNRECORDED]),
    "no records": ("DROP SCHEMA migration_runner CASCADE", [UNRECORDED], [UNRECORDED]),
}


@pytest.mark.parametrize(("statements", "found", "before_contract"), DAMAGES.values(), ids=DAMAGES)
def test_where_records_and_catalog_disagree_is_told(
    open_shop: Release, statements: str, found: list[str], before_contract: list[str]
) -> None:
    assert damage(open_shop) == []
    open_shop.rows(statements)
    assert damage(open_shop) == found
    assert damage(open_shop, before_contract=True) == before_contract


def test_what_another_version_table_has_opened_or_the_team_has_made_is_no_damage(open_shop: Release) -> None:
    open_shop.rows("CREATE TABLE own__base (id int)")
    open_shop.rows("CREATE VIEW own WITH (security_invoker = true) AS SELECT * FROM own__base")
    assert damage(open_shop, version_table="public.other") == damage(open_shop) == []


def test_a_rename_that_another_version_table_has_open_is_left_alone(open_shop: Release) -> None:
    edit(env_py(open_shop.project), (CONFIGURE, f"{CONFIGURE}, version_table='second'"))
    open_shop.project.write("aaaa", None, "pass")
    path = open_shop.project.write("bbbb", "aaaa", "op.alter_column('items', 'sku', new_column_name='label')")
    open_shop.succeed("upgrade", "aaaa")
    before = open_shop.schema()
    for follows in (False, True):
        told = open_shop.run("upgrade", follows=follows)
        assert (told.exit_code, told.error["kind"], told.error["revision"]) == (2, "RenameOpen", "bbbb")
    assert open_shop.schema() == before
    path.unlink()
    open_shop.succeed("contract")
    works(open_shop, "items", "name", "sku")


def test_a_contract_gets_over_a_view_that_was_dropped_by_hand(shop: Release) -> None:
    bridge_items(shop, ("items", "name", "sku"), ("items", "parts"))
    shop.rows("DROP VIEW items")
    done = shop.contract()
    assert [one["table"] for one in done.named("migration.changed_by_hand")] == ["public.parts"]
    assert shop.kinds("^(items|parts)") == [("parts", "r")]


def test_a_contract_by_hand_is_recorded_by_the_next_one(shop: Release) -> None:
    bridge_items(shop, ("items", "name", "sku"), ("items", "parts"))
    shop.rows("DROP VIEW parts; ALTER TABLE parts__base RENAME TO parts")
    done = shop.contract()
    assert done.named("migration.changed_by_hand")
    assert shop.kinds("^(items|parts)") == [("parts", "r")]
    # and can be opened again as any other
    assert shop.succeed("reopen", "aaaa").result["open"] == [LEFT, "items -> parts"]
    works(shop, "items", "name", "sku")


def test_a_downgrade_whose_table_is_gone_says_what_to_do(open_shop: Release) -> None:
    open_shop.rows("ALTER TABLE items__base RENAME TO other")
    told = open_shop.run("downgrade", "aaaa")
    assert (told.exit_code, told.error["kind"]) == (1, "BridgeDamaged")
    assert told.error["message"] == "public.items has open renames, but there is no table items__base."
    open_shop.rows("ALTER TABLE other RENAME TO items__base")
    open_shop.succeed("downgrade", "aaaa")


# What would be lost with a view


def test_rights_that_were_given_or_taken_while_a_rename_was_open_are_not_lost(shop: Release, roles: Roles) -> None:
    table = "has_table_privilege('{0}', 'items', '{1}')"
    shop.rows(f"GRANT SELECT, DELETE ON items TO {roles.writer}")
    bridge_items(shop, ("items", "name", "sku"))
    shop.rows(f"GRANT SELECT ON items TO {roles.reader} WITH GRANT OPTION; REVOKE DELETE ON items FROM {roles.writer}")
    shop.rows(f"GRANT UPDATE (name) ON items TO {roles.writer}")
    before = shop.schema()
    shop.project.write(
        "cccc", "bbbb", "op.add_column('items', __import__('sqlalchemy').Column('x', __import__('sqlalchemy').Integer))"
    )
    for command, revision in (("contract", None), ("downgrade", "aaaa"), ("upgrade", None)):
        told = shop.run(command, revision)
        assert (told.exit_code, told.error["kind"]) == (1, "RightsChanged")
        assert told.error["message"] == (
            "The rights on public.items were changed while its rename was open: "
            f'{roles.writer} has UPDATE ("sku") on the view alone, '
            f"{roles.reader} has SELECT WITH GRANT OPTION on the view alone, "
            f"{roles.writer} has DELETE on items__base alone."
        )
    assert shop.schema() == before
    # what it says to run ends it
    shop.rows(told.error["hint"].split("view's: ")[1].removesuffix("."))
    shop.run("contract")
    works(shop, "items", "sku")
    asked = [table.format(*one) for one in ((roles.reader, "SELECT WITH GRANT OPTION"), (roles.writer, "DELETE"))]
    assert shop.rows(f"SELECT {', '.join(asked)}") == [(True, False)]


# To open names again

OBSTACLES = {
    "GRANT SELECT (sku) ON boxes TO PUBLIC": "boxes has GRANTs on columns (sku), which a view can't carry",
    "CREATE PUBLICATION late FOR TABLE boxes": "boxes is in the publication late, which a view can't carry",
    "CREATE TABLE boxes__base ()": "there is a boxes__base already",
    "CREATE TYPE boxes__base AS ENUM ()": "there is a boxes__base already",
    "CREATE VIEW crates AS SELECT 1": "there is a crates already",
    "CREATE TABLE kept (one boxes)": "column one of table kept needs the type of its rows",
}


@pytest.fixture(scope="module")
def contracted(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """Two tables, of which the second one has got another name too."""
    with standing(postgres, tmp_path_factory.mktemp("contracted"), ITEMS) as release:
        release.rows("CREATE TABLE crates (id int, name text)")
        bridge_items(release, ("items", "name", "sku"), ("crates", "boxes"), ("boxes", "name", "sku"))
        release.contract()
        yield release


@pytest.mark.parametrize(("statement", "reason"), OBSTACLES.items())
def test_what_stands_against_older_names_is_told_before_the_first_of_them_works_again(
    contracted: Release, statement: str, reason: str
) -> None:
    contracted.rows(statement)
    with contracted.unchanged():
        told = contracted.run("reopen", "aaaa")
    assert (told.exit_code, told.error["kind"], told.result["open"]) == (1, "CannotReopen", [])
    assert told.error["message"].startswith(f"The older names of public.boxes can't work again: {reason}")
    what, name = statement.split()[1:3]
    contracted.rows("REVOKE SELECT (sku) ON boxes FROM PUBLIC" if what == "SELECT" else f"DROP {what} {name}")


def test_an_older_name_that_means_something_else_by_now_is_told_before_the_first_one_works_again(
    contracted: Release,
) -> None:
    contracted.project.write("cccc", "bbbb", **renaming(("boxes", "sku", "name")))
    contracted.succeed("upgrade", follows=True)
    contracted.contract()
    with contracted.unchanged():
        told = contracted.run("reopen", "aaaa")
    assert (told.exit_code, told.error["kind"], told.result["open"]) == (1, "CannotReopen", [])
    assert told.error["message"].startswith("The older names of public.boxes can't all work again: ")
    # what comes before the newest of them can
    assert contracted.succeed("reopen", "bbbb").result["open"] == ["boxes.sku -> name"]


# Before a rename

TOO_LONG = "z" * 64
LONG_NAMES: list[list[What]] = [[("items", "name", TOO_LONG)], [("items", TOO_LONG)]]


@pytest.mark.parametrize("what", LONG_NAMES, ids=["column", "table"])
def test_a_name_that_postgresql_would_cut_is_refused(shop: Release, what: list[What]) -> None:
    shop.project.write("bbbb", "aaaa", **renaming(*what))
    told = shop.refused(kind="NoBridge")
    assert told["message"].endswith(f": {TOO_LONG} is longer than the 63 bytes that PostgreSQL takes for a name.")
    assert told["hint"].startswith("Choose a shorter one, or write bridge = False")


def test_a_new_name_that_a_type_has_is_told_as_postgresql_tells_it(shop: Release) -> None:
    shop.rows("CREATE TYPE parts AS ENUM ('x')")
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    shop.project.write("cccc", "bbbb", **renaming(("items", "parts")))
    bridged, plain = shop.run("upgrade", follows=True), shop.run("upgrade", follows=False)
    assert (bridged.result["at"], plain.result["at"]) == ("aaaa", "bbbb")
    assert bridged.error == plain.error
    assert bridged.error["message"] == 'type "parts" already exists'


def test_a_type_of_an_array_gives_its_name_to_a_table_as_it_does_plainly(shop: Release) -> None:
    bridge_items(shop, ("items", "_items"))
    works(shop, "items", "name")


SAYS = "the trigger watch knows the column as name, which is gone from its rows with the rename"
BODIES = {
    "a row in parentheses": ("RETURN (NEW).name", True),
    "a variable": ("r := NEW; r.name := ''x''; RETURN r", True),
    "a comment": ("RETURN NEW -- without its name\n", True),
    "a function of JSON": ("PERFORM jsonb_build_object(''name'', 1); RETURN NEW", True),
    "both names": (
        "PERFORM coalesce(to_jsonb(NEW)->>''name'', to_jsonb(NEW) ->> ''sku'', to_jsonb(OLD)->''name''); RETURN NEW",
        False,
    ),
    "another word": ("r := NEW; RETURN r -- named\n", False),
}


def test_a_trigger_of_rows_must_not_know_the_older_name(shop: Release) -> None:
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    function = "FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'DECLARE r items; BEGIN {}; END'"
    shop.rows(f"CREATE {function.format('RETURN NEW')}")
    shop.rows("CREATE TRIGGER watch BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION watch()")
    for body, is_refused in BODIES.values():
        shop.rows(f"CREATE OR REPLACE {function.format(body)}")
        if is_refused:
            told = shop.refused(kind="NoBridge")
            assert told["message"].endswith(f": {SAYS}.")
            assert told["hint"].startswith("Let watch() read both names, such as coalesce(to_jsonb(NEW)->>'name', ")
        else:
            shop.expand(LEFT)
            shop.succeed("downgrade", "aaaa")


def test_a_trigger_of_statements_may_know_the_older_name(shop: Release) -> None:
    shop.rows(
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM name FROM items; RETURN NULL; END';"
        "CREATE TRIGGER watch AFTER UPDATE ON items EXECUTE FUNCTION watch()"
    )
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    shop.expand(LEFT)
    shop.rows("UPDATE items SET sku = name")


def test_a_sequence_can_not_be_bridged(shop: Release) -> None:
    shop.rows("CREATE SEQUENCE numbers")
    shop.project.write("bbbb", "aaaa", **renaming(("numbers", "tickets")))
    assert ": numbers is a sequence: only tables can be bridged." in shop.refused(kind="NoBridge")["message"]


def test_a_rule_of_the_table_itself_is_none_of_its_users_and_another_ones_is_no_view(shop: Release) -> None:
    shop.rows(
        "CREATE TABLE log (id int); CREATE RULE own AS ON UPDATE TO items DO ALSO INSERT INTO log VALUES (NEW.id)"
    )
    shop.rows("CREATE RULE cleared AS ON DELETE TO log DO ALSO DELETE FROM items WHERE id = OLD.id")
    shop.project.write("bbbb", "aaaa", **renaming(("items", "name", "sku")))
    assert [one["users"] for one in shop.expand(LEFT).named("migration.bridge_users")] == [["a rule of log"]]


def test_the_roles_own_statement_timeout_is_not_for_bridges(open_shop: Release, postgres: Postgres) -> None:
    with superuser(postgres, open_shop) as cursor:
        cursor.execute(f"ALTER ROLE {open_shop.database.user} SET statement_timeout = '200ms'")
        cursor.execute(f"ALTER ROLE {open_shop.database.user} SET deadlock_timeout = '1ms'")
    with closing(open_shop.database.connect()) as other, other.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0; BEGIN; LOCK TABLE items__base IN SHARE UPDATE EXCLUSIVE MODE")
        told = open_shop.run("contract", lock_wait=1)
    assert (told.exit_code, told.error["sqlstate"]) == (4, "55P03")
    works(open_shop, "items", "name", "sku")
