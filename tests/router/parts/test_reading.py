"""How a request's output will be read: by the model's template or the operator's word, and what follows for its sampling."""

from services.router.reading import Formats, formats, reading_of, sampling_of
from services.router.tools import Function, ToolUse
from shared.pb import tokenizer_pb2
from shared.sampling import SamplingParams

TOOL = Function(name="f", parameters={"properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": True}})
USE = ToolUse((TOOL,), (TOOL,), one_call=True)


def test_the_operators_word_comes_before_the_templates() -> None:
    shown = tokenizer_pb2.Description(tool_parser="mistral", reasoning_parser="think")
    assert formats(shown, tool_parser=None, reasoning_parser=None) == Formats("mistral", "think")
    assert formats(shown, tool_parser="pythonic", reasoning_parser="none") == Formats("pythonic", "")
    newer = tokenizer_pb2.Description(tool_parser="of tomorrow", reasoning_parser="of tomorrow")
    assert formats(newer, tool_parser=None, reasoning_parser=None) == Formats("hermes", "")


def test_a_plain_chat_of_a_plain_model_is_not_read_at_all() -> None:
    assert reading_of(Formats("hermes", ""), None, reasoning_open=True, hide_reasoning=True) is None


def test_what_a_reading_says() -> None:
    reading = reading_of(Formats("qwen3_xml", "think"), USE, reasoning_open=True, hide_reasoning=True)
    assert reading is not None
    assert (reading.tool_parser, reading.reasoning_parser, reading.reasoning_open) == ("qwen3_xml", "think", True)
    assert (reading.one_call, reading.hide_reasoning) == (True, True)
    assert [(tool.name, list(tool.text_parameters)) for tool in reading.tools] == [("f", ["a"])]
    without = reading_of(Formats("qwen3_xml", "think"), None, reasoning_open=False, hide_reasoning=False)
    assert without is not None
    assert (without.tool_parser, without.reasoning_parser) == ("", "think")


def test_marks_that_may_be_special_tokens_are_shown() -> None:
    for name, shown in (("mistral", True), ("hermes", False)):
        reading = reading_of(Formats(name, ""), USE, reasoning_open=False, hide_reasoning=False)
        assert reading is not None
        assert sampling_of(SamplingParams(), reading, USE).skip_special_tokens is not shown
        assert sampling_of(SamplingParams(), reading, USE).grammar is None
