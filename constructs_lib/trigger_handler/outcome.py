"""What a stopped task means: success, or the sentence that a person reads in the CloudFormation event. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cfn_response import CLOSED, MAX_REASON, OPEN, UNKNOWN, ascii_line
from record import Record
from request import Request, stack_name, task_id

# First match wins; a pattern is looked for in the reasons that ECS gives for the task and for its container.
# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/stopped-task-error-codes.html
CAUSES = (
    (
        "CannotPull",
        "The migration's image could not be pulled. Either it does not exist, or the task's subnets have no route to "
        "ECR: add the endpoints ecr.api, ecr.dkr, s3 and logs, or a NAT gateway.",
    ),
    (
        "logger args",
        "The migration's log could not be opened. Either the log group is gone, or the task's subnets have no route "
        "to CloudWatch Logs: add the endpoint logs, or a NAT gateway.",
    ),
    (
        "unable to pull secrets",
        "The database's secret or the registry's token could not be read. Either the execution role may not read the "
        "secret or its key, or the task's subnets have no route: add the endpoints secretsmanager and ecr.api, or a "
        "NAT gateway.",
    ),
    (
        "unable to assume the role",
        "ECS may not use the migration's role. Either the role is too new, then deploy again, or its trust policy "
        "lacks ecs-tasks.amazonaws.com.",
    ),
    (
        "ResourceInitializationError",
        "The migration's task could not be set up. The usual cause: its subnets lack a route to an AWS service.",
    ),
    ("OutOfMemory", "The migration ran out of memory: raise memory_limit_mib (now {memory}). {schema}"),
    ("executable file not found", "The migration's command is not in the image: check the command."),
    ("exec format error", "The migration's image is built for another processor: build it for runtime_platform's."),
    ("CannotStartContainer", "The migration's container could not be started: check the command and the user."),
    ("CannotCreateContainer", "The migration's container could not be made: check the task definition."),
    (
        "network interface provisioning",
        "The migration's task got no network interface: look for free addresses in its subnets, then deploy again.",
    ),
)
STOP_CODES = {
    "SpotInterruption": "AWS took back the migration's Spot capacity: deploy again. {schema}",
    "TerminationNotice": "AWS retired the migration's host: deploy again. {schema}",
    "InfrastructureHealth": "The migration's host became unhealthy: deploy again. {schema}",
    "UserInitiated": "The migration was stopped: {stopped_reason} {schema}",
}
# What happened, and what to do unless the runner knows better.
EXIT_CODES = {
    1: ("Migration {revision} failed: {error} {schema}", ""),
    2: ("The migration was not started: {error} Nothing has changed.", ""),
    3: (
        "The database could not be reached, or the connection was lost: {error} {schema}",
        "It is safe to deploy again.",
    ),
    4: ("The migration has not got a lock in time: {error} {schema}", "Deploy again when it is free."),
    5: (
        "The database is ahead of this image: {error}{or_proceed}",
        "Deploy a release that has the database's revision.",
    ),
    6: ("The database refused the credentials: {error}", "Check the user and the password in the secret."),
    137: ("The migration was killed, perhaps out of memory: memory_limit_mib is {memory}. {schema}", ""),
    143: ("The migration was told to stop. {schema}", ""),
}
# What a log group's name may add, at 512 characters, must leave room for the sentence and the way out.
MAX_LINK = 400
MIN_SENTENCE = 200
MAX_ERROR, MAX_SHORT_ERROR = 400, 150
MAX_LEFT = 300
# What failed when it was no revision.
UNNAMED = {"upgrade": "{}", "contract": "contract", "downgrade": "back to {}", "reopen": "reopen {}"}
# What the runner says of a schema without any revision.
EMPTY = "base"
OR_PROCEED = ' on_database_ahead="proceed" would let this release pass.'
AHEAD, REFUSED = 5, 6
OTHER_EXIT_CODE = ("The migration's container exited with code {exit_code}: {error} {schema}", "")


@dataclass(frozen=True)
class Outcome:
    """What has become of the migration.

    Attributes:
        succeeded: whether the schema is where the request wants it, or may pass all the same.
        untouched: of a failure, whether the schema is known to be as it was.
        never_ran: whether the container was never started.
        sentence: one or two sentences for a person.
        where: where to read on; empty after a success.
        before: the revision before the run, "-" when unknown.
        after: the revision after the run, "-" when unknown.
        ahead: whether it may pass although the schema is ahead of the release.
        elsewhere: whether the schema is known not to be where the release leaves it.
        left: what a contract still has to do; None when that is unknown.
    """

    succeeded: bool
    untouched: bool
    never_ran: bool
    sentence: str
    where: str
    before: str
    after: str
    ahead: bool
    elsewhere: bool
    left: tuple[str, ...] | None

    @property
    def contract(self) -> str:
        """``open`` or ``closed``; "-" when unknown."""
        return UNKNOWN if self.left is None else OPEN if self.left else CLOSED

    @property
    def reason(self) -> str:
        """All of it, in ASCII, at most 1,000 characters."""
        return _joined(self.sentence, self.where)

    def added_to(self, deployment: Record, fingerprint: str) -> Record:
        """What is known of the deployment after this.

        Args:
            deployment: what was known before.
            fingerprint: of the migrations that the schema has after a success.
        """
        # The first of several tasks has found the schema as it was.
        before = self.before if deployment.before == UNKNOWN else deployment.before
        contract = deployment.contract if self.never_ran else self.contract
        if self.untouched and self.after in (UNKNOWN, deployment.after):
            return replace(deployment, before=before, contract=contract, running=False)
        # A schema that is ahead of the release has more than its migrations, and may be ahead of the next one too.
        at_target = self.succeeded and not self.ahead
        return replace(
            deployment,
            fingerprint=fingerprint if at_target else UNKNOWN,
            before=before,
            after=self.after,
            contract=contract,
            running=False,
        )

    def closed_in(self, deployment: Record) -> Record:
        """What is known of the deployment after this, which is what its contract has done."""
        closing = replace(deployment.closing, running=False)
        if self.never_ran:
            return replace(deployment, closing=closing, has_closed=False)
        return replace(self._seen_in(deployment), closing=closing)

    def reopened_in(self, deployment: Record) -> Record:
        """What is known of the deployment after this, which is what the reopening of its contract has done."""
        if self.never_ran:
            return deployment
        known = self._seen_in(deployment)
        return known.reopened() if self.succeeded else known

    def _seen_in(self, deployment: Record) -> Record:
        # Neither a contract nor what reopens it leaves the release's targets: then somebody else has.
        fingerprint = UNKNOWN if self.elsewhere else deployment.fingerprint
        return replace(deployment, fingerprint=fingerprint, after=self.after, contract=self.contract)


def stuck(downgrade: Request, sentence: str, where: str = "") -> str:
    """Why the schema could not be taken back, and the two commands of which either brings the stack back.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/using-cfn-updating-stacks-continueupdaterollback.html
    """
    command = f"aws cloudformation continue-update-rollback --stack-name {stack_name(downgrade.stack_id)}"
    way_out = f"To try again: {command}. To keep the schema: {command} --resources-to-skip {downgrade.logical_id}."
    return _joined(f"The schema could not be taken back to {downgrade.target}: {sentence}", where, way_out)


def closed(outcome: Outcome) -> str:
    """What a contract has done that has succeeded."""
    if outcome.left is None:
        return _joined("The contract has been run; whether anything is left of it is unknown.", outcome.sentence)
    if not outcome.left:
        return _joined("The contract is closed: only the new names are left.", outcome.sentence)
    left = ascii_line(", ".join(outcome.left), MAX_LEFT)
    return _joined(f"The contract of this release is done. Still open, for a newer release: {left}.", outcome.sentence)


def left_open(why: str, where: str = "") -> str:
    """A contract that is still open: why, what that means, and what closes it."""
    meaning = (
        "Nothing is broken: what is open works under its old and its new name. The next deployment that changes the "
        "image or a service closes it; at once: a task of this release with the command python -m migration_runner "
        "contract."
    )
    return _joined(f"The contract is still open: {why}", where, meaning)


def not_closed(why: str, where: str = "") -> str:
    """A contract that fails its deployment because it is still open, and is required."""
    return _joined(f"The contract is still open, and this deployment requires it: {why}", where)


def deleted(deployment: Record, *, rolls_back: bool) -> str:
    """What is left open, or missing, when the resource of a contract is being deleted; empty for nothing."""
    if rolls_back and deployment.has_closed and deployment.before not in (UNKNOWN, deployment.after):
        return (
            "The stack rolls back, but its contract has taken names away that the older release may need. To open "
            f"them, run in the newer image: python -m migration_runner reopen {deployment.before}."
        )
    if deployment.contract == OPEN:
        return (
            "The contract is still open while its resource is being deleted: what is open works under its old and its "
            "new name. A release with a contract closes it, or a task of the newer image with the command: "
            "python -m migration_runner contract."
        )
    return ""


def names_missing(reopen: Request, sentence: str, where: str = "") -> str:
    """Why a rollback could not give the older release its names back, and what does."""
    way_out = f"To open them, run in the newer image: {' '.join(reopen.command)}."
    return _joined(
        "The stack rolls back, but the names that the older release needs could not be opened again: " + sentence,
        where,
        way_out,
    )


def kept(downgrade: Request, deployment: Record) -> str:
    """Why a rollback keeps a schema that it was asked to take back."""
    seen = "its revision is unknown" if deployment.after == UNKNOWN else f"it was last seen at {deployment.after}"
    return (
        f"The stack rolls back, but the schema is kept: {seen}, and it is not known that this deployment has brought "
        f"it there from {downgrade.target}, which the older release expects. To take it back, run in the newer image: "
        f"{' '.join(downgrade.command)}."
    )


def result_line(message: str) -> dict[str, Any] | None:
    """The runner's result in a line of the task's log; None for any other line, also for one of the wrong shape."""
    line = _event(message, "migration.result")
    if line is None:
        return None
    applied, left, error = line.get("applied"), line.get("open"), line.get("error")
    if not isinstance(applied, list | None) or not isinstance(left, list | None) or not isinstance(error, dict | None):
        return None
    details = [(error or {}).get(name) for name in ("kind", "revision", "message", "hint")]
    texts = [line.get("from"), line.get("at"), *(applied or []), *(left or []), *details]
    return line if all(isinstance(text, str | None) for text in texts) else None


def last_words(messages: Sequence[str]) -> dict[str, Any] | None:
    """What the runner has told about its run: its result, or of one that was killed where it began; None for nothing.

    Args:
        messages: the lines of the task's log, or their end.
    """
    for message in reversed(messages):
        if result := result_line(message):
            return result
    for message in reversed(messages):
        started = _event(message, "migration.revision_started")
        if started and isinstance(started.get("from"), str):
            return {"from": started["from"]}
    return None


def has_succeeded(task: Mapping[str, Any], request: Request) -> bool:
    """Whether the task has stopped because the migration's container exited as it should, whatever its sidecars did."""
    exited = task["lastStatus"] == "STOPPED" and task.get("stopCode") == "EssentialContainerExited"
    passing = (0, AHEAD) if request.on_database_ahead == "proceed" else (0,)
    return exited and _container(task, request).get("exitCode") in passing


