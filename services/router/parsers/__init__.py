"""The parsers by name, in two tables: of reasoning and of calls. It knows nothing of which model speaks how."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from services.router.parsers import deepseek, hermes, llama3_json, mistral, pythonic, qwen3_xml
from services.router.parsers.lark import CallableTool
from services.router.parsers.pieces import Parser
from services.router.parsers.think import Think
from shared.pb import types_pb2


class Grammar(Protocol):
    """Rules for `calls` of these tools, one or many."""

    def __call__(self, tools: Sequence[CallableTool], *, many: bool) -> str:
        """See lark.calls."""
        ...


class CallFormat(NamedTuple):
    """A way to spell calls. shows_special: its marks may be special tokens, which are left out of text otherwise."""

    parser: Callable[[types_pb2.Reading], Parser]
    grammar: Grammar
    shows_special: bool = False


REASONING: Mapping[str, Callable[[types_pb2.Reading], Think]] = {
    "think": lambda reading: Think(is_open=reading.reasoning_open),
}
TOOLS: Mapping[str, CallFormat] = {
    "hermes": CallFormat(hermes.parser, hermes.grammar),
    "llama3_json": CallFormat(llama3_json.parser, llama3_json.grammar, shows_special=True),
    "mistral": CallFormat(mistral.parser, mistral.grammar, shows_special=True),
    "pythonic": CallFormat(pythonic.parser, pythonic.grammar),
    "qwen3_xml": CallFormat(qwen3_xml.parser, qwen3_xml.grammar),
    "deepseek": CallFormat(deepseek.parser, deepseek.grammar, shows_special=True),
}
