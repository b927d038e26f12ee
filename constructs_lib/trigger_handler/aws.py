"""The one seam to the world: AWS's clients, the clock, and the patience that every call to AWS needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import cfn_response
from botocore import exceptions
from botocore.config import Config

LOGGER = logging.getLogger(__name__)
PATIENCE = 90.0
CALL_ERRORS = (exceptions.ClientError, exceptions.ConnectionError, exceptions.HTTPClientError)
DENIED = {"AccessDenied", "AccessDeniedException", "UnrecognizedClientException"}
THROTTLED = {
    "LimitExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TooManyUpdates",
}


@dataclass(frozen=True)
class Aws:
    """What the trigger touches of the world; tests hand in their own."""

    ecs: Any
    logs: Any
    ssm: Any
    cloudformation: Any
    lambda_client: Any
    sns: Any
    put: Callable[[str, bytes], None] = cfn_response.put
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def connect(cls) -> Aws:
        """The real one: the function's own region and role."""
        # One attempt, for call() makes the others: no try takes longer than 15 seconds.
        config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 1})
        names = ("ecs", "logs", "ssm", "cloudformation", "lambda", "sns")
        return cls(*(boto3.client(name, config=config) for name in names))

    def call(
        self, operation: Callable[..., dict[str, Any]], *, patience: float = PATIENCE, **parameters: Any
    ) -> dict[str, Any]:
        """Call AWS, and again while the failure looks like one that passes; then it is raised.

        Args:
            operation: of a client.
            patience: for how many seconds a failed call is tried again; 90 by default.
            parameters: of the operation.
        """
        began, pause = self.now(), 1.0
        while True:
            try:
                return operation(**parameters)
            except CALL_ERRORS as error:
                waited = self.now() - began
                if waited + pause > patience or not passes(error, waited):
                    raise
            self.sleep(pause)
            pause = min(2 * pause, 15.0)


def phase_began(aws: Aws, stack_id: str, is_phase: Callable[[str], bool]) -> float:
    """When the stack last went into a phase, in whole seconds since the epoch; 0 when it never did.

    Args:
        aws: the world.
        stack_id: the stack's ARN.
        is_phase: whether the phase has a status of the stack.
    """
    position: dict[str, Any] = {}
    while True:
        page = aws.call(aws.cloudformation.describe_stack_events, StackName=stack_id, **position)
        for one in page["StackEvents"]:
            if one["PhysicalResourceId"] == stack_id and is_phase(one.get("ResourceStatus", "")):
                return float(int(one["Timestamp"].timestamp()))
        if "NextToken" not in page:
            return 0.0
        position = {"NextToken": page["NextToken"]}


def passes(error: Exception, waited: float) -> bool:
    """Whether the failure is likely to pass: throttling, an outage, or a permission that has yet to propagate.

    Args:
        error: one of CALL_ERRORS; all but ClientError mean that no answer came.
        waited: for how many seconds the call has failed. IAM is consistent only eventually, so a denial may pass,
            but not after 90 seconds.
    """
    if not isinstance(error, exceptions.ClientError):
        return True
    code = error.response["Error"]["Code"]
    denied = code in DENIED or "unable to assume the role" in str(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    return code in THROTTLED or status >= 500 or (denied and waited < PATIENCE)


@contextmanager
def as_far_as_possible(otherwise: str) -> Iterator[None]:
    """Log what fails, and go on: for what must hold up no answer.

    Args:
        otherwise: what follows from the failure.
    """
    try:
        yield
    except Exception:
        LOGGER.exception(otherwise)
