"""Calls whose name stands before their arguments: a head, and then one JSON object that is given as it comes.

It knows nothing of how any one model spells the head.
"""

import re
from collections.abc import Callable, Sequence

from services.router.parsers.calls import Call
from services.router.parsers.json_scan import JsonScan
from services.router.parsers.pieces import Budget, Piece, State

MAX_HEAD = 256

Maker = Callable[[Budget, re.Match[str]], Call]


class Arguments:
    """See calls.Call: begun from the beginning."""

    def __init__(self, budget: Budget, name: str) -> None:
        self._scan = JsonScan(budget)
        self._unread = ""
        self._news: list[Piece] = [("call", name)]
        self.state: State = "open"
        self.begun = True

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See calls.Call."""
        text, at = self._unread + text, 0
        self._unread = ""
        pieces, self._news = self._news, []
        event = "open"
        while event not in ("more", "end", "bad"):
            at, event = self._scan.scan(text, at)
        if at:
            pieces.append(("arguments", text[:at]))
        if event == "more":
            self._unread = text[at:]
            return pieces, ""
        self.state = "done" if event == "end" else "bad"
        return pieces, text[at:]

    def raw(self) -> str:
        """See calls.Call."""
        return ""

    def finish(self) -> list[Piece]:
        """See calls.Call."""
        return [*self._news, ("arguments", self._unread)] if self._unread else self._news


class HeadedCall:
    """See calls.Call: a head that one of the patterns matches, and what its maker reads after it.

    Patterns match less than MAX_HEAD characters, and what they match no further text can change.
    """

    def __init__(self, budget: Budget, heads: Sequence[tuple[re.Pattern[str], Maker]]) -> None:
        self._budget = budget
        self._heads = heads
        self._head = ""
        self._inner: Call | None = None
        self.state: State = "open"
        self.begun = False

    def feed(self, text: str) -> tuple[list[Piece], str]:
        """See calls.Call."""
        if self._inner is None:
            text = self._head + text
            self._head = ""
            self._inner, at = self._after_head(text)
            if self._inner is None:
                if len(text) > MAX_HEAD:
                    self.state = "bad"
                    return [], text
                self._head = text
                return [], ""
            self._head, text = text[:at], text[at:]
        pieces, rest = self._inner.feed(text)
        self.state, self.begun = self._inner.state, self._inner.begun
        return pieces, rest

    def raw(self) -> str:
        """See calls.Call."""
        return self._head + ("" if self._inner is None else self._inner.raw())

    def finish(self) -> list[Piece]:
        """See calls.Call."""
        return [] if self._inner is None else self._inner.finish()

    def _after_head(self, text: str) -> tuple[Call | None, int]:
        for pattern, make in self._heads:
            if found := pattern.match(text):
                return make(self._budget, found), found.end()
        return None, 0
