"""The CDK app: one DataStack and one ServiceStack for each stage.

The stacks know neither account nor region: the CDK CLI takes both from the caller's credentials, and nothing is
looked up at synth. ``-c stage=dev`` synthesizes that stage alone.
"""

from __future__ import annotations

import sys

import aws_cdk as cdk

from stacks.data_stack import DataStack
from stacks.service_stack import ServiceStack
from stacks.stage import STAGES, stage_named


def add_stacks(app: cdk.App) -> None:
    """Add the two stacks of each stage, or of the one that the context names.

    Raises:
        ValueError: there is no such stage, or the migrations can't be read.
    """
    chosen = app.node.try_get_context("stage")
    for stage in STAGES.values() if chosen is None else [stage_named(chosen)]:
        data = DataStack(app, f"{stage.stack_prefix}DataStack", stage=stage)
        ServiceStack(app, f"{stage.stack_prefix}Stack", stage=stage, data=data)


def main() -> None:
    """Synthesize the stacks; bad input ends in one sentence and exit code 2."""
    app = cdk.App()
    try:
        add_stacks(app)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    app.synth()


if __name__ == "__main__":
    main()
