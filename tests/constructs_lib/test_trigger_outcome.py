"""Stopped tasks, recorded as ECS describes them, and the sentence that each becomes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from cfn_response import MAX_REASON
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome import judge, kept, last_words, result_line, stuck
from record import Record
from request import Request

from tests.constructs_lib.world import FAILED, STACK, SUCCEEDED, World

ARN = "arn:aws:ecs:us-west-2:111122223333:task/dev-inventory-cluster/4f1c8d2e9a7b4c6d8e0f1a2b3c4d5e6f"
REQUEST = Request.parse(World().request("Update"))
IMAGE = "111122223333.dkr.ecr.us-west-2.amazonaws.com/cdk-hnb659fds-container-assets-111122223333-us-west-2:0c9f"


def known(fingerprint: str, before: str, after: str, **fields: Any) -> Record:
    return Record(fingerprint=fingerprint, before=before, after=after, **fields)


TEXT = st.none() | st.text(max_size=9)
ANYTHING = st.recursive(
    TEXT | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
    max_leaves=4,
)


def some(texts: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, each with a value of its own shape or with anything."""
    return st.fixed_dictionaries({}, optional={name: shape | ANYTHING for name, shape in texts.items()})


ERRORS = some(dict.fromkeys(("kind", "revision", "message", "hint"), TEXT))
RESULTS = some({"from": TEXT, "at": TEXT, "applied": st.lists(TEXT, max_size=2), "error": ERRORS})


def exited(code: int, **container: Any) -> dict[str, Any]:
    return {
        "taskArn": ARN,
        "lastStatus": "STOPPED",
        "stopCode": "EssentialContainerExited",
        "stoppedReason": "Essential container in task exited",
        "startedAt": "2026-01-01T00:00:00Z",
        "containers": [{"name": "migration", "exitCode": code, **container}],
    }


def not_started(reason: str) -> dict[str, Any]:
    return {
        "taskArn": ARN,
        "lastStatus": "STOPPED",
        "stopCode": "TaskFailedToStart",
        "stoppedReason": reason,
        "containers": [{"name": "migration", "lastStatus": "STOPPED"}],
    }


def stopped(code: str, reason: str) -> dict[str, Any]:
    return {**exited(143), "stopCode": code, "stoppedReason": reason}


def said(kind: str, message: str, **fields: Any) -> dict[str, Any]:
    error = {"kind": kind, "message": message, "revision": None, "hint": fields.pop("hint", None)}
    return {**FAILED, "error": error, **fields}


def reason(task: dict[str, Any], result: dict[str, Any] | None) -> str:
    outcome = judge(task, result, REQUEST)
    assert not outcome.succeeded
    return outcome.reason


def test_only_a_stopped_task_whose_container_exited_with_zero_is_a_success() -> None:
    assert judge(exited(0), SUCCEEDED, REQUEST).succeeded


def test_a_sidecar_does_not_decide_about_the_migration() -> None:
    agent = {"name": "aws-guardduty-agent-4f1c", "exitCode": 137}
    assert judge({**exited(0), "containers": [agent, *exited(0)["containers"]]}, SUCCEEDED, REQUEST).succeeded
    assert not judge(
        {**exited(1), "containers": [{**agent, "exitCode": 0}, *exited(1)["containers"]]}, FAILED, REQUEST
    ).succeeded


@pytest.mark.parametrize(
    "task",
    [
        {**exited(0), "lastStatus": "RUNNING"},
        {**exited(0), "lastStatus": "STOPPING"},
        {**exited(0), "lastStatus": "MISSING"},
        {**exited(0), "stopCode": "UserInitiated"},
        {**exited(0), "stopCode": "TaskFailedToStart"},
        {**exited(0), "containers": []},
        {**exited(0), "containers": [{"name": "sidecar", "exitCode": 0}]},
        {**exited(0), "containers": [{"name": "migration"}]},
        {**exited(0), "containers": [{"name": "migration", "exitCode": None}]},
        {"taskArn": ARN, "lastStatus": "MISSING"},
    ],
)
def test_everything_else_is_a_failure(task: dict[str, Any]) -> None:
    assert not judge(task, SUCCEEDED, REQUEST).succeeded


