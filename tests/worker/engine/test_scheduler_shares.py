"""How a step's tokens are shared, over random mixes of prompts: nobody starves, a long prompt keeps its half, nothing is lost.

The limit of a step is so low that the pace of steps does not matter. It knows nothing of what is computed.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from services.worker.sim import SimSpec
from shared.sampling import SamplingParams
from tests.worker.engine.drive import Drive

pytestmark = pytest.mark.optimized

SPEC = SimSpec(num_blocks=600, max_model_len=1024, vocab_size=1000)
BUDGET, SEATS = 64, 6


def _submit(drive: Drive, number: int, num_prompt: int, *, n: int = 1, band: int = 0, max_tokens: int = 3) -> None:
    prompt = [(number * 131 + at * 7) % 1000 for at in range(num_prompt)]
    params = SamplingParams(seed=number, n=n, max_tokens=max_tokens)
    drive.submit((f"r{number}", 1), prompt, params, band=band, tag=float(number))


def _step(drive: Drive) -> None:
    """One step, whose sharing is checked against the lines as they stood before it."""
    lines = drive.scheduler.lines
    owed = {each.seq_id: len(each.tokens) - each.num_computed for each in lines.running}
    some_wait, num_steps = bool(lines.waiting), len(drive.steps)
    drive.step()
    if len(drive.steps) == num_steps:
        return
    got = {row.seq_id: len(row.token_ids) for row in drive.steps[-1].rows}
    assert all(got.get(seq_id, 0) >= 1 for seq_id in owed), "one that has a seat got nothing"
    spare = BUDGET - len(owed)
    first = next((seq_id for seq_id, num in owed.items() if num > 1), None)
    if first is not None:
        assert got[first] >= min(owed[first], 1 + (spare + 1) // 2), "the first prompt got less than half of what is over"
    for index, (seq_id, num) in enumerate(owed.items()):
        if got[seq_id] > 1 + (spare + 1) // 2:
            shorter = [each for each in list(owed)[index + 1 :] if owed[each] < num]
            assert all(got[each] == owed[each] for each in shorter), "more than half, and shorter ones lack something"
    if not some_wait or len(owed) == SEATS:
        assert sum(got.values()) == min(BUDGET, sum(owed.values())), "tokens that somebody owes were left"


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 400), st.sampled_from([1, 1, 3]), st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=9
    )
)
def test_each_step_is_shared_by_the_rules(prompts: list[tuple[int, int, int, int]]):
    drive = Drive(SPEC, max_num_seqs=SEATS, max_step_tokens=BUDGET)
    for number, (num_prompt, n, band, pause) in enumerate(prompts):
        _submit(drive, number, num_prompt, n=n, band=band)
        for _ in range(pause):
            _step(drive)
    while drive.scheduler.lines.running or drive.scheduler.lines.waiting:
        _step(drive)
    drive.check_all()


@settings(max_examples=20, deadline=None)
@given(num_prompt=st.integers(200, 1000), others=st.lists(st.integers(2, 120), min_size=1, max_size=8))
def test_shorter_ones_without_end_starve_no_long_prompt(num_prompt: int, others: list[int]):
    drive = Drive(SPEC, max_num_seqs=SEATS, max_step_tokens=BUDGET)
    _submit(drive, 0, num_prompt)
    num_steps = 0
    while not drive.tokens[("r0", 1), 0]:
        num_steps += 1
        if len(drive.scheduler.lines.running) + len(drive.scheduler.lines.waiting) < SEATS + 2:
            _submit(drive, num_steps, others[num_steps % len(others)])
        _step(drive)
    # Half of what is over, less one for each seat: no fewer tokens a step.
    assert num_steps <= 1 + num_prompt / ((BUDGET - SEATS) // 2)
    drive.run()
    drive.check_all()


def test_what_the_first_leaves_to_a_short_one_is_not_taken_by_a_long_one_between_them():
    drive = Drive(SPEC, max_num_seqs=SEATS, max_step_tokens=BUDGET)
    for number, num_prompt in enumerate((400, 600, 20)):
        _submit(drive, number, num_prompt, max_tokens=30)
        drive.step()
    while ("r2", 1) not in {delta.key for delta in drive.deltas}:
        drive.step()
    assert len(drive.steps) <= 4, "the short one got one token a step"
    drive.run()
    drive.check_all()


def test_a_prompt_takes_all_that_is_over_if_nobody_can_have_a_seat():
    drive = Drive(SPEC, max_num_seqs=1, max_step_tokens=BUDGET)
    _submit(drive, 0, 200)
    _submit(drive, 1, 50)
    for _ in range(3):
        drive.step()
    assert [[len(row.token_ids) for row in step.rows] for step in drive.steps] == [[64], [64], [64]]


def test_choices_that_wait_for_their_prompt_do_not_slow_it():
    drive = Drive(SPEC, max_num_seqs=SEATS, max_step_tokens=BUDGET)
    _submit(drive, 0, 200, n=3)
    for _ in range(3):
        drive.step()
    assert [[len(row.token_ids) for row in step.rows] for step in drive.steps] == [[64], [64], [64]]
    drive.run()
    drive.check_all()
