"""Grammars of calls: what they let a model write, the parser of the same format reads as the call that was meant."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from services.router.parsers import TOOLS as FORMATS
from services.router.parts import CallArguments, CallBegun, Said
from services.router.reading import Formats, reading_of, sampling_of
from services.router.tools import Function, ToolUse
from shared.grammars import Grammar
from shared.sampling import SamplingParams
from tests.router.parts.spoken import parts_of

WEATHER = Function(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {
            "days": {"$ref": "#/$defs/count"},
            "city": {"type": "string", "enum": ["Paris", "Köln"]},
            "why": {"type": "string"},
        },
        "required": ["city"],
        "$defs": {"count": {"type": "integer"}},
    },
)
NOW = Function(name="now")
D = "｜"
CALL = f"<{D}tool▁call▁begin{D}>function<{D}tool▁sep{D}>"
WRITTEN = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"days": 2, "city": "Köln", "why": "x"}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"days": 2, "city": "Köln", "why": "x"}}',
    "mistral": '[TOOL_CALLS][{"name": "get_weather", "arguments": {"days": 2, "city": "Köln", "why": "x"}}]',
    "pythonic": '[get_weather(city="Köln", days=2, why="x")]',
    "qwen3_xml": "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "<parameter=why>\nx\n</parameter>\n</function>\n</tool_call>",
    "deepseek": f"<{D}tool▁calls▁begin{D}>{CALL}get_weather\n```json\n"
    f'{{"days": 2, "city": "Köln", "why": "x"}}\n```<{D}tool▁call▁end{D}><{D}tool▁calls▁end{D}>',
}
BYTES = LLTokenizer("byte")


def use(**fields: Any) -> ToolUse:
    return ToolUse((WEATHER, NOW), (WEATHER, NOW), **fields)


def grammar_of(
    name: str, tools: ToolUse | None, *, reasoning: str = "", is_open: bool = False, given: Grammar | None = None
) -> Grammar:
    reading = reading_of(Formats(name, reasoning), tools, reasoning_open=is_open, hide_reasoning=False)
    assert reading is not None
    made = sampling_of(SamplingParams(grammar=given), reading, tools).grammar
    assert made is not None
    return made


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether all of `text` can be written, and then be the end."""
    matcher = LLMatcher(BYTES, grammar.for_llguidance())
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_call_is_written_as_it_is_read(name: str) -> None:
    text = WRITTEN[name]
    assert accepts(grammar_of(name, use(required=True)), text)
    reading = reading_of(Formats(name, ""), use(), reasoning_open=False, hide_reasoning=False)
    parts = parts_of(reading, [text])
    assert [part.name for part in parts if isinstance(part, CallBegun)] == ["get_weather"]
    arguments = "".join(part.text for part in parts if isinstance(part, CallArguments))
    assert json.loads(arguments) == {"days": 2, "city": "Köln", "why": "x"}
    assert not any(isinstance(part, Said) for part in parts)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_must_be_called_leaves_no_way_around(name: str) -> None:
    grammar, text = grammar_of(name, use(required=True)), WRITTEN[name]
    assert not accepts(grammar, "")
    assert not accepts(grammar, "I would rather not.")
    assert not accepts(grammar, text.replace("Köln", "Rome"))
    assert not accepts(grammar, text.replace("get_weather", "get_wind"))
    named = ToolUse((WEATHER, NOW), (NOW,), required=True, one_call=True)
    assert not accepts(grammar_of(name, named), text)
    assert not accepts(grammar, text + "x")


@pytest.mark.parametrize("name", ["hermes", "llama3_json"])
def test_one_call_or_several(name: str) -> None:
    text = WRITTEN[name] + ("; " if name == "llama3_json" else "\n") + WRITTEN[name]
    assert accepts(grammar_of(name, use(required=True)), text)
    assert not accepts(grammar_of(name, use(required=True, one_call=True)), text)


def test_a_model_may_think_before_it_must_call() -> None:
    text = WRITTEN["hermes"]
    assert accepts(grammar_of("hermes", use(required=True), reasoning="think"), f"<think>\nhm\n</think>\n\n{text}")
    assert accepts(grammar_of("hermes", use(required=True), reasoning="think"), text)
    opened = grammar_of("hermes", use(required=True), reasoning="think", is_open=True)
    assert accepts(opened, f"hm <b> \n</think>\n\n{text}")
    assert not accepts(opened, text)


@pytest.mark.parametrize(
    ("grammar", "answer"),
    [
        (Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'), '{"a":1}'),
        (Grammar("regex", "a/[0-9]+"), "a/12"),
        (Grammar("lark", 'start: "yes" | "no"'), "no"),
    ],
)
def test_an_answer_that_follows_a_grammar_stands_beside_calls_and_after_thoughts(grammar: Grammar, answer: str) -> None:
    beside = grammar_of("hermes", use(), given=grammar)
    assert accepts(beside, answer)
    assert accepts(beside, WRITTEN["hermes"])
    assert not accepts(beside, "else")
    after = grammar_of("hermes", None, reasoning="think", is_open=True, given=grammar)
    assert accepts(after, f"so it is</think>\n\n{answer}")
    assert not accepts(after, f"so it is</think>\n\nelse {answer}")