def test_a_tool_that_says_nothing_has_reached_the_target_when_it_exits_with_zero() -> None:
    outcome = judge(exited(0), None, REQUEST)
    assert (outcome.before, outcome.after) == ("-", "49871d03964c")


@pytest.mark.parametrize(
    ("task", "result", "sentence"),
    [
        (
            exited(1),
            FAILED,
            'Migration 49871d03964c failed: UndefinedColumn: column "name" does not exist. The transaction was rolled '
            "back; the schema is still at 48871d03964b. Log: /ecs/dev/migration-task, task "
            "4f1c8d2e9a7b4c6d8e0f1a2b3c4d5e6f.",
        ),
        (
            exited(1),
            {**FAILED, "at": "4a", "applied": ["4a"]},
            'Migration 49871d03964c failed: UndefinedColumn: column "name" does not exist. The schema is at 4a: the '
            "migrations up to it stay applied. Log:",
        ),
        (
            exited(3),
            said("ConnectionLost", "the server closed the connection", at=None),
            "The database could not be reached, or the connection was lost: ConnectionLost: the server closed the "
            "connection. Where the schema is now is unknown; the next deployment finds out. It is safe to deploy "
            "again. Log:",
        ),
        (
            exited(1),
            {**FAILED, "from": None, "at": None, "applied": ["4a"]},
            'Migration 49871d03964c failed: UndefinedColumn: column "name" does not exist. Where the schema is now is '
            "unknown; the next deployment finds out. Log:",
        ),
        (
            exited(1),
            {**FAILED, "from": None, "at": None},
            'Migration 49871d03964c failed: UndefinedColumn: column "name" does not exist. No migration has been '
            "applied. Log:",
        ),
        (
            exited(1),
            None,
            "Migration 49871d03964c failed: its log has the reason. Where the schema is now is unknown; the next "
            "deployment finds out. Log:",
        ),
        (
            exited(2),
            said("NoRevisions", "the image has no revision files", hint="Copy migrations/ into the image"),
            "The migration was not started: NoRevisions: the image has no revision files. Nothing has changed. Copy "
            "migrations/ into the image. Log:",
        ),
        (
            exited(3),
            said("Unreachable", "db.example did not answer within 60 seconds.", **{"from": None, "at": None}),
            "The database could not be reached, or the connection was lost: Unreachable: db.example did not answer "
            "within 60 seconds. No migration has been applied. It is safe to deploy again. Log:",
        ),
        (
            exited(1),
            {**FAILED, "from": "base", "at": "base"},
            'Migration 49871d03964c failed: UndefinedColumn: column "name" does not exist. No migration has been '
            "applied. Log:",
        ),
        (
            exited(3),
            said("SessionLost", "The session with the database was lost.", **{"from": "base", "at": None}),
            "The database could not be reached, or the connection was lost: SessionLost: The session with the database "
            "was lost. Where the schema is now is unknown; the next deployment finds out. It is safe to deploy again.",
        ),
        (
            exited(4),
            said("LockNotAvailable", "task 9f holds the lock"),
            "The migration has not got a lock in time: LockNotAvailable: task 9f holds the lock. The transaction was "
            "rolled back; the schema is still at 48871d03964b. Deploy again when it is free. Log:",
        ),
        (
            exited(5),
            said("DatabaseAhead", "it is at 50"),
            'The database is ahead of this image: DatabaseAhead: it is at 50. on_database_ahead="proceed" would let '
            "this release pass. Deploy a release that has the database's revision. Log:",
        ),
        (
            exited(6),
            said("InvalidPassword", "password authentication failed"),
            "The database refused the credentials: InvalidPassword: password authentication failed. Check the user "
            "and the password in the secret. Log:",
        ),
        (
            exited(137),
            None,
            "The migration was killed, perhaps out of memory: memory_limit_mib is 512. Where the schema is now is "
            "unknown; the next deployment finds out. Log:",
        ),
        (
            exited(137, reason="OutOfMemoryError: Container killed due to memory usage"),
            None,
            "The migration ran out of memory: raise memory_limit_mib (now 512). Where the schema is now is unknown; "
            "the next deployment finds out. ECS said: Essential container in task exited. OutOfMemoryError: Container "
            "killed due to memory usage. Log:",
        ),
        (
            exited(143),
            FAILED,
            "The migration was told to stop. The transaction was rolled back; the schema is still at 48871d03964b. "
            "Log:",
        ),
        (
            exited(139),
            None,
            "The migration's container exited with code 139: its log has the reason. Where the schema is now is "
            "unknown; the next deployment finds out. Log:",
        ),
        (
            not_started(
                "CannotPullContainerError: pull image manifest has been retried 5 time(s): failed to resolve ref "
                f"{IMAGE}: failed to do request: dial tcp 52.94.1.2:443: i/o timeout"
            ),
            None,
            "The migration's image could not be pulled. Either it does not exist, or the task's subnets have no route "
            "to ECR: add the endpoints ecr.api, ecr.dkr, s3 and logs, or a NAT gateway. ECS said: CannotPullContainer",
        ),
        (
            not_started(
                "ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: "
                "failed to create Cloudwatch log stream: ResourceNotFoundException: The specified log group does not "
                "exist. : exit status 1"
            ),
            None,
            "The migration's log could not be opened. Either the log group is gone, or",
        ),
        (
            not_started(
                "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval "
                "failed: unable to retrieve secret from asm: service call has been retried 1 time(s)"
            ),
            None,
            "The database's secret or the registry's token could not be read. Either the execution role may not read",
        ),
        (
            not_started("ECS was unable to assume the role 'arn:aws:iam::111122223333:role/r' that was provided"),
            None,
            "ECS may not use the migration's role.",
        ),
        (
            not_started("ResourceInitializationError: failed to invoke EFS utils commands"),
            None,
            "The migration's task could not be set up.",
        ),
        (
            not_started(
                "CannotStartContainerError: Error response from daemon: failed to create task for container: exec: "
                '"python": executable file not found in $PATH'
            ),
            None,
            "The migration's command is not in the image: check the command.",
        ),
        (
            not_started("CannotStartContainerError: exec /usr/bin/python: exec format error"),
            None,
            "The migration's image is built for another processor: build it for runtime_platform's.",
        ),
        (
            not_started("CannotStartContainerError: unable to find user app: no matching entries in passwd file"),
            None,
            "The migration's container could not be started: check the command and the user.",
        ),
        (
            not_started("CannotCreateContainerError: API error (409): Conflict"),
            None,
            "The migration's container could not be made: check the task definition.",
        ),
        (
            not_started("Timeout waiting for network interface provisioning to complete."),
            None,
            "The migration's task got no network interface: look for free addresses in its subnets, then deploy again.",
        ),
        (
            not_started("Something new"),
            None,
            "The migration's task has no exit code. ECS said: Something new. Task 4f1c8d2e9a7b4c6d8e0f1a2b3c4d5e6f.",
        ),
        (
            stopped("SpotInterruption", "Your Spot Task was interrupted."),
            FAILED,
            "AWS took back the migration's Spot capacity: deploy again. The transaction was rolled back; the schema "
            "is still at 48871d03964b. Log:",
        ),
        (
            stopped("TerminationNotice", "ECS is performing maintenance on the underlying infrastructure"),
            None,
            "AWS retired the migration's host: deploy again.",
        ),
        (
            stopped("InfrastructureHealth", "The host is unhealthy"),
            None,
            "The migration's host became unhealthy: deploy again.",
        ),
        (
            stopped("UserInitiated", "it took longer than its timeout of 30 min."),
            FAILED,
            "The migration was stopped: it took longer than its timeout of 30 min. The transaction was rolled "
            "back; the schema is still at 48871d03964b. Log:",
        ),
        (
            {**exited(0), "lastStatus": "RUNNING"},
            None,
            "What became of the migration is unknown: ECS last said RUNNING. Deploy again. Log:",
        ),
    ],
)
def test_a_person_reads_what_happened_where_the_schema_is_and_what_to_do(
    task: dict[str, Any], result: dict[str, Any] | None, sentence: str
) -> None:
    assert reason(task, result).startswith(sentence)


