"""Tokens of many requests to text, as they are produced.

A stream's text is the UTF-8 of its tokens' bytes: an incomplete character is held back, bytes that can no longer become
one turn into U+FFFD as soon as that is certain, and the result does not depend on how the tokens arrived. Each token
costs the same however long the text is. It knows nothing of gRPC or of what the tokens answer.
"""

import codecs
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from services.tokenizer.stop_strings import StopStrings
from shared.errors import InvalidRequest
from shared.pb import tokenizer_pb2

_UTF8 = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Ended:
    """A stop string ended the text at output token `num_tokens`, counted from 1."""

    num_tokens: int
    stop_index: int


class TextStream:
    """One output. `prompt` (echo) is text before it: given, but neither counted nor searched for stop strings."""

    def __init__(
        self,
        table: Sequence[bytes],
        *,
        stops: Sequence[str] = (),
        include_stop: bool = False,
        skipped_ids: frozenset[int] = frozenset(),
        num_prior_chars: int = 0,
        num_given_tokens: int = 0,
        min_tokens: int = 0,
    ):
        self._table = table
        self._skipped_ids = skipped_ids
        self._stops = StopStrings(stops, include=include_stop)
        self._searches = bool(stops)
        self._min_tokens = min_tokens
        self._decoder = _UTF8(errors="replace")
        self._unfinished = False  # whether the decoder holds the beginning of a character
        self._num_chars = 0  # decoded, held back or not
        self._num_released = 0  # of those, not behind a stop string's beginning
        self._num_whole = 0  # of those, up to the end of a token
        self._released = ""  # what of them has not been given
        self._skip = num_prior_chars
        self._num_given_tokens = num_given_tokens
        # For each token not given, how many characters must be released for it to be.
        self._borders: deque[float] = deque()
        self.num_fed = 0
        self.ended: Ended | None = None

    @property
    def num_tokens(self) -> int:
        """Output tokens whose text has been given: all of it, and nothing of the next ones'."""
        return self.num_fed - len(self._borders)

    def prompt(self, token_ids: Iterable[int]) -> str:
        """The text of the tokens the output continues."""
        text = self._decoder.decode(b"".join(map(self._bytes, token_ids)))
        self._unfinished = bool(self._decoder.getstate()[0])
        return text

    def feed(self, token_ids: Sequence[int]) -> str:
        """New text for new output tokens; nothing once a stop string has ended the text."""
        if not (self._searches or self._unfinished or self._borders or self._skip or self.num_fed < self._num_given_tokens):
            # Nothing is held back and nothing is looked for: plain text, the rule, goes straight through.
            data = b"".join(map(self._bytes, token_ids))
            if data.isascii():
                self.num_fed += len(token_ids)
                self._num_chars += len(data)
                self._num_released += len(data)
                self._num_whole = self._num_released
                return data.decode()
        given: list[str] = []
        for token_id in token_ids:
            if self.ended:
                break
            self.num_fed += 1
            text = self._decoder.decode(self._bytes(token_id))
            self._num_chars += len(text)
            if self.num_fed <= self._num_given_tokens:
                self._skip += len(text)
            self._unfinished = bool(self._decoder.getstate()[0])
            self._add_border(self._unfinished)
            given.append(self._give(self._stops.feed(text) if self.num_fed > self._min_tokens else text))
        return "".join(given)

    def flush(self) -> str:
        """What was held back: no more tokens come."""
        if self.ended:
            return ""
        text = self._decoder.decode(b"", final=True)
        self._num_chars += len(text)
        self._add_border(False)
        given = self._give(self._stops.feed(text))
        if not self.ended:
            given += self._give(self._stops.flush())
        self._borders.clear()
        return given + self._take(len(self._released))

    def _bytes(self, token_id: int) -> bytes:
        if token_id >= len(self._table) or token_id in self._skipped_ids:
            return b""  # Ids beyond the vocabulary are the padding rows of some models' heads.
        return self._table[token_id]

    def _add_border(self, unfinished: bool) -> None:
        """A token was fed. One that ends within a character is given with the one that completes it."""
        border = inf if unfinished else self._num_chars
        index = len(self._borders) - 1
        while not unfinished and index >= 0 and self._borders[index] == inf:
            self._borders[index] = border
            index -= 1
        self._borders.append(border)

    def _give(self, text: str) -> str:
        self._num_released += len(text)
        self._released += text
        while self._borders and self._borders[0] <= self._num_released:
            self._num_whole = int(self._borders.popleft())
        if self._stops.hit is not None and self.ended is None:
            self.ended = Ended(self.num_fed, self._stops.hit)
            return self._take(len(self._released))
        return self._take(len(self._released) - (self._num_released - self._num_whole))

    def _take(self, num_chars: int) -> str:
        text, self._released = self._released[:num_chars], self._released[num_chars:]
        if self._skip:
            skipped = min(self._skip, len(text))
            self._skip -= skipped
            return text[skipped:]
        return text


