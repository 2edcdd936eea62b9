"""A worker is killed or frozen under streams of every kind: nobody notices more than a pause. Processes, computable tokens."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from services.worker.sim import SimSpec, expected_logprobs, expected_tokens
from shared.pb import worker_pb2, worker_pb2_grpc
from shared.sampling import SamplingParams
from tests import stack
from tests.e2e.sse_client import Seen, read
from tests.router.plane.rig import text_of

SPEC = SimSpec(vocab_size=49152)
POISON = 31_337
NUM_TOKENS = 100

KINDS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.1, "top_p": 0.9},
    {"presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    {"logit_bias": {"7": 3.5, "9": -100}},
    {"min_tokens": 60},
    {"logprobs": 2},
    {"n": 3},
    {"n": 2, "logprobs": 1},
]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """Two routers, one tokenizer, two workers, slow enough to be met in the middle."""
    flags = ("--num-routers", "2", "--num-workers", "2", "--runner", "sim", "--worker.sim-step-ms", "15")
    running = stack.start(tmp_path_factory.mktemp("resume"), *flags, "--worker.sim-poison-token", str(POISON))
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def client_of(system: stack.Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=system.url, timeout=60, verify=False)


def make(index: int) -> Seen:
    """A stream of one of the kinds, with a prompt of its own."""
    kind = KINDS[index % len(KINDS)]
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12 + index)]
    body = {"model": "default", "prompt": prompt, "max_tokens": NUM_TOKENS, "seed": index, "ignore_eos": True}
    return Seen(body | kind | {"stream_options": {"include_usage": True}})


def check(seen: Seen) -> None:
    """Every choice is what the undisturbed run gives; the prompt was counted once."""
    assert seen.error is None, seen.error
    assert seen.done
    body = seen.body
    params = SamplingParams(
        seed=body["seed"], n=body.get("n", 1), max_tokens=body["max_tokens"], min_tokens=body.get("min_tokens", 0)
    )
    for choice in range(params.n):
        expected, reason = expected_tokens(SPEC, body["prompt"], params, choice)
        assert seen.texts[choice] == text_of(expected)
        assert seen.ends[choice] == reason
        if "logprobs" in body:
            rows = [expected_logprobs(SPEC, token, len(body["prompt"]) + at, 0) for at, token in enumerate(expected)]
            assert seen.logprobs[choice] == pytest.approx([row.logprobs[0] for row in rows])
    assert seen.usage is not None
    assert (seen.usage["prompt_tokens"], seen.usage["completion_tokens"]) == (len(body["prompt"]), params.n * NUM_TOKENS)


async def until_running(streams: list[Seen], num_texts: int) -> None:
    async with asyncio.timeout(30):
        while any(len(seen.times) < num_texts for seen in streams):
            await asyncio.sleep(0.02)


async def whole(client: httpx.AsyncClient, seen: Seen) -> None:
    """The same, not streamed."""
    body = {name: value for name, value in seen.body.items() if name != "stream_options"}
    response = await client.post(seen.path, json=body)
    answer = response.json()
    assert response.status_code == 200, answer
    seen.usage, seen.done = answer["usage"], True
    for choice in answer["choices"]:
        seen._take_choice(choice)


async def statuses(system: stack.Stack) -> list[worker_pb2.StatusReply]:
    found = []
    for path in system.sockets("worker"):
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            found.append(
                await worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest(), timeout=20, wait_for_ready=True)
            )
    return found


async def until_at_rest(system: stack.Stack) -> None:
    async with asyncio.timeout(20):
        while any(status.num_running or status.num_free_blocks != status.num_blocks for status in await statuses(system)):
            await asyncio.sleep(0.05)


async def until_both_work(system: stack.Stack) -> None:
    async with asyncio.timeout(20):
        while len(await statuses(system)) < 2:
            await asyncio.sleep(0.05)


async def test_a_worker_killed_under_streams_of_all_kinds(system: stack.Stack) -> None:
    streams = [make(index) for index in range(24)]
    wholes = [make(index) for index in range(24, 32)]
    async with client_of(system) as client:
        reading = [asyncio.create_task(read(client, seen)) for seen in streams]
        reading += [asyncio.create_task(whole(client, seen)) for seen in wholes]
        await until_running(streams, 20)
        os.kill(system.children()["worker-0"], signal.SIGKILL)
        await asyncio.gather(*reading)
    for seen in streams + wholes:
        check(seen)
    gaps = sorted(seen.longest_gap_s for seen in streams)
    print(f"longest gaps: {gaps[-3:]}")
    assert gaps[-1] < 2.0
    await until_at_rest(system)


async def test_a_frozen_worker_is_replaced_and_fenced_when_it_wakes(system: stack.Stack) -> None:
    await until_both_work(system)
    streams = [make(index) for index in range(16)]
    pid = system.children()["worker-1"]
    async with client_of(system) as client:
        reading = [asyncio.create_task(read(client, seen)) for seen in streams]
        await until_running(streams, 20)
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.gather(*reading)
        finally:
            os.kill(pid, signal.SIGCONT)
    for seen in streams:
        check(seen)
    gaps = sorted(seen.longest_gap_s for seen in streams)
    print(f"longest gaps: {gaps[-3:]}")
    assert gaps[-1] < 6.5
    # The zombie woke with sequences that are others' now: it drops them, and their blocks.
    await until_at_rest(system)
    assert system.children()["worker-1"] == pid


async def test_a_poison_request_is_quarantined_and_innocents_are_not(system: stack.Stack) -> None:
    await until_both_work(system)
    innocents = [make(index) for index in range(6)]
    poison = {"model": "default", "prompt": [5, POISON, 6], "max_tokens": 5}
    log_before = system.log.read_text().count("a service ended; starting it again")
    async with client_of(system) as client:
        reading = [asyncio.create_task(read(client, seen)) for seen in innocents]
        await until_running(innocents, 3)
        began = time.monotonic()
        response = await client.post("/v1/completions", json=poison)
        print(f"quarantined after {time.monotonic() - began:.1f} s")
        await asyncio.gather(*reading)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "request_quarantined"
    assert response.headers["x-should-retry"] == "false"
    for seen in innocents:
        check(seen)
    deaths = system.log.read_text().count("a service ended; starting it again") - log_before
    assert deaths <= 3
