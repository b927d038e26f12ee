"""What operators get to know: a metric in the function's log, and a message to a topic when something has failed."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from aws import Aws
from cfn_response import OPEN, UNKNOWN, Answer, ascii_line
from request import is_of_contract, migration_of, stack_name

LOGGER = logging.getLogger(__name__)
NAMESPACE = "DatabaseMigration"
PUBLISH_PATIENCE = 15.0
MAX_SUBJECT = 100


def give(aws: Aws, event: Mapping[str, Any], answer: Answer) -> None:
    """Tell operators of an answer, as far as that can be done: CloudFormation has it already."""
    try:
        sys.stdout.write(f"{json.dumps(_metrics(event, answer, aws.now()))}\n")
        topic = (event.get("ResourceProperties") or {}).get("FailureTopic")
        if answer.alarming and topic:
            _publish(aws, topic, event["StackId"], answer)
    except Exception:
        LOGGER.exception("operators have not been told")


def _publish(aws: Aws, topic: str, stack_id: str, answer: Answer) -> None:
    what = "failed" if answer.status == "FAILED" else "needs attention"
    subject = ascii_line(f"{stack_name(stack_id)}: the database migration {what}", MAX_SUBJECT)
    aws.call(aws.sns.publish, patience=PUBLISH_PATIENCE, TopicArn=topic, Subject=subject, Message=answer.reason)


def _metrics(event: Mapping[str, Any], answer: Answer, now: float) -> dict[str, Any]:
    """One line in CloudWatch's embedded metric format, so that metrics cost neither a call nor a permission.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
    """
    values: dict[str, float] = {"Failures": int(answer.alarming)}
    units = {"Failures": "Count", "Duration": "Seconds", "OpenContracts": "Count"}
    if (seconds := answer.attributes.get("Duration", UNKNOWN)) != UNKNOWN:
        values["Duration"] = float(seconds)
    # Also of the migration itself: no contract tells of what is open when a service has failed before it.
    contract = answer.attributes.get("Contract", OPEN if is_of_contract(event) and answer.alarming else UNKNOWN)
    if contract != UNKNOWN:
        values["OpenContracts"] = int(contract.startswith(OPEN))
    # A contract counts as its migration, whose alarm is to tell of both.
    stack_id, logical_id = migration_of(event)
    dimensions = {"Stack": stack_name(stack_id), "Migration": logical_id}
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [list(dimensions)],
        "Metrics": [{"Name": name, "Unit": units[name]} for name in values],
    }
    return {"_aws": {"Timestamp": round(now * 1000), "CloudWatchMetrics": [directive]}, **dimensions, **values}
