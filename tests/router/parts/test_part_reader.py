"""Parts of what a model said: reasoning apart from content, counted, and the same for a client that comes back."""

import pytest

from services.router.parts import Done, Part, Said, call_id
from shared.pb import types_pb2
from tests.router.parts.spoken import Spoken, delta, parts_of

THINK = types_pb2.Reading(reasoning_parser="think")
OPEN = types_pb2.Reading(reasoning_parser="think", reasoning_open=True)


def said(parts: list[Part]) -> dict[str, str]:
    texts = {"content": "", "reasoning": ""}
    for part in parts:
        if isinstance(part, Said):
            texts[part.kind] += part.text
    return texts


def num_reasoning_tokens(parts: list[Part]) -> int:
    done = parts[-1]
    assert isinstance(done, Done)
    return done.num_reasoning_tokens


@pytest.mark.parametrize(
    ("reading", "text", "reasoning", "content"),
    [
        (None, "<think>a</think>b", "", "<think>a</think>b"),
        (THINK, "<think>\na b\n</think>\n\nc </think>", "a b\n", "c </think>"),
        (THINK, "  plain <think>", "", "  plain <think>"),
        (THINK, " <thin", "", " <thin"),
        (THINK, " <thinX", "", " <thinX"),
        (OPEN, "a</thi", "a</thi", ""),
        (OPEN, "a</think>", "a", ""),
        (OPEN, "a</think> \nb", "a", "b"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_reasoning_is_told_from_content(
    reading: types_pb2.Reading | None, text: str, reasoning: str, content: str, size: int
) -> None:
    parts = parts_of(reading, [text[at : at + size] for at in range(0, len(text), size)])
    assert said(parts) == {"reasoning": reasoning, "content": content}
    closed = text.find("</think>") + len("</think>") if "</think>" in text else len(text)
    assert num_reasoning_tokens(parts) == (closed if reasoning else 0)


def test_what_a_client_has_is_not_given_again() -> None:
    text = "<think>because</think>so"
    whole = said(parts_of(THINK, [text]))
    for cut in range(len(text) + 1):
        first = said(Spoken().reader(THINK).read(delta(text[:cut])))
        rest = parts_of(THINK, [text[cut:]], begun=text[:cut])
        assert {kind: first[kind] + said(rest)[kind] for kind in first} == whole
        assert num_reasoning_tokens(rest) == len("<think>because</think>")


def test_hidden_reasoning_is_counted_and_not_given() -> None:
    parts = parts_of(types_pb2.Reading(reasoning_parser="think", hide_reasoning=True), ["<think>a</think>b"])
    assert said(parts) == {"reasoning": "", "content": "b"}
    assert num_reasoning_tokens(parts) == len("<think>a</think>")


def test_ids_of_calls_depend_on_the_request_alone() -> None:
    ids = {call_id("r", choice, call) for choice in range(3) for call in range(3)}
    assert len(ids) == 9
    assert all(one.startswith("call_") and len(one) == 29 for one in ids)
    assert call_id("r", 0, 0) == call_id("r", 0, 0) != call_id("s", 0, 0)
    assert len(call_id("r", 0, 0, short=True)) == 9
    assert call_id("r", 0, 0, short=True).isalnum()