def test_a_task_that_never_ran_has_left_the_schema_alone_and_no_log() -> None:
    outcome = judge(not_started("CannotPullContainerError: not found"), None, REQUEST)
    assert outcome.untouched
    assert "Log:" not in outcome.reason


@pytest.mark.parametrize(
    ("result", "untouched"),
    [
        (FAILED, True),
        ({**FAILED, "at": "4a"}, False),
        ({**FAILED, "at": None}, False),
        ({**FAILED, "applied": ["4a"]}, False),
        (None, False),
    ],
)
def test_the_schema_counts_as_untouched_only_when_the_runner_says_so(
    result: dict[str, Any] | None, untouched: bool
) -> None:
    assert judge(exited(1), result, REQUEST).untouched is untouched


def test_the_reason_links_to_the_log_stream_in_the_console() -> None:
    assert reason(exited(1), FAILED).endswith(
        " https://us-west-2.console.aws.amazon.com/cloudwatch/home?region=us-west-2#logsV2:log-groups/log-group/"
        "$252Fecs$252Fdev$252Fmigration-task/log-events/"
        "migration$252Fmigration$252F4f1c8d2e9a7b4c6d8e0f1a2b3c4d5e6f"
    )


@settings(deadline=None)
@given(message=st.text(min_size=20, max_size=40).map(lambda text: f"x{text}" * 50), hint=st.text(max_size=99))
def test_the_log_is_named_however_much_the_database_has_to_say(message: str, hint: str) -> None:
    text = reason(exited(1), said("Verbose", message, hint=hint))
    assert len(text) <= 1000
    assert text.isascii()
    assert text.startswith("Migration 49871d03964c failed: Verbose: ")
    assert text.endswith("4f1c8d2e9a7b4c6d8e0f1a2b3c4d5e6f")


