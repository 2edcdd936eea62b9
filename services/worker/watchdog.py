"""Finds an engine that is stuck, from a thread of its own, and ends the process.

A stuck step renews no lease, so other workers take over by themselves; handing requests back in an orderly way would
hide that one of them may be the cause. Time in which the whole process was frozen is not held against the engine.
It knows nothing of leases or health services.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

INTERVAL_S = 0.5


class Watched(Protocol):
    """What it asks of the engine."""

    def stalled_s(self) -> float:
        """Seconds without progress."""
        ...


class Watchdog:
    """Calls on_stuck once, on its own thread, when the engine made no progress for limit_s()."""

    def __init__(
        self,
        engine: Watched,
        limit_s: Callable[[], float],
        on_stuck: Callable[[float], None],
        interval_s: float = INTERVAL_S,
    ):
        self._engine = engine
        self._limit_s = limit_s
        self._on_stuck = on_stuck
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        stuck_s, seen_at = 0.0, time.monotonic()
        while not self._stop.wait(self._interval_s):
            now = time.monotonic()
            awake_s = min(now - seen_at, 2 * self._interval_s)
            seen_at = now
            stalled_s = self._engine.stalled_s()
            stuck_s = min(stuck_s + awake_s, stalled_s) if stalled_s > self._interval_s else 0.0
            if stuck_s > self._limit_s():
                self._on_stuck(stalled_s)
                return
