"""A message as its parts come: content blocks, the events that tell of them, and the whole of it at the end.

It knows nothing of connections.
"""

import json
from typing import Any

import msgspec

from services.router.generate import Event, Generation
from services.router.parts import CallArguments, CallBegun, Done, Part, PartReader, Said

_encode = msgspec.json.Encoder().encode

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def event(kind: str, **members: Any) -> bytes:
    """One server-sent event."""
    return b"event: " + kind.encode() + b"\ndata: " + _encode({"type": kind, **members}) + b"\n\n"


class MessageWriter:
    """Tells one message. Its blocks come one after the other: text, thinking, calls of tools."""

    def __init__(self, generation: Generation, reader: PartReader) -> None:
        self._generation = generation
        self._reader = reader
        self._blocks: list[dict[str, Any]] = []
        # Of the block that is open: what its deltas are called, and what they held.
        self._kind = ""
        self._texts: list[str] = []
        self._stop: tuple[str | None, str | None] = (None, None)
        self._num_reasoning_tokens = 0

    def begin(self) -> bytes:
        """The first event."""
        return event("message_start", message=self.message())

    def render(self, events: list[Event]) -> bytes:
        """What happened."""
        return b"".join(self._take(part) for each in events for part in self._reader.read(each))

    def end(self) -> bytes:
        """The last events."""
        reason, sequence = self._stop
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return event("message_delta", delta=delta, usage=self._usage()) + event("message_stop")

    def message(self) -> dict[str, Any]:
        """The message as it is now."""
        reason, sequence = self._stop
        return {
            "id": "msg_" + self._generation.rid,
            "type": "message",
            "role": "assistant",
            "model": self._generation.model,
            "content": self._blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, Any]:
        usage = self._generation.usage
        return {
            "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.num_cached_tokens,
            "output_tokens": usage.num_output_tokens,
            "output_tokens_details": {"thinking_tokens": self._num_reasoning_tokens},
        }

    def _take(self, part: Part) -> bytes:
        match part:
            case Said(kind="content"):
                return self._add("text", {"type": "text", "text": ""}, part.text)
            case Said():
                return self._add("thinking", {"type": "thinking", "thinking": "", "signature": ""}, part.text)
            case CallBegun():
                block = {"type": "tool_use", "id": "toolu_" + part.id.removeprefix("call_"), "name": part.name, "input": {}}
                return self._close() + self._open("partial_json", block)
            case CallArguments():
                return self._delta(part.text)
            case Done():
                self._num_reasoning_tokens = part.num_reasoning_tokens
                is_sequence = part.reason == "stop" and part.stop_string is not None
                self._stop = ("stop_sequence" if is_sequence else _REASONS[part.reason], part.stop_string)
                return self._close()

    def _add(self, kind: str, block: dict[str, Any], text: str) -> bytes:
        before = b"" if self._kind == kind else self._close() + self._open(kind, block)
        return before + self._delta(text)

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        self._kind = kind
        self._blocks.append(block)
        return event("content_block_start", index=len(self._blocks) - 1, content_block=block)

    def _delta(self, text: str) -> bytes:
        self._texts.append(text)
        name = "input_json_delta" if self._kind == "partial_json" else f"{self._kind}_delta"
        return event("content_block_delta", index=len(self._blocks) - 1, delta={"type": name, self._kind: text})

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        block, text = self._blocks[-1], "".join(self._texts)
        if self._kind == "partial_json":
            block["input"] = _arguments(text)
        else:
            block[self._kind] = text
        signed = b""
        if self._kind == "thinking":
            # Nobody checks it here; clients send it back as they got it.
            delta = {"type": "signature_delta", "signature": ""}
            signed = event("content_block_delta", index=len(self._blocks) - 1, delta=delta)
        self._kind = ""
        self._texts.clear()
        return signed + event("content_block_stop", index=len(self._blocks) - 1)


def _arguments(text: str) -> dict[str, Any]:
    """The input of a call; of one that was cut short nothing."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
