"""How one request's output will be read, and what of its sampling follows from that: marks to be seen, calls that must come.

Which format a model speaks is told by its chat template, unless the operator says it. It knows nothing of text or of tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.router.parsers import REASONING, TOOLS
from services.router.parsers.lark import CallableTool
from services.router.tools import Function, ToolUse
from shared.grammars import Grammar
from shared.pb import tokenizer_pb2, types_pb2
from shared.sampling import SamplingParams

_START = re.compile(r"^start\b", re.MULTILINE)
# What a model thinks before it answers, to the end of the mark.
_THOUGHT = "thought[lazy]: /(.|\\n)*<\\/think>/\nspace: /[ \\n]{0,2}/"


@dataclass(frozen=True, slots=True)
class Formats:
    """Parsers by name, empty where the model has no such thing."""

    tools: str
    reasoning: str


def formats(description: tokenizer_pb2.Description, *, tool_parser: str | None, reasoning_parser: str | None) -> Formats:
    """What the operator says, else what the model's template shows."""
    tools = description.tool_parser if tool_parser is None else tool_parser
    reasoning = description.reasoning_parser if reasoning_parser is None else reasoning_parser
    # A tokenizer of a newer release may name what this one does not know.
    return Formats(tools if tools in TOOLS else "hermes", reasoning if reasoning in REASONING else "")


def reading_of(
    formats: Formats, tools: ToolUse | None, *, reasoning_open: bool, hide_reasoning: bool
) -> types_pb2.Reading | None:
    """What to look for in the output of a chat; None: nothing but content."""
    if tools is None and not formats.reasoning:
        return None
    reading = types_pb2.Reading(
        reasoning_parser=formats.reasoning,
        reasoning_open=reasoning_open and bool(formats.reasoning),
        hide_reasoning=hide_reasoning,
    )
    if tools is not None:
        reading.tool_parser = formats.tools
        reading.one_call = tools.one_call
        reading.tools.extend(
            types_pb2.ToolShape(name=tool.name, text_parameters=_text_parameters(tool)) for tool in tools.offered
        )
    return reading


def sampling_of(sampling: SamplingParams, reading: types_pb2.Reading, tools: ToolUse | None) -> SamplingParams:
    """The sampling that goes with `reading`: a call that must come, or an answer that follows a grammar beside calls."""
    if tools is not None and TOOLS[reading.tool_parser].shows_special:
        sampling = replace(sampling, skip_special_tokens=False)
    grammar = sampling.grammar
    if tools is not None and tools.required:
        return replace(sampling, grammar=Grammar("lark", _lark("start: {} calls", reading) + "\n" + _calls(reading, tools)))
    if grammar is None:
        return sampling
    answer = _answer(grammar)
    if tools is not None:
        rules = f"{_lark('start: {} (answer | calls)', reading)}\n{answer}\n{_calls(reading, tools)}"
        return replace(sampling, grammar=Grammar("lark", rules))
    if not reading.reasoning_parser:
        return sampling
    return replace(sampling, grammar=Grammar("lark", f"{_lark('start: {} answer', reading)}\n{answer}"))


def _calls(reading: types_pb2.Reading, tools: ToolUse) -> str:
    allowed = [_callable(tool) for tool in tools.allowed]
    return TOOLS[reading.tool_parser].grammar(allowed, many=not tools.one_call)


def _lark(start: str, reading: types_pb2.Reading) -> str:
    """The first rule, with the reasoning that may come before."""
    if not reading.reasoning_parser:
        return start.format("")
    thinks = "thought space" if reading.reasoning_open else '("<think>" thought space)?'
    return start.format(thinks) + "\n" + _THOUGHT


def _answer(grammar: Grammar) -> str:
    """A rule `answer` for what stands in another language."""
    if grammar.kind == "json_schema":
        return "answer: %json " + grammar.source
    if grammar.kind == "regex":
        return "answer: /" + re.sub(r"\\(?s:.)|/", lambda found: "\\/" if found[0] == "/" else found[0], grammar.source) + "/"
    return _START.sub("answer", grammar.source)


def _callable(tool: Function) -> CallableTool:
    if not tool.parameters:
        return CallableTool(tool.name)
    closed = {"additionalProperties": False} if "properties" in tool.parameters else {}
    return CallableTool(tool.name, {**closed, "type": "object", **tool.parameters}, strict=bool(tool.strict))


def _text_parameters(tool: Function) -> Sequence[str]:
    properties = (tool.parameters or {}).get("properties") or {}
    return [name for name, schema in properties.items() if isinstance(schema, dict) and schema.get("type") == "string"]
