"""Sampling: Philox against its published vectors, each rule on small rows, C++ against the reference token for token."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels import Ops
from kernels.sample import reference
from kernels.sample.params import NO_TOKEN_LEFT, NOT_A_NUMBER
from tests.kernels.sample_params import Lists, make_params, mask_of, plain


def draws(run: Any, logits: list[float], count: int = 60, **values: Any) -> set[int]:
    """The different tokens of many draws of one row."""
    many = torch.tensor([logits] * count)
    return set(run(many, plain(count, position=list(range(count)), **values)).tolist())


def test_philox_equals_the_vectors_of_random123() -> None:
    assert reference.philox(0, 0, 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert reference.philox(-1, 0, 0) == reference.philox(2**64 - 1, 0, 0) != reference.philox(1, 0, 0)
    assert reference.philox(7, 1, 0) != reference.philox(7, 0, 1)


@pytest.fixture(params=["reference", "cpu"])
def run(request: pytest.FixtureRequest, ops: Ops) -> Any:
    """sample of both files."""
    return reference.sample if request.param == "reference" else ops.sample


def test_temperature_zero_takes_the_lowest_of_the_largest(run: Any) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, -torch.inf], [-5.0, -6.0, -5.0, -9.0]])
    assert run(logits, plain(2, temperature=0.0, top_k=3, top_p=0.1)).tolist() == [1, 0]


def test_truncation_rules(run: Any) -> None:
    even = [2.0] * 6
    assert draws(run, even) == {0, 1, 2, 3, 4, 5}
    assert draws(run, even, top_k=2) == {0, 1}
    assert draws(run, even, top_k=-1) == {0, 1, 2, 3, 4, 5}
    assert draws(run, even, top_k=99) == {0, 1, 2, 3, 4, 5}
    assert draws(run, even, top_p=0.4) == {0, 1, 2}
    assert draws(run, even, top_p=0.5, top_k=4) == {0, 1}
    assert draws(run, even, top_p=0.0) == {0}
    assert draws(run, [0.0, 1.0, 1.0, -torch.inf], top_k=2) == {1, 2}
    assert draws(run, [0.0, 2.0, 1.9, -3.0], min_p=0.5) == {1, 2}
    assert draws(run, [0.0, 2.0, 1.9, -3.0], min_p=1.0) == {1}
    assert draws(run, [0.0, 2.0, 1.9, -3.0], temperature=1e-6) == {1}


def test_penalties_bias_and_bans_come_in_order(run: Any) -> None:
    logits = torch.tensor([[4.0, -1.0, 3.0, 0.0]])

    def greedy(**lists: Any) -> int:
        none: dict[str, Lists] = {name: [[]] for name in ("output", "seen", "bias", "banned")}
        return int(run(logits, make_params(1, **(none | lists), temperature=0.0)))

    assert greedy(seen=[[(0, 0)]], repetition_penalty=2.0) == 2
    assert greedy(seen=[[(0, 0), (2, 0)]], repetition_penalty=0.5) == 0
    assert greedy(output=[[(0, 2)]], frequency_penalty=0.4) == 0
    assert greedy(output=[[(0, 3)]], frequency_penalty=0.4) == 2
    assert greedy(output=[[(0, 9)]], presence_penalty=1.5) == 2
    assert greedy(seen=[[(1, 0)]], repetition_penalty=10.0, bias=[[(1, 15.0)]]) == 1
    assert greedy(banned=[[(0, 0)]], bias=[[(0, 100.0)]]) == 2


def test_a_mask_says_what_may_come(run: Any) -> None:
    vocab = 71
    mask = mask_of([{3, 31, 32, 70}, {5}, set(), set(range(vocab))], vocab)
    logits = torch.zeros(5, vocab)
    logits[:, 40] = 9.0
    none: dict[str, Lists] = {name: [[]] * 5 for name in ("output", "seen", "bias")}
    params = make_params(5, **none, banned=[[(3, 0)], [], [], [], []], mask=mask, mask_row=[0, 1, 2, 3, -1], temperature=0.0)
    assert run(logits, params).tolist() == [31, 5, NO_TOKEN_LEFT, 40, 40]
    few = {"mask": mask, "mask_row": 0, "seed": 7}
    assert draws(run, [1.0] * vocab, 200, **few) == {3, 31, 32, 70}
    assert draws(run, [1.0] * vocab, 200, **few, top_k=2) == {3, 31}
    logits[0, 4] = torch.nan  # a masked token, too, must be a number
    assert run(logits, params).tolist()[0] == NOT_A_NUMBER


def test_broken_rows_are_named_and_leave_the_others_alone(run: Any) -> None:
    logits = torch.tensor([[0.0, torch.nan], [0.0, torch.inf], [-torch.inf, -torch.inf], [0.0, -torch.inf]])
    for temperature in (0.0, 1.0):
        expected = [NOT_A_NUMBER, NOT_A_NUMBER, NO_TOKEN_LEFT, 0]
        assert run(logits, plain(4, temperature=temperature, top_p=0.9)).tolist() == expected


def test_a_penalty_that_overflows_makes_a_row_not_a_number(run: Any) -> None:
    none: dict[str, Lists] = {name: [[]] for name in ("output", "bias", "banned")}
    for temperature in (0.0, 1.0):
        params = make_params(1, **none, seen=[[(0, 0)]], repetition_penalty=1e-38, temperature=temperature)
        assert run(torch.tensor([[9.0, 1.0]]), params).tolist() == [NOT_A_NUMBER]


def test_fewer_tokens_than_top_k_asks_for(run: Any) -> None:
    logits = [-torch.inf] * 700 + [1.0, 0.5, -900.0]
    assert draws(run, logits, top_k=3) == draws(run, logits, top_k=600, top_p=0.99) == {700, 701}
    assert draws(run, logits, top_k=600, temperature=1e-45) == {700}


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.9])
def test_weights_are_exp_to_float_precision(temperature: float) -> None:
    x = 13.7 - torch.cat([torch.zeros(1), torch.rand(200_000) * 33]) * temperature
    octaves = (x[0].double() - x.double()) / temperature / math.log(2)
    exact, weights = 2.0 ** (44 - octaves), reference._weights(x, temperature).double()
    assert weights[0] == reference.ONE
    assert ((weights - exact).abs() <= 0.5 + (1 + octaves) * 1.3e-7 * exact).all()


@pytest.mark.parametrize("values", [{}, {"top_p": 0.5}, {"top_k": 1000}, {"temperature": 2.0, "min_p": 0.5}])
def test_equal_logits_of_a_large_vocabulary_are_drawn_alike(ops: Ops, values: dict[str, float]) -> None:
    vocab, rows = 2**18, 64
    params = plain(rows, position=list(range(rows)), **values)
    ids = ops.sample(torch.full((1, vocab), -3.0).expand(rows, vocab), params)
    kept = {"top_p": vocab // 2, "top_k": 1000}.get(next(iter(values), ""), vocab)
    expected = [int(reference.philox(0, position, 0)[1] * kept) >> 32 for position in range(rows)]
    assert ids.tolist() == expected


def test_rows_do_not_depend_on_their_neighbours(ops: Ops) -> None:
    logits = torch.randn(6, 9000) * torch.tensor([[0.01], [0.5], [1.0], [2.0], [4.0], [8.0]])
    values = {"temperature": [0.0, 0.6, 0.8, 1.0, 1.5, 2.0], "top_p": [0.9, 0.95, 1.0, 0.99, 0.5, 0.3]}
    whole = ops.sample(logits, plain(6, **values)).tolist()
    alone = [ops.sample(logits[r : r + 1], plain(1, **{name: v[r] for name, v in values.items()})) for r in range(6)]
    assert whole == [int(token) for token in alone]


def test_draws_follow_the_probabilities(ops: Ops) -> None:
    logits = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1])).repeat(20000, 1)
    ids = ops.sample(logits, plain(20000, seed=5, position=list(range(20000))))
    shares = torch.bincount(ids, minlength=4) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.2, 0.2, 0.1]), atol=0.015, rtol=0)


def _random_lists(rows: int, vocab: int, most: int) -> Lists:
    picks = [torch.randperm(vocab)[: int(torch.randint(0, most, ()))].tolist() for _ in range(rows)]
    return [[(i, float(1 + i % 4)) for i in ids] for ids in picks]


@pytest.mark.parametrize(("vocab", "rounding"), [(5, 0.0), (513, 0.5), (8191, 0.0), (20001, 0.05)])
def test_cpu_equals_the_reference_token_for_token(ops: Ops, vocab: int, rounding: float) -> None:
    rows = 60
    logits = torch.randn(rows, vocab) * torch.linspace(0.1, 9.0, rows)[:, None]
    if rounding:  # many equal logits, so that ties decide
        logits = (logits / rounding).round() * rounding
    lists = {name: _random_lists(rows, vocab, 9) for name in ("output", "seen", "bias")}
    params = make_params(
        rows,
        **lists,
        banned=_random_lists(rows, vocab, 3),
        temperature=[0.0, 0.7, 1.0, 1.3, 2.0] * 12,
        top_k=[0, 0, 1, 5, 50, 3000] * 10,
        top_p=[1.0, 0.9, 0.5, 0.999] * 15,
        min_p=[0.0, 0.0, 0.05] * 20,
        presence_penalty=[0.5, -1.0] * 30,
        frequency_penalty=[0.3, 0.0, -0.2] * 20,
        repetition_penalty=[1.0, 1.2, 0.8] * 20,
        seed=torch.randint(-(2**63), 2**63 - 1, (rows,)).tolist(),
        position=torch.randint(0, 2**31, (rows,)).tolist(),
        choice=torch.randint(0, 128, (rows,)).tolist(),
        mask=torch.randint(-(2**31), 2**31, (3, -(-vocab // 32))).int() & torch.tensor([[-1], [-1], [0x1000]]).int(),
        mask_row=[-1, 0, 2, 1, -1, -1] * 10,
    )
    assert torch.equal(ops.sample(logits, params), reference.sample(logits, params))


@pytest.mark.parametrize("k", [0, 1, 20])
def test_logprobs(ops: Ops, k: int) -> None:
    logits = (torch.randn(7, 3001) * 4).round(decimals=1)
    ids = torch.randint(0, 3001, (7,))
    chosen, top, values = ops.logprobs(logits, ids, k)
    expected = torch.log_softmax(logits.double(), -1).float()
    torch.testing.assert_close(chosen, expected.gather(1, ids[:, None])[:, 0], atol=1e-6, rtol=1e-6)
    again = reference.logprobs(logits, ids, k)
    assert torch.equal(top, again[1])
    torch.testing.assert_close(chosen, again[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(values, again[2], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(values, expected.gather(1, top), atol=1e-6, rtol=1e-6)


def test_parameters_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k must be contiguous torch\.int32"):
        replace(plain(2), top_k=torch.zeros(2))
