"""Requests that constrain their tokens are readied off the engine's thread: others run meanwhile, and what is said counts."""

import threading
from dataclasses import replace

from services.worker.sim import SimRunner
from shared.grammars import Grammar
from shared.sampling import SamplingParams
from tests.worker.service.conftest import SPEC, Plane, answer, params
from tests.worker.service.router_double import Owed, until

PROMPT = list(range(30))
GRAMMAR = Grammar("regex", "a+")


class SlowToReady(SimRunner):
    """A sim that takes its time over grammars, and then yields what it always does."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.asked = threading.Semaphore(0)
        self.go_on = threading.Event()

    def prepare(self, params: SamplingParams) -> object:
        self.asked.release()
        if not self.go_on.wait(30):
            raise TimeoutError
        if params.grammar == Grammar("regex", "broken"):
            raise ZeroDivisionError("a fault of ours")
        return self


async def whole(owed: Owed) -> list[int]:
    await until(lambda: owed.whole, owed)
    return owed.choices[0]


async def test_the_sim_refuses_and_says_why(plane: Plane) -> None:
    router = await plane.router()
    worker = await plane.worker()
    for constrained in ({"grammar": GRAMMAR}, {"allowed_token_ids": (1, 2)}, {"bad_words": ("a",), "bad_word_ids": ((1,),)}):
        owed = await plane.put(router, params(**constrained), PROMPT)
        await whole(owed)
        assert owed.finishes[0].error.code == "unsupported_parameter"
        assert "sim" in owed.finishes[0].error.message
    plain = await plane.put(router, params(), PROMPT)
    assert await whole(plain) == answer(PROMPT, params())
    await until(lambda: not worker.consumer.held)


async def test_others_run_while_one_is_readied(plane: Plane) -> None:
    runner = SlowToReady()
    router = await plane.router()
    worker = await plane.worker(runner=runner)
    sampling = params(grammar=GRAMMAR, n=2)
    waiting = await plane.put(router, sampling, PROMPT)
    await until(lambda: runner.asked.acquire(blocking=False))
    for seed in range(3):
        other = await plane.put(router, params(seed=seed), PROMPT)
        assert await whole(other) == answer(PROMPT, params(seed=seed))
    assert not any(waiting.choices)
    assert worker.engine.stats().waiting == 0
    runner.go_on.set()
    await whole(waiting)
    assert waiting.choices == [answer(PROMPT, sampling, 0), answer(PROMPT, sampling, 1)]


async def test_what_its_router_says_meanwhile_counts(plane: Plane) -> None:
    """One is cancelled, one goes on from ids that its router has accepted before, one choice has ended by then."""
    runner = SlowToReady()
    router = await plane.router()
    worker = await plane.worker(runner=runner)
    sampling = params(grammar=GRAMMAR)
    dropped = await plane.put(router, sampling, PROMPT)
    await until(lambda: runner.asked.acquire(blocking=False))
    resumed = await plane.put(router, sampling, PROMPT[1:])
    resumed.choices[0] += answer(PROMPT[1:], sampling)[:7]
    halved = await plane.put(router, replace(sampling, n=2), PROMPT[2:])
    await until(lambda: dropped.begins and resumed.begins and halved.begins)
    router.say(dropped, "cancel")
    router.say(halved, "stop", choice=1, num_tokens=0)
    halved.stopped.add(1)
    await until(lambda: len(worker.consumer.held) == 2)
    runner.go_on.set()
    assert await whole(resumed) == answer(PROMPT[1:], sampling)
    assert await whole(halved) == answer(PROMPT[2:], sampling)
    assert not dropped.choices[0]
    assert not halved.choices[1]
    await until(lambda: not worker.consumer.held)


async def test_a_fault_of_ours_ends_one_request(plane: Plane) -> None:
    runner = SlowToReady()
    runner.go_on.set()
    router = await plane.router()
    worker = await plane.worker(runner=runner)
    broken = await plane.put(router, params(grammar=Grammar("regex", "broken")), PROMPT)
    good = await plane.put(router, params(grammar=GRAMMAR), PROMPT)
    assert await whole(good) == answer(PROMPT, params(grammar=GRAMMAR))
    await whole(broken)
    assert broken.finishes[0].error.code == "internal_error"
    assert "ours" not in broken.finishes[0].error.message
    assert not worker.failed
