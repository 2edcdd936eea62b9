"""{"name": "f", "parameters": {...}}, alone or after <|python_tag|>, several parted by semicolons: Llama 3.1 and 3.2.

Without a mark, only the name of a tool that there is makes an object a call. It knows nothing of how it is read.
"""

import json
from collections.abc import Sequence

from services.router.parsers.call_object import CallObject
from services.router.parsers.calls import MarkedCalls, Marks
from services.router.parsers.lark import CallableTool, calls, literal
from shared.pb import types_pb2

_MARKS = Marks(begin=("<|python_tag|>",), opening=("{",), end=(";",), first=True)


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    names = frozenset(tool.name for tool in reading.tools)
    return MarkedCalls(_MARKS, lambda budget: CallObject(budget, names))


def grammar(tools: Sequence[CallableTool], *, many: bool) -> str:
    """See lark.calls."""

    def spell(tool: CallableTool) -> str:
        head = f'{{"name": {json.dumps(tool.name)}, "parameters": '
        return f"{literal(head)} {tool.arguments} {literal('}')}"

    return calls(tools, spell, many=many, between="; ")
