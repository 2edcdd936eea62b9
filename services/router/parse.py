"""Reading a request body: media type, size while it arrives, time, and JSON without the traps that parsers leave open.

Refused as invalid JSON: anything but strict UTF-8, a byte order mark, NaN, Infinity and numbers that overflow to them,
a key given twice, a half of a surrogate pair, nesting deeper than MAX_DEPTH, a top level that is no object.
It knows nothing of what the fields mean.
"""

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.types import Receive

from shared.errors import InvalidRequest, RequestTimeout, TooLarge, UnsupportedMediaType

MAX_DEPTH = 64
BODY_TIMEOUT_S = 60.0
DISCARD_BYTES = 16 * 2**20
DISCARD_S = 2.0

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


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
    announced = headers.get(b"content-length", b"0")
    num_announced = int(announced) if announced.isdigit() and len(announced) <= 18 else DISCARD_BYTES + 1
    too_large = TooLarge(f"The body is larger than {max_bytes} bytes, the most this server accepts.")
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
                    await discard(receive)
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:.0f} seconds.") from None


async def discard(receive: Receive) -> None:
    """Reads on for a while: closing on data not yet read would reset the connection before the client saw the answer."""
    num_left = DISCARD_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while num_left > 0:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                num_left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object that `body` is. Raises InvalidRequest, code "invalid_json"."""
    try:
        text = body.decode("utf-8")
        value = (_CAREFUL_DECODER if _MAY_OVERFLOW.search(text) else _DECODER).decode(text)
    except UnicodeDecodeError:
        _refuse("it is not valid UTF-8")
    except json.JSONDecodeError as error:
        _refuse(f"{error.msg} at character {error.pos}")
    except RecursionError:
        _refuse(f"it is nested deeper than {MAX_DEPTH} levels")
    except ValueError:
        _refuse("a number in it is too large")
    if type(value) is not dict:
        _refuse("the top level must be an object")
    _check_depth(value)
    if _SURROGATE.search(text):
        _check_surrogates(value)
    return value


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for parent in level
            for child in (parent.values() if type(parent) is dict else parent)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    _refuse(f"it is nested deeper than {MAX_DEPTH} levels")


def _check_surrogates(value: dict[str, Any]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        _refuse("a string in it holds half of a surrogate pair")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        _refuse("a key is given twice in one object")
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _refuse("a number in it is too large")
    return value


def _constant(name: str) -> NoReturn:
    _refuse(f"{name} is not a JSON number")


def _refuse(why: str) -> NoReturn:
    raise InvalidRequest(f"The body is not valid JSON: {why}.", code="invalid_json")


# Looking at every number in Python is slow, so only texts that could hold one beyond 1e308 get that.
_MAY_OVERFLOW = re.compile(r"[eE]\+?\d{3}|\d{300}")
_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
_CAREFUL_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_float=_finite, parse_constant=_constant)
