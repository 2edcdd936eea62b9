"""What requests take from a key's limits of tokens: at accept, at their end, and never twice; and a key's share of the queue."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from services.router.auth import Identity
from services.router.plane import Plane
from shared.errors import InvalidRequest, RateLimited, Unavailable
from shared.queue.rate_limits import RateLimits, Rates, Standing
from shared.sampling import SamplingParams
from tests.router.plane.rig import Rig, ask, listen, plane_of, rig

# Refills by ten a second: what a test takes stays visible for longer than it runs.
LIMIT = 600
ALICE = Identity("alice", "alice-key", tokens_per_minute=LIMIT)
RATES = Rates("alice-key", 0, LIMIT)
PROMPT = [7] * 20


@dataclass
class Limited:
    """A plane, and the account of ALICE as Redis has it."""

    made: Rig
    plane: Plane
    began: Standing

    async def taken(self) -> float:
        """Tokens taken and not given back since the beginning, whatever has flowed in; 0 if it is full."""
        standing = await self.account()
        return LIMIT - standing.tokens

    async def account(self) -> Standing:
        return await RateLimits(self.plane._redis).enter(RATES, counts=False)

    async def settled(self, most: float) -> None:
        """Until no more than so many are taken; what flows in meanwhile could hide only what is smaller."""
        async with asyncio.timeout(20):
            while await self.taken() > most or self.plane.limiter._settling:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def limited() -> AsyncIterator[Limited]:
    async with rig() as made, plane_of(made) as plane:
        began = await RateLimits(plane._redis).enter(RATES, counts=False)
        yield Limited(made, plane, began)


def params(num: int) -> SamplingParams:
    return SamplingParams(max_tokens=num, ignore_eos=True, seed=1)


async def test_what_may_be_used_is_taken_at_accept_and_settled_at_the_end() -> None:
    async with limited() as each:
        # It may make 500 tokens, and is told to stop after its first.
        generation = await each.plane.generator.start(ask(identity=ALICE, prompt=PROMPT, sampling=params(500)))
        assert await each.taken() > 400
        await generation.cancel("client")
        await each.settled(200)
        # A whole one: prompt and output stay taken.
        before = (await each.account()).tokens
        generation = await each.plane.generator.start(ask(identity=ALICE, prompt=PROMPT, sampling=params(80)))
        await listen(generation)
        async with asyncio.timeout(20):
            while each.plane.limiter._settling:
                await asyncio.sleep(0.01)
        after = await each.account()
        flowed = (after.at_us - each.began.at_us) / 60e6 * LIMIT
        assert before - 100 <= after.tokens <= before - 100 + flowed


async def test_too_many_tokens_are_refused_before_they_are_queued() -> None:
    async with limited() as each:
        generator = each.plane.generator
        first = await generator.start(ask(identity=ALICE, prompt=PROMPT, sampling=params(550)))
        with pytest.raises(RateLimited) as refused:
            await generator.start(ask(identity=ALICE, prompt=PROMPT, sampling=params(500)))
        assert refused.value.retry_after_s is not None
        assert 0 < refused.value.retry_after_s <= 60
        assert len(each.plane.ledger.owed) == 1
        other = Identity("bob", "bob-key", tokens_per_minute=LIMIT)
        second = await generator.start(ask(identity=other, prompt=PROMPT, sampling=params(500)))
        for generation in (first, second):
            await generation.cancel("disconnect")


async def test_what_is_not_accepted_costs_nothing() -> None:
    async with limited() as each:
        for wrong in (ask(identity=ALICE, prompt=[10**6]), ask(identity=ALICE, sampling=params(10**6))):
            with pytest.raises(InvalidRequest):
                await each.plane.generator.start(wrong)
        assert await each.taken() == 0

        async def down(*_: object, **__: object) -> None:
            raise Unavailable("no room", retry_after_s=1)

        each.plane.queue.put = down  # type: ignore[method-assign,assignment]
        with pytest.raises(Unavailable):
            await each.plane.generator.start(ask(identity=ALICE, prompt=PROMPT, sampling=params(500)))
        await each.settled(0)


async def test_one_request_is_taken_once_and_a_stranger_to_it_gives_nothing_back() -> None:
    """The same key again while it is under way: no second charge; and neither its refusal nor its end returns the first one's."""
    async with limited() as each:
        generator = each.plane.generator
        one = ask(identity=ALICE, prompt=PROMPT, sampling=params(300), idempotency_key="k")
        first = await generator.start(one)
        again = await generator.start(one)
        assert 250 < await each.taken() <= 320
        with pytest.raises(InvalidRequest) as reused:
            await generator.start(ask(identity=ALICE, prompt=[8] * 20, sampling=params(100), idempotency_key="k"))
        assert reused.value.code == "idempotency_key_reused"
        resumed, _ = await generator.resume(first.rid, "", ALICE)
        await resumed.cancel("disconnect")
        await again.cancel("disconnect")
        assert not each.plane.limiter._settling
        assert await each.taken() > 250
        await listen(first)


async def test_a_stream_that_is_taken_up_after_it_was_settled_is_charged_anew() -> None:
    """Or a client could leave at its first token, be given back the rest, and come back for the rest."""
    async with limited() as each:
        first = await each.plane.generator.start(ask(identity=ALICE, prompt=PROMPT, sampling=params(400)))
        await first.cancel("disconnect")
        await each.settled(150)
        again, _ = await each.plane.generator.resume(first.rid, "", ALICE)
        assert await each.taken() > 350
        await again.cancel("client")


async def test_the_weight_of_a_key_is_its_tenants_share() -> None:
    """F = S + cost / weight, DESIGN section 4; two keys of one tenant may differ."""
    async with limited() as each:
        tags = {}
        for name, weight in (("light", 1.0), ("heavy", 4.0)):
            identity = Identity(name, name, weight=weight)
            generation = await each.plane.generator.start(ask(identity=identity, prompt=PROMPT, sampling=params(380)))
            record = each.plane.queue.prefixes[0]
            begun = await each.plane._redis.hget(record + "r:" + generation.rid, "tag")
            ends = await each.plane._redis.hget(record + "tenant:" + name, "F")
            tags[name] = int(ends) - int(begun)
            await generation.cancel("client")
        assert tags == {"light": 400, "heavy": 100}
