"""Percentiles, windows, goodput, ratios and workloads are what their definitions say. It knows no server."""

from itertools import islice

import pytest

from bench import workload
from bench.measures import Spread, percentile, ratios, summarize
from bench.show import median_round
from bench.wire import Answer

pytestmark = pytest.mark.optimized


def answer(start: float, at: list[float], num_output: int, error: str = "") -> Answer:
    return Answer(start, at[-1] if at else start, tuple(at), 10, num_output, error)


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([3.0], 0.99) == 3
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile(list(range(101)), 0.99) == 99
    assert Spread.of([1.0, 3.0]) == Spread(2.0, 2.0, pytest.approx(2.8), pytest.approx(2.98))


def test_tokens_are_counted_by_usage_not_by_events() -> None:
    # Two events of four tokens each, one of them inside the window.
    summary = summarize([answer(0.5, [0.9, 1.5], 8)], 1.0, 2.0)
    assert summary.output_tok_s == 4
    assert summary.num_requests == 0


def test_latencies_are_of_requests_that_began_in_the_window() -> None:
    inside, outside = answer(1.0, [1.1, 1.2, 1.3], 5), answer(0.0, [0.5, 3.0], 2)
    summary = summarize([inside, outside, answer(1.0, [], 0, "broke")], 1.0, 2.0, limits={"ttft": 150, "tpot": 60})
    assert summary.num_requests == 1
    assert (summary.num_errors, summary.first_error) == (1, "broke")
    assert summary.ttft.p50 == pytest.approx(100)
    assert summary.tpot.p50 == pytest.approx(50)
    assert summary.itl.mean == pytest.approx(100)
    assert summary.goodput == 1
    assert summarize([inside], 1.0, 2.0, limits={"tpot": 49}).goodput == 0


def test_ratios_say_how_many_times_better() -> None:
    fast = summarize([answer(0.0, [0.1, 0.2], 8)], 0.0, 1.0)
    slow = summarize([answer(0.0, [0.4, 0.8], 4)], 0.0, 1.0)
    found = ratios([fast, fast], [slow, fast])
    assert found["output tok/s"] == (1.5, 1, 2)
    assert found["TTFT p50"][2] == pytest.approx(4)
    assert median_round([fast, slow, fast]) is fast


def test_workloads_depend_on_the_seed_alone() -> None:
    def some(seed: int) -> list[workload.Ask]:
        return list(islice(workload.mixed(seed, (16, 256), (16, 128)), 50))

    assert some(1) == some(1) != some(2)
    assert all(16 <= len(ask.prompt.split()) <= 256 and 16 <= ask.max_tokens <= 128 for ask in some(3))


def test_a_shared_prefix_is_shared_and_long_prompts_are_unique() -> None:
    asks = list(islice(workload.mixed(1, (4, 8), (1, 1), prefix_words=512), 3))
    assert len({" ".join(ask.prompt.split()[:512]) for ask in asks}) == 1
    assert len({ask.prompt for ask in asks}) == 3
    first, second = islice(workload.long_prompts(1, 4000), 2)
    assert first.prompt[:100] != second.prompt[:100]
    assert len(first.prompt.split()) == 4000


def test_chats_fit() -> None:
    assert all(len(ask.prompt.split()) + ask.max_tokens <= 1900 for ask in islice(workload.chats(1, 1900), 200))
