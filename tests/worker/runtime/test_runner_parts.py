"""The runtime's parts: batches, the size of the KV cache, penalties' counts, log-probabilities, logits that are no numbers."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Ops
from services.worker.batch import Batch
from services.worker.engine.step import Row, Start, Step
from services.worker.models import Model, build
from services.worker.runtime.forward import Forward
from services.worker.runtime.kv_cache import KVShape, allocate, plan
from services.worker.runtime.prepare import num_wanted, prepare
from services.worker.runtime.runner import probe
from services.worker.runtime.sampler import Counts
from shared.errors import StartupError
from shared.sampling import SamplingParams
from tests.worker.models import tiny
from tests.worker.models.paged import PagedLoop
from tests.worker.runtime.engine_run import GREEDY, SEEDED, EngineRun, runner_of

pytestmark = pytest.mark.optimized

SHAPE = KVShape(num_layers=2, num_kv_heads=3, head_dim=8, dtype="float32")
PROMPT = [(7 * number) % 128 + 3 for number in range(45)]


@pytest.fixture(scope="module")
def model(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("runner")
    tiny.save(tiny.random_model("llama"), folder)
    return build(folder, ops)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40), st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_a_batch_is_the_rows_laid_end_to_end(shapes: list[tuple[int, int, bool, bool]]) -> None:
    rng, rows, free = random.Random(0), [], list(range(100))
    rng.shuffle(free)
    for seq_id, (computed, count, sample, prompt_logprobs) in enumerate(shapes):
        table = [free.pop() for _ in range(-(-(computed + count) // 16))]
        ids = [rng.randrange(1000) for _ in range(count)]
        drafts = min(2, count - 1) if sample else 0
        rows.append(Row(seq_id, computed, ids, table, sample, drafts, prompt_logprobs))
    batch = prepare(rows, "cpu")
    ids, positions, slots, wanted, start = [], [], [], [], 0
    for row in rows:
        places = range(row.num_computed, row.num_computed + len(row.token_ids))
        ids += row.token_ids
        positions += places
        slots += [row.block_table[place // 16] * 16 + place % 16 for place in places]
        start += len(row.token_ids)
        wanted += range(start - num_wanted(row), start)
    assert (batch.token_ids.tolist(), batch.positions.tolist(), batch.slots.tolist()) == (ids, positions, slots)
    assert batch.logit_indices.tolist() == wanted
    assert batch.seq_lens.tolist() == [row.num_computed + len(row.token_ids) for row in rows]
    assert batch.query_start.tolist() == np.cumsum([0, *(len(row.token_ids) for row in rows)]).tolist()
    assert [table[: len(row.block_table)] for table, row in zip(batch.block_tables.tolist(), rows, strict=True)] == [
        row.block_table for row in rows
    ]
    assert batch.block_tables.dtype == batch.query_start.dtype == batch.seq_lens.dtype == torch.int32


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=300), st.lists(st.integers(0, 200), max_size=20))
def test_counts_are_those_of_the_tokens(tokens: list[int], drafts: list[int]) -> None:
    counts = Counts(tokens)
    for draft in drafts:
        counts.add(draft)
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == Counter([*tokens, *drafts])
    for draft in reversed(drafts):
        counts.remove(draft)
    assert dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True)) == Counter(tokens)


def test_the_kv_cache_is_sized_from_memory() -> None:
    assert SHAPE.block_bytes == 2 * 2 * 3 * 8 * 16 * 4
    asked = plan(SHAPE, 100 * SHAPE.block_bytes + 5, max_model_len=160)
    assert asked.num_blocks == 100
    assert "100 blocks" in asked.arithmetic
    assert "10 requests of full context (160)" in asked.arithmetic
    unasked = plan(SHAPE, None, max_model_len=160, free=400 * SHAPE.block_bytes)
    assert unasked.num_blocks == 100
    keys, values = allocate(SHAPE, 7, "cpu")[1]
    assert keys.shape == (7, 3, 8, 16)
    assert values.shape == (7, 3, 16, 8)


def test_an_int8_cache_has_a_word_for_every_token_and_head() -> None:
    shape = replace(SHAPE, dtype="int8")
    assert shape.block_bytes == 2 * 2 * 3 * 16 * (8 + 4)
    assert "x 2 x 3 heads x (8 x 1 bytes + 4 of scale): 1600 tokens" in plan(shape, 100 * shape.block_bytes, 160).arithmetic
    assert sum(part.nbytes for layer in allocate(shape, 7, "cpu") for part in layer) == 7 * shape.block_bytes


def test_too_little_memory_is_one_line_with_the_numbers() -> None:
    with pytest.raises(StartupError, match=r"room for 32 tokens.*has 160.*raise --kv-memory or set --max-model-len 32"):
        plan(SHAPE, 2 * SHAPE.block_bytes, max_model_len=160)


@pytest.fixture(scope="module")
def raw(model: Model) -> torch.Tensor:
    return torch.log_softmax(PagedLoop(model, 1, 64).step({0: PROMPT}, every=True).double(), -1)


@pytest.mark.parametrize("chunk", [7, 512])
def test_logprobs_come_from_raw_logits(model: Model, raw: torch.Tensor, chunk: int) -> None:
    params = replace(SEEDED, num_logprobs=3, num_prompt_logprobs=2)
    with EngineRun(model, max_step_tokens=chunk) as engine:
        engine.run([("it", PROMPT, params)])
    rows = engine.prompt_logprobs["it"]
    assert [row.token_ids[0] for row in rows] == PROMPT[1:]
    for position, row in enumerate(rows):
        assert list(row.token_ids[1:]) == raw[position].topk(2).indices.tolist()
        assert row.logprobs == pytest.approx(raw[position][list(row.token_ids)].tolist(), abs=1e-4)
    first = engine.logprobs["it", 0][0]
    assert first.token_ids[0] == engine.tokens["it", 0][0]
    assert len(first.token_ids) == 4
    assert first.logprobs == pytest.approx(raw[-1][list(first.token_ids)].tolist(), abs=1e-4)
    assert len(engine.logprobs["it", 0]) == len(engine.tokens["it", 0])


def spoiled(forward: Forward, bad_token: int = 66) -> Forward:
    """NaN for sequences whose last token of a step is bad_token."""

    def run(batch: Batch) -> torch.Tensor:
        logits = forward(batch)
        logits[batch.token_ids[batch.logit_indices] == bad_token] = torch.nan
        return logits

    return run


def test_logits_that_are_no_numbers_end_their_row_alone(model: Model) -> None:
    with EngineRun(model) as engine:
        engine.run([("good", PROMPT, GREEDY)])
        expected = engine.tokens["good", 0]
    with EngineRun(model) as engine:
        assert engine.runner.forward is not None
        engine.runner.forward = spoiled(engine.runner.forward)
        engine.run([("bad", [5, 66], GREEDY), ("good", PROMPT, GREEDY)])
    assert engine.finishes["bad", 0].reason == "error"
    assert "not a number" in (engine.finishes["bad", 0].error or "")
    assert engine.tokens["good", 0] == expected


def test_exact_kernels_and_an_int8_cache_do_not_start(model: Model) -> None:
    with pytest.raises(StartupError, match=r"^kv-dtype int8 is for fast kernels.*--compute fast.*--kv-dtype float16 or float32$"):
        runner_of(model, 8, kv_dtype="int8")


def test_a_model_that_computes_no_numbers_does_not_start(model: Model) -> None:
    assert 0 < probe(runner_of(model, 16), 512) < 10
    runner = runner_of(model, 16)
    assert runner.forward is not None
    runner.forward = spoiled(runner.forward, bad_token=127)
    with pytest.raises(StartupError, match="not a number"):
        probe(runner, 512)


def test_bias_that_leaves_no_token_is_an_error_of_its_row(model: Model) -> None:
    runner = runner_of(model, 8)
    params = SamplingParams(seed=1, max_tokens=4, min_tokens=4, stop_token_ids=tuple(range(131)))
    step = Step([Row(1, 0, PROMPT[:5], [3], True)], [Start(1, 0, params, PROMPT[:5], [])])
    assert "leave no token" in (runner.run(step).rows[0].error or "")


def test_the_fingerprint_names_all_that_numbers_depend_on(model: Model) -> None:
    fingerprint = runner_of(model, 8).limits.fingerprint
    assert fingerprint == f"{model.numerics} exact kv-float32 {model.ops.variant} tp1"
    assert runner_of(model, 8, kv_dtype="float16").limits.fingerprint != fingerprint
