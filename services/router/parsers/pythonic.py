"""[f(a=1, b="x"), g()]: calls as Python would write them, of Llama 3.2 and 4 and ToolACE. A call is given when it is whole.

Nothing is evaluated: literals are turned into JSON token by token. Only the name of a tool that there is makes a bracket
the beginning of a call. It knows nothing of Python beyond literals.
"""

import json
import re
from collections.abc import Sequence

from services.router.parsers.calls import MarkedCalls, Marks
from services.router.parsers.lark import CallableTool, calls, json_text, literal
from services.router.parsers.pieces import Budget, Piece, State, whole_characters
from shared.pb import types_pb2

MAX_DEPTH = 64
MAX_HEAD = 96

_MARKS = Marks(opening=("[",), first=True)
_HEAD = re.compile(r"[\s,\[]{0,8}([A-Za-z_][A-Za-z0-9_.]{0,63})\s{0,8}")
_OUTSIDE = re.compile(r"[^'\"()\[\]{}]*+")
_INSIDE = {quote: re.compile(rf"(?:[^{quote}\\]|\\.)*+", re.DOTALL) for quote in "'\""}
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_TOKEN = re.compile(
    r"\s*(?:(?P<string>'(?:[^'\\]|\\.)*+'|\"(?:[^\"\\]|\\.)*+\")|(?P<word>[-+.0-9A-Za-z_]{1,64})|(?P<mark>[\[\](){},:=]))\s*",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(\n)|(.))")
_ESCAPED = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "0": "\0",
    "\\": "\\",
    "'": "'",
    '"': '"',
}
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    names = frozenset(tool.name for tool in reading.tools)
    return MarkedCalls(_MARKS, lambda budget: _List(budget, names))


class _List:
    """See calls.Call: the whole list."""

    def __init__(self, budget: Budget, names: frozenset[str]) -> None:
        self._budget = budget
        self._names = names
        # Of the call that is being read.
        self._raw: list[str] = []
        self._unread = ""
        self._quote = ""
        self._closers: list[str] = []
        self._num_head = 0
        self._name = ""
        self.state: State = "open"
        self.begun = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See calls.Call."""
        pieces: list[Piece] = []
        text, at = self._unread + text, 0
        self._unread = ""
        while at < len(text) and self.state == "open":
            run = (_INSIDE[self._quote] if self._quote else _OUTSIDE).match(text, at)
            end = at if run is None else run.end()
            self._raw.append(text[at:end])
            self._num_head += end - at
            at = end
            if self._num_head > MAX_HEAD and len(self._closers) == 1:
                self.state = "bad"
            elif at < len(text):
                if text[at] == "\\":
                    self._unread = text[at:]
                    break
                self._raw.append(text[at])
                if not self._budget.spend() or not self._read(text[at], pieces):
                    self.state = "bad"
                at += 1
        if self.state == "open":
            return pieces, ""
        rest = text[at:]
        if self.begun:
            rest, self._raw = "".join(self._raw) + rest, []
        return pieces, rest

    def raw(self) -> str:
        """See calls.Call."""
        return "".join(self._raw) + self._unread

    def finish(self) -> list[Piece]:
        """See calls.Call."""
        return [("content", self.raw())] if self.raw() else []

    def _read(self, letter: str, pieces: list[Piece]) -> bool:
        """What a bracket or quote does; whether it can be a call still."""
        depth = len(self._closers)
        if letter in "'\"":
            self._quote = "" if self._quote else letter
            return depth > 1
        if letter in _PAIRS:
            self._closers.append(_PAIRS[letter])
            return (letter == "(" and self._has_name()) if depth == 1 else depth < MAX_DEPTH
        if self._closers.pop() != letter:
            return False
        if depth == 2:
            return self._end_call(pieces)
        if depth == 1 and self.begun:
            self.state = "done"
            self._raw.clear()
        return depth > 1 or self.begun

    def _has_name(self) -> bool:
        head = _HEAD.fullmatch("".join(self._raw)[:-1])
        self._name = head[1] if head else ""
        return self._name in self._names

    def _end_call(self, pieces: list[Piece]) -> bool:
        raw = "".join(self._raw)
        arguments = arguments_of(raw[raw.index("(") + 1 :])
        if arguments is None:
            return False
        pieces += [("call", self._name), ("arguments", arguments)]
        self.begun = True
        self._raw.clear()
        self._num_head = 0
        return True


def arguments_of(text: str) -> str | None:
    """Keyword arguments, with the bracket that ends them, as a JSON object; None if they are no literals."""
    made, depth, at = ["{"], 0, 0
    awaits_name = True
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        at = token.end()
        word, mark = token["word"], token["mark"]
        if token["string"]:
            made.append(json.dumps(unescaped(token["string"][1:-1]), ensure_ascii=False))
        elif word:
            made.append(json.dumps(word) if awaits_name else _WORDS.get(word, word))
            awaits_name = False
        elif mark in _PAIRS:
            depth += 1
            made.append("{" if mark == "{" else "[")
        elif mark in ")]}":
            depth -= 1
            if made[-1] == ",":
                made.pop()
            made.append("}" if mark == "}" or depth < 0 else "]")
        elif (mark == "=") == (depth == 0) or mark == ",":
            made.append("," if mark == "," else ":")
            awaits_name = mark == "," and depth == 0
        else:
            return None
    try:
        return json.dumps(json.loads("".join(made), parse_constant=_refuse), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def unescaped(text: str) -> str:
    """What the inside of a Python string stands for; escapes that Python does not know stay as they are."""
    return whole_characters(_ESCAPE.sub(_character, text))


def _character(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code:
        return chr(int(code, 16)) if int(code, 16) < 0x110000 else escape[0]
    return "" if escape[4] else _ESCAPED.get(escape[5], escape[0])


def _refuse(name: str) -> None:
    raise ValueError(name)


def grammar(tools: Sequence[CallableTool], *, many: bool) -> str:
    """See lark.calls. Values are JSON, which the parser takes as well."""

    def spell(tool: CallableTool) -> str:
        written = ""
        members = tool.members()
        for index, (name, schema, required) in reversed(list(enumerate(members))):
            value = f"{literal(name + '=')} {json_text(schema, strict=tool.strict)}"
            # Those that may be missing come last: each only after the one before it.
            comma = literal(", ") + " " if index else ""
            written = f"{comma}{value} {written}" if required else f"({comma}{value} {written})?"
        return f"{literal(tool.name + '(')} {written} {literal(')')}"

    return calls(tools, spell, many=many, between=", ", before="[", after="]")
