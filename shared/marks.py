"""When the parts of a process's start ended, for whoever started it: one line of JSON to a socket once the process is ready.

Times are seconds of `time.monotonic`, which all processes of a machine share. It knows nothing of what the parts do.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Marks:
    """Call it with a part's name when that part has ended. parent: descriptor to write to; None: nobody wants to know."""

    def __init__(self, parent: int | None = None):
        self.ends: list[tuple[str, float]] = []
        self._parent = parent

    def __call__(self, part: str) -> None:
        """`part` ends now."""
        self.ends.append((part, time.monotonic()))

    def ready(self, facts: Mapping[str, Any] | None = None) -> None:
        """The last part, "ready", ends now; tells the parent, with `facts` about this process."""
        self("ready")
        if self._parent is not None:
            line = json.dumps({"ends": self.ends, "facts": facts or {}}) + "\n"
            try:
                os.write(self._parent, line.encode())
            except OSError:
                # It is gone, or not a socket: then nobody waits for this.
                self._parent = None


def own_start() -> float:
    """When this process was started, to a hundredth of a second."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - since_boot
