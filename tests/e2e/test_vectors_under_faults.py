"""Workers are killed and frozen while bodies of many inputs are embedded: every vector comes, once, and with the same bits."""

import asyncio
import base64
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.worker.engine.step import Pooling
from services.worker.sim import VECTOR_SIZE, expected_vector
from tests import stack
from tests.e2e.test_resume_workers import until_at_rest, until_both_work


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    flags = ("--num-routers", "2", "--num-workers", "2", "--runner", "sim", "--worker.sim-step-ms", "30")
    running = stack.start(tmp_path_factory.mktemp("vectors"), *flags, "--worker.sim-prefill-tokens-per-s", "2000")
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def prompts(number: int, count: int = 60) -> list[list[int]]:
    return [[(number * 7919 + index * 977 + at * 31) % 40_000 + 2 for at in range(20 + index % 9)] for index in range(count)]


async def embed(client: httpx.AsyncClient, number: int, **headers: str) -> Any:
    body = {"model": "default", "input": prompts(number), "encoding_format": "base64"}
    return await client.post("/v1/embeddings", json=body, headers=headers)


def check(number: int, response: Any) -> None:
    assert response.status_code == 200, response.text
    got = [base64.b64decode(entry["embedding"]) for entry in response.json()["data"]]
    assert got == [expected_vector(prompt, Pooling("last", VECTOR_SIZE)) for prompt in prompts(number)]
    assert response.json()["usage"]["prompt_tokens"] == sum(map(len, prompts(number)))


async def test_every_vector_comes_though_workers_are_killed_and_frozen(system: stack.Stack) -> None:
    await until_both_work(system)
    async with httpx.AsyncClient(base_url=system.url, timeout=60, verify=False) as client:
        making = [asyncio.create_task(embed(client, number)) for number in range(8)]
        await asyncio.sleep(0.3)
        os.kill(system.children()["worker-0"], signal.SIGKILL)
        await asyncio.sleep(0.5)
        frozen = system.children()["worker-1"]
        os.kill(frozen, signal.SIGSTOP)
        await asyncio.sleep(1.0)
        os.kill(frozen, signal.SIGCONT)
        for number, response in enumerate(await asyncio.gather(*making)):
            check(number, response)
    await until_at_rest(system)


async def test_the_same_key_from_many_connections_is_computed_once(system: stack.Stack) -> None:
    await until_both_work(system)
    async with httpx.AsyncClient(base_url=system.url, timeout=60, verify=False) as client:
        keyed = {"idempotency-key": "vectors-1"}
        for response in await asyncio.gather(*(embed(client, 99, **keyed) for _ in range(4))):
            check(99, response)
        other = await client.post("/v1/embeddings", json={"model": "default", "input": prompts(98)}, headers=keyed)
        assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
    await until_at_rest(system)
