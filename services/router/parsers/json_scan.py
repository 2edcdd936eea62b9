"""JSON objects character by character: what of a text is the beginning of one, and where it ends. Strict, iterative, linear.

Between chunks only a number, a literal or an escape that is not whole is left unread, 64 characters at most. It knows
nothing of calls, nor of what the values mean.
"""

import re
from typing import Literal

from services.router.parsers.pieces import Budget

MAX_DEPTH = 64

# Whole tokens; what stands at the end of a text and may become one is left for the next.
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*+')
_HALF_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_WORD = re.compile(r"[-+.0-9A-Za-z]{1,65}")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")

# What can come next.
_VALUE, _FIRST_VALUE, _KEY, _FIRST_KEY, _COLON, _COMMA = range(6)

Event = Literal["more", "open", "key", "colon", "value", "comma", "end", "bad"]
_EVENTS: dict[int, Event] = {_FIRST_KEY: "open", _COLON: "key", _VALUE: "colon", _COMMA: "value", _KEY: "comma"}


class JsonScan:
    """One object, as far as `budget` goes. `scan` stops after every token of its outermost level."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._depth = 0
        self._closers: list[str] = []
        self._next = _VALUE
        self._in_string = False

    def scan(self, text: str, at: int) -> tuple[int, Event]:
        """Reads on from `at`: up to where it is valid, and why it stopped.

        "more": the text is at its end, or at a token that is not whole. "open", "key", "colon", "value", "comma": after that,
        on the outermost level. "end": after the object. "bad": what comes next cannot stand there.
        """
        while True:
            # Up to what cannot stand in a string it is valid, whether or not that came in the same chunk.
            skipped = _STRING if self._in_string else _SPACE
            at = skipped.match(text, at).end()  # type: ignore[union-attr]
            if at == len(text):
                return at, "more"
            after = self._read_string(text, at) if self._in_string else self._read_token(text, at)
            if after is None:
                return at, "bad"
            if after < 0:
                return -after - 1, "more"
            self._budget.num_tokens -= 1
            if self._budget.num_tokens < 0:
                return at, "bad"
            at = after
            if self._in_string:
                continue
            if not self._depth:
                return at, "end"
            if self._depth == 1:
                return at, _EVENTS[self._next]

    def _read_string(self, text: str, at: int) -> int | None:
        """From where its letters end, after its end; None if it has none, -1 - place where the rest is not there yet."""
        if _HALF_ESCAPE.fullmatch(text, at):
            return -at - 1
        if text[at] != '"':
            return None
        self._in_string = False
        self._next = _COLON if self._next in (_KEY, _FIRST_KEY) else _COMMA
        return at + 1

    def _read_token(self, text: str, at: int) -> int | None:
        letter, expected = text[at], self._next
        if letter == '"':
            if expected > _FIRST_KEY or not self._depth:
                return None
            self._in_string = True
        elif expected <= _FIRST_VALUE:
            return self._read_value(text, at)
        elif (letter == "}" and expected in (_FIRST_KEY, _COMMA)) or (letter == "]" and expected == _COMMA):
            return self._close(letter, at)
        elif letter == ":" and expected == _COLON:
            self._next = _VALUE
        elif letter == "," and expected == _COMMA:
            self._next = _KEY if self._closers[-1] == "}" else _VALUE
        else:
            return None
        return at + 1

    def _read_value(self, text: str, at: int) -> int | None:
        letter = text[at]
        if letter == "{" or (letter == "[" and self._depth):
            if self._depth == MAX_DEPTH:
                return None
            self._closers.append("}" if letter == "{" else "]")
            self._depth += 1
            self._next = _FIRST_KEY if letter == "{" else _FIRST_VALUE
            return at + 1
        if letter == "]" and self._next == _FIRST_VALUE:
            return self._close(letter, at)
        word = _WORD.match(text, at)
        if not self._depth or word is None or len(word[0]) > 64:
            return None
        if word.end() == len(text):
            return -at - 1
        if not _SCALAR.fullmatch(word[0]):
            return None
        self._next = _COMMA
        return word.end()

    def _close(self, letter: str, at: int) -> int | None:
        if self._closers.pop() != letter:
            return None
        self._depth -= 1
        self._next = _COMMA
        return at + 1
