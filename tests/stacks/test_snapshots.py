"""A snapshot of each stack: a change of an id or a property shows in the review; asset hashes are masked."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from aws_cdk import assertions

SNAPSHOTS = Path(__file__).parent / "snapshots"


def masked(template: assertions.Template) -> str:
    text = json.dumps(template.to_json(), indent=2, sort_keys=True) + "\n"
    return re.sub(r"(?<=:)[0-9a-f]{64}|[0-9a-f]{64}(?=\.zip)", "ASSET", text)


@pytest.mark.parametrize("stack", ["DevDataStack", "DevStack"])
def test_the_template_is_the_one_in_its_snapshot(dev: dict[str, assertions.Template], stack: str) -> None:
    snapshot = SNAPSHOTS / f"{stack}.json"
    template = masked(dev[stack])
    if os.environ.get("UPDATE_SNAPSHOTS"):
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(template)
    assert json.loads(template) == json.loads(snapshot.read_text()), "see the difference, then `make snapshots`"
