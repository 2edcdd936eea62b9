"""Log-probabilities in the three shapes clients know: chat's, completions' and vLLM's for prompts.

A row is one token: the token itself first, then the most likely ones in falling order. It knows nothing of JSON text.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from services.router.needs import Vocabulary
from shared.pb import types_pb2

# JSON has no minus infinity; OpenAI writes this.
LOWEST = -9999.0

Row = tuple[Sequence[int], Sequence[float]]


def rows(logprobs: types_pb2.Logprobs) -> Iterator[Row]:
    """Each token's ids and log-probabilities."""
    width = logprobs.width
    ids, values = logprobs.token_ids, [max(value, LOWEST) for value in logprobs.logprobs]
    for at in range(0, len(ids), width or 1):
        yield ids[at : at + width], values[at : at + width]


def chat_content(vocabulary: Vocabulary, logprobs: types_pb2.Logprobs, *, as_ids: bool = False) -> list[dict[str, Any]]:
    """choices[].logprobs.content of a chat. as_ids: tokens are spelled as vLLM's "token_id:7"."""
    content = []
    for ids, values in rows(logprobs):
        entries = [_chat_entry(vocabulary, token_id, value, as_ids) for token_id, value in zip(ids, values, strict=True)]
        content.append(entries[0] | {"top_logprobs": entries[1:]})
    return content


def _chat_entry(vocabulary: Vocabulary, token_id: int, value: float, as_ids: bool) -> dict[str, Any]:
    data = vocabulary.bytes_of(token_id)
    token = f"token_id:{token_id}" if as_ids else data.decode("utf-8", "replace")
    return {"token": token, "logprob": value, "bytes": list(data)}


def prompt_entries(vocabulary: Vocabulary, logprobs: types_pb2.Logprobs) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: null for the first token, then per token a map from id to its entry.

    The rank of a token that is not among the most likely ones is not known and null.
    """
    entries: list[dict[str, Any] | None] = [None]
    for ids, values in rows(logprobs):
        row: dict[str, Any] = {}
        for rank, (token_id, value) in enumerate(zip(ids, values, strict=True)):
            text = vocabulary.bytes_of(token_id).decode("utf-8", "replace")
            # Written twice if the token itself is among the most likely: the later entry has its rank.
            row[str(token_id)] = {"logprob": value, "rank": rank or None, "decoded_token": text}
        entries.append(row)
    return entries


def joined(pieces: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]] | None:
    """Pieces of one choice as one; None if there are none."""
    if not pieces:
        return None
    return {name: [entry for piece in pieces for entry in piece[name]] for name in pieces[0]}


class CompletionLogprobs:
    """choices[].logprobs of one choice of a completion, piece by piece; offsets count characters from its beginning."""

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool, as_ids: bool = False) -> None:
        self._vocabulary = vocabulary
        self._as_ids = as_ids
        self._skipped = vocabulary.special if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def prompt(self, token_ids: Sequence[int], logprobs: types_pb2.Logprobs | None) -> dict[str, list[Any]]:
        """The prompt's tokens; the first has no log-probability, as nothing came before it."""
        found: list[Row | None] = [None, *(rows(logprobs) if logprobs else ())]
        found += [None] * (len(token_ids) - len(found))
        return self._piece(list(zip(token_ids, found, strict=False)))

    def output(self, logprobs: types_pb2.Logprobs) -> dict[str, list[Any]]:
        """Output tokens."""
        return self._piece([(row[0][0], row) for row in rows(logprobs)])

    def _piece(self, tokens: Sequence[tuple[int, Row | None]]) -> dict[str, list[Any]]:
        piece: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token_id, row in tokens:
            piece["tokens"].append(self._text(token_id))
            piece["token_logprobs"].append(None if row is None else row[1][0])
            piece["top_logprobs"].append(None if row is None else self._top(row))
            piece["text_offset"].append(self._offset)
            if token_id not in self._skipped:
                self._offset += len(self._decoder.decode(self._vocabulary.bytes_of(token_id)))
        return piece

    def _top(self, row: Row) -> dict[str, float]:
        top: dict[str, float] = {}
        ids, values = row
        for token_id, value in zip([*ids[1:], ids[0]], [*values[1:], values[0]], strict=True):
            top.setdefault(self._text(token_id), value)
        return top

    def _text(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._vocabulary.bytes_of(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            # A part of a character: OpenAI's spelling keeps such tokens apart from each other.
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
