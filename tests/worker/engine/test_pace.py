"""How many tokens of prompts go beside decodes: devices made of formulas, and the steps that the pace lets them take."""

from collections.abc import Callable
from random import Random

import pytest

from services.worker.engine.pace import LEAST, SHARE, UNKNOWN, Pace
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import Work
from services.worker.engine.step import RowResult, RunnerLimits, StepResult
from shared.sampling import SamplingParams

pytestmark = pytest.mark.optimized

StepS = Callable[[int, int, int], float]
"""Seconds of a step: sequences that decode, tokens of a prompt, those that stand before them."""


def _cpu(num_decoding: int, num: int, before: int) -> float:
    return 0.004 + 0.0014 * num_decoding + num * (0.0007 + 5.5e-7 * before)


def _gpu(num_decoding: int, num: int, before: int) -> float:
    """Memory takes 10 ms a step; products catch up with it at 300 tokens."""
    return max(0.010, 0.010 / 300 * (num_decoding + num)) + num * before * 1e-10


def _run(
    pace: Pace, step_s: StepS, num_decoding: int, prompt: int, most: int, noise: Callable[[], float]
) -> list[tuple[int, int]]:
    """A prompt beside decodes until it is computed: its chunks."""
    before, chunks = 0, []
    while before < prompt:
        num = min(most, prompt - before, 1 + int(pace.beside(num_decoding) / pace.weight(before)))
        pace.learn(num_decoding, [(num, before)], step_s(num_decoding, num, before) * noise())
        chunks.append((num, before))
        before += num
    return chunks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("device", [_cpu, _gpu])
def test_steps_with_prompts_take_their_share_longer_than_their_decodes(device: StepS, noisy: bool, seed: int):
    rng, pace = Random(seed), Pace()

    def noise() -> float:
        return rng.choice((1.0, 1.0, 1.1, 3.0)) if noisy else 1.0

    pace.learn(0, [(512, 0)], device(0, 512, 0))
    for _ in range(30):
        pace.learn(32, [], device(32, 0, 0) * noise())
    for _ in range(8):
        chunks = _run(pace, device, 32, 4000, 4096, noise)
    limit = (1 + SHARE) * device(32, 0, 0)
    for num, before in chunks:
        if num > LEAST / pace.weight(before) + 1:
            assert device(32, num, before) < limit * (2.5 if noisy else 1.25), (num, before)
    total_s = sum(device(32, num, before) for num, before in chunks)
    alone_s = sum(device(0, num, before) for num, before in chunks)
    assert total_s < 5 * alone_s, "the prompt gets on"


def test_a_device_on_which_tokens_are_cheap_takes_more_of_them():
    sizes = {}
    for device in (_cpu, _gpu):
        pace = Pace()
        pace.learn(0, [(512, 0)], device(0, 512, 0))
        for _ in range(10):
            pace.learn(32, [], device(32, 0, 0))
        for _ in range(4):
            chunks = _run(pace, device, 32, 4000, 4096, lambda: 1.0)
        sizes[device] = chunks[1][0]
    assert 60 < sizes[_cpu] < 130
    assert 300 < sizes[_gpu] < 1000


def test_that_few_tokens_cost_nothing_says_little_of_many():
    pace = Pace()
    for _ in range(2000):
        pace.learn(32, [], _gpu(32, 0, 0))
        pace.learn(32, [(20, 0)], _gpu(32, 20, 0))
    assert 64 <= pace.beside(32) <= 200
    chunks = _run(pace, _gpu, 32, 20000, 4096, lambda: 1.0)
    assert chunks[0][0] <= 200 < chunks[60][0], "more when more were seen to be cheap"
    assert all(_gpu(32, num, before) < 1.3 * (1 + SHARE) * _gpu(32, 0, 0) for num, before in chunks)


def test_before_anything_is_known_a_step_counts():
    pace = Pace()
    assert (pace.beside(1), pace.beside(100), pace.weight(5000)) == (LEAST, UNKNOWN * 100, 1.0)
    pace.learn(5, [(100, 0)], 1.0)
    pace.learn(0, [(LEAST - 1, 0)], 1.0)
    assert pace.beside(100) == UNKNOWN * 100, "neither step says what a token costs"


def test_other_numbers_of_decodes_are_guessed_from_the_nearest():
    pace = Pace()
    pace.learn(0, [(512, 0)], 512 * 0.001)
    pace.learn(8, [], 0.020)
    assert pace.beside(8) == max(LEAST, int(SHARE * 20))
    assert pace.beside(408) == pytest.approx(SHARE * (20 + 400), abs=1)
    pace.learn(400, [], 0.100)
    assert pace.beside(400) == int(SHARE * 100)


def test_the_scheduler_keeps_to_the_pace_it_learned():
    scheduler = Scheduler(RunnerLimits(1000, 8192, 100, (), "f"), 64, 2048)

    def step(num_steps: int) -> int:
        """Tokens of prompts in the last of so many steps."""
        for _ in range(num_steps):
            plan = scheduler.schedule()
            chunk = sum(num for num, _ in plan.chunks)
            decoding = len(plan.step.rows) - len(plan.chunks)
            scheduler.finish(plan, StepResult([RowResult([1] if row.sample else []) for row in plan.step.rows]))
            scheduler.learn(plan, _cpu(decoding, chunk, max((before for _, before in plan.chunks), default=0)))
        return chunk

    for index in range(40):
        scheduler.submit(Work((str(index), 1), list(range(20)), SamplingParams(seed=1, max_tokens=2000)))
    step(30)
    scheduler.submit(Work(("long", 1), [index % 97 for index in range(6000)], SamplingParams(seed=1, max_tokens=5)))
    early, late = step(3), step(60)
    assert SHARE * _cpu(40, 0, 0) * 0.6 < early * 0.0007 < SHARE * _cpu(40, 0, 0) * 1.2
    assert LEAST / 4 < late < early / 1.5, "what stands behind thousands of others costs more"
