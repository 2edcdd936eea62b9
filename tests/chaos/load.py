"""What clients ask for, drawn from a seed: request number n is the same in every run. It knows nothing of faults."""

import asyncio
import random
from dataclasses import replace

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.chaos.clients import Clients
from tests.chaos.cluster import Plan
from tests.chaos.history import Ask, Manner, Seen

VOCAB = 49152
HERD = 1_000_000


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
    """Keeps `width` requests under way until told to stop."""

    def __init__(self, clients: Clients, spec: SimSpec, seed: int, width: int):
        self._clients = clients
        self._spec = spec
        self._seed = seed
        self._next = 0
        self._stopping = False
        self.slots = [asyncio.create_task(self._slot()) for _ in range(width)]

    async def _slot(self) -> None:
        while not self._stopping:
            number, self._next = self._next, self._next + 1
            await self._clients.ask(draw(self._spec, self._seed, number))

    async def herd(self, size: int) -> list[Seen]:
        """Short requests, all at the same moment."""
        numbers = range(HERD + self._next, HERD + self._next + size)
        asks = [replace(draw(self._spec, self._seed, number), manner="stay") for number in numbers]
        short = [replace(ask, prompt=ask.prompt[:20], params=replace(ask.params, n=1, max_tokens=4, stop_token_ids=())) for ask in asks]
        return await asyncio.gather(*(self._clients.ask(ask) for ask in short))

    async def cancel_storm(self, size: int) -> list[Seen]:
        """Requests that are all cancelled near their end."""
        numbers = range(2 * HERD + self._next, 2 * HERD + self._next + size)
        asks = [replace(draw(self._spec, self._seed, number), manner="cancel", door="grpc", after=20) for number in numbers]
        short = [replace(ask, prompt=ask.prompt[:20], params=replace(ask.params, n=1, max_tokens=22)) for ask in asks]
        return await asyncio.gather(*(self._clients.ask(ask) for ask in short))

    async def stop(self) -> None:
        """Starts nothing more; returns when all under way have an outcome."""
        self._stopping = True
        await asyncio.gather(*self.slots)
