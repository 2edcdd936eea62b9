"""Chunks with members beyond OpenAI's plain ones: token ids, what it has cost so far, padding.

Whoever asks for these pays for it: a chunk is written as ever, read again and written with them. It knows nothing of dialects
beyond where a chunk's choices stand.
"""

import secrets
import string
from collections import defaultdict
from typing import Any

import msgspec

from services.router.answers import usage_object
from services.router.generate import Event, Generation, TextDelta
from services.router.sse import Writer
from shared.pb import types_pb2

# Chunks are padded to multiples of this, so that most tokens look alike.
PADDED_BYTES = 64
_LETTERS = string.ascii_letters + string.digits


class ExtraWriter:
    """Adds `extras` to what `writer` writes of one generation. in_choice: where completions keep the prompt's ids."""

    def __init__(self, writer: Writer, generation: Generation, extras: types_pb2.Extras, *, in_choice: bool) -> None:
        self._writer = writer
        self._generation = generation
        self._extras = extras
        self._in_choice = in_choice
        # Ids whose chunk has not been written yet, by index of the choice in its generation.
        self._token_ids: dict[int, list[int]] = defaultdict(list)
        self._prompted: set[int] = set(generation.resumed)

    @property
    def num_reasoning_tokens(self) -> int:
        """See parts.PartReader."""
        return self._writer.num_reasoning_tokens

    def render(self, events: list[Event], position: str) -> bytes:
        """See sse.ChunkWriter."""
        written = []
        for event in events:
            if isinstance(event, TextDelta):
                self._token_ids[event.choice] += event.token_ids
            data = self._writer.render([event], position)
            position = event.position
            blocks = data.split(b"\n\n")[:-1]
            for at, block in enumerate(blocks):
                written.append(self._with_extras(block, event, last=at == len(blocks) - 1))
        return b"".join(written)

    def usage(self, usage: dict[str, Any]) -> bytes:
        """See sse.ChunkWriter."""
        return self._writer.usage(usage)

    def _with_extras(self, block: bytes, event: Event, *, last: bool) -> bytes:
        before, mark, data = (b"\n" + block).partition(b"\ndata: ")
        chunk: dict[str, Any] = msgspec.json.decode(data)
        if self._extras.token_ids and chunk["choices"]:
            self._add_token_ids(chunk, event.choice, last=last)
        if self._extras.continuous_usage:
            chunk["usage"] = usage_object([self._generation], self.num_reasoning_tokens)
        if self._extras.obfuscation:
            chunk["obfuscation"] = ""
            missing = -len(msgspec.json.encode(chunk)) % PADDED_BYTES
            chunk["obfuscation"] = "".join(secrets.choice(_LETTERS) for _ in range(missing))
        return (before + mark)[1:] + msgspec.json.encode(chunk) + b"\n\n"

    def _add_token_ids(self, chunk: dict[str, Any], choice: int, *, last: bool) -> None:
        shown = chunk["choices"][0]
        if last:
            # A wake-up's last chunk: an opening before it holds no token.
            shown["token_ids"] = self._token_ids.pop(choice, [])
        if choice not in self._prompted:
            self._prompted.add(choice)
            holder = shown if self._in_choice else chunk
            holder["prompt_token_ids"] = list(self._generation.prompt_token_ids)


def with_extras(writer: Writer, generation: Generation, extras: types_pb2.Extras | None, *, in_choice: bool) -> Writer:
    """`writer`, or one that adds to it what was asked for."""
    if extras is None or not (extras.token_ids or extras.continuous_usage or extras.obfuscation):
        return writer
    return ExtraWriter(writer, generation, extras, in_choice=in_choice)
