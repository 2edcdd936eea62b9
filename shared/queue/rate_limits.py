"""Rate limits of API keys, the same for all routers: one account for each key, in Redis, in a cluster's slot of its own.

Two buckets, of requests and of tokens, hold as much as the limit of a minute and fill evenly. A call takes a request when
it comes; what it may use, prompt and most new tokens, is taken when it is accepted and settled when it has ended.
It knows nothing of tenants, of who calls, or of the queue.
"""

from dataclasses import dataclass

from shared.queue.connection import Client, redis_errors
from shared.queue.scripts import Scripts

SCRIPTS = ("rate_enter", "rate_charge", "rate_settle")
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of one key, for a minute; 0: none. The account is the key's, whatever its limits are now."""

    key_id: str
    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """One account as a script left it: levels, below 0 for debts. taken: this call took what it was to take.

    retry_after_s: 0, or when to ask again for what was refused. at_us: the Redis clock.
    """

    taken: bool
    requests: float
    tokens: float
    retry_after_s: float
    at_us: int


class RateLimits:
    """All accounts. Raises Unavailable when Redis cannot be asked."""

    def __init__(self, redis: Client):
        self._scripts = Scripts(redis, prelude="rate_prelude", names=SCRIPTS)

    async def enter(self, rates: Rates, *, counts: bool = True) -> Standing:
        """A call comes in: takes one request. counts False: only tells."""
        return await self._run("rate_enter", rates, int(counts))

    async def charge(self, rates: Rates, rid: str, cost: int, keep_s: float) -> Standing:
        """Takes `cost` tokens for `rid`, unless they were taken and not settled yet. keep_s: how long it may be under way."""
        return await self._run("rate_charge", rates, rid, cost, max(1, int(keep_s * 1000)))

    async def settle(self, rates: Rates, rid: str, used: int) -> Standing:
        """`rid` has ended, having used so many tokens; does nothing the second time."""
        return await self._run("rate_settle", rates, rid, used)

    async def _run(self, name: str, rates: Rates, *args: object) -> Standing:
        async with redis_errors():
            found = await self._scripts.run(f"rt:{{key:{rates.key_id}}}:", name, (*args, rates.requests, rates.tokens))
        verdict, at_us, requests, tokens, wait_us = found
        return Standing(verdict == b"ok", float(requests), float(tokens), float(wait_us) / 1e6, int(float(at_us)))