def was_refused(task: Mapping[str, Any], request: Request) -> bool:
    """Whether the database refused the task's credentials, so that nothing was begun."""
    return task["lastStatus"] == "STOPPED" and _container(task, request).get("exitCode") == REFUSED


def judge(task: Mapping[str, Any], result: Mapping[str, Any] | None, request: Request) -> Outcome:
    """Judge a task.

    Args:
        task: as ECS described it last.
        result: the runner's last words; None when there are none.
        request: what the task was started for.
    """
    said = result or {}
    container = _container(task, request)
    before, after = (str(said.get(name) or UNKNOWN) for name in ("from", "at"))
    elsewhere = after not in (UNKNOWN, *request.targets)
    left = None if said.get("open") is None else tuple(said["open"])
    if has_succeeded(task, request):
        ahead = container["exitCode"] == AHEAD
        moves = request.step in ("upgrade", "downgrade")
        after = request.target if after == UNKNOWN and not ahead and moves else after
        # An older release passes with 0 as long as both names work that a newer one has made.
        ahead = ahead or (request.step == "upgrade" and elsewhere and after != said.get("target"))
        sentence = f"The schema is at {after}{', ahead of this release, which may pass' if ahead else ''}."
        sentence = sentence if after != UNKNOWN else ""
        return Outcome(True, False, False, sentence, "", before, after, ahead, elsewhere, left)
    never_ran = task["lastStatus"] == "STOPPED" and container.get("exitCode") is None and "startedAt" not in task
    where = f"Task {task_id(task['taskArn'])}." if never_ran else _where(task, request)
    untouched = never_ran or (bool(said) and before == after and not said.get("applied"))
    sentence = _cause(task, container, said, request)
    return Outcome(False, untouched, never_ran, sentence, where, before, after, False, elsewhere, left)


