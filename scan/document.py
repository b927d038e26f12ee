"""The table of docs/SECURITY.md: every finding that is acknowledged, with its reason. As a program it writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import aws_cdk as cdk

from app import add_stacks
from stacks.acknowledgments import Acknowledgment, acknowledgments
from stacks.stage import STAGES

SECURITY = Path(__file__).parent.parent / "docs" / "SECURITY.md"
BEGIN, END = "<!-- acknowledged: make security-table -->", "<!-- end of acknowledged -->"


def with_table(text: str, acknowledged: Sequence[Acknowledgment]) -> str:
    """The document with its table made anew: a line for each rule, construct and reason, whatever the stage.

    Args:
        text: the document.
        acknowledged: in every stage.
    """
    stages: dict[tuple[str, str, str], list[str]] = {}
    for one in acknowledged:
        stack = one.path.partition("/")[0]
        stage = next(
            stage
            for stage in STAGES.values()
            if stack in (f"{stage.stack_prefix}DataStack", f"{stage.stack_prefix}Stack")
        )
        # A name in brackets may hold the stage's own.
        rule = one.rule.replace(f"{stage.environment}-", "STAGE-").replace(stage.stack_prefix, "Stage")
        where = one.path.removeprefix(stage.stack_prefix)
        stages.setdefault((where, rule, one.reason), []).append(stage.environment)
    lines = ["| construct | rule | stages | why it stays |", "| --- | --- | --- | --- |"]
    for (where, rule, reason), found in stages.items():
        told = "all" if len(found) == len(STAGES) else ", ".join(found)
        lines.append(f"| {where} | `{rule}` | {told} | {reason} |")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    app = cdk.App()
    add_stacks(app)
    SECURITY.write_text(with_table(SECURITY.read_text(), acknowledgments(app)))
