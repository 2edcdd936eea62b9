"""Text in which a mark announces a call: what is common to all formats, whatever follows their mark.

White space next to a call is nobody's. A call that turns out to be none before it was begun is content, and so is what
follows the place where one that was begun stops being valid. It knows nothing of any one format.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.router.parsers.pieces import Budget, Piece, State, overlap

MAX_CHUNK = 8192


class Call(Protocol):
    """What follows a mark, perhaps several calls, up to their end."""

    state: State
    begun: bool

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """The pieces that are certain now; and, unless it is open still, the text that it did not take."""
        ...

    def raw(self) -> str:
        """All that was fed and not given back, as long as it was not begun."""
        ...

    def finish(self) -> list[Piece]:
        """What was held of a call that was begun: no more text comes."""
        ...


@dataclass(frozen=True, slots=True)
class Marks:
    """What tells calls from text.

    begin: the mark itself is no part of the call; opening: it is. end: may stand after a call, and is nobody's then.
    first: a call is one only where nothing but white space and other calls stand before.
    """

    begin: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    first: bool = False

    @property
    def all(self) -> tuple[str, ...]:
        """Longest first, so that none hides another."""
        return tuple(sorted(self.begin + self.opening + self.end, key=len, reverse=True))


class MarkedCalls:
    """See pieces.Parser. `make` gives what reads a call after its mark."""

    def __init__(self, marks: Marks, make: Callable[[Budget], Call]) -> None:
        self._marks = marks
        self._pattern = re.compile("|".join(map(re.escape, marks.all)))
        self._make = make
        self._budget = Budget()
        self._space: list[str] = []
        self._held = ""
        self._mark = ""
        self._call: Call | None = None
        self._follows_call = self._has_called = self._is_plain = False

    def feed(self, text: str) -> list[Piece]:
        """See pieces.Parser."""
        pieces: list[Piece] = []
        # What is left of a text is copied at every mark.
        for at in range(0, len(text), MAX_CHUNK):
            rest = self._held + text[at : at + MAX_CHUNK]
            self._held = ""
            while rest:
                rest = self._read_text(rest, pieces) if self._call is None else self._read_call(self._call, rest, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """See pieces.Parser."""
        pieces: list[Piece] = []
        if self._call is not None:
            if self._call.begun:
                return self._call.finish()
            self._held = self._mark + self._call.raw()
        if self._held or not self._has_called:
            self._say(self._held, pieces)
        return pieces

    def _read_text(self, text: str, pieces: list[Piece]) -> str:
        """What stands after the next mark, if there is one."""
        found = None if self._is_plain else self._pattern.search(text)
        if found is None:
            kept = 0 if self._is_plain else max(overlap(text, mark) for mark in self._marks.all)
            self._say_but_space(text[: len(text) - kept], pieces)
            self._held = text[len(text) - kept :]
            if self._is_plain:
                self._say(self._held, pieces)
                self._held = ""
            return ""
        self._say_but_space(text[: found.start()], pieces)
        mark, after = found[0], text[found.end() :]
        if self._is_plain or not self._budget.try_mark():
            self._is_plain = True
            return text[found.start() :]
        if mark in self._marks.end:
            if self._follows_call:
                self._space.clear()
            else:
                self._say(mark, pieces)
            return after
        self._call = self._make(self._budget)
        self._mark = mark if mark in self._marks.begin else ""
        return after if self._mark else text[found.start() :]

    def _read_call(self, call: Call, text: str, pieces: list[Piece]) -> str:
        """What the call did not take."""
        given, text = call.feed(text)
        if call.begun:
            self._space.clear()
            self._follows_call = self._has_called = True
        pieces += given
        if call.state != "open":
            self._call = None
            if not call.begun:
                self._say(self._mark + call.raw(), pieces)
        return text

    def _say_but_space(self, text: str, pieces: list[Piece]) -> None:
        """Content; the space it ends with waits for what follows, if that may be a call."""
        said = text if self._is_plain else text.rstrip()
        if said:
            self._say(said, pieces)
        self._space.append(text[len(said) :])
        if self._is_plain:
            self._say("", pieces)

    def _say(self, text: str, pieces: list[Piece]) -> None:
        text = "".join(self._space) + text
        self._space.clear()
        if text:
            pieces.append(("content", text))
            self._follows_call = False
            # Where only the beginning counts, it is over.
            self._is_plain = self._is_plain or self._marks.first
