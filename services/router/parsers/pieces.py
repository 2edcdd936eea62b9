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


class Parser(Protocol):
    """Reads one choice."""

    def feed(self, text: str) -> list[Piece]:
        """What is certain now."""
        ...

    def finish(self) -> list[Piece]:
        """The rest: no more text comes."""
        ...


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`, less than all of it."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
