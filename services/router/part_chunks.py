"""Chat chunks of requests whose output is more than content: reasoning and calls of tools beside the text.

One event of a generation makes at most one chunk, which has its position as id: cut off anywhere, a client that comes
back gets no part twice. It knows nothing of how parts are told from each other.
"""

from collections.abc import Collection, Sequence
from typing import Any

from services.router.generate import Event, TextDelta
from services.router.parts import CallArguments, CallBegun, Done, Part, PartReader, Said
from services.router.sse import Answer, ChunkWriter, LogprobsOf, encode


class PartWriter(ChunkWriter):
    """A ChunkWriter of parts; see there for its arguments."""

    def __init__(
        self,
        answer: Answer,
        reader: PartReader,
        *,
        include_usage: bool,
        logprobs: LogprobsOf | None,
        begun: Collection[int],
    ) -> None:
        super().__init__(answer, include_usage=include_usage, logprobs=logprobs, begun=begun)
        self._reader = reader

    def render(self, events: list[Event], position: str) -> bytes:
        """See ChunkWriter."""
        chunks: list[bytes] = []
        for event in events:
            before_text = self._before_text.get(event.choice)
            if before_text is None:
                before_text = self._begin_choice(event.choice, position, chunks)
            position = event.position
            parts = self._reader.read(event)
            logprobs = self._logprobs(event) if self._logprobs is not None and isinstance(event, TextDelta) else None
            match parts:
                case [Said(kind="content", text=text)] if logprobs is None:
                    chunks += (self._id(position), before_text, encode(text), self._after_text)
                case [] if logprobs is None:
                    pass
                case _:
                    chunks += (self._id(position), self._choice(event.choice), self._members(parts, logprobs), self._tail)
        return b"".join(chunks)

    def _members(self, parts: Sequence[Part], logprobs: Any) -> bytes:
        done = parts[-1] if parts and isinstance(parts[-1], Done) else None
        if done is not None:
            self.num_reasoning_tokens += done.num_reasoning_tokens
        reason = b"null"
        if done is not None:
            reason = b'"' + done.reason.encode() + b'","stop_reason":' + encode(done.event.stop_reason)
        delta = encode(delta_object(parts))
        return b'"delta":' + delta + b',"logprobs":' + encode(logprobs) + b',"finish_reason":' + reason + b"}"


def delta_object(parts: Sequence[Part]) -> dict[str, Any]:
    """choices[].delta of parts that come together."""
    delta: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        match part:
            case Said(kind="content"):
                delta["content"] = delta.get("content", "") + part.text
            case Said():
                # Clients read the one or the other: vLLM has both names in its history.
                delta["reasoning_content"] = delta["reasoning"] = delta.get("reasoning", "") + part.text
            case CallBegun():
                function = {"name": part.name, "arguments": ""}
                calls[part.call] = {"index": part.call, "id": part.id, "type": "function", "function": function}
            case CallArguments():
                call = calls.setdefault(part.call, {"index": part.call, "function": {"arguments": ""}})
                call["function"]["arguments"] += part.text
    if calls:
        delta["tool_calls"] = list(calls.values())
    return delta
