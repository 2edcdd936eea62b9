"""Tenants of one real system: what is one's is another's in no way, and no key is anywhere but with its owner."""

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from shared.api_keys import digest_of
from shared.pb import router_pb2, router_pb2_grpc
from tests import stack
from tests.stack import ROOT, Stack, environment, processes_of, roadtrain

PROMPT = [100 + index % 1000 for index in range(300)]


@dataclass
class Tenants:
    """A system with keys."""

    stack: Stack
    keys: dict[str, str]

    def headers(self, who: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[who]}"}

    def ask(self, who: str, **fields: Any) -> httpx.Response:
        body = {"model": "default", "prompt": PROMPT, "max_tokens": 4, "seed": 1, **fields}
        return httpx.post(f"{self.stack.url}/v1/completions", json=body, headers=self.headers(who), timeout=60)


def make_key(file: Path, key_id: str, *flags: str) -> str:
    """`roadtrain keys`; the key it shows."""
    command = roadtrain("keys", str(file), "--id", key_id, *flags)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(file.parent), timeout=60, check=True)
    assert key_id in done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    folder = tmp_path_factory.mktemp("tenants")
    file = folder / "keys.yaml"
    keys = {
        "alice": make_key(file, "alice", "--tenant", "alice"),
        "bob": make_key(file, "bob", "--tenant", "bob", "--weight", "2"),
    }
    keys["carol"] = make_key(file, "carol", "--tenant", "carol", "--tokens-per-minute", "3000", "--models", "default,x")
    running = stack.start(folder, "--runner", "sim", "--keys-file", str(file), "--worker.sim-step-ms", "10")
    yield Tenants(running, keys)
    assert running.stop() == 0, running.log.read_text()[-3000:]


