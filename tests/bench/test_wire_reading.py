"""Answers are read alike however the network cut them. It knows bench/wire.py alone."""

import json

import pytest

from bench.wire import BodyReader, EventReader, Raw, Target, read, request_bytes

pytestmark = pytest.mark.optimized


def event(**members: object) -> bytes:
    return b"id: x:1:0\ndata: " + json.dumps(members).encode() + b"\n\n"


def http(*events: bytes, status: str = "200 OK") -> bytes:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in events)
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + chunks
        + b"0\r\n\r\n"
    )


ANSWER = http(
    b": keep-alive\n\n",
    event(choices=[{"text": "a\r\n"}], usage=None),
    event(choices=[{"text": ""}]),
    event(choices=[{"text": "béc"}]) + event(choices=[{"text": "d"}]),
    event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 5}),
    b"data: [DONE]\n\n",
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
def test_pieces_of_any_size_say_the_same(size: int) -> None:
    pieces = [ANSWER[at : at + size] for at in range(0, len(ANSWER), size)]
    answer = read(Raw(1.0, [(2.0 + number, piece) for number, piece in enumerate(pieces)], 99.0))
    assert (answer.num_prompt, answer.num_output, answer.error) == (3, 5, "")
    assert len(answer.token_at) == 3
    assert list(answer.token_at) == sorted(answer.token_at)


def test_a_body_without_chunks_is_read_as_it_is() -> None:
    body = BodyReader()
    assert body.feed(b"HTTP/1.1 200 OK\r\n\r") == b""
    assert body.feed(b"\ndata: 1") + body.feed(b"\n\n") == b"data: 1\n\n"


def test_events_with_either_line_break_are_found() -> None:
    events = EventReader()
    assert events.feed(b"data: 1\r\n") == []
    assert events.feed(b"\r\ndata:2\r\n\r\n: note\r\n\r\n") == [b"1", b"2"]


def test_an_error_status_is_an_error() -> None:
    answer = read(Raw(0.0, [(1.0, http(b'{"error": 1}', status="503 Busy"))]))
    assert "503" in answer.error
    assert not answer.token_at


def test_an_error_event_and_a_cut_stream_are_errors() -> None:
    assert "overloaded" in read(Raw(0.0, [(1.0, http(event(error={"message": "overloaded"})))])).error
    assert "usage" in read(Raw(0.0, [(1.0, http(event(choices=[{"text": "a"}])))])).error


def test_the_request_asks_for_an_exact_number_of_tokens() -> None:
    request = request_bytes(Target("a", "http://127.0.0.1:81/v1", "m"), "héllo", 7)
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1")
    assert f"Content-Length: {len(body)}".encode() in head
    asked = json.loads(body)
    assert (asked["max_tokens"], asked["ignore_eos"], asked["temperature"]) == (7, True, 0)
