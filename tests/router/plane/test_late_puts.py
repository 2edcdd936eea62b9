"""A put or adopt that its router gave up may still be carried out: the stream that was accepted elsewhere must not end of it."""

import asyncio

from services.router.generate import Generation
from services.worker.sim import expected_tokens
from shared.sampling import SamplingParams
from tests.router.plane.rig import SPEC, ask, listen, plane_of, rig

LONG = SamplingParams(seed=5, max_tokens=300)


async def until_under_way(generation: Generation) -> None:
    while len(generation.held.choices[0].token_ids) < 20:
        await asyncio.sleep(0.005)


async def test_a_record_that_names_a_router_without_the_client_is_taken_back() -> None:
    """Found by chaos seeds 12 and 13: the client was told that it had been superseded."""
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=LONG))
        listening = asyncio.create_task(listen(generation))
        await until_under_way(generation)
        late = await plane.queue.adopt(generation.rid, tenant=generation.tenant, router_id="nobody")
        assert late.verdict == "ok"
        await plane.ledger.reconcile()
        (heard,) = await listening
        assert heard.token_ids == expected_tokens(SPEC, generation.prompt_token_ids, LONG)[0]
        record = (await plane.queue.read([generation.rid]))[generation.rid]
        assert record is not None
        assert record.router == "r0"
