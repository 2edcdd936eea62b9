"""<tool_call>{"name": "f", "arguments": {...}}</tool_call>: Hermes, Qwen 2.5 and 3, SmolLM 2 and 3, and many more.

It knows nothing of how the object is read.
"""

from services.router.parsers.call_object import CallObject
from services.router.parsers.calls import MarkedCalls, Marks
from shared.pb import types_pb2

_MARKS = Marks(begin=("<tool_call>",), end=("</tool_call>",))


def parser(reading: types_pb2.Reading) -> MarkedCalls:
    """Reads one choice."""
    return MarkedCalls(_MARKS, CallObject)
