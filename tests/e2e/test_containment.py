"""A kernel that fails ends its process in order, and what ran there goes on elsewhere; what can never fit is not let in."""

import asyncio

import httpx

from services.worker.__main__ import EXIT_STUCK, build_runner
from services.worker.sim import SimSpec, expected_tokens
from shared.config import Settings, WorkerConfig
from shared.marks import Marks
from shared.sampling import SamplingParams
from tests.chaos.cluster import Plan, cluster
from tests.e2e.sse_client import Seen, read
from tests.router.plane.rig import text_of

SPEC = SimSpec(vocab_size=49152)
NUM_TOKENS = 200
NUM_BLOCKS = 32


def stream_of(index: int) -> Seen:
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12 + index)]
    body = {"model": "default", "prompt": prompt, "max_tokens": NUM_TOKENS, "seed": index, "ignore_eos": True}
    return Seen(body | {"stream_options": {"include_usage": True}})


async def test_a_worker_whose_kernels_fail() -> None:
    """Again and again, one of two: each time with exit 70, and every stream is whole and was counted once."""
    worker = {"sim_step_ms": 10.0, "sim_num_blocks": 2048}
    plan = Plan(num_routers=1, num_tokenizers=1, num_workers=2, worker=worker, modules={"worker-0": "tests.e2e.broken_kernel"})
    text_of([1])
    async with cluster(plan) as system, httpx.AsyncClient(base_url=system.url("router-0"), timeout=60) as client:
        streams = [stream_of(index) for index in range(12)]
        await asyncio.gather(*(read(client, seen) for seen in streams))
        exits = [life.code for life in system.services["worker-0"].exits]
        others = {name: service.exits for name, service in system.services.items() if name != "worker-0"}
    for seen in streams:
        assert (seen.error, seen.done) == (None, True)
        params = SamplingParams(seed=seen.body["seed"], max_tokens=NUM_TOKENS)
        assert seen.texts[0] == text_of(expected_tokens(SPEC, seen.body["prompt"], params, 0)[0])
        assert seen.usage is not None
        assert seen.usage["prompt_tokens"] == len(seen.body["prompt"])
    assert exits
    assert set(exits) == {EXIT_STUCK}
    assert not any(others.values())


async def test_what_can_never_fit_is_refused_at_the_door() -> None:
    """A worker says it takes no more tokens than its KV memory holds; the router holds everybody to that."""
    config = WorkerConfig(runner="sim", sim_num_blocks=NUM_BLOCKS, max_model_len=4096)
    assert build_runner(Settings(worker=config), Marks()).runner.limits.max_model_len == 16 * NUM_BLOCKS
    plan = Plan(num_routers=1, num_tokenizers=1, num_workers=1, worker={"sim_num_blocks": NUM_BLOCKS, "max_model_len": 4096})
    async with cluster(plan) as system, httpx.AsyncClient(base_url=system.url("router-0"), timeout=60) as client:
        body = {"model": "default", "prompt": [7] * 500, "ignore_eos": True}
        refused = await client.post("/v1/completions", json=body | {"max_tokens": 13})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert str(16 * NUM_BLOCKS) in refused.json()["error"]["message"]
        fits = await client.post("/v1/completions", json=body | {"max_tokens": 12})
        assert fits.json()["usage"]["total_tokens"] == 16 * NUM_BLOCKS