def test_braces_in_a_message_are_only_text() -> None:
    assert '"{memory}" is missing' in reason(exited(1), said("SyntaxError", 'near "{memory}" is missing'))


@settings(deadline=None)
@given(fields=RESULTS, exit_code=st.sampled_from([0, 1, 2, 3, 137, 139]))
def test_no_line_of_the_log_can_keep_a_task_from_being_judged(fields: dict[str, Any], exit_code: int) -> None:
    outcome = judge(exited(exit_code), result_line(json.dumps({"event": "migration.result", **fields})), REQUEST)
    assert outcome.succeeded is (exit_code == 0)
    assert isinstance(outcome.before, str)
    assert isinstance(outcome.after, str)


@pytest.mark.parametrize("line", [SUCCEEDED, FAILED, {"event": "migration.result"}], ids=["good", "bad", "bare"])
def test_what_the_runner_says_is_read_as_it_is(line: dict[str, Any]) -> None:
    assert result_line(json.dumps(line)) == line


@pytest.mark.parametrize(
    "fields",
    [
        {"error": "boom"},
        {"error": ["boom"]},
        {"error": False},
        {"error": {"message": ["boom"]}},
        {"error": {"hint": 7}},
        {"error": {"revision": {}}},
        {"from": 7},
        {"at": ["4a"]},
        {"applied": "4a"},
        {"applied": [7]},
    ],
)
def test_a_result_line_of_the_wrong_shape_is_none(fields: dict[str, Any]) -> None:
    assert result_line(json.dumps({**FAILED, **fields})) is None


@pytest.mark.parametrize("message", ["", "bye", "7", "[]", "null", '{"event": "bye"}', "[" * 100_000, '{"":' * 100_000])
def test_any_other_line_is_no_result_line(message: str) -> None:
    assert result_line(message) is None


def test_the_last_words_are_the_newest_result() -> None:
    lines = [json.dumps({**FAILED, "at": "old"}), json.dumps(FAILED), "not JSON"]
    assert last_words(lines) == FAILED