def _cause(task: Mapping[str, Any], container: Mapping[str, Any], said: Mapping[str, Any], request: Request) -> str:
    stopped_reason = _sentence(task.get("stoppedReason") or "ECS gives no reason")
    details = " ".join(filter(None, (stopped_reason, container.get("reason"))))
    error = said.get("error") or {}
    facts = {
        # So that what comes after it, above all where the schema is, is never cut.
        "error": ascii_line(_error(error), MAX_ERROR if request.step == "upgrade" else MAX_SHORT_ERROR),
        "memory": request.memory_limit_mib,
        "or_proceed": OR_PROCEED if request.step == "upgrade" else "",
        "revision": error.get("revision") or UNNAMED[request.step].format(request.target),
        "schema": _schema(said),
        "stopped_reason": stopped_reason,
    }
    if task["lastStatus"] != "STOPPED":
        return f"What became of the migration is unknown: ECS last said {task['lastStatus']}. Deploy again."
    if stop_code := STOP_CODES.get(task.get("stopCode", "")):
        return stop_code.format_map(facts)
    for pattern, cause in CAUSES:
        if pattern in details:
            return f"{cause.format_map(facts)} ECS said: {_sentence(details)}"
    exit_code = container.get("exitCode")
    if exit_code is None:
        return f"The migration's task has no exit code. ECS said: {_sentence(details)}"
    what, advice = EXIT_CODES.get(exit_code, OTHER_EXIT_CODE)
    hint = _sentence(error["hint"]) if error.get("hint") else advice
    return f"{what.format_map({**facts, 'exit_code': exit_code})} {hint}"


