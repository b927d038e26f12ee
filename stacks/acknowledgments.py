"""What the scanners find and we leave as it is, with the reason, beside the construct that causes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import aws_cdk as cdk
from constructs import IConstruct

METADATA = "inventory:acknowledged"


@dataclass(frozen=True)
class Acknowledgment:
    """A finding that is left as it is.

    Args:
        rule: as its scanner calls it, such as ``AwsSolutions-RDS11``.
        path: of the construct, such as ``DevDataStack/Database``.
        reason: one that a security reviewer accepts.
    """

    rule: str
    path: str
    reason: str

    @property
    def scanner(self) -> str:
        """Whose rule it is: ``cdk-nag``, ``checkov`` or ``cfn-lint``."""
        return _scanner(self.rule)


def acknowledge(construct: IConstruct, reason: str, *rules: str) -> None:
    """Leave findings about a construct as they are.

    Args:
        construct: a resource, or the construct of one.
        reason: one that a security reviewer accepts.
        rules: of cdk-nag, checkov or cfn-lint, exactly as they name the finding. cdk-nag names what it is about in
            brackets: ``AwsSolutions-IAM5[Resource::*]``.
    """
    resource = cast(cdk.CfnResource, construct.node.default_child or construct)
    for rule in rules:
        construct.node.add_metadata(METADATA, {"rule": rule, "reason": reason})
        match _scanner(rule):
            case "cdk-nag":
                told = cdk.Acknowledgment(id=f"AwsSolutions::{rule}", reason=reason)
                cdk.Validations.of(construct).acknowledge(told)
            case "checkov":
                skipped = (resource.get_metadata("checkov") or {}).get("skip", [])
                resource.add_metadata("checkov", {"skip": [*skipped, {"id": rule, "comment": reason}]})
            case "cfn-lint":
                ignored = (resource.get_metadata("cfn-lint") or {"config": {"ignore_checks": []}})["config"]
                resource.add_metadata("cfn-lint", {"config": {"ignore_checks": [*ignored["ignore_checks"], rule]}})


def acknowledgments(app: cdk.App) -> list[Acknowledgment]:
    """Everything that is acknowledged in the app, in the order of its constructs."""
    return [
        Acknowledgment(entry.data["rule"], construct.node.path, entry.data["reason"])
        for construct in app.node.find_all()
        for entry in construct.node.metadata
        if entry.type == METADATA
    ]


def _scanner(rule: str) -> str:
    if rule.startswith("AwsSolutions-"):
        return "cdk-nag"
    return "checkov" if rule.startswith("CKV") else "cfn-lint"