@pytest.mark.parametrize("start", [None, 7, ["4a"]])
def test_a_killed_run_that_does_not_say_where_it_began_has_no_last_words(start: Any) -> None:
    assert last_words([json.dumps({"event": "migration.revision_started", "from": start})]) is None


def test_a_killed_run_has_told_where_it_began() -> None:
    line = json.dumps({"event": "migration.revision_started", "revision": "4b", "from": "4a"})
    assert last_words(["noise", line, "noise"]) == {"from": "4a"}
    killed = judge(exited(137), last_words([line]), REQUEST)
    assert (killed.before, killed.after, killed.untouched) == ("4a", "-", False)
    assert "Where the schema is now is unknown" in killed.reason


@pytest.mark.parametrize(
    ("exit_code", "on_database_ahead", "succeeds"),
    [(5, "proceed", True), (5, "fail", False), (0, "proceed", True), (1, "proceed", False), (6, "proceed", False)],
)
def test_only_a_database_that_is_ahead_may_be_let_pass(exit_code: int, on_database_ahead: str, succeeds: bool) -> None:
    request = replace(REQUEST, on_database_ahead=on_database_ahead)
    assert judge(exited(exit_code), None, request).succeeded is succeeds


def test_where_a_database_is_that_is_ahead_stays_unknown_when_the_runner_does_not_tell() -> None:
    outcome = judge(exited(5), None, replace(REQUEST, on_database_ahead="proceed"))
    assert (outcome.before, outcome.after) == ("-", "-")


DOWNGRADE = replace(
    REQUEST,
    target="48871d03964b",
    step="downgrade",
    command=("python", "-m", "migration_runner", "downgrade", "48871d03964b"),
)


def test_a_downgrade_is_not_told_to_let_the_release_pass() -> None:
    assert "proceed" not in judge(exited(5), said("DatabaseAhead", "it is at 50"), DOWNGRADE).reason


@pytest.mark.parametrize(
    "downgrade",
    [DOWNGRADE, replace(DOWNGRADE, stack_id=STACK.replace("DevStack", "s" * 128), logical_id="l" * 255)],
    ids=["usual names", "the longest names"],
)
def test_however_long_a_message_and_names_are_both_ways_out_are_in_the_reason(downgrade: Request) -> None:
    outcome = judge(exited(1), said("Boom", "x" * 5000, hint="y" * 5000), downgrade)
    reason = stuck(downgrade, outcome.sentence, outcome.where)
    assert reason.startswith("The schema could not be taken back to 48871d03964b: Migration back to 48871d03964b fail")
    assert f" --resources-to-skip {downgrade.logical_id}." in reason
    assert len(reason) <= MAX_REASON


def test_a_log_link_that_is_too_long_is_left_out() -> None:
    request = replace(REQUEST, log_group="/" + "g" * 511)
    reason = judge(exited(1), FAILED, request).reason
    assert "https://" not in reason
    assert reason.endswith("task 4f1c8d2e9a7b4c6d8e0f1a2b3c4d5e6f.")


def test_what_is_kept_says_where_the_schema_is_and_how_it_is_taken_back() -> None:
    sentence = kept(DOWNGRADE, known("new", "-", "50"))
    assert "it was last seen at 50" in sentence
    assert sentence.endswith("run in the newer image: python -m migration_runner downgrade 48871d03964b.")


@pytest.mark.parametrize("status", ["RUNNING", "STOPPING", "DEPROVISIONING", "MISSING"])
def test_what_has_not_stopped_has_not_ended(status: str) -> None:
    sentence = judge({**exited(1), "lastStatus": status}, FAILED, REQUEST).sentence
    assert sentence == f"What became of the migration is unknown: ECS last said {status}. Deploy again."


def test_a_task_with_an_exit_code_has_run_whatever_else_is_missing() -> None:
    ended = {name: value for name, value in exited(1).items() if name != "startedAt"}
    assert judge(ended, FAILED, REQUEST).where.startswith("Log: ")
    assert not judge(ended, None, REQUEST).untouched


