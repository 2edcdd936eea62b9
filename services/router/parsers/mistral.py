"""[TOOL_CALLS][{"name": "f", "arguments": {...}}, ...] of Mistral's older models, [TOOL_CALLS]f[ARGS]{...} of the newer.

It knows nothing of how objects are read.
"""

import json
import re
from collections.abc import Sequence

from services.router.parsers.arguments import Arguments, HeadedCall
from services.router.parsers.call_object import CallObject
from services.router.parsers.calls import MarkedCalls, Marks
from services.router.parsers.lark import CallableTool, calls, literal
from services.router.parsers.pieces import Budget, Piece, State
from shared.pb import types_pb2

_MARKS = Marks(begin=("[TOOL_CALLS]",))
_ARRAY = re.compile(r"\s{0,8}(?=\[)")
_HEAD = re.compile(r"\s{0,8}([A-Za-z0-9_.-]{1,64})(?:\[CALL_ID\][A-Za-z0-9]{1,64})?(?:\[ARGS\])?\s{0,8}(?=\{)")


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    return MarkedCalls(_MARKS, lambda budget: HeadedCall(budget, _HEADS))


class _Array:
    """See calls.Call: objects between brackets, parted by commas."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._object: CallObject | None = None
        self._raw: list[str] = []
        self._expected = "["
        self.state: State = "open"
        self.begun = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See calls.Call."""
        pieces: list[Piece] = []
        while text and self.state == "open":
            text = self._between(text) if self._object is None else self._inside(self._object, text, pieces)
        return pieces, text

    def raw(self) -> str:
        """See calls.Call."""
        return "".join(self._raw) + ("" if self._object is None else self._object.raw())

    def finish(self) -> list[Piece]:
        """See calls.Call."""
        if self._object is None:
            return []
        return self._object.finish() if self._object.begun else [("content", self._object.raw())]

    def _inside(self, call: CallObject, text: str, pieces: list[Piece]) -> str:
        given, text = call.feed(text)
        pieces += given
        self.begun = self.begun or call.begun
        if call.state == "bad":
            self.state = "bad"
            return text if call.begun or not self.begun else call.raw() + text
        if call.state == "done":
            self._object, self._expected = None, ",]"
        return text

    def _between(self, text: str) -> str:
        after = text.lstrip()
        letter, space = after[:1], text[: len(text) - len(after)]
        if not letter:
            self._raw.append(space)
            return ""
        if letter not in self._expected or not self._budget.spend():
            self.state = "bad"
            return text
        self._raw.append(space)
        if letter == "{":
            self._object = CallObject(self._budget)
            return after
        self._raw.append(letter)
        self._expected = "{"
        self.state = "done" if letter == "]" else "open"
        return after[1:]


_HEADS = (
    (_ARRAY, lambda budget, found: _Array(budget)),
    (_HEAD, lambda budget, found: Arguments(budget, found[1])),
)


def grammar(tools: Sequence[CallableTool], *, many: bool) -> str:
    """See lark.calls. The older spelling, which the newer models' vocabulary can write, too."""

    def spell(tool: CallableTool) -> str:
        head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
        return f"{literal(head)} {tool.arguments} {literal('}')}"

    return calls(tools, spell, many=many, between=", ", before="[TOOL_CALLS][", after="]")
