"""A form with a file in it, written to disk while it arrives: the only place where multipart is read.

Counted as it comes: the body, the parts, the length of a field's value and of a part's headers. It knows nothing of what the
fields mean.
"""

import asyncio
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from services.router.batch.files import disk_errors
from services.router.parse import ClientGone
from shared.errors import InvalidRequest, RequestTimeout, TooLarge, UnsupportedMediaType

MAX_PARTS = 16
MAX_VALUE_BYTES = 4096
MAX_NAME_CHARS = 255
QUIET_S = 60.0


class Form:
    """What a form said: its plain fields, and name and length of the file, None if there was none."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.num_bytes = 0


async def read_form(receive: Receive, content_type: bytes, path: Path, max_bytes: int) -> Form:
    """The form; its part called "file" is written to `path`, which exists only if this returns with a filename.

    Raises UnsupportedMediaType, InvalidRequest, TooLarge, RequestTimeout (nothing came for a minute), ClientGone.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise UnsupportedMediaType("Send the file as multipart/form-data, in a field called 'file'.")
    form = Form()
    with disk_errors():
        file = await asyncio.to_thread(path.open, "xb")
    try:
        with file:
            await _read(receive, _Parts(form, file), boundary, max_bytes)
    except BaseException:
        remove(path)
        raise
    if form.filename is None:
        remove(path)
    return form


def remove(path: Path) -> None:
    """Takes back what was written."""
    path.unlink(missing_ok=True)


async def _read(receive: Receive, parts: "_Parts", boundary: bytes, max_bytes: int) -> None:
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
    except FormParserError:
        raise _malformed() from None
    num_bytes = 0
    while True:
        try:
            async with asyncio.timeout(QUIET_S):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"Nothing of the body arrived for {QUIET_S:.0f} seconds.") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        data = message.get("body", b"")
        num_bytes += len(data)
        if num_bytes > max_bytes:
            raise TooLarge(f"The upload is larger than {max_bytes} bytes, the most this server accepts.")
        try:
            parser.write(data)
            if not message.get("more_body", False):
                parser.finalize()
        except FormParserError:
            raise _malformed() from None
        await parts.flush()
        if not message.get("more_body", False):
            if not parts.ended:
                raise _malformed()
            return


class _Parts:
    """Takes what the parser finds; what belongs into the file waits for `flush`."""

    def __init__(self, form: Form, file: BinaryIO):
        self.ended = False
        self._form = form
        self._file = file
        self._num_parts = 0
        self._header_name = b""
        self._header_value = b""
        self._disposition: dict[bytes, bytes] = {}
        self._value = bytearray()
        self._pending = bytearray()

    def callbacks(self) -> dict[str, object]:
        """As MultipartParser wants them."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, name) for name in names}

    async def flush(self) -> None:
        """Writes what has come for the file."""
        if self._pending:
            pending, self._pending = self._pending, bytearray()
            with disk_errors():
                await asyncio.to_thread(self._file.write, pending)
            self._form.num_bytes += len(pending)

    def part_begin(self) -> None:
        """A part begins."""
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.", code="invalid_form")
        self._disposition = {}
        self._value.clear()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's name."""
        self._header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        """A piece of a header's value."""
        self._header_value += data[start:end]

    def header_end(self) -> None:
        """A header is whole."""
        if self._header_name.lower() == b"content-disposition":
            _, self._disposition = parse_options_header(self._header_value)
        self._header_name = self._header_value = b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        """A piece of a part."""
        if self._is_file():
            self._pending += data[start:end]
            return
        self._value += data[start:end]
        if len(self._value) > MAX_VALUE_BYTES:
            raise InvalidRequest(f"A field of the form is longer than {MAX_VALUE_BYTES} bytes.", code="invalid_form")

    def part_end(self) -> None:
        """A part is whole."""
        name = self._disposition.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise InvalidRequest("A part of the form has no name.", code="invalid_form")
        if name in self._form.fields or (self._is_file() and self._form.filename is not None):
            raise InvalidRequest("A field of the form is given twice.", param=name[:64], code="invalid_form")
        if self._is_file():
            given = self._disposition.get(b"filename", b"file").decode("utf-8", "replace")
            self._form.filename = "".join(letter for letter in given if letter.isprintable())[:MAX_NAME_CHARS] or "file"
        else:
            self._form.fields[name] = self._value.decode("utf-8", "replace")

    def end(self) -> None:
        """The form is whole."""
        self.ended = True

    def _is_file(self) -> bool:
        return self._disposition.get(b"name") == b"file"


def _malformed() -> InvalidRequest:
    return InvalidRequest("The body is no whole multipart form.", code="invalid_form")
