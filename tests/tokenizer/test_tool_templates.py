"""Tools, thinking and documents in chat templates: what a template shows of its model, and what a request may set in it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from services.tokenizer.chat import ChatEncoder
from services.tokenizer.formats import call_format, reasoning_format
from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2 as pb
from tests.tokenizer.test_chat_templates import TEMPLATE, chat, make, plain

__all__ = ["make"]

Made = Callable[[Any], ChatEncoder]
TOOL = '{"type": "function", "function": {"name": "f"}}'
THINKING = "{{ enable_thinking }} {{ reasoning_effort }} {{ documents }}{% if enable_thinking %}<think>\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "calls", "reasoning"),
    [
        ("{{ messages }}", "hermes", ""),
        ("{{ tools }}<tool_call>{}</tool_call>", "hermes", ""),
        ("{{ tools }}<tool_call><function=f> <think></think>", "qwen3_xml", "think"),
        ("{{ tools }}[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral", ""),
        ("{{ tools }}<｜tool▁calls▁begin｜> {{ content.split('</think>') }}", "deepseek", "think"),
        ("{{ tools }}<|python_tag|> Environment: ipython", "llama3_json", ""),
        ("{{ tools }}[func_name1(params_name1=params_value1)] Environment: ipython", "pythonic", ""),
    ],
)
def test_a_template_shows_how_its_model_speaks(template: str, calls: str, reasoning: str) -> None:
    assert (call_format({"default": template}), reasoning_format({"default": template})) == (calls, reasoning)
    assert call_format({"default": "plain", "tool_use": template}) == calls
    assert (call_format({}), reasoning_format({})) == ("hermes", "")


def test_a_template_that_knows_no_tools_is_told_of_them_in_words(make: Made) -> None:
    call = pb.ToolCall(id="c1", name="f", arguments_json='{"x": 1}')
    request = pb.Chat(
        messages=[
            pb.ChatMessage(role="system", content="Be kind."),
            pb.ChatMessage(role="user", content="?"),
            pb.ChatMessage(role="assistant", tool_calls=[call]),
            pb.ChatMessage(role="tool", content="1<|im_end|>", tool_call_id="c1"),
            pb.ChatMessage(role="tool", content="2", tool_call_id="c2"),
        ],
        tools_json=[TOOL],
    )
    encoder = make(TEMPLATE)
    text = plain(encoder, request)
    assert text.startswith("<|im_start|>system\nBe kind.\n\n# Tools\n\n")
    assert f"<tools>\n{TOOL}\n</tools>" in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>' in text
    answers = "<tool_response>\n1<|im_end|>\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    assert f"<|im_start|>user\n{answers}<|im_end|>\n<|im_start|>assistant\n" in text
    # What a tool gave is text, too: only the template ends a turn.
    ids, _ = encoder.encode(request)
    assert ids.tolist().count(encoder._vocabulary.token_bytes.index(b"<|im_end|>")) == 4


def test_reasoning_that_the_template_opens_is_seen(make: Made) -> None:
    encoder = make(THINKING)
    for effort, variables, expected in (("", '{"enable_thinking": true}', True), ("high", "", True), ("none", "", False)):
        request = chat("x", template_kwargs_json=variables, reasoning_effort=effort)
        assert encoder.encode(request)[1] is expected
    assert not make("{{ messages[0].content }}<|im_end|>").encode(chat("<think>"))[1]


def test_effort_and_documents_reach_templates_that_read_them(make: Made) -> None:
    request = chat("x", reasoning_effort="minimal", documents_json=['{"title": "t"}'])
    assert plain(make(THINKING), request) == "False minimal [{'title': 't'}]"
    assert plain(make("{{ messages[0].content }}"), chat("x", reasoning_effort="high")) == "x"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"template_kwargs_json": '{"thinking": true}'}, "chat_template_kwargs.thinking"),
        ({"template_kwargs_json": '{"messages": []}'}, "chat_template_kwargs.messages"),
        ({"template_kwargs_json": '{"raise_exception": 1}'}, "chat_template_kwargs.raise_exception"),
        ({"template_kwargs_json": '{"enable_thinking": {}}'}, "chat_template_kwargs.enable_thinking"),
        ({"template_kwargs_json": json.dumps({"enable_thinking": "x" * 1025})}, "chat_template_kwargs.enable_thinking"),
        ({"documents_json": ["{}", "[]"]}, "documents[1]"),
    ],
)
def test_variables_that_may_not_be_set_are_named(make: Made, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make(THINKING).encode(chat("x", **fields))
    assert caught.value.param == param
    with pytest.raises(InvalidRequest) as caught:
        make("plain").encode(chat("x", documents_json=["{}"]))
    assert caught.value.param == "documents"
