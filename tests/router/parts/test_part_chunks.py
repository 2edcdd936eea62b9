"""Chunks of a chat whose output is more than content: OpenAI's deltas, one chunk for what has one position."""

import json
from typing import Any

from services.router.part_chunks import PartWriter
from services.router.sse import CHAT, Answer
from shared.pb import types_pb2
from tests.router.parts.spoken import Spoken, delta, end

READING = types_pb2.Reading(tool_parser="hermes", reasoning_parser="think")
TEXT = '<think>hm</think>Well.\n<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def chunks_of(pieces: list[str]) -> list[dict[str, Any]]:
    """The choices of all chunks after the opening one."""
    writer = PartWriter(Answer(CHAT, "rid", 1, "m", None), Spoken().reader(READING), include_usage=False, logprobs=None, begun=())
    data = writer.render([*(delta(piece) for piece in pieces), end()], "p")
    found = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]
    assert writer.num_reasoning_tokens == len("<think>hm</think>")
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    return [chunk["choices"][0] for chunk in found[1:]]


def test_what_comes_at_once_is_one_chunk() -> None:
    (first, last) = chunks_of([TEXT])
    call = first["delta"]["tool_calls"][0]
    assert call == {
        "index": 0,
        "id": call["id"],
        "type": "function",
        "function": {"name": "f", "arguments": '{"a": 1}'},
    }
    assert first["delta"] | {"tool_calls": 0} == {
        "reasoning_content": "hm",
        "reasoning": "hm",
        "content": "Well.",
        "tool_calls": 0,
    }
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


def test_letter_by_letter_it_is_the_same() -> None:
    deltas = [choice["delta"] for choice in chunks_of(list(TEXT))]
    assert "".join(each.get("content", "") for each in deltas) == "Well."
    assert "".join(each.get("reasoning", "") for each in deltas) == "hm"
    calls = [each["tool_calls"][0] for each in deltas if "tool_calls" in each]
    assert set(calls[0]) == {"index", "id", "type", "function"}
    assert all(call == {"index": 0, "function": {"arguments": call["function"]["arguments"]}} for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"a": 1}'