def _event(message: str, name: str) -> dict[str, Any] | None:
    try:
        line = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and line.get("event") == name else None


def _error(error: Mapping[str, Any]) -> str:
    parts = [str(part) for part in (error.get("kind"), error.get("message")) if part]
    return _sentence(": ".join(parts) or "its log has the reason")


def _schema(said: Mapping[str, Any]) -> str:
    start, at = said.get("from"), said.get("at")
    if said and not said.get("applied") and (not start or start == at == EMPTY):
        # A run that has begun knows where.
        return "No migration has been applied."
    if not at:
        return "Where the schema is now is unknown; the next deployment finds out."
    if said.get("applied") or at != start:
        return f"The schema is at {at}: the migrations up to it stay applied."
    return f"The transaction was rolled back; the schema is still at {at}."


def _sentence(text: object) -> str:
    stripped = " ".join(str(text).split())
    return stripped if stripped.endswith((".", "!", "?")) else f"{stripped}."


def _joined(sentence: str, *ends: str) -> str:
    """Only the sentence is cut, however long a message is; of the ends the first give way, however long names are."""
    while len(end := "".join(f" {text}" for text in ends if text)) > MAX_REASON - MIN_SENTENCE:
        ends = ends[1:]
    return ascii_line(sentence, MAX_REASON - len(end)) + end


def _where(task: Mapping[str, Any], request: Request) -> str:
    text = f"Log: {request.log_group}, task {task_id(task['taskArn'])}."
    link = _console_link(request, request.log_stream(task["taskArn"]))
    return f"{text} {link}" if len(link) <= MAX_LINK else text


def _console_link(request: Request, stream: str) -> str:
    partition, _, region = request.stack_id.split(":")[1:4]
    domains = {"aws": "console.aws.amazon.com", "aws-cn": "console.amazonaws.cn"}
    if partition not in domains:
        return ""
    # The console wants each "/" escaped twice, with "$" for the "%".
    group, stream = (name.replace("/", "$252F") for name in (request.log_group, stream))
    home = f"https://{region}.{domains[partition]}/cloudwatch/home?region={region}"
    return f"{home}#logsV2:log-groups/log-group/{group}/log-events/{stream}"


def _container(task: Mapping[str, Any], request: Request) -> Mapping[str, Any]:
    named = [container for container in task.get("containers", []) if container["name"] == request.container]
    return named[0] if named else {}
