"""Claims from the shards of a queue in turn, so that one whose server hangs does not keep what waits in the others.

A claim whose answer is lost holds its requests until their lease runs out, so none is given up: a shard that takes its time
keeps its call, and what it answers comes with a later one. It knows nothing of scripts, or of what is done with a claim.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shared.errors import Unavailable
from shared.queue.shard import Shard
from shared.queue.types import Claim

# A server that is well answers within some milliseconds.
SLOW_S = 0.25

# shard, up to how many, whether for an empty worker, and the sum of tokens at which to stop (None: none).
Ask = Callable[[Shard, int, bool, int | None], Awaitable[list[Claim]]]


@dataclass(frozen=True, slots=True)
class Pending:
    """A shard's call that has not been answered, and how many requests it may bring."""

    k: int
    answer: "asyncio.Task[list[Claim]]"


class Claims:
    """Of one owner, one `take` at a time."""

    def __init__(self, shards: Sequence[Shard]):
        self._shards = shards
        self._turn = 0
        self._pending: dict[Shard, Pending] = {}

    async def take(self, ask: Ask, k: int, *, solo: bool, max_cost: int | None) -> list[Claim]:
        """Up to k requests by `ask`, from as few shards as have them; raises Unavailable if no shard answered and one failed."""
        claims: list[Claim] = []
        failures: list[Unavailable] = []
        answered = self._collect(claims, failures)
        self._turn += 1
        for at in range(len(self._shards)):
            shard = self._shards[(self._turn + at) % len(self._shards)]
            num = k - len(claims) - sum(pending.k for pending in self._pending.values())
            if num < 1 or any(claim.solo for claim in claims):
                break
            if shard in self._pending:
                continue
            left = None if max_cost is None else max(0, max_cost - sum(claim.num_tokens for claim in claims))
            # What must run alone is asked for only while nothing else can come.
            alone = solo and not claims and not self._pending
            self._pending[shard] = Pending(num, asyncio.ensure_future(ask(shard, num, alone, left)))
            await asyncio.wait([self._pending[shard].answer], timeout=SLOW_S if len(self._shards) > 1 else None)
            answered |= self._collect(claims, failures)
        if failures and not answered:
            raise failures[0]
        return claims

    async def rest(self) -> list[Claim]:
        """What the calls still bring that are under way; for a worker that claims nothing more."""
        claims: list[Claim] = []
        if self._pending:
            await asyncio.wait([pending.answer for pending in self._pending.values()])
        self._collect(claims, [])
        return claims

    def _collect(self, claims: list[Claim], failures: list[Unavailable]) -> bool:
        """Takes the answers that have come; whether any has that is one."""
        answered = False
        for shard, pending in list(self._pending.items()):
            if not pending.answer.done():
                continue
            del self._pending[shard]
            error = pending.answer.exception()
            if error is None:
                claims += pending.answer.result()
                answered = True
            elif isinstance(error, Unavailable):
                failures.append(error)
            else:
                raise error
        return answered
