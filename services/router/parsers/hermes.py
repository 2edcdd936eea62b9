"""<tool_call>{"name": "f", "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3, SmolLM 2 and 3, and many more.

It knows nothing of how the object is read.
"""

import json
from collections.abc import Sequence

from services.router.parsers.call_object import CallObject
from services.router.parsers.calls import MarkedCalls, Marks
from services.router.parsers.lark import CallableTool, calls, literal
from shared.pb import types_pb2

_MARKS = Marks(begin=("<tool_call>",), end=("</tool_call>",))


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    return MarkedCalls(_MARKS, CallObject)


def grammar(tools: Sequence[CallableTool], *, many: bool) -> str:
    """See lark.calls."""

    def spell(tool: CallableTool) -> str:
        head = f'<tool_call>\n{{"name": {json.dumps(tool.name)}, "arguments": '
        return f"{literal(head)} {tool.arguments} {literal('}' + chr(10) + '</tool_call>')}"

    return calls(tools, spell, many=many, between="\n")
