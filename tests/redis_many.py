"""Starts several redis-servers that stand in for each other: a primary with a replica and sentinels, or a cluster.

On loopback, each in a folder of its own, nothing kept on disk but what they need. It knows nothing of the queue.
"""

import contextlib
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from shared.ports import port_is_free
from tests.redis_server import redis_binary

MASTER = "main"
SLOTS = 16384
# A server of a cluster talks to the others on its port and so many more.
BUS = 10_000
PATIENCE_S = 60.0


@dataclass
class Servers:
    """Running servers by port; `url` is for shared.queue.connection.connect."""

    folder: Path
    url: str = ""
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, port: int, *options: str, config: str = "") -> None:
        """One server more, whose configuration file says `config`."""
        home = self.folder / str(port)
        home.mkdir()
        file = home / "redis.conf"
        base = ["bind 127.0.0.1", f"port {port}", f"dir {home}", f"logfile {home}/log"]
        file.write_text("\n".join([*base, *config.splitlines()]) + "\n")
        self.processes[port] = subprocess.Popen(
            [redis_binary(), str(file), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def kill(self, port: int) -> None:
        """Ends one at once, as a crash would."""
        self.processes[port].kill()
        self.processes[port].wait()


def ask(port: int, *command: object, **secrets: Any) -> Any:
    """One server's answer to a command. `secrets`: what its connections need, as redis-py names it."""
    with contextlib.closing(Redis(port=port, socket_timeout=5, **secrets)) as redis:
        redis.response_callbacks.clear()
        return redis.execute_command(*command)


def until(holds: Callable[[], object], what: str) -> None:
    """Waits for a condition; servers that do not answer yet do not fulfil it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(RedisError, OSError, KeyError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.05)


def distinct_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 50_000)
        if port not in found and port_is_free("127.0.0.1", port) and port_is_free("127.0.0.1", port + BUS):
            found.append(port)
    return found


@contextlib.contextmanager
def servers_in_a_folder() -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="rtm-", ignore_cleanup_errors=True) as folder:
        running = Servers(Path(folder))
        try:
            yield running
        finally:
            for process in running.processes.values():
                process.kill()
                process.wait()


NOTHING_KEPT = 'save ""\nmaxmemory-policy noeviction\nrepl-diskless-sync yes\nrepl-diskless-sync-delay 0\n'


def primary_of(servers: Servers) -> int:
    """The port of the server that most of the sentinels call primary."""
    named = [_named(port) for port in _sentinels(servers)]
    return max(set(named), key=named.count)


def _sentinels(servers: Servers) -> list[int]:
    return [port for port, process in servers.processes.items() if "--sentinel" in process.args]  # type: ignore[operator]


def _named(sentinel: int) -> int:
    _, port = ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
    return int(port)


@contextlib.contextmanager
def sentinels(down_after_ms: int = 1000) -> Iterator[Servers]:
    """A primary, a replica and three sentinels that know each other."""
    with servers_in_a_folder() as servers:
        primary, replica, *watchers = distinct_ports(5)
        servers.start(primary, config=NOTHING_KEPT)
        servers.start(replica, config=NOTHING_KEPT + f"replicaof 127.0.0.1 {primary}\n")
        until(lambda: b"master_link_status:up" in ask(replica, "INFO", "replication"), "the replica follows")
        for port in watchers:
            watch = [
                f"sentinel monitor {MASTER} 127.0.0.1 {primary} 2",
                f"sentinel down-after-milliseconds {MASTER} {down_after_ms}",
                f"sentinel failover-timeout {MASTER} 6000",
            ]
            servers.start(port, "--sentinel", config="\n".join(watch))
        for port in watchers:
            until(lambda port=port: _knows_all(port), "the sentinels know each other")  # type: ignore[misc]
        hosts = ",".join(f"127.0.0.1:{port}" for port in watchers)
        servers.url = f"redis+sentinel://{hosts}/{MASTER}"
        yield servers


def _knows_all(sentinel: int) -> bool:
    answer = ask(sentinel, "SENTINEL", "MASTER", MASTER)
    facts = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
    facts = {key.decode() if isinstance(key, bytes) else key: value for key, value in facts.items()}
    return int(facts["num-other-sentinels"]) == 2 and int(facts["num-slaves"]) == 1


@contextlib.contextmanager
def cluster(node_timeout_ms: int = 1500) -> Iterator[Servers]:
    """Three masters with a third of the slots and one replica each."""
    with servers_in_a_folder() as servers:
        ports = distinct_ports(6)
        for port in ports:
            config = f"{NOTHING_KEPT}cluster-enabled yes\ncluster-node-timeout {node_timeout_ms}\n"
            servers.start(port, config=config)
            until(lambda port=port: ask(port, "PING"), "a server answers")  # type: ignore[misc]
        masters, replicas = ports[:3], ports[3:]
        for number, port in enumerate(ports):
            ask(port, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            ask(port, "CLUSTER", "MEET", "127.0.0.1", ports[0])
        for number, port in enumerate(masters):
            ask(port, "CLUSTER", "ADDSLOTS", *range(number * SLOTS // 3, (number + 1) * SLOTS // 3))
        for port in ports:
            until(lambda port=port: b"cluster_known_nodes:6" in ask(port, "CLUSTER", "INFO"), "they know each other")  # type: ignore[misc]
        for master, replica in zip(masters, replicas, strict=True):
            ask(replica, "CLUSTER", "REPLICATE", ask(master, "CLUSTER", "MYID"))
        for port in ports:
            until(lambda port=port: b"cluster_state:ok" in ask(port, "CLUSTER", "INFO"), "the cluster is whole")  # type: ignore[misc]
        for port in replicas:
            until(lambda port=port: b"master_link_status:up" in ask(port, "INFO", "replication"), "the replicas follow")  # type: ignore[misc]
        servers.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
        yield servers


def master_of(servers: Servers, prefix: str) -> int:
    """The port of the server that serves the keys of `prefix`, as the living ones say."""
    living = next(port for port, process in servers.processes.items() if process.poll() is None)
    slot = ask(living, "CLUSTER", "KEYSLOT", prefix)
    for first, last, master, *_ in ask(living, "CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return int(master[1])
    raise RuntimeError(f"nobody serves {prefix}")
