"""A put or adopt that its router gave up may still be carried out: the stream that was accepted elsewhere must not end of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.router.generate import Generation
from services.router.plane import Plane
from services.worker.sim import expected_tokens
from shared.errors import Unavailable
from shared.queue.types import Answer
from shared.sampling import SamplingParams
from shared.tasks import end_tasks
from tests.router.plane.rig import SPEC, Rig, ask, listen, plane_of, rig

Adopt = Callable[..., Awaitable[Answer]]

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


@asynccontextmanager
async def orphaned(made: Rig, lost: Callable[[Adopt], Adopt]) -> AsyncIterator[tuple[Plane, Generation]]:
    """A follower at one router whose owner, at another, is gone; adopts there go through `lost`."""
    wanted = ask(sampling=LONG, idempotency_key="k")
    async with plane_of(made, "r1") as plane:
        async with plane_of(made, "r0") as owner:
            first = await owner.generator.start(wanted)
            listening = asyncio.create_task(listen(first))
            await until_under_way(first)
            generation = await plane.generator.start(wanted)
            await until_under_way(generation)
            plane.queue.adopt = lost(plane.queue.adopt)  # type: ignore[method-assign]
            await end_tasks([listening])
        yield plane, generation


def unanswered() -> Unavailable:
    return Unavailable("no answer", code="queue_unavailable", retry_after_s=1)


@pytest.mark.parametrize("carried_out", [False, True])
async def test_an_adopt_without_an_answer_is_asked_again(carried_out: bool) -> None:
    """Found by chaos seed 20261122: owed here and adopted by nobody, the stream followed itself for ever."""
    num_lost = 0

    def lost(adopt: Adopt) -> Adopt:
        async def twice(*args: Any, **flags: Any) -> Answer:
            nonlocal num_lost
            if num_lost == 2:
                return await adopt(*args, **flags)
            num_lost += 1
            if carried_out:
                await adopt(*args, **flags)
            raise unanswered()

        return twice

    async with rig() as made, orphaned(made, lost) as (_, generation), asyncio.timeout(60):
        (heard,) = await listen(generation)
        assert num_lost == 2
        assert heard.token_ids == expected_tokens(SPEC, generation.prompt_token_ids, LONG)[0]


async def test_who_leaves_while_an_adopt_has_no_answer_leaves_nothing_behind() -> None:
    asked = asyncio.Event()

    def lost(adopt: Adopt) -> Adopt:
        async def always(*args: Any, **flags: Any) -> Answer:
            asked.set()
            raise unanswered()

        return always

    async with rig() as made, orphaned(made, lost) as (plane, generation), asyncio.timeout(60):
        listening = asyncio.create_task(listen(generation))
        # It must have begun: an adopt may have been asked for already, and who never began does not leave.
        await asyncio.sleep(0)
        await asked.wait()
        await end_tasks([listening])
        while plane.ledger.feeds or plane.ledger.owed:
            await asyncio.sleep(0.01)
