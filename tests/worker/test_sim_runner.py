"""The sim runner: its oracle, its clock, and that it catches each way of getting the KV cache wrong."""

import time

import pytest

from services.worker.engine.step import Row, Start, Step
from services.worker.sim import KvViolation, SimRunner, SimSpec, expected_logprobs, expected_tokens
from shared.sampling import SamplingParams

SPEC = SimSpec(num_blocks=8, max_model_len=64, vocab_size=100)
PROMPT = list(range(40))
PARAMS = SamplingParams(seed=5, max_tokens=9, num_logprobs=1)


def _started(spec: SimSpec = SPEC, params: SamplingParams = PARAMS) -> SimRunner:
    """A runner that has computed PROMPT as sequence 0 in blocks 3, 1, 2."""
    runner = SimRunner(spec)
    runner.run(Step([Row(0, 0, PROMPT, [3, 1, 2], True)], [Start(0, 0, params, PROMPT, [])]))
    return runner


def _first(params: SamplingParams = PARAMS, spec: SimSpec = SPEC) -> list[int]:
    return expected_tokens(spec, PROMPT, params)[0]


def test_rows_yield_the_oracles_tokens_and_logprobs():
    runner = _started()
    token = _first()[0]
    result = runner.run(Step([Row(0, 40, [token], [3, 1, 2], True)])).rows[0]
    assert result.token_ids == [_first()[1]]
    assert result.logprobs == [expected_logprobs(SPEC, _first()[1], 41, 1)]


def test_tokens_depend_on_prompt_seed_choice_and_index_alone():
    base = expected_tokens(SPEC, PROMPT, PARAMS)
    assert expected_tokens(SPEC, PROMPT, SamplingParams(seed=5, max_tokens=9)) == base
    assert len({tuple(expected_tokens(SPEC, PROMPT, PARAMS, choice)[0]) for choice in range(20)}) == 20
    assert expected_tokens(SPEC, PROMPT[1:], PARAMS) != base
    assert expected_tokens(SPEC, PROMPT, SamplingParams(seed=-6, max_tokens=9)) != base


def test_eos_comes_as_often_as_asked_and_never_before_the_least_count():
    spec = SimSpec(max_model_len=4000, vocab_size=50, eos_token_ids=(1, 2), eos_one_in=10)
    lengths = [len(expected_tokens(spec, [seed], SamplingParams(seed=seed))[0]) for seed in range(300)]
    assert 5 < sum(lengths) / 300 < 11
    least = SamplingParams(seed=1, min_tokens=30, stop_token_ids=(5,), ignore_eos=True)
    tokens, reason = expected_tokens(spec, [1], least)
    assert reason == "stop"
    assert not {1, 2, 5} & set(tokens[:30])
    assert expected_tokens(SPEC, PROMPT, SamplingParams(seed=1))[1] == "length"
    assert len(expected_tokens(SPEC, PROMPT, SamplingParams(seed=1))[0]) == 24


def test_accepted_drafts_are_those_equal_to_the_draw():
    runner = _started()
    known = _first()
    row = Row(0, 40, [known[0], known[1], known[2], 99], [3, 1, 2], True, num_drafts=3)
    expected = known[1:4] if known[3] != 99 else known[1:5]
    assert runner.run(Step([row])).rows[0].token_ids == expected
    again = Row(0, 43, [known[3]], [3, 1, 2], True)
    assert runner.run(Step([again])).rows[0].token_ids == [known[4]]


def test_prompt_logprobs_are_of_the_next_prompt_token():
    runner = SimRunner(SPEC)
    params = SamplingParams(seed=5, max_tokens=9, num_prompt_logprobs=2)
    first = runner.run(Step([Row(0, 0, PROMPT[:16], [3], False, 0, True)], [Start(0, 0, params, PROMPT, [])]))
    last = runner.run(Step([Row(0, 16, PROMPT[16:], [3, 1, 2], True, 0, True)]))
    given = first.rows[0].prompt_logprobs + last.rows[0].prompt_logprobs
    assert given == [expected_logprobs(SPEC, PROMPT[at], at, 2) for at in range(1, 40)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Row(0, 40, [_first()[0]], [1, 3, 2], True), "do not hold its first 40"),
        (Row(0, 40, [_first()[0]], [3, 1, 5], True), "do not hold its first 40"),
        (Row(0, 40, [_first()[0]], [3, 1], True), "2 blocks for 41"),
        (Row(0, 40, [_first()[0] + 1], [3, 1, 2], True), "does not have the sequence's tokens"),
        (Row(0, 41, [_first()[0]], [3, 1, 2], True), "does not have the sequence's tokens"),
        (Row(0, 40, [], [3, 1, 2], True), "does not have the sequence's tokens"),
        (Row(0, 40, [_first()[0]], [3, 1, 2], False), "sample=False at 41 of 41"),
    ],
)
def test_a_row_that_does_not_continue_its_sequence_is_refused(row: Row, words: str):
    with pytest.raises(KvViolation, match=words):
        _started().run(Step([row]))


def test_a_block_with_two_writers_is_found():
    runner = _started()
    other = [50, 51, 52]
    starts = [Start(1, 0, PARAMS, other, [])]
    runner.run(Step([Row(1, 0, other, [3], True)], starts))
    with pytest.raises(KvViolation, match="do not hold"):
        runner.run(Step([Row(0, 40, [_first()[0]], [3, 1, 2], True)]))
    runner = _started()
    rows = [Row(0, 40, [_first()[0]], [3, 1, 2], True), Row(1, 0, other, [2], True)]
    with pytest.raises(KvViolation, match="written by two rows"):
        runner.run(Step(rows, starts))


def test_a_false_prefix_hit_is_found_even_where_the_tokens_agree():
    """Equal tokens after a different beginning have different keys and values."""
    runner = _started()
    prompt = [99, *range(1, 16), *range(16, 40)]
    rows = [Row(1, 0, prompt[:16], [4], False)]
    runner.run(Step(rows, [Start(1, 0, PARAMS, prompt, [])]))
    with pytest.raises(KvViolation, match="do not hold its first 32"):
        runner.run(Step([Row(1, 32, prompt[32:], [4, 1, 5], True)]))
    shared = [*PROMPT[:32], 77]
    runner.run(Step([Row(2, 32, [77], [3, 1, 6], True)], [Start(2, 0, PARAMS, shared, [])]))


def test_a_sequence_is_forgotten_when_told():
    runner = _started()
    with pytest.raises(KvViolation, match="started twice"):
        runner.run(Step([], [Start(0, 0, PARAMS, PROMPT, [])]))
    runner.run(Step([], [], [0]))
    runner.run(Step([], [Start(0, 0, PARAMS, PROMPT, [])]))


def test_a_step_takes_the_modelled_time():
    spec = SimSpec(num_blocks=8, max_model_len=64, vocab_size=100, step_ms=10, row_ms=5, prefill_tokens_per_s=1000)
    assert spec.step_s(1, 40) == pytest.approx(0.015 + 0.039)
    began_at = time.monotonic()
    _started(spec)
    assert time.monotonic() - began_at >= 0.054
