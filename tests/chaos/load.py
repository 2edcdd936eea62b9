"""What clients ask for, drawn from a seed: request number n is the same in every run. It knows nothing of faults."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster, Plan
from tests.chaos.history import Ask, Manner, Seen

VOCAB = 49152
# Numbers of herds and storms, apart from those of the steady load.
SMALL = 1_000_000_000
HERD_SIZE, STORM_SIZE = 200, 40


def spec_of(plan: Plan) -> SimSpec:
    """The sim runner's spec as the workers of `plan` have it."""
    num_blocks = int(plan.worker["sim_num_blocks"])
    return SimSpec(num_blocks=num_blocks, max_model_len=min(8192, num_blocks * 16), vocab_size=VOCAB)


def draw(spec: SimSpec, seed: int, number: int) -> Ask:
    """Request `number` of the run with this seed: one in three shares a prefix, one in eight has several choices."""
    rng = random.Random(f"{seed}/{number}")
    shared = [7 + 3 * i for i in range(64)] if rng.random() < 0.33 else []
    prompt = (*shared, *(rng.randrange(100, VOCAB) for _ in range(rng.randint(1, 400))))
    params = SamplingParams(
        seed=rng.randrange(2**31), n=rng.choice((1,) * 7 + (3,)), max_tokens=rng.randint(1, 160), ignore_eos=True
    )
    if rng.random() < 0.1:
        ids, _ = expected_tokens(spec, prompt, params)
        params = replace(params, stop_token_ids=(rng.choice(ids),))
    door = "grpc" if rng.random() < 0.6 else "http"
    manner: Manner = rng.choices(("stay", "leave", "cancel", "slow"), (85, 7, 4, 4))[0]
    if manner == "cancel":
        door = "grpc"
    return Ask(number, door, prompt, params, manner, after=rng.randint(0, 60))


class Load:
    """Keeps `width` requests under way until told to stop. `ended` is given what each client saw, which is then forgotten."""

    def __init__(self, clients: Clients, spec: SimSpec, seed: int, width: int, ended: Callable[[Seen], Awaitable[None]]):
        self._clients = clients
        self._spec = spec
        self._seed = seed
        self._ended = ended
        self._next = 0
        self._num_small = 0
        self._herding = asyncio.Lock()
        self._stopping = False
        self.slots = [asyncio.create_task(self._slot()) for _ in range(width)]

    async def _slot(self) -> None:
        while not self._stopping:
            number, self._next = self._next, self._next + 1
            await self._ask(draw(self._spec, self._seed, number))

    async def _ask(self, ask: Ask) -> Seen:
        seen = await self._clients.ask(ask)
        self._clients.seen.remove(seen)
        await self._ended(seen)
        return seen

    async def herd(self, cluster: Cluster, rng: random.Random) -> str:
        """F25: short requests, all at the same moment, more than one tenant may have under way."""
        # One at a time: clients and cables share a process here, which must not become the bottleneck.
        async with self._herding:
            asks = [self._small(rng, max_tokens=4) for _ in range(HERD_SIZE)]
            seen = await asyncio.gather(*(self._ask(ask) for ask in asks))
        return f"{HERD_SIZE} at once, {sum(len(each.refusals) > 0 for each in seen)} of them refused at first"

    async def cancel_storm(self, cluster: Cluster, rng: random.Random) -> str:
        """F32: requests that are all cancelled near their end."""
        asks = [self._small(rng, max_tokens=22, manner="cancel", after=20) for _ in range(STORM_SIZE)]
        seen = await asyncio.gather(*(self._ask(ask) for ask in asks))
        return f"{sum(each.outcome == 'cancelled' for each in seen)} of {STORM_SIZE} cancelled, the rest had ended"

    def _small(self, rng: random.Random, *, max_tokens: int, manner: Manner = "stay", after: int = 0) -> Ask:
        prompt = tuple(rng.randrange(100, VOCAB) for _ in range(20))
        params = SamplingParams(seed=rng.randrange(2**31), max_tokens=max_tokens, ignore_eos=True)
        door = "grpc" if manner == "cancel" or rng.random() < 0.5 else "http"
        # Numbers name idempotency keys, so each is used once.
        self._num_small += 1
        return Ask(SMALL + self._num_small, door, prompt, params, manner, after)

    async def stop(self) -> None:
        """Starts nothing more; returns when all under way have an outcome."""
        self._stopping = True
        await asyncio.gather(*self.slots)
