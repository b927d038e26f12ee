"""The migration's task in ECS: start it or adopt it, watch it, stop it, read its last words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, cast, get_args

from aws import CALL_ERRORS, PATIENCE, Aws, passes
from outcome import has_succeeded, last_words, result_line
from request import Request, Step, is_meant

LOGGER = logging.getLogger(__name__)
STOPPED = "STOPPED"
MAX_ATTEMPTS = 10
START_PATIENCE = 300.0
MISSING_PATIENCE = 120.0
# ECS is consistent only eventually: a task that was started just now may not be listed yet.
VISIBLE_SECONDS = 30.0
# A container gets 120 seconds to end; CloudFormation stops listening 180 seconds after the deadline.
STOP_PATIENCE = 140.0
LOG_TRIES = 3
# The result is the last line; a run that was killed has told at each revision where it began.
LOG_LINES = 1000
LOG_PATIENCE = 15.0
# python -m migration_runner STEP
RUNNERS_COMMAND = 4

Task = dict[str, Any]


class NotStartedError(RuntimeError):
    """There is no task to wait for; the message is for the person who deploys."""


class TooLateError(NotStartedError):
    """The request is one of a deployment that is over: nobody waits for an answer."""


class Tasks:
    """The tasks of one migration: those whose ``startedBy`` is the resource's constant id.

    Attributes:
        passed_over: those that had failed for the same event before one was started anew.
    """

    def __init__(self, aws: Aws, request: Request) -> None:
        self.aws = aws
        self.request = request
        self.passed_over: list[Task] = []

    def start(self, deadline: float, is_over: Callable[[], bool]) -> Task:
        """Start the task, or adopt the one that an earlier delivery of the same event has started.

        Args:
            deadline: when the task must have ended, in seconds since the epoch.
            is_over: whether the request has been cancelled; asked each time just before a task might be started.

        Raises:
            NotStartedError: ECS has had no room for it for five minutes, ten tasks of this event have failed,
                its deadline has passed, or, a TooLateError, the request is over.
        """
        give_up = min(self.aws.now() + START_PATIENCE, deadline)
        pause = 5.0
        while True:
            for task in self.unfinished():
                if self.runs(task):
                    return task
                self.stop(task, "a newer migration replaces this one")
            answer = self._run_or_adopt(deadline, is_over)
            if answer["tasks"]:
                started: Task = answer["tasks"][0]
                return started
            if self.aws.now() >= give_up:
                reason = answer["failures"][0]["reason"] if answer["failures"] else "no reason was given"
                raise NotStartedError(f"ECS did not start the migration's task: {reason}. Nothing has changed.")
            self.aws.sleep(pause)
            pause = min(2 * pause, 30.0)

    def watch(self, arn: str, deadline: float, stop_reason: str, time_is_up: Callable[[], bool]) -> Task | None:
        """Wait until the task has stopped, and stop it at the deadline.

        Args:
            arn: of the task.
            deadline: when to stop it, in seconds since the epoch; the past stops it at once.
            stop_reason: what ECS keeps as the reason then.
            time_is_up: whether this invocation must hand the watch on.

        Returns:
            The task as ECS last described it, not stopped when ECS has lost it or can't end it in time;
            None when the time of this invocation is up.
        """
        seen = self.aws.now()
        task: Task = {"taskArn": arn, "lastStatus": "MISSING"}
        stopping = False
        while True:
            now = self.aws.now()
            try:
                found = self._call(self.aws.ecs.describe_tasks, tasks=[arn])["tasks"]
                if found:
                    task, seen = found[0], now
                if task["lastStatus"] == STOPPED:
                    return task
                if found and now >= deadline and not stopping:
                    self._call(self.aws.ecs.stop_task, task=arn, reason=stop_reason)
                    stopping = True
            except CALL_ERRORS as error:
                if now - seen > PATIENCE and not passes(error, PATIENCE):
                    raise
                LOGGER.warning("a call to ECS has failed, and is made again: %s", error)
            else:
                # ECS is consistent only eventually: a task that has just started may be unknown for a while.
                if now - seen > MISSING_PATIENCE:
                    return {**task, "lastStatus": "MISSING"}
            if now - deadline > STOP_PATIENCE:
                return task
            if time_is_up():
                return None
            self.aws.sleep(1)

    def stop(self, task: Task, reason: str) -> Task:
        """Stop the task and wait for it; the task as ECS described it last."""
        return self.watch(task["taskArn"], self.aws.now(), reason, time_is_up=lambda: False) or task

    def tell_to_stop(self, arn: str, reason: str) -> None:
        """Stop the task without a look at it, for when ECS does not describe it."""
        self._patiently(self.aws.ecs.stop_task, task=arn, reason=reason)

    def runs(self, task: Task) -> bool:
        """Whether the task does, and goes on to do, what the request asks for."""
        same = is_meant(task["taskDefinitionArn"], self.request.task_definition)
        return same and self._command_of(task) == list(self.request.command) and task["desiredStatus"] != STOPPED

    def ended_since(self, moment: float, step: Step) -> list[Task]:
        """The tasks of a step that were started since then, in seconds since the epoch, and ended; oldest first."""
        ended = [task for task in self._own() if task["lastStatus"] == STOPPED and self.step_of(task) == step]
        recent = [task for task in ended if task["createdAt"].timestamp() >= moment]
        return sorted(recent, key=lambda task: task["createdAt"])

    def step_of(self, task: Task) -> Step:
        """What the task does."""
        for step in get_args(Step):
            if step in self._command_of(task)[:RUNNERS_COMMAND]:
                return cast(Step, step)
        return "upgrade"

    def result(self, task: Task) -> dict[str, Any] | None:
        """The runner's last words at the end of the task's log; None when there are none, or they can't be read."""
        messages: list[str] = []
        for attempt in range(LOG_TRIES):
            try:
                events = self.aws.call(
                    self.aws.logs.get_log_events,
                    patience=LOG_PATIENCE,
                    logGroupName=self.request.log_group,
                    logStreamName=self.request.log_stream(task["taskArn"]),
                    startFromHead=False,
                    limit=LOG_LINES,
                )["events"]
            except self.aws.logs.exceptions.ResourceNotFoundException:
                events = []
            except CALL_ERRORS:
                # The container's exit code has decided already: only the details are missing.
                LOGGER.exception("the task's log can't be read")
                return None
            messages = [event["message"] for event in events]
            if any(map(result_line, messages)):
                break
            if attempt < LOG_TRIES - 1:
                self.aws.sleep(0.3)
        return last_words(messages)

    def unfinished(self) -> list[Task]:
        """The tasks that still run, also those that are told to stop."""
        return [task for task in self._own() if task["lastStatus"] != STOPPED]

    def _own(self) -> list[Task]:
        """The tasks that ECS still knows; none when the cluster is gone."""
        # startedBy must be the only filter, and then finds what is meant to run, whatever the family's name was. A task
        # that is told to stop is listed as STOPPED while it still runs.
        own_id = self.request.started_by
        filters = [{"startedBy": own_id}]
        filters += [{"family": family, "desiredStatus": STOPPED} for family in sorted(self.request.families)]
        try:
            listed = [task for one in filters for task in self._listed(one)]
        except self.aws.ecs.exceptions.ClusterNotFoundException:
            return []
        return [task for task in listed if task.get("startedBy") == own_id]

    def _command_of(self, task: Task) -> list[str]:
        """What the task's container runs instead of what its task definition says."""
        overrides = task.get("overrides", {}).get("containerOverrides", [])
        own = [one for one in overrides if one["name"] == self.request.container]
        return list(own[0].get("command", [])) if own else []

    def _listed(self, filters: dict[str, str]) -> Iterator[Task]:
        """The tasks behind the filters, described a page at a time: ECS lists and describes 100 at most."""
        position: dict[str, str] = {}
        while True:
            page = self._patiently(self.aws.ecs.list_tasks, **filters, **position)
            if arns := page["taskArns"]:
                yield from self._patiently(self.aws.ecs.describe_tasks, tasks=arns)["tasks"]
            if "nextToken" not in page:
                return
            position = {"nextToken": page["nextToken"]}

    def _run_or_adopt(self, deadline: float, is_over: Callable[[], bool]) -> dict[str, Any]:
        # Lambda delivers an event again whose invocation was lost: the failure of an earlier delivery is no answer.
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if self.aws.now() >= deadline:
                raise NotStartedError("There is no time left to run the migration's task. Nothing more has changed.")
            answer = self._run(attempt, is_over)
            stopped = [task for task in answer["tasks"] if task["lastStatus"] == STOPPED]
            if all(has_succeeded(task, self.request) for task in stopped):
                return answer
            self.passed_over += stopped
        raise NotStartedError(
            f"The same request has been delivered {MAX_ATTEMPTS} times, and each time the migration's task has "
            f"failed. The reason is in {self.request.log_group}."
        )

    def _run(self, attempt: int, is_over: Callable[[], bool]) -> dict[str, Any]:
        request = self.request

        def run_task(**parameters: Any) -> dict[str, Any]:
            if is_over():
                raise TooLateError
            answer: dict[str, Any] = self.aws.ecs.run_task(**parameters)
            return answer

        network = {
            "subnets": list(request.subnets),
            "securityGroups": list(request.security_groups),
            "assignPublicIp": request.assign_public_ip,
        }
        override: dict[str, Any] = {"name": request.container, "command": list(request.command)}
        if request.step == "contract":
            # The newest of a family may be another release's, which then refuses to close what is not its own.
            override["environment"] = [{"name": "MIGRATION_TARGET", "value": request.target}]
        try:
            return self._patiently(
                run_task,
                taskDefinition=request.task_definition,
                launchType="FARGATE",
                networkConfiguration={"awsvpcConfiguration": network},
                overrides={"containerOverrides": [override] if request.command else []},
                startedBy=request.started_by,
                clientToken=request.client_token(attempt),
            )
        except self.aws.ecs.exceptions.ConflictException as conflict:
            # The token is in use: by our own task.
            arn = conflict.response["resourceIds"][0]
            return {"tasks": self._patiently(self.aws.ecs.describe_tasks, tasks=[arn])["tasks"], "failures": []}

    def _call(self, operation: Callable[..., dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        return operation(cluster=self.request.cluster, **parameters)

    def _patiently(self, operation: Callable[..., dict[str, Any]], **parameters: Any) -> dict[str, Any]:
        return self.aws.call(operation, cluster=self.request.cluster, **parameters)
