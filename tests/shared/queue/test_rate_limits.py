"""Rate limits as a state machine: the scripts on a real redis-server agree with a plain model of two buckets, call by call.

The model is told what the Redis clock said at each call, so it is exact whatever the time; and what must hold of any limit
is checked on its own.
"""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.queue.connection import connect
from shared.queue.rate_limits import RateLimits, Rates, Standing
from tests.redis_server import RedisServer

KEYS = ("old", "new-key")
RIDS = tuple(f"{number:034x}" for number in range(4))
LIMITS = st.sampled_from([0, 1, 3, 50, 7001])
MINUTE_US = 60_000_000


@dataclass
class Account:
    """What one key has left, as of `at`. None: full."""

    requests: float | None = None
    tokens: float | None = None
    at: int = 0
    charged: dict[str, int] = field(default_factory=dict)

    def levels(self, rates: Rates, now: int) -> tuple[float, float]:
        past = max(0, now - self.at)

        def level(stored: float | None, most: int) -> float:
            return float(most) if stored is None or not most else min(most, stored + past * most / MINUTE_US)

        return level(self.requests, rates.requests), level(self.tokens, rates.tokens)


def wait_s(level: float, wanted: float, most: int) -> float:
    return (wanted - level) * MINUTE_US / most / 1e6 if most and level < wanted else 0.0


class RateMachine(RuleBasedStateMachine):
    """Calls of two keys whose limits change now and then, as an operator changes the file."""

    url = ""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.redis = connect(self.url)
        self.limits = RateLimits(self.redis)
        self.call(self.redis.flushall())
        self.accounts = {key: Account() for key in KEYS}
        self.rates = {key: Rates(key, 3, 50) for key in KEYS}

    def call(self, coroutine):  # type: ignore[no-untyped-def]
        return self.loop.run_until_complete(coroutine)

    @rule(key=st.sampled_from(KEYS), requests=LIMITS, tokens=LIMITS)
    def change(self, key: str, requests: int, tokens: int) -> None:
        self.rates[key] = Rates(key, requests, tokens)

    @rule(key=st.sampled_from(KEYS), counts=st.booleans())
    def enter(self, key: str, counts: bool) -> None:
        rates, account = self.rates[key], self.accounts[key]
        found: Standing = self.call(self.limits.enter(rates, counts=counts))
        requests, tokens = account.levels(rates, found.at_us)
        wait = max(wait_s(requests, 1, rates.requests), wait_s(tokens, 1, rates.tokens)) if counts else 0.0
        taken = wait == 0
        if taken and counts:
            self.keep(account, requests - (1 if rates.requests else 0), tokens, found)
        self.check(found, rates, taken, wait, account)

    @rule(key=st.sampled_from(KEYS), rid=st.sampled_from(RIDS), cost=st.sampled_from([1, 20, 49, 50, 51, 5000, 20_000]))
    def charge(self, key: str, rid: str, cost: int) -> None:
        rates, account = self.rates[key], self.accounts[key]
        if not rates.tokens:
            return
        found: Standing = self.call(self.limits.charge(rates, rid, cost, 600))
        requests, tokens = account.levels(rates, found.at_us)
        again = rid in account.charged
        wait = 0.0 if again else wait_s(tokens, min(cost, rates.tokens), rates.tokens)
        taken = not again and wait == 0
        if taken:
            account.charged[rid] = cost
            self.keep(account, requests, tokens - cost, found)
        self.check(found, rates, taken, wait, account)

    @rule(key=st.sampled_from(KEYS), rid=st.sampled_from(RIDS), used=st.sampled_from([0, 1, 20, 50, 5000, 30_000]))
    def settle(self, key: str, rid: str, used: int) -> None:
        rates, account = self.rates[key], self.accounts[key]
        if not rates.tokens:
            return
        found: Standing = self.call(self.limits.settle(rates, rid, used))
        requests, tokens = account.levels(rates, found.at_us)
        charged = account.charged.pop(rid, None)
        if charged is not None:
            self.keep(account, requests, min(rates.tokens, tokens + charged - used), found)
        self.check(found, rates, charged is not None, 0.0, account)

    @rule()
    def forget_scripts(self) -> None:
        self.call(self.redis.script_flush())

    def keep(self, account: Account, requests: float, tokens: float, found: Standing) -> None:
        account.requests, account.tokens, account.at = requests, tokens, found.at_us

    def check(self, found: Standing, rates: Rates, taken: bool, wait: float, account: Account) -> None:
        assert found.taken == taken
        assert found.retry_after_s == pytest.approx(wait, abs=1e-6)
        assert (found.requests, found.tokens) == pytest.approx(account.levels(rates, found.at_us), rel=1e-12, abs=1e-9)
        # What may never be, whatever the model says.
        assert found.requests <= rates.requests
        assert found.tokens <= rates.tokens
        assert found.requests >= 0
        assert not (found.taken and found.retry_after_s)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.call(self._nothing_stays_for_ever())
        self.call(self.redis.aclose())
        self.call(self.redis.connection_pool.disconnect())
        self.loop.close()

    async def _nothing_stays_for_ever(self) -> None:
        for key in await self.redis.keys("*"):
            assert await self.redis.ttl(key) > 0, key
            assert key.startswith(tuple(f"rt:{{key:{name}}}:".encode() for name in KEYS)), "not in the slot of its account"


