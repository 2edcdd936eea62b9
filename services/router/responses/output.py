"""A response as its parts come: output items, the events that tell of them, and the whole of it at the end.

Events are numbered. Each token makes its own, whatever frames it came in, so that a stream told again, elsewhere or later, has
the same numbers, and a client can go on after the last one it saw. It knows nothing of connections or of what is kept.
"""

import codecs
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from services.router.generate import ChoiceEnd, Event, Generation, TextDelta
from services.router.needs import Vocabulary
from services.router.parts import CallArguments, CallBegun, Done, Part, PartReader, Said
from shared.errors import RoadtrainError

_encode = msgspec.json.Encoder().encode

Entries = Callable[[TextDelta], list[dict[str, Any]]]


class ResponseWriter:
    """Tells one response. head: its object as it is when it begins; after: the number of the last event the client has."""

    def __init__(
        self, head: dict[str, Any], generation: Generation, reader: PartReader, vocabulary: Vocabulary, *, after: int = -1
    ) -> None:
        self.response = head
        self._generation = generation
        self._reader = reader
        self._splitter = Splitter(vocabulary)
        self._after = after
        self._number = -1
        self._open: _Item | None = None
        self._data: list[bytes] = []
        # What stands under "logprobs" of a delta; nothing unless they were asked for.
        self.entries: Entries = lambda event: []

    def begin(self) -> bytes:
        """The first events."""
        if self.response["background"]:
            self._tell("response.queued", response=self.response | {"status": "queued"})
        self._tell("response.created", response=self.response)
        self._tell("response.in_progress", response=self.response)
        return self._told()

    def render(self, events: list[Event]) -> bytes:
        """What happened."""
        for event in events:
            for each in self._splitter.split(event):
                entries = self.entries(each) if isinstance(each, TextDelta) else []
                for part in self._reader.read(each):
                    self._take(part, entries)
                    entries = []
        return self._told()

    def end(self) -> bytes:
        """The last event; `response` is whole now."""
        status = self.response["status"]
        self._tell(f"response.{status}", response=self.response)
        return self._told()

    def fail(self, error: RoadtrainError) -> bytes:
        """The last event of one that failed; `response` says so."""
        self._close()
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": error.message}}
        if error.code == "rate_limit_exceeded":
            self.response["error"]["code"] = "rate_limit_exceeded"
        self._tell("response.failed", response=self.response)
        return self._told()

    def _take(self, part: Part, entries: list[dict[str, Any]]) -> None:
        match part:
            case Said(kind="content"):
                self._opened("message").add_text(part.text, entries)
            case Said():
                self._opened("reasoning").add_text(part.text, entries)
            case CallBegun():
                self._close()
                self._opened("function_call", call_id=part.id, name=part.name)
            case CallArguments():
                self._opened("function_call").add_text(part.text, entries)
            case Done():
                if not self.response["output"]:
                    self._opened(self._open.kind if self._open else "message")
                self._close()
                self._done(part)

    def _done(self, part: Done) -> None:
        usage = self._generation.usage
        cut = part.reason == "length"
        self.response |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "usage": {
                "input_tokens": usage.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.num_output_tokens,
                "output_tokens_details": {"reasoning_tokens": part.num_reasoning_tokens},
                "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
            },
        }

    def _opened(self, kind: str, **members: Any) -> "_Item":
        if self._open is None or self._open.kind != kind:
            self._close()
            index = len(self.response["output"])
            self._open = _Item(kind, f"{_PREFIX[kind]}_{self._generation.rid}_{index}", index, members, self._tell)
        return self._open

    def _close(self) -> None:
        if self._open is not None:
            self.response = self.response | {"output": [*self.response["output"], self._open.close()]}
            self._open = None

    def _tell(self, kind: str, **members: Any) -> None:
        self._number += 1
        if self._number > self._after:
            event = {"type": kind, "sequence_number": self._number, **members}
            self._data.append(b"event: " + kind.encode() + b"\ndata: " + _encode(event) + b"\n\n")

    def _told(self) -> bytes:
        data, self._data = b"".join(self._data), []
        return data


