"""What a server on this machine holds in memory: PSS (pages shared by several processes count in parts), from /proc.

It knows nothing of servers but that the one behind a port may be a child of `roadtrain serve`, or have children.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

LISTENING = "0A"


@dataclass(frozen=True, slots=True)
class Held:
    """PSS in MiB of each process, by process id and name."""

    processes: dict[str, float]

    @property
    def total(self) -> float:
        """MiB of all of them."""
        return sum(self.processes.values())


def held_by(url: str) -> Held | None:
    """What the server at `url` and all processes that belong to it hold; None if it is not on this machine or not ours."""
    address = urlsplit(url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    listener = _listener(address.port or 80)
    if listener is None:
        return None
    parents = _parents()
    root = parents.get(listener, 0)
    if "serve" not in _words(root):
        root = listener
    found = {}
    for pid in sorted(parents):
        if pid == root or root in _ancestors(pid, parents):
            with contextlib.suppress(OSError):
                found[f"{pid} {_name(pid)}"] = _pss(pid)
    return Held(found)


def _listener(port: int) -> int | None:
    """The first process that has the listening socket of this TCP port open."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    for entry in sorted(Path("/proc").glob("[0-9]*"), key=lambda entry: int(entry.name)):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in sockets for link in (entry / "fd").iterdir()):
                return int(entry.name)
    return None


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents:
        pid = parents[pid]
        found.add(pid)
    return found


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return (Path(f"/proc/{pid}") / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _name(pid: int) -> str:
    words = _words(pid)
    if "--config" in words:
        return Path(words[words.index("--config") + 1]).stem
    return " ".join(Path(word).name for word in words[:4] if not word.startswith("-"))[:40].strip()


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
