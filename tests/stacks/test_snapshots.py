"""A snapshot of each stack: a change of an id or a property shows in the review; asset hashes are masked."""

from __future__ import annotations

from pathlib import Path

import aws_cdk as cdk
import pytest

from constructs_lib.snapshots import assert_matches_snapshot
from stacks.stage import STAGES

SNAPSHOTS = Path(__file__).parent / "snapshots"
NAMES = [f"{stage.stack_prefix}{kind}" for stage in STAGES.values() for kind in ("DataStack", "Stack")]


@pytest.mark.parametrize("name", NAMES)
def test_the_template_is_the_one_in_its_snapshot(stacks: dict[str, cdk.Stack], name: str) -> None:
    # `make snapshots` writes them anew.
    assert_matches_snapshot(stacks[name], SNAPSHOTS / f"{name}.json")


def test_there_is_a_snapshot_of_each_stack_and_of_no_other() -> None:
    assert {file.stem for file in SNAPSHOTS.iterdir()} == set(NAMES)
