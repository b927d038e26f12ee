"""What operators get to know of an answer: a metric in the log, and a message to a topic."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.constructs_lib.world import FAILED, Run, World, fault

TOPIC = "arn:aws:sns:us-west-2:111122223333:failures"


def metrics(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Lines of CloudWatch's embedded metric format, as the log would read them: each one JSON object."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def values(line: dict[str, Any]) -> dict[str, float]:
    """The metrics of a line, found by what its directive says."""
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "DatabaseMigration"
    assert [[line[name] for name in names] for names in directive["Dimensions"]] == [["DevStack", "Migration8F2B1C3D"]]
    return {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}


def test_every_answer_is_one_metric_line(capsys: pytest.CaptureFixture[str]) -> None:
    world = World([Run(seconds=42), Run(exit_code=1, said=FAILED)])
    world.deliver("Update", "migrates")
    world.deliver("Update", "unchanged")
    world.deliver("Update", "fails", Fingerprint="newer")
    world.deliver("Delete", "deletes")
    assert [values(line) for line in metrics(capsys)] == [
        {"Failures": 0, "Duration": 42},
        {"Failures": 0},
        {"Failures": 1},
        {"Failures": 0},
    ]


def test_a_metric_has_the_time_of_its_answer_in_milliseconds_and_its_unit(capsys: pytest.CaptureFixture[str]) -> None:
    world = World([Run(seconds=42)])
    world.deliver("Update")
    (line,) = metrics(capsys)
    assert line["_aws"]["Timestamp"] == world.clock * 1000
    units = {metric["Name"]: metric["Unit"] for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert units == {"Failures": "Count", "Duration": "Seconds"}


def test_an_answer_that_was_not_delivered_is_counted_only_when_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    world = World([Run(exit_code=1, said=FAILED)] * 2, undeliverable=5)
    with pytest.raises(Exception, match="not taken the answer"):
        world.invoke(world.request("Update"))
    assert metrics(capsys) == []
    world.deliver("Update")
    assert [values(line) for line in metrics(capsys)] == [{"Failures": 1}]


def test_a_failure_is_told_to_the_topic_after_cloudformation() -> None:
    world = World([Run(exit_code=1, said=FAILED)])
    answer = world.deliver("Update", FailureTopic=TOPIC)
    assert world.messages == [
        {"TopicArn": TOPIC, "Subject": "DevStack: the database migration failed", "Message": answer["Reason"]}
    ]


def test_a_success_is_told_to_nobody() -> None:
    world = World([Run()])
    world.deliver("Update", FailureTopic=TOPIC)
    assert world.messages == []


def test_a_request_without_properties_is_answered_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    world = World()
    event = world.request("Update")
    del event["ResourceProperties"]
    world.invoke(event)
    assert world.answers[0]["Status"] == "FAILED"
    assert [values(line) for line in metrics(capsys)] == [{"Failures": 1}]


@pytest.mark.parametrize("error", [fault("AuthorizationErrorException", service="sns"), ValueError("odd")])
def test_a_topic_that_can_not_be_told_changes_no_answer(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    world = World([Run(exit_code=1, said=FAILED)], faults={"Publish": [error] * 99})
    assert world.deliver("Update", FailureTopic=TOPIC)["Status"] == "FAILED"
    assert len(world.answers) == 1
    assert "operators have not been told" in caplog.text


def test_a_subject_is_no_longer_than_sns_takes() -> None:
    world = World([Run(exit_code=1, said=FAILED)])
    event = world.request("Update", FailureTopic=TOPIC)
    long = {**event, "StackId": event["StackId"].replace("DevStack", "x" * 128)}
    world.invoke(long)
    assert len(world.messages[0]["Subject"]) == 100


def test_a_request_of_a_deployment_that_is_over_alarms_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    world = World(stack_status="UPDATE_COMPLETE")
    assert "came too late" in world.deliver("Update", FailureTopic=TOPIC)["Reason"]
    assert world.messages == []
    assert [values(line) for line in metrics(capsys)] == [{"Failures": 0}]


def test_a_message_is_one_line_of_a_thousand_characters_whatever_aws_says() -> None:
    error = fault("AccessDeniedException", "\n\u6f22" + "x" * 300_000)
    world = World(faults={"RunTask": [error] * 99})
    world.deliver("Update", FailureTopic=TOPIC)
    (message,) = world.messages
    assert len(message["Message"]) == 1000
    assert message["Message"].isascii()
    assert "\n" not in message["Message"]


def test_properties_that_are_null_are_answered_once() -> None:
    world = World()
    world.invoke({**world.request("Update"), "ResourceProperties": None})
    assert [answer["Status"] for answer in world.answers] == ["FAILED"]
