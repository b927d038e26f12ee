"""What a scanner would find is acknowledged, and what is acknowledged would be found."""

from __future__ import annotations

import aws_cdk as cdk
import pytest
from cdk_nag import AwsSolutionsChecks

from app import add_stacks
from scan.document import SECURITY, with_table
from stacks import data_stack, service_stack
from stacks.acknowledgments import acknowledgments


def test_cdk_nag_finds_exactly_what_is_acknowledged(app: cdk.App, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (data_stack, service_stack):
        monkeypatch.setattr(module, "acknowledge", lambda *_: None)
    bare = cdk.App(context=app.node.get_all_context())
    add_stacks(bare)
    bare.synth()  # or names of other stacks' outputs would be missing

    found = {
        (violation.rule_name, str(resource.construct_path).removesuffix("/Resource").removesuffix("/DefaultPolicy"))
        for violation in AwsSolutionsChecks().validate_scope(bare).violations
        for resource in violation.violating_resources
    }
    assert found == {(one.rule, one.path) for one in acknowledgments(app) if one.rule.startswith("AwsSolutions-")}


def test_the_document_lists_every_acknowledgment(app: cdk.App) -> None:
    text = SECURITY.read_text()
    assert with_table(text, acknowledgments(app)) == text, "`make security-table` writes it anew"
