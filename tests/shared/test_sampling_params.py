"""Sampling parameters: every bound, both ways over the wire. It knows nothing of doors."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.grammars import KINDS, Grammar
from shared.sampling import SamplingParams, from_proto, to_proto

pytestmark = pytest.mark.optimized
VOCAB = 1000

finite = st.floats(-100, 100, allow_nan=False)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    top_k=st.integers(-1, VOCAB),
    min_p=st.floats(0, 1),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0, 10, exclude_min=True),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), finite, max_size=4).map(lambda d: tuple(sorted(d.items()))),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    max_tokens=st.none() | st.integers(5, 2**31 - 1),
    min_tokens=st.integers(0, 5),
    stop=st.lists(st.text("ab\u20ac", min_size=1, max_size=5), max_size=4).map(tuple),
    stop_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=4).map(tuple),
    ignore_eos=st.booleans(),
    n=st.integers(1, 128),
    num_logprobs=st.none() | st.integers(0, 20),
    num_prompt_logprobs=st.none() | st.integers(0, 20),
    include_stop_str_in_output=st.booleans(),
    skip_special_tokens=st.booleans(),
    grammar=st.none() | st.builds(Grammar, st.sampled_from(KINDS), st.just("{}")),
    allowed_token_ids=st.lists(st.integers(0, VOCAB - 1), max_size=4).map(tuple),
    bad_words=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4).map(tuple),
    bad_word_ids=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
).filter(lambda made: not (made.grammar and made.ignore_eos))


@given(params)
def test_valid_ones_pass_and_survive_the_wire(value: SamplingParams) -> None:
    value.validate(vocab_size=VOCAB)
    assert from_proto(to_proto(value)) == value


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("temperature", -0.1, "decimal_below_min_value"),
        ("temperature", 2.1, "decimal_above_max_value"),
        ("temperature", math.nan, "invalid_value"),
        ("temperature", math.inf, "invalid_value"),
        ("top_p", 1.5, "decimal_above_max_value"),
        ("top_k", -2, "integer_below_min_value"),
        ("top_k", VOCAB + 1, "integer_above_max_value"),
        ("min_p", -0.5, "decimal_below_min_value"),
        ("presence_penalty", 2.5, "decimal_above_max_value"),
        ("frequency_penalty", -2.5, "decimal_below_min_value"),
        ("repetition_penalty", 0.0, "decimal_below_min_value"),
        ("n", 0, "integer_below_min_value"),
        ("n", 10**9, "integer_above_max_value"),
        ("seed", 2**63, "integer_above_max_value"),
        ("max_tokens", 0, "integer_below_min_value"),
        ("min_tokens", -1, "integer_below_min_value"),
        ("num_logprobs", 21, "integer_above_max_value"),
        ("num_prompt_logprobs", -1, "integer_below_min_value"),
        ("stop", ("",), "invalid_value"),
        ("stop", ("x" * 257,), "invalid_value"),
        ("stop", ("a",) * 5, "array_above_max_length"),
        ("stop_token_ids", (VOCAB,), "invalid_token_id"),
        ("logit_bias", ((VOCAB, 1.0),), "invalid_token_id"),
        ("logit_bias", ((1, math.nan),), "invalid_value"),
        ("logit_bias", ((1, 101.0),), "decimal_above_max_value"),
    ],
)
def test_out_of_range_is_named(field: str, value: object, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**{field: value}).validate(vocab_size=VOCAB, names={"num_logprobs": "top_logprobs"})  # type: ignore[arg-type]
    assert caught.value.code == code
    assert (caught.value.param or "").startswith({"num_logprobs": "top_logprobs"}.get(field, field))


def test_min_tokens_may_not_exceed_max_tokens() -> None:
    with pytest.raises(InvalidRequest):
        SamplingParams(max_tokens=3, min_tokens=4).validate(vocab_size=VOCAB)
    SamplingParams(min_tokens=4).validate(vocab_size=VOCAB)


def test_the_router_fills_in_only_what_is_open() -> None:
    assert SamplingParams(seed=7).resolved(seed=1, max_tokens=9) == SamplingParams(seed=7, max_tokens=9)