_PREFIX = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
# The events of an item's text, and the type of the part that holds it, if it has parts.
_EVENTS = {
    "message": ("response.output_text", "output_text"),
    "reasoning": ("response.reasoning_text", "reasoning_text"),
    "function_call": ("response.function_call_arguments", None),
}


class _Item:
    """One item of the output while it grows."""

    def __init__(self, kind: str, item_id: str, index: int, members: dict[str, Any], tell: Callable[..., None]) -> None:
        self.kind = kind
        self._members = members
        self._event, self._part = _EVENTS[kind]
        self._at: dict[str, Any] = {"item_id": item_id, "output_index": index}
        self._texts: list[str] = []
        self._entries: list[dict[str, Any]] = []
        self._tell = tell
        tell("response.output_item.added", output_index=index, item=self._item("in_progress", whole=False))
        if self._part is not None:
            self._at["content_index"] = 0
            tell("response.content_part.added", **self._at, part=self._content("", []))

    def add_text(self, text: str, entries: list[dict[str, Any]]) -> None:
        """More text of the message, of the thought, or of the arguments."""
        self._texts.append(text)
        self._entries += entries
        more = {"logprobs": entries} if self.kind == "message" else {}
        self._tell(f"{self._event}.delta", **self._at, delta=text, **more)

    def close(self) -> dict[str, Any]:
        """The whole item."""
        text = "".join(self._texts)
        if self.kind == "function_call":
            self._tell(f"{self._event}.done", **self._at, arguments=text, name=self._members["name"])
        else:
            more = {"logprobs": self._entries} if self.kind == "message" else {}
            self._tell(f"{self._event}.done", **self._at, text=text, **more)
            self._tell("response.content_part.done", **self._at, part=self._content(text, self._entries))
        item = self._item("completed", whole=True)
        self._tell("response.output_item.done", output_index=self._at["output_index"], item=item)
        return item

    def _item(self, status: str, *, whole: bool) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._at["item_id"], "type": self.kind, "status": status}
        text = "".join(self._texts)
        match self.kind:
            case "message":
                return item | {"role": "assistant", "content": [self._content(text, self._entries)] if whole else []}
            case "reasoning":
                return item | {"summary": [], "content": [self._content(text, [])] if whole else []}
        return item | self._members | {"arguments": text}

    def _content(self, text: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
        if self._part == "output_text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}
        return {"type": self._part, "text": text}


class Splitter:
    """Parts deltas into deltas of one token each; what its text is follows from the tokens before it alone."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def split(self, event: Event) -> Iterator[Event]:
        """The same events, one token at a time; the last one takes all text that is left."""
        if isinstance(event, ChoiceEnd) or len(event.token_ids) < 2:
            if isinstance(event, TextDelta) and event.token_ids:
                self._decode(self._bytes_of(event.token_ids[0]))
            yield event
            return
        text, at = event.text, 0
        num_before = event.num_tokens - len(event.token_ids)
        for index, token_id in enumerate(event.token_ids):
            end = at + len(self._decode(self._bytes_of(token_id)))
            if index == len(event.token_ids) - 1:
                end = len(text)
            logprobs = None if event.logprobs is None else _row(event.logprobs, index)
            yield msgspec.structs.replace(
                event, text=text[at:end], token_ids=[token_id], num_tokens=num_before + index + 1, logprobs=logprobs
            )
            at = end

    def _bytes_of(self, token_id: int) -> bytes:
        return b"" if token_id in self._vocabulary.special else self._vocabulary.bytes_of(token_id)


def _row(logprobs: Any, index: int) -> Any:
    """The row of one token."""
    width = logprobs.width
    part = type(logprobs)(width=width)
    part.token_ids.extend(logprobs.token_ids[index * width : (index + 1) * width])
    part.logprobs.extend(logprobs.logprobs[index * width : (index + 1) * width])
    return part
