"""Two routers, two tokenizers, two workers, as processes: nothing is lost between them, and what leaves is freed."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator

import grpc
import openai
import pytest

from services.worker.sim import SimSpec, expected_tokens
from shared.pb import router_pb2, router_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from shared.sampling import SamplingParams
from tests.stack import Stack

STREAMS, LOAD_S = 32, 60.0
VOCAB = 49152


@pytest.fixture
async def api(two_by_two: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{two_by_two.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


async def statuses(stack: Stack) -> list[worker_pb2.StatusReply]:
    found = []
    for path in stack.sockets("worker"):
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            found.append(await worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest(), timeout=10))
    return found


async def test_tokens_are_the_oracle_s_over_grpc(two_by_two: Stack) -> None:
    """Many requests at once; each choice of each must be exactly what the sim runner defines."""

    async def one(index: int, router: router_pb2_grpc.RouterStub) -> None:
        prompt = [(index * 31 + i) % VOCAB for i in range(20 + 17 * index)]
        params = SamplingParams(seed=index, n=1 + index % 3, max_tokens=5 + 3 * index)
        options = router_pb2.Options(
            sampling=types_pb2.Sampling(seed=index, n=params.n, max_tokens=params.max_tokens, ignore_eos=True)
        )
        request = router_pb2.CompleteRequest(
            model="default", token_ids=b"".join(t.to_bytes(4, "little") for t in prompt), options=options
        )
        got: dict[int, list[int]] = {choice: [] for choice in range(params.n)}
        async for event in router.Complete(request, timeout=60):
            if event.WhichOneof("event") == "delta":
                got[event.delta.choice] += event.delta.token_ids
        spec = SimSpec(vocab_size=VOCAB)
        for choice, token_ids in got.items():
            assert token_ids == expected_tokens(spec, prompt, params, choice)[0]

    async with grpc.aio.insecure_channel(two_by_two.grpc_address) as channel:
        router = router_pb2_grpc.RouterStub(channel)
        await asyncio.gather(*(one(index, router) for index in range(24)))
    assert all(status.num_tokens_computed > 0 for status in await statuses(two_by_two)), "one worker did all the work"


async def test_a_client_that_leaves_frees_its_blocks_within_a_second(two_by_two: Stack, api: openai.AsyncOpenAI) -> None:
    stream = await api.completions.create(model="default", prompt=[7] * 500, max_tokens=4000, stream=True)
    async for _ in stream:
        break
    assert sum(status.num_running for status in await statuses(two_by_two)) == 1
    await stream.close()
    left_at = time.monotonic()
    while any(status.num_free_blocks != status.num_blocks for status in await statuses(two_by_two)):
        assert time.monotonic() - left_at < 1.0
        await asyncio.sleep(0.02)


async def test_mixed_streams_for_a_minute(two_by_two: Stack, api: openai.AsyncOpenAI) -> None:
    """32 streams of prompts of 128 to 1,024 tokens, for 60 s: no error, nothing short, little KV memory wasted."""
    end_at = time.monotonic() + LOAD_S
    rng = random.Random(5)
    num_done = 0

    async def stream(seed: int) -> None:
        nonlocal num_done
        while time.monotonic() < end_at:
            prompt = [rng.randrange(100, VOCAB) for _ in range(rng.randint(128, 1024))]
            want = rng.randint(8, 256)
            events = await api.completions.create(
                model="default",
                prompt=prompt,
                max_tokens=want,
                seed=seed,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            chunks = [chunk async for chunk in events]
            assert chunks[-1].usage.completion_tokens == want
            assert chunks[-1].usage.prompt_tokens == len(prompt)
            num_done += 1

    await asyncio.gather(*(stream(seed) for seed in range(STREAMS)))
    assert num_done > STREAMS
    for status in await statuses(two_by_two):
        assert 0 < status.kv_waste < 0.04
        assert status.num_free_blocks == status.num_blocks


async def test_a_service_that_dies_is_started_again(two_by_two: Stack, api: openai.AsyncOpenAI) -> None:
    before = two_by_two.children()
    os.kill(before["tokenizer-0"], signal.SIGKILL)
    answer = await api.completions.create(model="default", prompt="one tokenizer is enough", max_tokens=4)
    assert answer.usage.completion_tokens > 0
    deadline = time.monotonic() + 15
    while two_by_two.children().get("tokenizer-0") in (None, before["tokenizer-0"]):
        assert time.monotonic() < deadline, two_by_two.children()
        await asyncio.sleep(0.1)
