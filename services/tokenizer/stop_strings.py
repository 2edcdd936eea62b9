"""Finds the first stop string in a text that arrives in pieces, and holds back what may yet become one.

One Knuth-Morris-Pratt automaton per string: each character is looked at once, whatever the pieces. The match that ends
first wins; among those that end together the longest, then the first in the list. It knows nothing of tokens.
"""

from collections.abc import Sequence


def failure_table(string: str) -> list[int]:
    """table[i]: length of the longest proper prefix of string[:i + 1] that is also its suffix."""
    table = [0] * len(string)
    length = 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = table[length - 1]
        length += string[index] == string[length]
        table[index] = length
    return table


class StopStrings:
    """The state of one text. `hit` is the index of the string that ended it, once one has."""

    __slots__ = ("_first", "_held", "_matched", "_stops", "_tables", "hit", "include")

    def __init__(self, stops: Sequence[str], *, include: bool):
        self._stops = tuple(stops)
        self._tables = [failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each string matched by the end of the text
        self._first = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self.hit: int | None = None
        self.include = include

    def feed(self, text: str) -> str:
        """The text that may now be given: the rest is held back, or lies behind a stop string."""
        if self.hit is not None:
            return ""
        if not self._held and self._first.isdisjoint(text):
            return text
        for index, letter in enumerate(text):
            done = [stop for stop in range(len(self._stops)) if self._advance(stop, letter)]
            if done:
                self.hit = max(done, key=lambda stop: (len(self._stops[stop]), -stop))
                whole = self._held + text[: index + 1]
                self._held = ""
                return whole if self.include else whole[: len(whole) - len(self._stops[self.hit])]
        whole = self._held + text
        given = len(whole) - max(self._matched)
        self._held = whole[given:]
        return whole[:given]

    def flush(self) -> str:
        """What was held back; no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, stop: int, letter: str) -> bool:
        string, matched = self._stops[stop], self._matched[stop]
        while matched and string[matched] != letter:
            matched = self._tables[stop][matched - 1]
        matched += string[matched] == letter
        self._matched[stop] = matched
        return matched == len(string)
