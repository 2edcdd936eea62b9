"""The lines of a batch's input: found, checked and counted before the first is asked.

It knows nothing of how a line is answered.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.router.batch.record import Fault
from services.router.parse import parse_object
from shared.errors import InvalidRequest

MAX_LINES = 50_000
MAX_FAULTS = 10
MAX_CUSTOM_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class Line:
    """One request: where its line stands in the file, and what its answer is to be known by."""

    number: int  # from 1
    custom_id: str
    offset: int
    num_bytes: int


def check(path: Path, endpoint: str, max_line_bytes: int) -> tuple[list[Line], list[Fault]]:
    """The file's requests, and what is wrong with it (the first ten faults). Reads it line by line."""
    lines: list[Line] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for number, offset, data in _rows(path, max_line_bytes):
        if len(lines) == MAX_LINES:
            faults.append(Fault(code="too_many_requests", message=f"A batch may hold at most {MAX_LINES} requests."))
            break
        try:
            custom_id = _custom_id(data, endpoint, max_line_bytes)
            if custom_id in seen:
                raise InvalidRequest(
                    "This 'custom_id' was used on an earlier line.", param="custom_id", code="duplicate_custom_id"
                )
        except InvalidRequest as error:
            faults.append(Fault(code=error.code or "invalid_value", message=error.message, line=number, param=error.param))
            if len(faults) == MAX_FAULTS:
                break
        else:
            seen.add(custom_id)
            lines.append(Line(number, custom_id, offset, len(data)))
    if not lines and not faults:
        faults.append(Fault(code="empty_file", message="The input file holds no request."))
    return lines, faults


def body_of(path: Path, line: Line) -> dict[str, Any]:
    """What the line asks; it was checked before. Raises OSError."""
    with path.open("rb") as file:
        file.seek(line.offset)
        body: dict[str, Any] = parse_object(file.read(line.num_bytes))["body"]
    return body


def _rows(path: Path, max_line_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of every line that is not blank; of one that is too long, one byte too many."""
    with path.open("rb") as file:
        number = offset = 0
        while data := file.readline(max_line_bytes + 1):
            number += 1
            if data.strip():
                yield number, offset, data
            offset += len(data)
            while not data.endswith(b"\n") and (data := file.readline(max_line_bytes + 1)):
                offset += len(data)


def _custom_id(data: bytes, endpoint: str, max_line_bytes: int) -> str:
    if len(data) > max_line_bytes:
        raise InvalidRequest(f"The line is longer than {max_line_bytes} bytes.", code="request_too_large")
    row = parse_object(data)
    custom_id, body = row.get("custom_id"), row.get("body")
    if type(custom_id) is not str or not 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        raise InvalidRequest(f"'custom_id' must be a text of 1 to {MAX_CUSTOM_ID_CHARS} characters.", param="custom_id")
    if row.get("method") != "POST":
        raise InvalidRequest("'method' must be POST.", param="method")
    if row.get("url") != endpoint:
        raise InvalidRequest(f"'url' must be the batch's endpoint, {endpoint}.", param="url", code="mismatched_endpoint")
    if type(body) is not dict:
        raise InvalidRequest("'body' must be an object.", param="body")
    if body.get("stream"):
        raise InvalidRequest("An answer in a batch cannot be streamed; leave out 'stream'.", param="body.stream")
    return custom_id
