from __future__ import annotations

import json

import aws_cdk as cdk
import pytest
from aws_cdk import assertions

from local_aws.machine import CLONE
from stacks.data_stack import DataStack
from stacks.service_stack import ServiceStack
from stacks.stage import STAGES


@pytest.fixture(scope="session")
def dev() -> dict[str, assertions.Template]:
    """The templates of the dev stage, with the feature flags that the CLI would pass from cdk.json."""
    context = json.loads((CLONE / "cdk.json").read_text())["context"]
    app = cdk.App(context=context | {"aws:cdk:enable-path-metadata": False})
    data = DataStack(app, "DevDataStack", stage=STAGES["dev"])
    service = ServiceStack(app, "DevStack", stage=STAGES["dev"], data=data)
    return {stack.stack_name: assertions.Template.from_stack(stack) for stack in (data, service)}
