"""<function=f><parameter=a>...</parameter></function>: Qwen 3 Coder. Values are text as it stands, for strings, or JSON.

It knows nothing of schemas beyond which parameters are text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from services.router.parsers.arguments import HeadedCall
from services.router.parsers.calls import MarkedCalls, Marks
from services.router.parsers.lark import CallableTool, calls, json_text, literal, one_of
from services.router.parsers.pieces import Budget, Piece, State, overlap
from shared.pb import types_pb2

_MARKS = Marks(begin=("<tool_call>",), opening=("<function=",), end=("</tool_call>",))
_HEAD = re.compile(r"\s{0,8}<function=([A-Za-z0-9_.:/-]{1,64})>")
_PARAMETER = re.compile(r"<parameter=([^<>\n]{1,128})>")
_MAX_TAG = 160
_ENDS = ("</function>", "</tool_call>")
_CLOSE = "</parameter>"
_WORDS = {"True": "true", "False": "false", "None": "null"}


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    texts = {tool.name: frozenset(tool.text_parameters) for tool in reading.tools}
    heads = ((_HEAD, lambda budget, found: _Parameters(budget, found[1], texts.get(found[1], frozenset()))),)
    return MarkedCalls(_MARKS, lambda budget: HeadedCall(budget, heads))


class _Parameters:
    """See calls.Call: everything after the name. `texts` are the parameters whose value is text."""

    def __init__(self, budget: Budget, name: str, texts: frozenset[str]) -> None:
        self._budget = budget
        self._texts = texts
        self._news: list[Piece] = [("call", name), ("arguments", "{")]
        self._unread = ""
        self._begins = "\n"
        self._value: list[str] | None = None
        self._is_text = self._is_inside = False
        self._separator = ""
        self.state: State = "open"
        self.begun = True

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See calls.Call."""
        text = self._unread + text
        self._unread = ""
        parts: list[str] = []
        pieces, self._news = self._news, []
        while text and self.state == "open":
            text = self._inside(text, parts) if self._is_inside else self._between(text, parts)
        if parts:
            pieces.append(("arguments", "".join(parts)))
        return pieces, text

    def raw(self) -> str:
        """See calls.Call."""
        return ""

    def finish(self) -> list[Piece]:
        """See calls.Call."""
        rest = "".join(self._value or ()) + self._unread
        return [*self._news, ("arguments", _escaped(rest))] if rest else self._news

    def _between(self, text: str, parts: list[str]) -> str:
        text = text.lstrip()
        found = _PARAMETER.match(text)
        if found and self._budget.spend():
            name = found[1]
            self._is_inside, self._is_text = True, name in self._texts
            self._value = None if self._is_text else []
            self._begins = "\n"
            parts += (self._separator, json.dumps(name, ensure_ascii=False), ": ", '"' if self._is_text else "")
            self._separator = ", "
            return text[found.end() :]
        if any(text.startswith(end) for end in _ENDS):
            parts.append("}")
            self.state = "done"
            # The outer tag is not of this call.
            return text.removeprefix(_ENDS[0])
        if any(end.startswith(text) for end in _ENDS) or "<parameter=".startswith(text) or _is_begun(text):
            self._unread = text
            return ""
        self.state = "bad"
        return text

    def _inside(self, text: str, parts: list[str]) -> str:
        if self._begins:
            # One line break after the tag is not of the value; nor is the one before its end.
            text, self._begins = text.removeprefix(self._begins), ""
        value, found, after = text.partition(_CLOSE)
        if not found:
            kept = max(overlap(text, _CLOSE), overlap(text, "\n" + _CLOSE))
            self._unread = text[len(text) - kept :]
            self._give(text[: len(text) - kept], parts)
            return ""
        self._give(value.removesuffix("\n"), parts)
        parts.append('"' if self._value is None else _as_json("".join(self._value)))
        self._is_inside, self._value = False, None
        return after

    def _give(self, text: str, parts: list[str]) -> None:
        if self._value is None:
            parts.append(_escaped(text))
        else:
            self._value.append(text)


def _is_begun(text: str) -> bool:
    """Whether `text` may be the beginning of a parameter's tag."""
    return text.startswith("<parameter=") and len(text) < _MAX_TAG and not re.search(r"[\n<>]", text[11:])


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_json(text: str) -> str:
    """A value that is no text: as it stands if it is JSON, else a string after all."""
    text = text.strip()
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return _WORDS.get(text) or json.dumps(text, ensure_ascii=False)
    return text


def _refuse(name: str) -> None:
    raise ValueError(name)


def grammar(tools: Sequence[CallableTool], *, many: bool) -> str:
    """See lark.calls."""

    def spell(tool: CallableTool) -> str:
        written = [literal(f"<tool_call>\n<function={tool.name}>\n")]
        for name, schema, required in tool.members():
            parts = f"{literal(f'<parameter={name}>{chr(10)}')} {_value(schema, strict=tool.strict)}"
            written.append(parts if required else f"({parts})?")
        return " ".join([*written, literal("</function>\n</tool_call>")])

    return calls(tools, spell, many=many, between="\n") + "\nvalue[lazy]: /(.|\\n)*/ " + literal("\n</parameter>\n")


def _value(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A value and the tag that ends it."""
    end = literal("\n</parameter>\n")
    if schema.get("type") != "string":
        return f"{json_text(schema, strict=strict)} {end}"
    words = [word for word in schema.get("enum") or () if isinstance(word, str) and word]
    return f"{one_of([literal(word) for word in words])} {end}" if words else "value"
