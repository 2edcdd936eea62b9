"""What parsers make of a model's text, and what every one of them keeps to.

A parser is a pure function of the text so far: whatever the chunks, the pieces given up to any place are the same, put
together; so a stream can be read again from its beginning on another router and go on where it was. Each character is
looked at a bounded number of times. What is no call, or ceases to be one, is content, to the last character.
It knows nothing of tokens, requests or answers.
"""

from typing import Literal, Protocol

Kind = Literal["content", "reasoning", "call", "arguments"]
# A text and what it is: a "call" is the name of the tool, and "arguments" are the JSON text of the last call begun.
Piece = tuple[Kind, str]

# "bad": what was read cannot be a call, or not from here on.
State = Literal["open", "done", "bad"]

# No model writes so much in earnest, and a megabyte of either takes a tenth of a second.
MAX_JSON_TOKENS = 100_000
MAX_MARKS = 1024


class Parser(Protocol):
    """Reads one choice."""

    def feed(self, text: str) -> list[Piece]:
        """What is certain now."""
        ...

    def finish(self) -> list[Piece]:
        """The rest: no more text comes."""
        ...


class Budget:
    """What reading one choice may cost; where it is spent, the rest is content."""

    def __init__(self) -> None:
        self.num_tokens = MAX_JSON_TOKENS
        self._num_marks = MAX_MARKS

    def spend(self) -> bool:
        """Whether one more token of JSON, or of what resembles it, may be read."""
        self.num_tokens -= 1
        return self.num_tokens >= 0

    def try_mark(self) -> bool:
        """Whether what may be one more call's beginning or end may be looked at."""
        self._num_marks -= 1
        return self._num_marks >= 0


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`, less than all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


def whole_characters(text: str) -> str:
    """`text` with the halves of surrogate pairs, which escapes can spell, put together or replaced: a half is no text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
