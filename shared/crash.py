"""The test hook ROADTRAIN_CRASH_AT: a process that dies at a named step of the protocol, as if killed from outside.

The variable is the name of a point, and every process dies each time it gets there; or @FILE, and the process that
reaches the point named in that file first removes the file and dies, so that each writing of it is one death. It
knows nothing of what the steps mean.
"""

import os
import signal
from pathlib import Path

from shared import config

POINTS = (
    "worker.claimed",  # Redis gave it the request; nobody else knows
    "worker.begun",  # the router said where to go on
    "worker.step",  # tokens were computed, none sent
    "worker.sent",  # tokens were written to the router
    "worker.renewed",
    "worker.finishing",  # the router has all, Redis was not told
    "worker.finished",  # Redis was told
    "worker.releasing",
    "router.accepted",  # checked and encoded, not put
    "router.put",  # put, the client has heard nothing
    "router.claimed",  # a worker asked where to go on
    "router.frames",  # tokens came, none acked
    "router.given",  # the client has all, the worker was not told
    "router.adopted",  # Redis knows this router, the worker does not
    "router.revoked",
    "router.cancelled",  # the worker was told, Redis was not
)

_WHERE = config.crash_at()
_FILE = Path(_WHERE[1:]) if _WHERE.startswith("@") else None


def point(name: str) -> None:
    """Dies here if this is where it was asked to."""
    if not _WHERE or not _is_meant(name):
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _is_meant(name: str) -> bool:
    if _FILE is None:
        return name == _WHERE
    try:
        if _FILE.read_text(encoding="utf-8").strip() != name:
            return False
        _FILE.unlink()
    except OSError:
        return False
    return True
