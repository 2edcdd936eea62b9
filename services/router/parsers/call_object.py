"""Reads {"name": "f", "arguments": {...}}, the way most models spell a call, while it is being written.

The call is begun when its name is known and its arguments have begun, and their text is given as it comes; until then
nothing is, so that what is no call after all can still be content. It knows nothing of what stands around the object.
"""

import json
import re

from services.router.parsers.json_scan import JsonScan
from services.router.parsers.pieces import Budget, Piece, State, whole_characters

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_ARGUMENTS = ("arguments", "parameters")
_MEMBERS = ("name", "type", "id", *_ARGUMENTS)


class CallObject:
    """One object. `names`: what can be called, None: anything."""

    def __init__(self, budget: Budget, names: frozenset[str] | None = None) -> None:
        self._names = names
        self._scan = JsonScan(budget)
        self._unread = ""
        self._raw: list[str] = []
        self._member = ""
        # Of the token or value that is being read.
        self._text: list[str] = []
        self._name = ""
        self._arguments: str | None = None
        self._streams = self._may_stream = False
        self.state: State = "open"
        self.begun = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See calls.Call."""
        pieces: list[Piece] = []
        text, at = self._unread + text, 0
        self._unread = ""
        while self.state == "open":
            start = at
            at, event = self._scan.scan(text, start)
            self._take(text[start:at], pieces)
            if event == "more":
                self._unread = text[at:]
                return pieces, ""
            if event == "bad" or not self._happened(event, pieces):
                self.state = "bad"
        return pieces, text[at:]

    def raw(self) -> str:
        """See calls.Call."""
        return "".join(self._raw) + self._unread

    def finish(self) -> list[Piece]:
        """See calls.Call."""
        return [("arguments", self._unread)] if self._streams and self._unread else []

    def _take(self, text: str, pieces: list[Piece]) -> None:
        if self._streams:
            if text:
                pieces.append(("arguments", text))
            return
        if not self.begun:
            self._raw.append(text)
        self._text.append(text)
        if self._may_stream and text and not text.isspace():
            self._may_stream = False
            if text.lstrip().startswith("{"):
                self._streams = True
                self._begin("".join(self._text).lstrip(), pieces)

    def _begin(self, arguments: str, pieces: list[Piece]) -> None:
        self.begun = True
        self._raw, self._text = [], []
        pieces += [("call", self._name), ("arguments", arguments)]

    def _happened(self, event: str, pieces: list[Piece]) -> bool:
        """Whether it can be a call still."""
        text, self._text = "".join(self._text).strip(), []
        if event == "key":
            self._member = json.loads(text)
            # Where no mark says that it is a call, an object with other members is an answer, not to be held back.
            return self.begun or self._names is None or self._member in _MEMBERS
        elif event == "colon":
            self._may_stream = bool(self._name) and not self.begun and self._member in _ARGUMENTS
        elif event == "value":
            self._may_stream = False
            return self._member_read(text, pieces)
        elif event == "end":
            self.state = "done"
            if not self.begun and self._name:
                self._begin("{}", pieces)
            return self.begun
        return True

    def _member_read(self, text: str, pieces: list[Piece]) -> bool:
        if self._streams or self.begun:
            self._streams = False
        elif self._member == "name" and not self._name:
            if not text.startswith('"'):
                return False
            self._name = json.loads(text)
            if not _NAME.fullmatch(self._name) or (self._names is not None and self._name not in self._names):
                return False
            if self._arguments is not None:
                self._begin(self._arguments, pieces)
        elif self._member in _ARGUMENTS:
            self._arguments = _as_object(text)
            if self._arguments is None:
                return False
            if self._name:
                self._begin(self._arguments, pieces)
        return True


def _as_object(text: str) -> str | None:
    """Arguments may come as an object, as the text of one, or as null."""
    if text.startswith('"'):
        text = whole_characters(json.loads(text)).strip() or "null"
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if type(value) is not dict and value is not None:
            return None
    if text == "null":
        return "{}"
    return text if text.startswith("{") else None
