"""A whole system whose Redis speaks TLS and knows its users: passwords come from files and are seen nowhere."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.queue.connection import Access, connect
from tests import stack
from tests.certificates import write_server_certificate
from tests.redis_users import Guarded, guarded_redis
from tests.stack import ROOT, environment, free_ports, processes_of, roadtrain
from tests.tls_proxy import tls_before


@dataclass(frozen=True)
class Safe:
    """A Redis behind TLS. `url` bears a user and a password that are not good: files win."""

    guarded: Guarded
    port: int
    authority: Path
    folder: Path

    @property
    def url(self) -> str:
        return f"rediss://nobody:not-this-one@127.0.0.1:{self.port}/0"

    def flags(self, *more: str) -> tuple[str, ...]:
        password = self.guarded.password_file("router")
        access = ("--redis-username", "router", "--redis-password-file", str(password), "--redis-ca-file", str(self.authority))
        return ("--runner", "sim", "--redis-url", self.url, *access, *more)


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Safe]:
    folder = tmp_path_factory.mktemp("redis")
    certificate, key = write_server_certificate(folder)
    with ExitStack() as opened:
        guarded = opened.enter_context(guarded_redis())
        port = opened.enter_context(tls_before(guarded.server.socket_path, certificate, key))
        yield Safe(guarded, port, certificate, folder)


def test_a_system_runs_on_it_as_one_of_its_users(safe: Safe) -> None:
    running = stack.start(safe.folder, *safe.flags())
    try:
        body = {"model": "default", "prompt": [5] * 20, "max_tokens": 8, "ignore_eos": True}
        answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 8
        password = safe.guarded.passwords["router"]
        for place in (
            *processes_of(safe.folder).values(),
            running.log.read_text(),
            httpx.get(f"{running.admin_url}/metrics").text,
        ):
            assert password not in place
    finally:
        assert running.stop() == 0, running.log.read_text()[-3000:]
    assert "NOPERM" not in running.log.read_text()


async def test_a_server_that_somebody_else_vouches_for_is_not_talked_to(safe: Safe, tmp_path: Path) -> None:
    stranger, _ = write_server_certificate(tmp_path)
    for authority in (stranger, None):
        redis = connect(safe.url, Access("router", safe.guarded.passwords["router"], authority))
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await redis.get("rt:x")
        await redis.aclose()
        await redis.connection_pool.disconnect()


@pytest.mark.parametrize("wrong", ["password", "no file"])
def test_what_is_wrong_is_one_line_without_secrets(safe: Safe, wrong: str, tmp_path: Path) -> None:
    flags = ["--redis-password-file", str(tmp_path / "password")]
    if wrong == "password":
        (tmp_path / "password").write_text("a-wrong-password")
    command = roadtrain(
        "worker", "--secret-file", str(tmp_path / "secret"), "--worker.admin-address", f"127.0.0.1:{free_ports()}"
    )
    (tmp_path / "secret").write_text("0" * 64)
    done = subprocess.run(
        [*command, *safe.flags(), *flags], capture_output=True, text=True, cwd=ROOT, timeout=90, env=environment(tmp_path)
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("roadtrain")]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = {"password": "Redis refuses us", "no file": "cannot read the password file"}
    assert len(lines) == 1
    assert said[wrong] in lines[0]
    for secret in ("not-this-one", "a-wrong-password", safe.guarded.passwords["router"]):
        assert secret not in done.stderr
