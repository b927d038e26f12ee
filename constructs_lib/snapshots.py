"""For tests of stacks: the template as text, without the hashes that change with every build.

```python
from pathlib import Path

import aws_cdk as cdk

from constructs_lib.snapshots import assert_matches_snapshot
from shop import ShopStack


def test_the_stack_is_the_one_in_its_snapshot() -> None:
    snapshot = Path(__file__).parent / "snapshots" / "Shop.json"
    assert_matches_snapshot(ShopStack(cdk.App(), "Shop"), snapshot)
```

``UPDATE_SNAPSHOTS=1 pytest`` writes the files, and writes them anew: the review then shows what has changed. Nothing
here needs pytest.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path

from aws_cdk import Stack, Stage
from aws_cdk.assertions import Template

__all__ = ["assert_matches_snapshot", "masked_template"]

MAX_LINES = 60
# What ends the logical id of `function.current_version`: a hash that goes by the hash of the code.
VERSION_HASH = re.compile(r"[0-9a-f]{32}$")


def masked_template(stack: Stack) -> str:
    """The stack's template as JSON, with sorted keys and ``ASSET`` in place of each asset's hash.

    Masked is what the stack's own asset manifest lists, such as the code of a function or an image that is built, also
    where the logical id of a function's ``current_version`` goes by it. All else stays: the migration's revisions and
    its fingerprint, which a review wants to see, and the digest of an image that is pinned.

    It is plain text: ``assert masked_template(stack) == snapshot`` does for syrupy.

    Args:
        stack: of an app, a stage, or another stack; it is synthesized, and can't be changed afterwards.

    Raises:
        RuntimeError: the stack can't be synthesized, or its resources depend on each other in a cycle.
    """
    template = Template.from_stack(stack).to_json()
    text = json.dumps(template, indent=2, sort_keys=True)
    for name, resource in template.get("Resources", {}).items():
        if resource["Type"] == "AWS::Lambda::Version":
            text = text.replace(name, VERSION_HASH.sub("ASSET", name))
    for asset in _assets(stack):
        text = text.replace(asset, "ASSET")
    return f"{text}\n"


def assert_matches_snapshot(stack: Stack, file: str | Path) -> None:
    """Compare the stack's masked template with the one in a file, or write the file when UPDATE_SNAPSHOTS is set.

    Args:
        stack: see ``masked_template``.
        file: JSON, kept in version control; a relative path is one from the working directory.

    Raises:
        AssertionError: they differ, and how; or there is no such file yet.
        RuntimeError: see ``masked_template``.
    """
    file = Path(file)
    now = masked_template(stack)
    if os.environ.get("UPDATE_SNAPSHOTS", "0") not in ("", "0"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(now)
        return
    if not file.exists():
        raise AssertionError(f"There is no snapshot {file}: UPDATE_SNAPSHOTS=1 writes it.")
    # A formatter may have had its way with the file.
    try:
        kept = json.dumps(json.loads(file.read_bytes()), indent=2, sort_keys=True).splitlines()
    except ValueError as error:
        raise AssertionError(f"The snapshot {file} is no JSON: UPDATE_SNAPSHOTS=1 writes it anew. ({error})") from None
    lines = list(difflib.unified_diff(kept, now.splitlines(), str(file), stack.stack_name, n=3, lineterm=""))
    if lines:
        more = [f"... and {len(lines) - MAX_LINES} lines more"] if len(lines) > MAX_LINES else []
        raise AssertionError(
            "\n".join(
                [
                    f"{stack.stack_name} is not what its snapshot says. When it is meant so, UPDATE_SNAPSHOTS=1 writes "
                    "the snapshot anew.",
                    *lines[:MAX_LINES],
                    *more,
                ]
            )
        )


def _assets(stack: Stack) -> list[str]:
    """The hashes of the stack's assets. Those of a nested stack stand in the manifest of the stack around it."""
    whole = stack
    while parent := whole.nested_stack_parent:
        whole = parent
    stage = Stage.of(whole)
    if stage is None:
        raise RuntimeError(f"{stack.stack_name} is part of no app.")
    manifest = json.loads((Path(stage.synth().directory) / f"{whole.artifact_id}.assets.json").read_text())
    return [*manifest["files"], *manifest["dockerImages"]]
