"""What the JSON reader takes and refuses, beside Python's own parser made as strict; and that it bounds what a body costs."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.router import parse
from shared.errors import InvalidRequest


def strictly(body: bytes) -> dict[str, Any]:
    """Python's parser with every trap closed, character by character and slowly. Raises ValueError."""

    def pairs(given: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(given)) != len(given):
            raise ValueError("a key twice")
        return dict(given)

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError("not finite")
        return value

    def constant(name: str) -> None:
        raise ValueError(name)

    value = json.loads(body.decode(), object_pairs_hook=pairs, parse_float=number, parse_constant=constant)
    json.dumps(value, ensure_ascii=False).encode()
    if type(value) is not dict or depth_of(value) > parse.MAX_DEPTH:
        raise ValueError("no object, or too deep")
    return value


def depth_of(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth_of, children), default=0)


PIECES = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b'\\"', b"\\\\", b"\\u", b"d83d", b"\\ude00", b"0", b"1e999", b"-1.5"),
    *(b'"a"', b'"a":1', b'{"a":', b"true", b"null", b"NaN", b" ", b"\xff", "é".encode(), b"\x00", b"\xef\xbb\xbf", b"9" * 40),
]
scraps = st.lists(st.sampled_from(PIECES), max_size=14).map(b"".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
written = st.builds(
    lambda value, ascii_only: json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"), values, st.booleans()
)
bodies = scraps | scraps.map(lambda data: b'{"x":' + data + b"}") | written | written.map(lambda data: b'{"x":' + data + b"}")


@settings(max_examples=700, deadline=None)
@given(bodies)
@example(b'{"a":1,"\\u0061":2}')
@example(b'{"a\\\\":1,"a\\\\\\"":{"b":[{}]}}')
@example(b'{"x":[[{"a":1}],[{"a":1,"a":1}]]}')
@example(b'{"x":' + b"[" * 63 + b"]" * 63 + b"}")
@example(b'{"x":' + b"[" * 64 + b"]" * 64 + b"}")
@example(b'{"x":"[{:\\"[{:"}')
@example(b'{"x":"\\ud800"}')
@example(b'{"x":1e308,"y":1E400}')
def test_it_takes_what_a_strict_parser_takes_and_nothing_else(body: bytes) -> None:
    try:
        expected = strictly(body)
    except (ValueError, RecursionError):
        with pytest.raises(InvalidRequest) as caught:
            parse.parse_object(body)
        assert caught.value.code == "invalid_json"
    else:
        assert parse.parse_object(body) == expected


TOO_MUCH = {
    "lists": b'{"x":[' + b"[]," * 2**15 + b"1]}",
    "objects": b'{"x":[' + b"{}," * 2**15 + b"1]}",
    "members": b"{" + b",".join(b'"%d":1' % number for number in range(2**15 + 1)) + b"}",
    "strings": b'{"x":[' + b'"",' * 2**16 + b'""]}',
    "fractions": b'{"x":[' + b"1.5," * 2**12 + b"1.5]}",
    "mixed": b'{"x":[' + b"1," * 2**15 + b"[]]}",
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_what_no_request_needs_is_refused(what: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON") as caught:
        parse.parse_object(TOO_MUCH[what])
    assert len(caught.value.message) < 200


def test_what_a_large_request_needs_is_read() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": 'code: {"a": [[[]]]} \\ "', "tool_calls": [call]}
    chat = {"model": "m", "messages": [message] * 2048}
    assert parse.parse_object(json.dumps(chat).encode()) == chat
    batch = {"model": "m", "prompt": [list(range(8000))] * 64, "logit_bias": {str(number): 0.5 for number in range(1024)}}
    assert parse.parse_object(json.dumps(batch).encode()) == batch
    braces = {"model": "m", "prompt": '{"[:' * 200_000}
    assert parse.parse_object(json.dumps(braces).encode()) == braces
