"""The answer to CloudFormation: at most 4,096 bytes, whatever it is made of, and sent until it has arrived."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 4096
MAX_REASON = 1000
MAX_VALUE = 200
# Of an attribute: a stack's output fails the stack when its attribute is missing.
UNKNOWN = "-"
# What a contract is, when that is known.
OPEN, CLOSED = "open", "closed"
TRIES = 5


class NotDeliveredError(RuntimeError):
    """CloudFormation has not taken the answer."""


@dataclass(frozen=True)
class Answer:
    """What CloudFormation is told: ``SUCCESS`` or ``FAILED``, why, and the resource's attributes.

    Attributes:
        alarming: whether operators must be told.
    """

    status: str
    reason: str
    attributes: Mapping[str, str]
    alarming: bool


def succeeded(
    reason: str,
    before: str,
    after: str,
    task: str = UNKNOWN,
    seconds: str = UNKNOWN,
    contract: str = UNKNOWN,
) -> Answer:
    """A success, with every attribute."""
    attributes = {
        "RevisionBefore": before,
        "RevisionAfter": after,
        "TaskArn": task,
        "Duration": seconds,
        "Contract": contract,
    }
    return Answer("SUCCESS", reason, attributes, alarming=False)


def failed(reason: str) -> Answer:
    """A failure that operators must know of."""
    return Answer("FAILED", reason, {}, alarming=True)


def too_late() -> Answer:
    """The answer to a request of a deployment that is over, for which nobody waits."""
    reason = "This request came too late: its deployment is over. Deploy again."
    return Answer("FAILED", reason, {}, alarming=False)


def body(event: Mapping[str, Any], resource_id: str, answer: Answer) -> bytes:
    """The answer in the form that CloudFormation reads; the reason gives way when it would be too long."""
    fields = {
        "Status": answer.status,
        "StackId": event.get("StackId", ""),
        "RequestId": event.get("RequestId", ""),
        "LogicalResourceId": event.get("LogicalResourceId", ""),
        "PhysicalResourceId": resource_id,
        "Data": {name: ascii_line(value, MAX_VALUE) for name, value in answer.attributes.items()},
        "Reason": ascii_line(answer.reason, MAX_REASON),
    }
    while len(encoded := json.dumps(fields).encode()) > MAX_BYTES and fields["Reason"]:
        fields["Reason"] = fields["Reason"][:-50]
    return encoded


def ascii_line(text: str, limit: int) -> str:
    """One line of printable ASCII, at most ``limit`` characters; what is cut off is marked."""
    line = "".join(c if " " <= c <= "~" else "?" for c in " ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def send(put: Callable[[str, bytes], None], sleep: Callable[[float], None], url: str, content: bytes) -> None:
    """Deliver the answer, in at most five tries; raises NotDeliveredError, so that Lambda tries the event again."""
    for attempt in range(TRIES):
        try:
            return put(url, content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failure = type(error).__name__
        if attempt < TRIES - 1:
            sleep(2.0**attempt)
    # The cause is not chained: its text may hold the signed address.
    raise NotDeliveredError(f"CloudFormation has not taken the answer in {TRIES} tries ({failure}).")


def put(url: str, content: bytes) -> None:
    """One PUT; raises OSError or HTTPException when it fails, ValueError when the address is none."""
    # S3 has signed the address for an empty content type.
    request = urllib.request.Request(url, content, {"Content-Type": ""}, method="PUT")  # noqa: S310 - CloudFormation's
    try:
        with urllib.request.urlopen(request, timeout=10):  # noqa: S310 - the same address
            pass
    except urllib.error.HTTPError as refusal:
        # It is the answer too, and holds its connection.
        refusal.close()
        raise