def test_the_scripts_agree_with_the_model(server: RedisServer) -> None:
    machine = type("Machine", (RateMachine,), {"url": server.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
        ),
    )


async def test_many_routers_at_once_take_no_more_than_there_is(redis: Redis, server: RedisServer) -> None:
    """A limit is one for all: five clients of Redis, 40 calls, ten requests and 1,000 tokens a minute."""
    clients = [connect(server.url) for _ in range(5)]
    routers = [RateLimits(client) for client in clients]
    began = (await routers[0].enter(Rates("k", 10, 1000), counts=False)).at_us
    entered = await asyncio.gather(*(routers[index % 5].enter(Rates("k", 10, 1000)) for index in range(40)))
    charged = await asyncio.gather(
        *(routers[index % 5].charge(Rates("k", 10, 1000), f"{index:034x}", 100, 60) for index in range(40))
    )
    for found, most, each in ((entered, 10, 1), (charged, 1000, 100)):
        past_us = max(standing.at_us for standing in found) - began
        taken = sum(standing.taken for standing in found)
        assert most // each <= taken <= (most + past_us * most / MINUTE_US) / each
    refused = next(standing for standing in entered if not standing.taken)
    assert 0 < refused.retry_after_s <= 6.0
    for client in clients:
        await client.aclose()
        await client.connection_pool.disconnect()


async def test_a_request_larger_than_the_bucket_waits_until_it_is_full_and_leaves_a_debt(redis: Redis) -> None:
    limits, rates = RateLimits(redis), Rates("k", 0, 100)
    assert (await limits.charge(rates, RIDS[0], 250, 60)).tokens == -150
    refused = await limits.charge(rates, RIDS[1], 250, 60)
    assert not refused.taken
    assert refused.retry_after_s == pytest.approx(150, abs=5)
    assert not (await limits.enter(rates)).taken
    settled = await limits.settle(rates, RIDS[0], 10)
    assert settled.tokens == pytest.approx(90, abs=9)
    assert (await limits.enter(rates)).taken


async def test_a_full_server_still_settles(redis: Redis) -> None:
    limits, rates = RateLimits(redis), Rates("k", 5, 1000)
    await limits.charge(rates, RIDS[0], 900, 60)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable) as refused:
            await limits.charge(rates, RIDS[1], 1, 60)
        assert refused.value.code == "queue_full"
        assert (await limits.settle(rates, RIDS[0], 100)).taken
    finally:
        await redis.config_set("maxmemory", 0)
