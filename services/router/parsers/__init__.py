"""The parsers by name, in two tables: of reasoning and of calls. It knows nothing of which model speaks how."""

from collections.abc import Callable, Mapping

from services.router.parsers import deepseek, hermes, llama3_json, mistral, pythonic, qwen3_xml
from services.router.parsers.pieces import Parser
from services.router.parsers.think import Think
from shared.pb import types_pb2

REASONING: Mapping[str, Callable[[types_pb2.Reading], Think]] = {
    "think": lambda reading: Think(is_open=reading.reasoning_open),
}
TOOLS: Mapping[str, Callable[[types_pb2.Reading], Parser]] = {
    "hermes": hermes.parser,
    "llama3_json": llama3_json.parser,
    "mistral": mistral.parser,
    "pythonic": pythonic.parser,
    "qwen3_xml": qwen3_xml.parser,
    "deepseek": deepseek.parser,
}
