"""Reasoning between <think> and </think>, at the beginning of the output or already open where it begins.

White space around the two marks is nobody's. It knows nothing of tools.
"""

from services.router.parsers.pieces import Piece, overlap

OPEN, CLOSE = "<think>", "</think>"


class Think:
    """Before the reasoning, in it, or after it: then all is content.

    num_chars: of the text, up to the end of the closing mark, once it has come.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._state = "inside" if is_open else "before"
        self._blank: list[str] = []
        self._held = ""
        self._strips = is_open
        self._num_fed = 0
        self.num_chars: int | None = None

    @property
    def is_reasoning(self) -> bool:
        """The text so far ends in the reasoning."""
        return self._state == "inside"

    def feed(self, text: str) -> list[Piece]:
        """See pieces.Parser."""
        pieces: list[Piece] = []
        self._held += text
        self._num_fed += len(text)
        if self._state == "before":
            self._look_for_opening()
        if self._state == "inside":
            self._read(pieces)
        if self._state == "after":
            self._strip()
            if self._held:
                pieces.append(("content", self._held))
                self._held = ""
        return pieces

    def finish(self) -> list[Piece]:
        """See pieces.Parser."""
        held, self._held = "".join(self._blank) + self._held, ""
        if not held or (self._strips and not held.strip()):
            return []
        return [("reasoning" if self._state == "inside" else "content", held)]

    def _look_for_opening(self) -> None:
        begun = self._held.lstrip()
        self._blank.append(self._held[: len(self._held) - len(begun)])
        self._held = begun
        if begun.startswith(OPEN):
            self._held, self._state, self._strips = begun[len(OPEN) :], "inside", True
            self._blank.clear()
        elif not OPEN.startswith(begun):
            self._held, self._state = "".join(self._blank) + begun, "after"
            self._blank.clear()

    def _read(self, pieces: list[Piece]) -> None:
        self._strip()
        before, found, after = self._held.partition(CLOSE)
        if found:
            self.num_chars = self._num_fed - len(after)
            self._held, self._state, self._strips = after, "after", True
        else:
            kept = overlap(before, CLOSE)
            before, self._held = before[: len(before) - kept], before[len(before) - kept :]
        if before:
            pieces.append(("reasoning", before))

    def _strip(self) -> None:
        if self._strips:
            self._held = self._held.lstrip()
            self._strips = not self._held