class Detokenizer:
    """The streams of one Decode call."""

    def __init__(self, table: Sequence[bytes], special_ids: frozenset[int]):
        self._table = table
        self._special_ids = special_ids
        self._streams: dict[int, TextStream] = {}
        self._told: set[int] = set()  # streams whose end by a stop string was answered

    def step(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeReply:
        """One reply, with one row per stream that opened, got tokens or was flushed; a faulty stream is named `refused`.

        Raises InvalidRequest if the columns do not fit together: then no row can be trusted.
        """
        if len(request.stream) != len(request.count) or sum(request.count) != len(request.token_ids):
            raise InvalidRequest("stream, count and token_ids do not fit together", param="token_ids")
        texts: dict[int, list[str]] = {}
        refused: dict[int, None] = {}
        for opening in request.open:
            try:
                text = self._open(opening)
            except InvalidRequest:
                refused[opening.stream] = None
            else:
                texts[opening.stream] = [text]
        token_ids, position = request.token_ids, 0
        for number, count in zip(request.stream, request.count, strict=True):
            if number in self._streams:
                text = self._streams[number].feed(token_ids[position : position + count])
                texts.setdefault(number, []).append(text)
            else:
                refused[number] = None
            position += count
        for number in request.flush:
            if number in self._streams:
                texts.setdefault(number, []).append(self._streams[number].flush())
            else:
                refused[number] = None
        reply = self._reply(texts)
        reply.refused.extend(refused)
        for number in request.close:
            self._streams.pop(number, None)
            self._told.discard(number)
        return reply

    def _open(self, opening: tokenizer_pb2.OpenDecode) -> str:
        if opening.stream in self._streams:
            raise InvalidRequest(f"stream {opening.stream} is open already", param="open")
        if "" in opening.stop:
            raise InvalidRequest("a stop string is empty", param="stop")
        echo, prior = unpack_ids(opening.echo_token_ids), unpack_ids(opening.prior_token_ids)
        stream = TextStream(
            self._table,
            stops=opening.stop,
            include_stop=opening.include_stop,
            skipped_ids=self._special_ids if opening.skip_special else frozenset(),
            num_prior_chars=opening.num_prior_chars,
            num_given_tokens=opening.num_given_tokens,
            min_tokens=opening.min_tokens,
        )
        text = stream.prompt(echo) + stream.feed(prior)
        self._streams[opening.stream] = stream
        return text

    def _reply(self, texts: dict[int, list[str]]) -> tokenizer_pb2.DecodeReply:
        reply = tokenizer_pb2.DecodeReply(
            stream=texts,
            text=["".join(parts) for parts in texts.values()],
            num_tokens=[self._streams[number].num_tokens for number in texts],
        )
        for number in texts:
            ended = self._streams[number].ended
            if ended and number not in self._told:
                self._told.add(number)
                reply.stopped.add(stream=number, num_tokens=ended.num_tokens, stop_index=ended.stop_index)
        return reply


def unpack_ids(packed: bytes) -> "array[int]":
    """Token ids from little-endian uint32. Raises InvalidRequest if the length is no multiple of four."""
    ids = array("I")
    if len(packed) % ids.itemsize:
        raise InvalidRequest("packed token ids must be a multiple of four bytes long", param="token_ids")
    ids.frombytes(packed)
    return ids
