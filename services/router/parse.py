"""Reading a request body: media type, size while it arrives, time, and JSON without the traps that parsers leave open.

Refused as invalid JSON: anything but strict UTF-8, a byte order mark, NaN, Infinity and numbers that overflow to them,
a key given twice, a half of a surrogate pair, nesting deeper than MAX_DEPTH, a top level that is no object, and more
members, lists or fractions than any request needs. While a body is read nobody else is served, so what is cheap to see
is looked at first, and nothing is done in Python for each character or number.
It knows nothing of what the fields mean.
"""

import asyncio
import contextlib
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec
from starlette.types import Receive

from shared.errors import InvalidRequest, RequestTimeout, TooLarge, UnsupportedMediaType

MAX_DEPTH = 64
# A chat of 2,048 messages, each with a call of a tool, has three quarters of these; a body of them alone takes 5 ms.
MAX_MEMBERS = MAX_CONTAINERS = 2**15
MAX_STRINGS = 2**16
# Each costs a call; only biases and sampling values are fractions.
MAX_FRACTIONS = 2**12
BODY_TIMEOUT_S = 60.0
DISCARD_BYTES = 16 * 2**20
DISCARD_S = 2.0


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


def check_media_type(headers: Mapping[bytes, bytes]) -> None:
    """Raises UnsupportedMediaType unless the body is plain JSON; a body without a content type is taken as JSON."""
    media_type, _, parameters = headers.get(b"content-type", b"application/json").lower().partition(b";")
    charset = parameters.strip().removeprefix(b"charset=").strip(b'"')
    if media_type.strip() != b"application/json" or charset not in (b"", b"utf-8"):
        raise UnsupportedMediaType("The body must be JSON: send the header 'content-type: application/json'.")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted: leave out 'content-encoding'.")


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int) -> bytes:
    """The whole body, counted while it arrives.

    Raises TooLarge beyond max_bytes, RequestTimeout if it takes longer than BODY_TIMEOUT_S, ClientGone.
    """
    too_large = TooLarge(f"The body is larger than {max_bytes} bytes, the most this server accepts.")
    num_announced = announced(headers)
    if num_announced > DISCARD_BYTES or (num_announced > max_bytes and b"expect" in headers):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    body.clear()
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None


def announced(headers: Mapping[bytes, bytes]) -> int:
    """How long the body will be, 0 if that is not said; more than DISCARD_BYTES for what is no number."""
    said = headers.get(b"content-length", b"0")
    return int(said) if said.isdigit() and len(said) <= 18 else DISCARD_BYTES + 1


async def discard(receive: Receive, headers: Mapping[bytes, bytes]) -> None:
    """Reads on for a while: closing on data not yet read would reset the connection before the client saw the answer.

    Not where the client announced too much of it, or waits for a word before it sends any.
    """
    if b"expect" in headers or announced(headers) > DISCARD_BYTES:
        return
    num_left = DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while num_left > 0:
                message = await receive()
                num_left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is. Raises InvalidRequest, code "invalid_json"."""
    num_containers, num_members = _count(body)
    try:
        value = msgspec.json.Decoder(float_hook=_Fractions()).decode(body)
    except UnicodeDecodeError:
        _refuse("it is not valid UTF-8")
    except RecursionError:
        _refuse(f"it is nested deeper than {MAX_DEPTH} levels")
    except msgspec.ValidationError:
        _refuse("a number in it is too large")
    except msgspec.DecodeError as error:
        _refuse(str(error).removeprefix("JSON is malformed: "))
    if type(value) is not dict:
        _refuse("the top level must be an object")
    _check_nesting(value, num_containers, num_members)
    return value


def _count(body: bytes) -> tuple[int, int]:
    """How many lists and objects, and how many members of objects, stand in the text, if it is JSON."""
    if b"\\" in body:
        # Only within strings, and only those two matter for where a string ends.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if body.count(b'"') > 2 * MAX_STRINGS:
        _refuse(f"it holds more than {MAX_STRINGS} strings")
    outside = b"".join(body.split(b'"')[::2])
    num_containers, num_members = outside.count(b"[") + outside.count(b"{"), outside.count(b":")
    if num_containers > MAX_CONTAINERS:
        _refuse(f"it holds more than {MAX_CONTAINERS} lists and objects")
    if num_members > MAX_MEMBERS:
        _refuse(f"its objects have more than {MAX_MEMBERS} members")
    return num_containers, num_members


def _check_nesting(value: dict[str, Any], num_containers: int, num_members: int) -> None:
    """Refuses what is too deep, and members of which only the last with a name came through."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        num_containers -= len(level)
        num_members -= sum(len(each) for each in level if type(each) is dict)
        if not num_containers:
            if num_members:
                break
            return
        # A longer list that holds others cannot be: there are too many of them. So long ones are of numbers, mostly.
        parents = (each for each in level if len(each) <= MAX_CONTAINERS)
        level = [
            child
            for parent in parents
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            break
    else:
        _refuse(f"it is nested deeper than {MAX_DEPTH} levels")
    _refuse("a key is given twice in one object, or a long list is of more than one kind")


class _Fractions:
    """Reads a body's fractions, so many and no more."""

    def __init__(self) -> None:
        self._num_left = MAX_FRACTIONS

    def __call__(self, digits: str) -> float:
        """Of a number that is not whole. Raises InvalidRequest."""
        self._num_left -= 1
        if self._num_left < 0:
            _refuse(f"it holds more than {MAX_FRACTIONS} fractions")
        value = float(digits)
        if not math.isfinite(value):
            _refuse("a number in it is too large")
        return value


def _refuse(why: str) -> NoReturn:
    raise InvalidRequest(f"The body is not valid JSON: {why}.", code="invalid_json")
