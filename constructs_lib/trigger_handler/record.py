"""What the trigger must know of the last deployment, kept in one parameter of SSM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aws import PATIENCE, Aws
from cfn_response import UNKNOWN
from request import Request

# Where an answer is due: after a task that could hardly be stopped 40 seconds are left, 15 of them for its log.
SHORT_PATIENCE = 10.0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Whose turn it is at a resource: ``request`` and ``rollback`` are the keys of its last deployment's requests.

    Attributes:
        request: the one that asked for a task.
        release: what it deploys.
        began: when it was sent, in seconds since the epoch.
        running: whether a task of it may have been started of which the rest does not tell yet.
        rollback: the request that takes the deployment back.
        newest: when the newest of all requests was sent; Lambda may deliver older ones once more, or very late.
    """

    request: str = UNKNOWN
    release: str = UNKNOWN
    began: float = 0.0
    running: bool = False
    rollback: str = UNKNOWN
    newest: float = 0.0

    def is_of(self, request: Request) -> bool:
        """Whether the deployment is the request's own, and goes on: the request has then been delivered before."""
        return self.request == request.key and self.rollback == UNKNOWN

    def refuses(self, request: Request) -> bool:
        """Whether the request, delivered once more or very late, is one of a deployment or a rollback that is over."""
        rolled_back = self.request == request.key and self.rollback != UNKNOWN
        return rolled_back or request.key == self.rollback or self._is_newer_than(request)

    def refuses_rollback(self, request: Request) -> bool:
        """Whether the request, delivered once more or very late, is the deployment's own, or one that is over."""
        return request.key == self.request or self._is_newer_than(request)

    def _is_newer_than(self, request: Request) -> bool:
        return 0 < request.sent < self.newest


@dataclass(frozen=True, kw_only=True)
class Record(Turn):
    """What is known of the last deployment of a migration, and of its contract.

    Attributes:
        fingerprint: of the migrations that the schema has; unknown after a failure that may have moved it.
        before: where the schema was before this deployment's upgrade; unknown when that has moved nothing.
        after: where the schema was seen last.
        contract: ``closed``, or ``open`` as long as older names still work or contract revisions are to be applied.
        has_closed: whether this deployment's contract may have taken names away.
        closing: the turn of the contract.
    """

    fingerprint: str = UNKNOWN
    before: str = UNKNOWN
    after: str = UNKNOWN
    contract: str = UNKNOWN
    has_closed: bool = False
    closing: Turn = field(default_factory=Turn)

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read it back; what was not written by ``dump`` is no record."""
        try:
            fields = json.loads(text)
            # An older version of this function has written no contract.
            return cls(
                **_turn(fields),
                fingerprint=str(fields["fingerprint"]),
                before=str(fields["before"]),
                after=str(fields["after"]),
                contract=str(fields.get("contract", UNKNOWN)),
                has_closed=fields.get("has_closed") is True,
                closing=Turn(**_turn(fields.get("closing", {}))),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return cls()

    def dump(self) -> str:
        """For the parameter."""
        return json.dumps(asdict(self))

    def turn_of(self, request: Request) -> Turn:
        """Whose turn it is at the request's resource."""
        return self.closing if request.of_contract else self

    def opened_for(self, request: Request, now: float, *, runs: bool) -> Record:
        """The record with which the request's deployment begins, or its contract, or goes on when that has begun.

        Args:
            request: asks for an upgrade or a contract.
            now: in seconds since the epoch.
            runs: whether a task is about to be started.
        """
        if request.of_contract:
            return self._closing_for(request, now, runs=runs)
        if self.is_of(request):
            return replace(self, running=self.running or runs)
        known = self._without_what_is_lost()
        return Record(
            fingerprint=known.fingerprint,
            after=known.after,
            contract=known.contract,
            closing=replace(known.closing, running=False),
            request=request.key,
            release=request.release,
            began=request.sent or now,
            running=runs,
            newest=max(self.newest, request.sent),
        )

    def not_begun_by(self, request: Request) -> Record:
        """The record of the same deployment when the task that was about to be started was not."""
        return self.reopened() if request.of_contract else replace(self, running=False)

    def taken_back_by(self, rollback: Request) -> Record:
        """The record of the same deployment from when one of its resources is rolled back, or deleted."""
        newest = max(self.closing.newest, rollback.sent)
        closing = replace(self.closing, rollback=rollback.key, newest=newest)
        if rollback.of_contract:
            return replace(self, closing=closing)
        return replace(self, closing=closing, rollback=rollback.key, newest=max(self.newest, rollback.sent))

    def closed_by(self, rollback: Request) -> Record:
        """The record of the same deployment when there is nothing left to undo at the resource, other than names."""
        ended = replace(self, closing=replace(self.closing, running=False))
        return ended if rollback.of_contract else replace(ended, before=UNKNOWN, running=False)

    def reopened(self) -> Record:
        """The record of the same deployment when its contract has taken nothing away that is still missing."""
        return replace(self, has_closed=False, closing=replace(self.closing, running=False))

    def _closing_for(self, request: Request, now: float, *, runs: bool) -> Record:
        closing, known = self.closing, self
        if not closing.is_of(request):
            known = replace(self._without_what_is_lost(), running=self.running, has_closed=False)
            closing = Turn(
                request=request.key,
                release=request.release,
                began=request.sent or now,
                newest=max(closing.newest, request.sent),
            )
        closing = replace(closing, running=closing.running or runs)
        return replace(known, closing=closing, has_closed=known.has_closed or runs)

    def _without_what_is_lost(self) -> Record:
        """What is still known when the end of a task has not been recorded."""
        known = replace(self, fingerprint=UNKNOWN) if self.running else self
        if self.running or self.closing.running:
            known = replace(known, after=UNKNOWN, contract=UNKNOWN)
        return known


def _turn(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "request": str(fields.get("request", UNKNOWN)),
        "release": str(fields.get("release", UNKNOWN)),
        "began": float(fields.get("began", 0.0)),
        "running": fields.get("running") is True,
        "rollback": str(fields.get("rollback", UNKNOWN)),
        "newest": float(fields.get("newest", 0.0)),
    }


def read_record(aws: Aws, request: Request, patience: float = PATIENCE) -> Record:
    """Read the request's record; an empty one when someone has deleted it, for the next that is written makes it anew.

    Args:
        aws: the world.
        request: names the parameter.
        patience: for how many seconds SSM may fail or deny it until that is raised; 90 by default.
    """
    try:
        found = aws.call(aws.ssm.get_parameter, patience=patience, Name=request.record_parameter)
    except aws.ssm.exceptions.ParameterNotFound:
        return Record()
    return Record.parse(found["Parameter"]["Value"])


def write_record(aws: Aws, request: Request, record: Record, patience: float = PATIENCE) -> None:
    """Write the request's record; the arguments are those of ``read_record``."""
    name, value = request.record_parameter, record.dump()
    aws.call(aws.ssm.put_parameter, patience=patience, Name=name, Value=value, Overwrite=True)
