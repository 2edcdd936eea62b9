"""Grammars of calls, in llguidance's dialect of Lark: what a model that must call a tool may write.

A tool's arguments follow its schema, spaced as models were trained on. What of a schema cannot be enforced is left out,
unless the tool is strict. It knows nothing of where a grammar is followed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_CALLS = 16
_NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool as a grammar needs it."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: _NO_ARGUMENTS)
    strict: bool = False

    @property
    def arguments(self) -> str:
        """A JSON object that fits the tool's parameters."""
        return json_text(self.parameters, strict=self.strict)

    def members(self) -> list[tuple[str, Mapping[str, Any], bool]]:
        """Each parameter's name and schema, and whether it must be there; those first."""
        required = self.parameters.get("required") or ()
        definitions = {key: value for key, value in self.parameters.items() if key in ("$defs", "definitions")}
        found = []
        for name, schema in (self.parameters.get("properties") or {}).items():
            found.append((name, {**definitions, **(schema if isinstance(schema, dict) else {})}, name in required))
        return sorted(found, key=lambda member: not member[2])


def literal(text: str) -> str:
    """Exactly this text."""
    return json.dumps(text, ensure_ascii=False)


def json_text(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A JSON text that fits `schema`."""
    given = schema.get("x-guidance")
    options = {**_SPACING, "lenient": not strict, **(given if isinstance(given, dict) else {})}
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


def one_of(alternatives: Sequence[str]) -> str:
    """Any one of these."""
    return alternatives[0] if len(alternatives) == 1 else "(" + " | ".join(alternatives) + ")"


def calls(
    tools: Sequence[CallableTool],
    spell: Callable[[CallableTool], str],
    *,
    many: bool,
    between: str = "",
    before: str = "",
    after: str = "",
) -> str:
    """Rules for `calls`: one call or more of any of the tools."""
    lines = [f"call_{number}: {spell(tool)}" for number, tool in enumerate(tools)]
    call = one_of([f"call_{number}" for number in range(len(tools))])
    again = f" ({literal(between)} call){{0,{MAX_CALLS - 1}}}" if between else f" call{{0,{MAX_CALLS - 1}}}"
    around = [literal(before)] * bool(before), [literal(after)] * bool(after)
    return "\n".join(["calls: " + " ".join([*around[0], "call" + (again if many else ""), *around[1]]), f"call: {call}", *lines])
