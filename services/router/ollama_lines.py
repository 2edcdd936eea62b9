"""Ollama's answers: a line of JSON for each piece, or one object for the whole, the last with what it took.

Durations are nanoseconds as this router saw them: reading the prompt lasts until the first text. It knows nothing of bodies.
"""

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from services.router.answers import Call, Choice
from services.router.generate import ChoiceEnd, Event, Generation, TextDelta
from services.router.logprobs import chat_content
from services.router.needs import Vocabulary
from services.router.parts import CallArguments, CallBegun, Done, PartReader, Said

Kind = Literal["chat", "generate"]


@dataclass(slots=True)
class Clock:
    """When a request began, and when its first text came; seconds of time.monotonic."""

    begun: float = field(default_factory=time.monotonic)
    first: float | None = None

    def tick(self) -> None:
        """Text has come."""
        if self.first is None:
            self.first = time.monotonic()

    def took(self) -> dict[str, int]:
        """Until now."""
        now = time.monotonic()
        first = now if self.first is None else self.first
        return {
            "total_duration": int((now - self.begun) * 1e9),
            "load_duration": 0,
            "prompt_eval_duration": int((first - self.begun) * 1e9),
            "eval_duration": int((now - first) * 1e9),
        }


def moment(seconds: float | None = None) -> str:
    """A time, now if none is given, as Ollama writes it."""
    at = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return at.isoformat().replace("+00:00", "Z")


def line(kind: Kind, model: str, text: str, thinking: str = "", calls: list[Call] | None = None) -> dict[str, Any]:
    """One piece, not the last."""
    head: dict[str, Any] = {"model": model, "created_at": moment()}
    if kind == "generate":
        return head | {"response": text} | ({"thinking": thinking} if thinking else {}) | {"done": False}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    shown = [_call(call) for call in calls or () if _is_whole(call)]
    if shown:
        message["tool_calls"] = shown
    return head | {"message": message, "done": False}


def ended(last: dict[str, Any], reason: str | None, generation: Generation, clock: Clock) -> dict[str, Any]:
    """The piece with what the last one says besides."""
    usage = generation.usage
    counts = {"prompt_eval_count": usage.num_prompt_tokens, "eval_count": usage.num_output_tokens}
    return last | {"done": True, "done_reason": "length" if reason == "length" else "stop"} | clock.took() | counts


def whole(kind: Kind, model: str, choice: Choice, generation: Generation, clock: Clock) -> dict[str, Any]:
    """The whole answer."""
    made = line(kind, model, "".join(choice.text), "".join(choice.reasoning), choice.calls)
    if choice.logprobs:
        made["logprobs"] = [entry for piece in choice.logprobs for entry in piece]
    return ended(made, choice.finish_reason, generation, clock)


class LineWriter:
    """Renders one generation's events as lines."""

    num_reasoning_tokens = 0

    def __init__(
        self, kind: Kind, model: str, generation: Generation, reader: PartReader, clock: Clock, vocabulary: Vocabulary | None
    ) -> None:
        """vocabulary: where log-probabilities are wanted."""
        self._kind = kind
        self._model = model
        self._generation = generation
        self._reader = reader
        self._clock = clock
        self._vocabulary = vocabulary
        # A call is given whole.
        self._call: Call | None = None

    def render(self, events: list[Event], position: str) -> bytes:
        """See sse.Writer."""
        self._clock.tick()
        return b"".join(msgspec.json.encode(one) + b"\n" for event in events for one in self._lines(event))

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last line has said it."""
        return b""

    def _lines(self, event: Event) -> list[dict[str, Any]]:
        text = thinking = ""
        calls: list[Call] = []
        for part in self._reader.read(event):
            match part:
                case Said(kind="content"):
                    text += part.text
                case Said():
                    thinking += part.text
                case CallBegun():
                    calls += self._finished()
                    self._call = Call(part.id, part.name)
                case CallArguments() if self._call is not None:
                    self._call.arguments.append(part.text)
                case Done():
                    calls += self._finished()
        made = []
        if text or thinking or calls or (self._vocabulary is not None and isinstance(event, TextDelta) and event.token_ids):
            one = line(self._kind, self._model, text, thinking, calls)
            if self._vocabulary is not None and isinstance(event, TextDelta) and event.logprobs is not None:
                one["logprobs"] = chat_content(self._vocabulary, event.logprobs)
            made.append(one)
        if isinstance(event, ChoiceEnd):
            made.append(ended(line(self._kind, self._model, ""), event.reason, self._generation, self._clock))
        return made

    def _finished(self) -> list[Call]:
        call, self._call = self._call, None
        return [] if call is None else [call]


def _is_whole(call: Call) -> bool:
    """Whether its arguments are an object: what was cut short is no call."""
    try:
        return isinstance(json.loads("".join(call.arguments) or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _call(call: Call) -> dict[str, Any]:
    arguments = json.loads("".join(call.arguments) or "{}")
    return {"id": call.id, "function": {"name": call.name, "arguments": arguments}}
