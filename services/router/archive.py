"""Finished answers, kept a while for clients that lost the end: five minutes, and never more than so many bytes.

It knows nothing of who comes for them.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass

from services.router.follow import Source
from shared.queue.types import NewRequest

KEEP_S = 300.0
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Kept:
    """One finished answer, and what was asked."""

    source: Source
    request: NewRequest
    until: float
    num_bytes: int


class Archive:
    """By rid, the oldest first to go."""

    def __init__(self, max_bytes: int = MAX_BYTES, keep_s: float = KEEP_S):
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._keep_s = keep_s
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, request: NewRequest, source: Source) -> None:
        """From now on it can be had again."""
        self.drop(request.rid)
        for log in source.logs:
            log.sink = None
        kept = Kept(source, request, time.monotonic() + self._keep_s, source.num_bytes + len(request.payload))
        self._kept[request.rid] = kept
        self.num_bytes += kept.num_bytes
        self.expire()

    def find(self, rid: str) -> Kept | None:
        """What is kept of rid."""
        self.expire()
        return self._kept.get(rid)

    def drop(self, rid: str) -> None:
        """Forgets it."""
        kept = self._kept.pop(rid, None)
        if kept is not None:
            self.num_bytes -= kept.num_bytes

    def expire(self) -> None:
        """Forgets what is too old or too much."""
        now = time.monotonic()
        while self._kept:
            rid, oldest = next(iter(self._kept.items()))
            if oldest.until > now and self.num_bytes <= self._max_bytes:
                return
            self.drop(rid)
