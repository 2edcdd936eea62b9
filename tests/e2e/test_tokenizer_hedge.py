"""One of two tokenizers is frozen or killed: nothing fails, and nobody waits a second longer for it."""

import asyncio
import contextlib
import os
import signal
import time

import httpx
import pytest

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.e2e.sse_client import Seen, read
from tests.router.plane.rig import text_of
from tests.stack import Stack

SPEC = SimSpec(vocab_size=49152)
NUM_TOKENS = 700
WAIT_S = 1.0
USUAL_S = 0.15


def stream_of(index: int) -> Seen:
    """Its text comes from a tokenizer, since it names a stop string."""
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12 + index)]
    return Seen(
        {"model": "default", "prompt": prompt, "max_tokens": NUM_TOKENS, "seed": index, "ignore_eos": True, "stop": ["qqqqq"]}
    )


async def ask(client: httpx.AsyncClient, number: int) -> float:
    """A chat, which a tokenizer renders and encodes; seconds until it is answered."""
    messages = [{"role": "user", "content": f"question {number}"}]
    began_at = time.monotonic()
    response = await client.post("/v1/chat/completions", json={"model": "default", "messages": messages, "max_tokens": 2})
    assert response.status_code == 200, response.text
    return time.monotonic() - began_at


async def until_restarted(stack: Stack, name: str, before: int) -> None:
    async with asyncio.timeout(30):
        while stack.children().get(name) in (None, before):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("name", ["tokenizer-0", "tokenizer-1"])
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
async def test_a_tokenizer_frozen_or_killed(two_by_two: Stack, name: str, how: signal.Signals) -> None:
    """Each of them in turn: routers use the one that served them last."""
    streams = [stream_of(index) for index in range(8)]
    text_of([1])  # reads the vocabulary, for which streams would wait later
    pid = two_by_two.children()[name]
    async with httpx.AsyncClient(base_url=two_by_two.url, timeout=60) as client:
        reading = [asyncio.create_task(read(client, seen)) for seen in streams]
        async with asyncio.timeout(30):
            while any(len(seen.times) < 20 for seen in streams):
                await asyncio.sleep(0.02)
        usual_s = max(await asyncio.gather(*(ask(client, number) for number in range(8))))
        os.kill(pid, how)
        try:
            waits = await asyncio.gather(*(ask(client, number) for number in range(16)))
            waits += [await ask(client, number) for number in range(4)]
            await asyncio.gather(*reading)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    if how is signal.SIGKILL:
        await until_restarted(two_by_two, name, pid)
    gaps = sorted(seen.longest_gap_s for seen in streams)
    print(f"{name} {how.name}: chats took at most {max(waits):.2f} s (before: {usual_s:.2f} s), longest gap {gaps[-1]:.2f} s")
    for seen in streams:
        assert (seen.error, seen.done) == (None, True)
        params = SamplingParams(seed=seen.body["seed"], max_tokens=NUM_TOKENS)
        assert seen.texts[0] == text_of(expected_tokens(SPEC, seen.body["prompt"], params, 0)[0])
    # Where a chat alone takes longer than usual the machine is slow, and so are the clocks that judge silence.
    slow = max(1.0, usual_s / USUAL_S)
    assert max(waits) < usual_s + WAIT_S * slow
    assert gaps[-1] < WAIT_S * slow
