"""Rate limits where requests come in: what a key may still do, the headers that say so, and the refusals.

Only keys with limits have anything to do with it. What a request did not use is given back in the background; if that
cannot be told to Redis the key waits a little longer, a minute at most for what was foreseen. It knows nothing of HTTP's
shapes or gRPC's, nor of how accounts are kept.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from services.router.auth import Identity
from shared.errors import RateLimited, Unavailable
from shared.queue.rate_limits import MINUTE_S, RateLimits, Rates, Standing
from shared.tasks import end_tasks

# At once; first come, first served, as with puts.
MAX_ASKING = 8
ANSWER_S = 1.8
CLOSE_S = 1.0
# A request may be under way a little longer than its deadline says.
KEEP_MORE_S = 60.0

logger = logging.getLogger(__name__)

Headers = list[tuple[str, str]]


class Accepted(Protocol):
    """A request under way."""

    def when_over(self, settle: Callable[[int], None]) -> None:
        """See Generation.when_over."""


@dataclass(frozen=True, slots=True)
class Charge:
    """Tokens that were taken for a request and must be settled."""

    rates: Rates
    rid: str


class Limiter:
    """The limits of all keys, as one router sees them. Raises Unavailable (queue_unavailable) while Redis does not answer."""

    def __init__(self, accounts: RateLimits):
        self._accounts = accounts
        self._asking = asyncio.Semaphore(MAX_ASKING)
        # The last that was heard of each limited key, and when.
        self._last: dict[str, tuple[Standing, float]] = {}
        self._settling: set[asyncio.Task[None]] = set()

    async def enter(self, identity: Identity) -> None:
        """A call that asks for work: takes one request. Raises RateLimited."""
        if identity.is_limited:
            rates = _rates(identity)
            standing = await self._ask(rates, lambda: self._accounts.enter(rates))
            self._refuse(standing, "requests" if standing.requests < 1 and rates.requests else "tokens")

    async def look(self, identity: Identity) -> None:
        """A call that asks for none: only hears how the key stands, if Redis can be asked."""
        if identity.is_limited:
            rates = _rates(identity)
            try:
                await self._ask(rates, lambda: self._accounts.enter(rates, counts=False))
            except Unavailable:
                self._last.pop(identity.key_id, None)

    @asynccontextmanager
    async def charged(
        self, identity: Identity, rid: str, cost: int, deadline_s: float
    ) -> AsyncIterator[Callable[[Accepted], None]]:
        """Takes what a request may use; given back if the block raises, else settled when what it is told of has ended.

        Raises RateLimited.
        """
        charge = await self._charge(identity, rid, cost, deadline_s)

        def settles(accepted: Accepted) -> None:
            if charge is not None:
                accepted.when_over(partial(self._settle_soon, charge))

        try:
            yield settles
        except BaseException:
            if charge is not None:
                self._settle_soon(charge, 0)
            raise

    async def _charge(self, identity: Identity, rid: str, cost: int, deadline_s: float) -> Charge | None:
        if identity.tokens_per_minute is None:
            return None
        rates = _rates(identity)
        standing = await self._ask(rates, lambda: self._accounts.charge(rates, rid, cost, deadline_s + KEEP_MORE_S))
        self._refuse(standing, "tokens")
        return Charge(rates, rid) if standing.taken else None

    def _settle_soon(self, charge: Charge, used: int) -> None:
        task = asyncio.create_task(self._settle(charge, used), name=f"settle {charge.rid}")
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def headers(self, identity: Identity) -> Headers:
        """x-ratelimit-limit, -remaining and -reset for requests and tokens, as far as the key is limited."""
        if (last := self._last.get(identity.key_id)) is None or not identity.is_limited:
            return []
        standing, heard_at = last
        past_s = time.monotonic() - heard_at
        headers: Headers = []
        for what, most, level in (
            ("requests", identity.requests_per_minute, standing.requests),
            ("tokens", identity.tokens_per_minute, standing.tokens),
        ):
            if most is not None:
                now = min(float(most), level + past_s * most / MINUTE_S)
                headers.append((f"x-ratelimit-limit-{what}", str(most)))
                headers.append((f"x-ratelimit-remaining-{what}", str(max(0, math.floor(now)))))
                headers.append((f"x-ratelimit-reset-{what}", _duration((most - now) / most * MINUTE_S)))
        return headers

    async def close(self) -> None:
        """Gives what is being settled a moment."""
        if self._settling:
            await asyncio.wait(self._settling, timeout=CLOSE_S)
        await end_tasks(list(self._settling))

    async def _settle(self, charge: Charge, used: int) -> None:
        try:
            await self._ask(charge.rates, lambda: self._accounts.settle(charge.rates, charge.rid, used))
        except Unavailable as error:
            logger.info("what a request did not use could not be given back", extra={"rid": charge.rid, "cause": error.code})

    async def _ask(self, rates: Rates, asking: Callable[[], Awaitable[Standing]]) -> Standing:
        try:
            async with asyncio.timeout(ANSWER_S), self._asking:
                standing = await asking()
        except TimeoutError:
            text = "The queue does not answer; try again."
            raise Unavailable(text, code="queue_unavailable", retry_after_s=2.0) from None
        self._last[rates.key_id] = standing, time.monotonic()
        return standing

    def _refuse(self, standing: Standing, what: str) -> None:
        if standing.retry_after_s > 0:
            text = f"Rate limit reached: your API key's {what} per minute are used up; try again in {{}}."
            wait_s = max(standing.retry_after_s, 0.001)
            raise RateLimited(text.format(_duration(wait_s)), retry_after_s=wait_s)


def _rates(identity: Identity) -> Rates:
    return Rates(identity.key_id, identity.requests_per_minute or 0, identity.tokens_per_minute or 0)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 20ms, 8.64s, 6m0s."""
    if seconds < 1:
        return f"{max(0, math.ceil(seconds * 1000))}ms"
    minutes, rest = divmod(seconds, 60)
    shown = f"{math.ceil(rest * 100) / 100:g}s"
    return f"{minutes:.0f}m{shown}" if minutes else shown