def cached(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_no_tenant_hits_anothers_cached_prompt(tenants: Tenants) -> None:
    """security.md 61: neither its tokens' time nor its count says what another has asked."""
    assert cached(tenants.ask("alice")) == 0
    assert cached(tenants.ask("alice")) > 200
    assert cached(tenants.ask("bob")) == 0
    assert cached(tenants.ask("bob")) > 200
    assert cached(tenants.ask("bob", cache_salt="mine")) == 0
    assert cached(tenants.ask("carol", cache_salt="mine")) == 0


async def test_another_tenants_request_is_one_that_never_was(tenants: Tenants) -> None:
    """security.md 66, running and ended, over HTTP and gRPC: the same status, text and headers as a rid made up."""
    body = {"model": "default", "prompt": PROMPT, "max_tokens": 3000, "stream": True, "ignore_eos": True}
    async with (
        httpx.AsyncClient(base_url=tenants.stack.url, timeout=60) as client,
        grpc.aio.insecure_channel(tenants.stack.grpc_address) as channel,
        client.stream("POST", "/v1/completions", json=body, headers=tenants.headers("alice")) as running,
    ):
        rid = ""
        async for line in running.aiter_lines():
            if line.startswith("id: "):
                rid = line[4:].split(":")[0]
                break
        ended = tenants.ask("alice", stream=True).text.split("id: ")[1].split(":")[0]
        never = rid[:10] + ("0" if rid[10] != "0" else "1") + rid[11:]
        stub = router_pb2_grpc.RouterStub(channel)

        async def seen_by(who: str, name: str) -> list[object]:
            found: list[object] = []
            for method in ("GET", "POST", "DELETE"):
                answer = await client.request(method, f"/v1/streams/{name}", headers=tenants.headers(who))
                skip = ("x-request-id", "date")
                shown = {key: value for key, value in answer.headers.items() if key not in skip}
                found.append((answer.status_code, answer.content.replace(name.encode(), b"RID"), shown))
            metadata = tuple(tenants.headers(who).items())
            for call in (
                stub.Resume(router_pb2.ResumeRequest(rid=name), metadata=metadata, timeout=20),
                stub.Resume(router_pb2.ResumeRequest(rid=name, position=f"{name}:1:00000000"), metadata=metadata, timeout=20),
                stub.Cancel(router_pb2.CancelRequest(rid=name), metadata=metadata, timeout=20),
            ):
                code, details = await call.code(), (await call.details()).replace(name, "RID")
                found.append((code, details, tuple(await call.trailing_metadata())))
            return found

        strangers = [await seen_by("bob", name) for name in (rid, ended, never)]
        assert strangers[0] == strangers[1] == strangers[2]
        assert strangers[0][0][0] == 404  # type: ignore[index]
        assert strangers[0][3][0] is grpc.StatusCode.NOT_FOUND  # type: ignore[index]
        # It goes on, and is its owner's to end.
        cancelled = await stub.Cancel(router_pb2.CancelRequest(rid=rid), metadata=tuple(tenants.headers("alice").items()))
        assert cancelled.cancelled


def test_one_idempotency_key_of_two_tenants_is_two_requests(tenants: Tenants) -> None:
    bodies = []
    for who in ("alice", "bob"):
        headers = {**tenants.headers(who), "idempotency-key": "the-same"}
        body = {"model": "default", "prompt": [len(who)] * 50, "max_tokens": 4}
        bodies.append(httpx.post(f"{tenants.stack.url}/v1/completions", json=body, headers=headers, timeout=60).json())
    assert bodies[0]["id"] != bodies[1]["id"]


def test_a_limited_key_hears_what_it_has_left(tenants: Tenants) -> None:
    first = tenants.ask("carol", prompt=[5] * 1000, max_tokens=100, ignore_eos=True)
    assert first.headers["x-ratelimit-limit-tokens"] == "3000"
    # 1,100 of them are gone, and 304 for what was asked before; 50 flow in each second.
    assert 1_500 <= int(first.headers["x-ratelimit-remaining-tokens"]) < 2_990
    assert "x-ratelimit-limit-requests" not in first.headers
    refused = tenants.ask("carol", model="SmolLM2-135M-Instruct")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")


async def test_no_secret_is_anywhere_but_with_its_owner(tenants: Tenants) -> None:
    """Not in arguments, environments, logs, metrics or Redis; its digest is in the file of keys alone."""
    folder = tenants.stack.folder
    async with httpx.AsyncClient() as client:
        wrong = {"authorization": "Bearer sk-rt-wrongwrong"}
        assert (await client.get(f"{tenants.stack.url}/v1/models", headers=wrong)).status_code == 401
        metrics = (await client.get(f"{tenants.stack.admin_url}/metrics")).content
    (runtime,) = folder.glob("roadtrain-*")
    secrets = [*tenants.keys.values(), *(digest_of(key.encode()).hex() for key in tenants.keys.values()), "sk-rt-wrongwrong"]
    secrets.append((runtime / "secret").read_text().strip())
    places = {"log": tenants.stack.log.read_bytes(), "metrics": metrics}
    places |= arguments_and_environments(folder)
    for file in runtime.glob("*.json"):
        places[file.name] = file.read_bytes()
    async with Redis(unix_socket_path=str(runtime / "redis.sock")) as redis:
        places["redis"] = b"".join([await content(redis, key) for key in await redis.keys("*")])
        assert b"alice" in places["redis"]
    assert len(places) > 8
    for secret in secrets:
        assert len(secret) > 10
        assert not [name for name, data in places.items() if secret.encode() in data], "a secret is out"
    for file in (runtime / "secret", folder / "keys.yaml"):
        assert file.stat().st_mode & 0o077 == 0, file


def arguments_and_environments(folder: Path) -> dict[str, bytes]:
    """Of every process of the system."""
    found = {}
    for pid, line in processes_of(folder).items():
        found[f"arguments of {pid}"] = line.encode()
        found[f"environment of {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
    return found


async def content(redis: Redis, key: bytes) -> bytes:
    """Name and value of a key, whatever its type."""
    kind = await redis.type(key)
    reads = {
        b"string": lambda: redis.get(key),
        b"hash": lambda: redis.hgetall(key),
        b"zset": lambda: redis.zrange(key, 0, -1),
        b"set": lambda: redis.smembers(key),
    }
    value = await reads[kind]() if kind in reads else None
    return key + (value if isinstance(value, bytes) else repr(value).encode())


async def test_a_new_key_works_within_a_second_or_so_and_a_deleted_one_does_not(tenants: Tenants) -> None:
    file = tenants.stack.folder / "keys.yaml"
    before = file.read_text()
    key = make_key(file, "dave", "--tenant", "alice")

    async def until(status: int) -> None:
        async with asyncio.timeout(30), httpx.AsyncClient(base_url=tenants.stack.url) as client:
            while (await client.get("/v1/models", headers={"x-api-key": key})).status_code != status:
                await asyncio.sleep(0.1)

    await until(200)
    file.write_text(before)
    await until(401)
