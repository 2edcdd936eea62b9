"""The parsers by name, in two tables: of reasoning and of calls. It knows nothing of which model speaks how."""

from collections.abc import Callable, Mapping

from services.router.parsers.pieces import Parser
from services.router.parsers.think import Think
from shared.pb import types_pb2

REASONING: Mapping[str, Callable[[types_pb2.Reading], Think]] = {
    "think": lambda reading: Think(is_open=reading.reasoning_open),
}
TOOLS: Mapping[str, Callable[[types_pb2.Reading], Parser]] = {}
