from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from cfn_response import Answer, NotDeliveredError, ascii_line, body, put, send
from hypothesis import given, settings
from hypothesis import strategies as st

ATTRIBUTES = ("RevisionBefore", "RevisionAfter", "TaskArn", "Duration")
LONG = st.tuples(st.text(max_size=30), st.integers(0, 200)).map(lambda drawn: drawn[0] * drawn[1])


@dataclass
class CloudFormation:
    """A web server that takes answers as S3 does."""

    statuses: list[int] = field(default_factory=list)
    received: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def cloudformation() -> Iterator[CloudFormation]:
    state = CloudFormation()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            state.received.append((self.command, self.path, self.headers["Content-Type"], content))
            self.send_response(state.statuses.pop(0) if state.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}/answer?X-Amz-Signature=c0ffee%2F"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@settings(deadline=None)
@given(
    reason=LONG,
    attributes=st.fixed_dictionaries(dict.fromkeys(ATTRIBUTES, LONG)),
    logical_id=st.text(alphabet=st.characters(codec="ascii"), max_size=40),
)
def test_the_answer_never_exceeds_what_cloudformation_takes(
    reason: str, attributes: dict[str, str], logical_id: str
) -> None:  # C2
    event = {"StackId": "s" * 250, "RequestId": "r" * 64, "LogicalResourceId": logical_id}
    content = body(event, "migration-0123", Answer("FAILED", reason, attributes, alarming=False))
    assert len(content) <= 4096
    answer = json.loads(content)
    assert answer["LogicalResourceId"] == logical_id
    assert answer["Reason"].isascii()
    assert len(answer["Reason"]) <= 1000
    assert set(answer["Data"]) == set(ATTRIBUTES)


@pytest.mark.parametrize("character", ["ä", "漢", "😀", '"', "\\", "\n", "\x00"])
def test_a_thousand_of_any_character_fit(character: str) -> None:
    answer = Answer("FAILED", character * 5000, dict.fromkeys(ATTRIBUTES, character * 5000), alarming=False)
    assert len(body({"StackId": "s" * 250, "RequestId": "r", "LogicalResourceId": "l" * 255}, "id", answer)) <= 4096


def test_a_short_reason_stays_as_it_is() -> None:
    reason = 'column "name" does not exist'
    assert json.loads(body({}, "id", Answer("FAILED", reason, {}, alarming=False)))["Reason"] == reason


def test_what_is_cut_off_is_marked() -> None:
    assert ascii_line("x" * 11, 10) == "xxxxxxx..."
    assert ascii_line("x" * 10, 10) == "x" * 10
    assert ascii_line("über\n zwei\tZeilen", 99) == "?ber zwei Zeilen"


def test_the_answer_arrives_as_one_put_with_an_empty_content_type(cloudformation: CloudFormation) -> None:
    send(put, lambda _: None, cloudformation.url, b'{"Status": "SUCCESS"}')
    assert cloudformation.received == [
        ("PUT", "/answer?X-Amz-Signature=c0ffee%2F", "", b'{"Status": "SUCCESS"}'),
    ]


def test_a_refused_answer_is_sent_again_with_growing_pauses(cloudformation: CloudFormation) -> None:  # C14
    cloudformation.statuses = [500, 503, 503, 500]
    pauses: list[float] = []
    send(put, pauses.append, cloudformation.url, b"{}")
    assert len(cloudformation.received) == 5
    assert pauses == [1, 2, 4, 8]


def test_after_five_refusals_lambda_is_told_but_not_the_address(cloudformation: CloudFormation) -> None:  # C14
    cloudformation.statuses = [403] * 9
    with pytest.raises(NotDeliveredError) as failure:
        send(put, lambda _: None, cloudformation.url, b"{}")
    assert len(cloudformation.received) == 5
    assert str(failure.value) == "CloudFormation has not taken the answer in 5 tries (HTTPError)."
    assert failure.value.__cause__ is None


def test_a_server_that_is_not_there_is_a_refusal_too() -> None:
    pauses: list[float] = []
    with pytest.raises(NotDeliveredError, match="URLError"):
        send(put, pauses.append, "http://127.0.0.1:1/", b"{}")
    assert len(pauses) == 4


@pytest.mark.parametrize(("spare", "cut"), [(0, False), (1, True)])
def test_a_body_of_just_the_size_that_cloudformation_takes_is_left_as_it_is(spare: int, cut: bool) -> None:
    answer = Answer("FAILED", "x" * 500, {}, alarming=True)
    event = {"StackId": "", "RequestId": "r", "LogicalResourceId": "l"}
    empty = len(body(event, "id", answer))
    content = body({**event, "StackId": "s" * (4096 - empty + spare)}, "id", answer)
    assert len(content) <= 4096
    assert (b"x" * 500 not in content) is cut


def test_the_reason_gives_way_entirely_before_anything_else_does() -> None:
    content = body({"StackId": "s" * 5000}, "id", Answer("FAILED", "x" * 1000, {}, alarming=True))
    assert json.loads(content)["Reason"] == ""
