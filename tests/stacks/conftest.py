from __future__ import annotations

import json

import aws_cdk as cdk
import pytest
from aws_cdk import assertions

from app import add_stacks
from local_aws.machine import CLONE


@pytest.fixture(scope="session")
def app() -> cdk.App:
    """The app with every stage, and the feature flags that the CLI would pass from cdk.json."""
    context = json.loads((CLONE / "cdk.json").read_text())["context"]
    app = cdk.App(context=context | {"aws:cdk:enable-path-metadata": False})
    add_stacks(app)
    return app


@pytest.fixture(scope="session")
def stacks(app: cdk.App) -> dict[str, cdk.Stack]:
    """The stacks of every stage, by name."""
    return {stack.stack_name: stack for stack in app.node.children if isinstance(stack, cdk.Stack)}


@pytest.fixture(scope="session")
def templates(stacks: dict[str, cdk.Stack]) -> dict[str, assertions.Template]:
    """The templates of every stage, by their stack's name."""
    return {name: assertions.Template.from_stack(stack) for name, stack in stacks.items()}


@pytest.fixture(scope="session")
def dev(templates: dict[str, assertions.Template]) -> dict[str, assertions.Template]:
    """The templates of the dev stage."""
    return {name: template for name, template in templates.items() if name.startswith("Dev")}