@pytest.mark.parametrize(("request_", "limit"), [(REQUEST, 400), (DOWNGRADE, 150)])
def test_only_a_long_message_is_cut(request_: Request, limit: int) -> None:
    kind = "Boom: "
    fits = "x" * (limit - len(kind) - 1)
    assert f"{kind}{fits}. The transaction" in judge(exited(1), said("Boom", fits), request_).sentence
    assert f"{kind}{fits[:-2]}... The transaction" in judge(exited(1), said("Boom", fits + "x"), request_).sentence


@pytest.mark.parametrize("code", [5, 0])
def test_a_release_that_passes_is_ahead_only_when_the_runner_says_so(code: int) -> None:
    assert judge(exited(code), None, replace(REQUEST, on_database_ahead="proceed")).ahead is (code == 5)
    assert not judge(exited(1), FAILED, REQUEST).ahead


def test_the_first_task_that_tells_has_seen_where_the_deployment_began() -> None:
    first = judge(exited(1), {**FAILED, "from": "4a", "at": "4b", "applied": ["4b"]}, REQUEST)
    second = judge(exited(1), {**FAILED, "from": "4b", "at": "4b", "applied": []}, REQUEST)
    record = second.added_to(first.added_to(known("f", "-", "4a", running=True), "-"), "-")
    assert record == known("-", "4a", "4b")


def test_a_failure_that_has_moved_nothing_leaves_what_is_known() -> None:
    failure = judge(exited(1), {**FAILED, "from": "4a", "at": "4a", "applied": []}, REQUEST)
    assert failure.added_to(known("f", "-", "4a", running=True), "g") == known("f", "4a", "4a")
    assert failure.added_to(known("f", "-", "other", running=True), "g") == known("-", "4a", "4a")
    never_ran = judge(not_started("CannotPullContainerError"), None, REQUEST)
    assert never_ran.added_to(known("f", "-", "4a", running=True), "g") == known("f", "-", "4a")


def test_what_is_open_is_known_from_the_last_task_that_ran() -> None:
    before = known("f", "-", "4a", contract="open")
    never_ran = judge(not_started("CannotPullContainerError"), None, REQUEST)
    assert never_ran.added_to(before, "g").contract == "open"
    for left, contract in ((None, "-"), ([], "closed"), (["items.name -> sku"], "open")):
        success = judge(exited(0), {**SUCCEEDED, "open": left}, REQUEST)
        assert (success.contract, success.added_to(before, "g").contract) == (contract, contract)


@pytest.mark.parametrize("left", ["name -> sku", [7], {"name": "sku"}])
def test_a_result_whose_open_names_are_out_of_shape_is_none(left: Any) -> None:
    assert result_line(json.dumps({**SUCCEEDED, "open": left})) is None


@pytest.mark.parametrize(
    ("at", "target", "ahead"),
    [
        ("49871d03964c", "49871d03964c", False),
        ("48871d03964b", "49871d03964c", False),
        ("4a", "4a", False),
        ("50871d03964d", "49871d03964c", True),
    ],
)
def test_a_success_elsewhere_than_at_a_target_is_one_of_a_release_that_may_pass(
    at: str, target: str, ahead: bool
) -> None:
    # The expand target, the head, and what the command itself has named.
    release = replace(REQUEST, targets=("48871d03964b", "49871d03964c"))
    assert judge(exited(0), {**SUCCEEDED, "at": at, "target": target}, release).ahead is ahead


def test_a_success_gives_the_schema_its_fingerprint_unless_it_is_ahead() -> None:
    success = judge(exited(0), {**SUCCEEDED, "from": "4a", "at": "4b"}, replace(REQUEST, targets=("4b",)))
    assert success.added_to(known("f", "-", "4a", running=True), "g") == known("g", "4a", "4b")
    ahead = judge(exited(5), {**FAILED, "from": "50", "at": "50"}, replace(REQUEST, on_database_ahead="proceed"))
    assert ahead.added_to(known("f", "-", "4a", running=True), "g") == known("-", "50", "50")
