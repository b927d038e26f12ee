"""What the trigger must know of the last deployment, kept in one parameter of SSM."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from aws import PATIENCE, Aws
from cfn_response import UNKNOWN
from request import Request

# Where an answer is due: after a task that could hardly be stopped 40 seconds are left, 15 of them for its log.
SHORT_PATIENCE = 10.0


@dataclass(frozen=True)
class Record:
    """What is known of the last deployment; ``request`` and ``rollback`` are the keys of its requests.

    Attributes:
        fingerprint: of the migrations that the schema has; unknown after a failure that may have moved it.
        before: where the schema was before this deployment's upgrade; unknown when that has moved nothing.
        after: where the schema was seen last.
        request: the one that asked for the upgrade.
        release: what it deploys.
        began: when it was sent, in seconds since the epoch.
        running: whether a task of the upgrade may have been started of which the rest does not tell yet.
        rollback: the request that takes the deployment back.
        newest: when the newest of all requests was sent; Lambda may deliver older ones once more, or very late.
    """

    fingerprint: str = UNKNOWN
    before: str = UNKNOWN
    after: str = UNKNOWN
    request: str = UNKNOWN
    release: str = UNKNOWN
    began: float = 0.0
    running: bool = False
    rollback: str = UNKNOWN
    newest: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read it back; what was not written by ``dump`` is no record."""
        try:
            fields = json.loads(text)
            return cls(
                fingerprint=str(fields["fingerprint"]),
                before=str(fields["before"]),
                after=str(fields["after"]),
                request=str(fields.get("request", UNKNOWN)),
                release=str(fields.get("release", UNKNOWN)),
                began=float(fields.get("began", 0.0)),
                running=fields.get("running") is True,
                rollback=str(fields.get("rollback", UNKNOWN)),
                newest=float(fields.get("newest", 0.0)),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return cls()

    def dump(self) -> str:
        """For the parameter."""
        return json.dumps(asdict(self))

    def is_of(self, request: Request) -> bool:
        """Whether the deployment is the request's own, and goes on: the request has then been delivered before."""
        return self.request == request.key and self.rollback == UNKNOWN

    def refuses_upgrade(self, request: Request) -> bool:
        """Whether the request, delivered once more or very late, is one of a deployment or a rollback that is over."""
        rolled_back = self.request == request.key and self.rollback != UNKNOWN
        return rolled_back or request.key == self.rollback or self._is_newer_than(request)

    def refuses_rollback(self, request: Request) -> bool:
        """Whether the request, delivered once more or very late, is the upgrade itself, or one that is over."""
        return request.key == self.request or self._is_newer_than(request)

    def opened_for(self, request: Request, now: float, *, runs: bool) -> Record:
        """The record with which the request's deployment begins, or goes on when it has begun already.

        Args:
            request: asks for an upgrade.
            now: in seconds since the epoch.
            runs: whether a task is about to be started.
        """
        if self.is_of(request):
            return replace(self, running=self.running or runs)
        known = replace(self, fingerprint=UNKNOWN, after=UNKNOWN) if self.running else self
        return Record(
            fingerprint=known.fingerprint,
            after=known.after,
            request=request.key,
            release=request.release,
            began=request.sent or now,
            running=runs,
            newest=max(self.newest, request.sent),
        )

    def taken_back_by(self, rollback: Request) -> Record:
        """The record of the same deployment from when it is rolled back, or deleted."""
        return replace(self, rollback=rollback.key, newest=max(self.newest, rollback.sent))

    def _is_newer_than(self, request: Request) -> bool:
        return 0 < request.sent < self.newest

    def closed(self) -> Record:
        """The record of the same deployment when there is nothing left to undo."""
        return replace(self, before=UNKNOWN, running=False)


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
