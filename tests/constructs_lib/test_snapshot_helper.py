"""What other teams' snapshot tests see: all that a review wants, and nothing that changes with every build."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import aws_cdk as cdk
import pytest
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_lambda as lambda_
from aws_cdk.assertions import Template
from constructs import Construct

import constructs_lib
from constructs_lib import AlembicMigrations
from constructs_lib.snapshots import assert_matches_snapshot, masked_template
from tests.constructs_lib.templates import Data, Migrate

DIGEST = hashlib.sha256(b"pinned").hexdigest()


def code(folder: Path, text: str) -> lambda_.Code:
    folder.mkdir(exist_ok=True)
    (folder / "index.py").write_text(text)
    return lambda_.Code.from_asset(str(folder))


class Shop(cdk.Stack):
    """A function and an image that are built, and an image that is pinned."""

    def __init__(self, folder: Path, text: str, scope: Construct | None = None) -> None:
        super().__init__(scope or cdk.App(), "Shop")
        self.add(self, folder, text)

    @staticmethod
    def add(scope: Construct, folder: Path, text: str) -> None:
        function = lambda_.Function(
            scope,
            "Function",
            runtime=lambda_.Runtime.PYTHON_3_13,
            handler="index.handler",
            code=code(folder / "function", text),
        )
        lambda_.Alias(scope, "Live", alias_name="live", version=function.current_version)
        (folder / "Dockerfile").write_text(f"FROM scratch\nLABEL text={text}\n")
        task = ecs.FargateTaskDefinition(scope, "Task")
        task.add_container("built", image=ecs.ContainerImage.from_asset(str(folder), exclude=["function"]))
        task.add_container("pinned", image=ecs.ContainerImage.from_registry(f"web@sha256:{DIGEST}"))


def test_another_build_of_the_same_stack_gives_the_same_text(tmp_path: Path) -> None:
    first = Shop(tmp_path, "one")
    second_folder = tmp_path / "elsewhere"
    second_folder.mkdir()
    second = Shop(second_folder, "two")

    assert Template.from_stack(first).to_json() != Template.from_stack(second).to_json()
    assert masked_template(first) == masked_template(second)


def test_an_image_that_is_pinned_stays_readable(tmp_path: Path) -> None:
    assert re.findall("[0-9a-f]{64}", masked_template(Shop(tmp_path, "one"))) == [DIGEST]


def test_the_stacks_of_a_stage_and_nested_stacks_are_masked_too(tmp_path: Path) -> None:
    def built(text: str) -> list[str]:
        folder = tmp_path / text
        folder.mkdir()
        staged = Shop(folder, text, cdk.Stage(cdk.App(), "Prod"))
        outer = cdk.Stack(cdk.App(), "Outer")
        nested = cdk.NestedStack(outer, "Nested")
        Shop.add(nested, folder, text)
        return [masked_template(stack) for stack in (staged, outer, nested)]

    assert built("one") == built("two")


def test_the_revisions_and_the_fingerprint_show_and_the_code_of_the_trigger_does_not(
    data: Data, migrate: Migrate, migrations: AlembicMigrations
) -> None:
    migrate()

    text = masked_template(data)

    assert all(line in text for line in migrations.descriptions)
    (found,) = re.findall("[0-9a-f]{64}", text)
    (migration,) = (one for one in json.loads(text)["Resources"].values() if "Revisions" in one.get("Properties", {}))
    assert found in json.dumps(migration["Properties"]["Fingerprint"])


def test_a_stack_that_has_changed_fails_with_what_has_changed_and_how_to_accept_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stack(description: str) -> cdk.Stack:
        return cdk.Stack(cdk.App(), "Shop", description=description)

    file = tmp_path / "snapshots" / "Shop.json"
    monkeypatch.delenv("UPDATE_SNAPSHOTS", raising=False)
    with pytest.raises(AssertionError, match=r"There is no snapshot \S+/Shop.json: UPDATE_SNAPSHOTS=1 writes it"):
        assert_matches_snapshot(stack("before"), file)

    monkeypatch.setenv("UPDATE_SNAPSHOTS", "1")
    assert_matches_snapshot(stack("before"), file)
    monkeypatch.delenv("UPDATE_SNAPSHOTS")
    assert_matches_snapshot(stack("before"), str(file))
    file.write_text(json.dumps(json.loads(file.read_text())))
    assert_matches_snapshot(stack("before"), file)

    with pytest.raises(AssertionError, match="Shop is not what its snapshot says") as failure:
        assert_matches_snapshot(stack("after"), file)
    assert {'-  "Description": "before",', '+  "Description": "after",'} <= set(str(failure.value).splitlines())

    monkeypatch.setenv("UPDATE_SNAPSHOTS", "1")
    assert_matches_snapshot(stack("after"), file)
    assert json.loads(file.read_text())["Description"] == "after"


def test_of_a_long_difference_the_first_lines_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPDATE_SNAPSHOTS", raising=False)
    file = tmp_path / "Shop.json"
    file.write_text("{}")
    stack = cdk.Stack(cdk.App(), "Shop")
    for number in range(200):
        cdk.CfnOutput(stack, f"Output{number}", value=str(number))

    with pytest.raises(AssertionError) as failure:
        assert_matches_snapshot(stack, file)

    assert len(str(failure.value).splitlines()) == 62
    assert re.search(r"\.\.\. and \d+ lines more$", str(failure.value))


def test_the_helper_needs_no_pytest() -> None:
    program = "import sys, constructs_lib.snapshots; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(constructs_lib.__file__).parent.parent)


@pytest.mark.parametrize("content", [b"", b"<<<<<<< ours\n{}", b"\xff\xfe{}"])
def test_a_snapshot_that_can_not_be_read_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "Shop.json").write_bytes(content)
    with pytest.raises(
        AssertionError, match=r"^The snapshot .*Shop\.json is no JSON: UPDATE_SNAPSHOTS=1 writes it anew"
    ):
        assert_matches_snapshot(cdk.Stack(cdk.App(), "Shop"), tmp_path / "Shop.json")


@pytest.mark.parametrize("value", ["", "0"])
def test_a_variable_that_says_no_writes_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("UPDATE_SNAPSHOTS", value)
    with pytest.raises(AssertionError, match=r"^There is no snapshot"):
        assert_matches_snapshot(cdk.Stack(cdk.App(), "Shop"), tmp_path / "Shop.json")
