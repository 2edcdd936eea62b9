"""The runtime's parts: batches, the size of the KV cache, penalties' counts, log-probabilities, logits that are no numbers."""

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Ops
from kernels.sample.params import SampleParams
from services.worker.engine.step import Row, Start, Step
from services.worker.models import Model, build
from services.worker.runtime.forward import Forward
from services.worker.runtime.in_place import Capacity, InPlace
from services.worker.runtime.kv_cache import KVShape, allocate, plan
from services.worker.runtime.numerics import release
from services.worker.runtime.prepare import num_wanted, prepare
from services.worker.runtime.runner import probe
from services.worker.runtime.sampler import BROKEN, NO_TOKEN, Counts, Sampled
from shared.errors import StartupError
from shared.sampling import SamplingParams
from tests.stack import ROOT
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


Shapes = list[tuple[int, int, bool, bool]]  # of each row: tokens computed and to compute, sample, prompt_logprobs
SHAPES = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40), st.booleans(), st.booleans()), min_size=1, max_size=6)


def rows_of(shapes: Shapes, tables: dict[int, list[int]]) -> list[Row]:
    """Rows of random tokens; their tables, by seq_id, grow by random blocks."""
    rng, rows = random.Random(0), []
    for seq_id, (computed, count, sample, prompt_logprobs) in enumerate(shapes):
        table = tables.setdefault(seq_id, [])
        table += [rng.randrange(100) for _ in range(-(-(computed + count) // 16) - len(table))]
        ids = [rng.randrange(1000) for _ in range(count)]
        rows.append(Row(seq_id, computed, ids, table, sample, min(2, count - 1) if sample else 0, prompt_logprobs))
    return rows


@settings(max_examples=40, deadline=None)
@given(SHAPES)
def test_a_batch_is_the_rows_laid_end_to_end(shapes: Shapes) -> None:
    rows = rows_of(shapes, {})
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


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(SHAPES, st.randoms(use_true_random=False)), min_size=1, max_size=4))
def test_steps_written_in_place_are_the_batches_of_their_rows(ops: Ops, steps: list[tuple[Shapes, random.Random]]) -> None:
    """From step to step rows come, go and change places, and their block tables grow."""
    if ops.library is None:
        pytest.skip("nothing is recorded without compiled kernels")
    counts, tables = np.zeros(3, dtype=np.int64), {}
    in_place = InPlace(ops.library, Capacity(240, 6, 7), counts, 1000)
    for shapes, rng in steps:
        rows = rows_of(shapes, tables)
        rng.shuffle(rows)
        batch, written = prepare(rows, "cpu"), in_place.batch
        assert in_place.write(rows) == len(batch.logit_indices)
        assert counts.tolist() == [len(batch.token_ids), len(rows), len(batch.logit_indices)]
        for name in ("token_ids", "positions", "slots", "query_start", "seq_lens", "logit_indices"):
            given = getattr(batch, name)
            assert torch.equal(getattr(written, name)[: len(given)], given), name
        for place, row in enumerate(rows):
            assert written.block_tables[place, : len(row.block_table)].tolist() == row.block_table


def test_a_step_that_was_not_recorded_is_refused(ops: Ops) -> None:
    if ops.library is None:
        pytest.skip("nothing is recorded without compiled kernels")
    in_place = InPlace(ops.library, Capacity(8, 2, 2), np.zeros(3, dtype=np.int64), 100)
    table = [1, 2]
    for rows in (
        [Row(0, 0, [1] * 9, table, True)],
        [Row(index, 0, [1], table, True) for index in range(3)],
        [Row(0, 0, [1], [1, 2, 3], True)],
        [Row(0, 30, [1] * 3, table, True)],
    ):
        with pytest.raises(ValueError, match="larger than what was recorded: 8 tokens, 2 rows and 2 blocks a row"):
            in_place.write(rows)
    for token_id in (-1, 100):
        with pytest.raises(IndexError, match=r"token ids must lie in \[0, 100\)"):
            in_place.write([Row(0, 0, [5, token_id], table, True)])
    assert in_place.write([Row(0, 30, [99, 0], table, True)]) == 1


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


class Spoiled:
    """NaN for sequences whose last token of a step is bad_token: in the logits, and in what vectors are made of."""

    def __init__(self, forward: Forward, bad_token: int = 66):
        self._forward, self._bad_token = forward, bad_token
        self.states = forward.states

    def __call__(self, rows: Sequence[Row]) -> torch.Tensor:
        logits = self._forward(rows)
        wanted = [token_id for row in rows for token_id in row.token_ids[len(row.token_ids) - num_wanted(row) :]]
        logits[torch.tensor(wanted) == self._bad_token] = torch.nan
        tokens = [token_id for row in rows for token_id in row.token_ids]
        self.states = self._forward.states.clone()
        self.states[: len(tokens)][torch.tensor(tokens) == self._bad_token] = torch.nan
        return logits


def test_logits_that_are_no_numbers_end_their_row_alone(model: Model) -> None:
    with EngineRun(model) as engine:
        engine.run([("good", PROMPT, GREEDY)])
        expected = engine.tokens["good", 0]
    with EngineRun(model) as engine:
        assert engine.runner.forward is not None
        engine.runner.forward = Spoiled(engine.runner.forward)
        engine.run([("bad", [5, 66], GREEDY), ("good", PROMPT, GREEDY)])
    assert engine.finishes["bad", 0].reason == "error"
    assert "not a number" in (engine.finishes["bad", 0].error or "")
    assert engine.tokens["good", 0] == expected


def test_an_id_that_is_none_ends_its_row_alone(model: Model) -> None:
    """As a kernel with a fault might draw it. The next step would read beyond the embedding."""
    with EngineRun(model) as engine:
        engine.run([("good", PROMPT, GREEDY)])
        expected = engine.tokens["good", 0]
    for wrong in (model.spec.vocab_size, 2**31 - 1, -7):
        with EngineRun(model) as engine:
            sampler = engine.runner._sampler
            ops = sampler._ops

            def sample(logits: torch.Tensor, params: SampleParams, wrong: int = wrong, ops: Ops = ops) -> torch.Tensor:
                ids = ops.sample(logits, params)
                ids[torch.isclose(params.temperature, torch.tensor(0.7))] = wrong
                return ids

            sampler._ops = replace(ops, sample=sample)
            engine.run([("bad", [5, 66], replace(SEEDED, temperature=0.7)), ("good", PROMPT, GREEDY)])
        assert engine.finishes["bad", 0].error == NO_TOKEN
        assert engine.tokens["good", 0] == expected


@pytest.mark.parametrize("where", ["__init__", "draw"])
def test_an_exception_over_one_sequence_ends_it_alone(model: Model, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with EngineRun(model) as engine:
        engine.run([("good", PROMPT, GREEDY)])
        expected = engine.tokens["good", 0]
    whole = getattr(Sampled, where)

    def broken(self: Sampled, *args: object) -> object:
        given = whole(self, *args)
        if self.params.temperature == 0.7 and (where == "__init__" or self.num_output == 3):
            raise ArithmeticError("made up")
        return given

    monkeypatch.setattr(Sampled, where, broken)
    with EngineRun(model) as engine:
        engine.run([("bad", [5, 66], replace(SEEDED, temperature=0.7)), ("good", PROMPT, GREEDY)])
    assert engine.finishes["bad", 0].error == BROKEN
    assert len(engine.tokens.get(("bad", 0), [])) == (0 if where == "__init__" else 3)
    assert engine.tokens["good", 0] == expected


def test_exact_kernels_and_an_int8_cache_do_not_start(model: Model) -> None:
    with pytest.raises(StartupError, match=r"^kv-dtype int8 is for fast kernels.*--compute fast.*--kv-dtype float16 or float32$"):
        runner_of(model, 8, kv_dtype="int8")


def test_a_model_that_computes_no_numbers_does_not_start(model: Model) -> None:
    assert 0 < probe(runner_of(model, 16), 512) < 10
    runner = runner_of(model, 16)
    assert runner.forward is not None
    runner.forward = Spoiled(runner.forward, bad_token=127)
    with pytest.raises(StartupError, match="not a number"):
        probe(runner, 512)


def test_bias_that_leaves_no_token_is_an_error_of_its_row(model: Model) -> None:
    runner = runner_of(model, 8)
    params = SamplingParams(seed=1, max_tokens=4, min_tokens=4, stop_token_ids=tuple(range(131)))
    step = Step([Row(1, 0, PROMPT[:5], [3], True)], [Start(1, 0, params, PROMPT[:5], [])])
    assert "leaves no token" in (runner.run(step).rows[0].error or "")


def test_the_fingerprint_names_all_that_numbers_depend_on(model: Model) -> None:
    fingerprint = runner_of(model, 8).limits.fingerprint
    assert fingerprint == f"{model.numerics} exact kv-float32 {model.ops.variant} {release()} tp1"
    assert runner_of(model, 8, kv_dtype="float16").limits.fingerprint != fingerprint


def test_the_release_is_that_of_the_sources(tmp_path: Path) -> None:
    """One letter more in a kernel and it is another; copied elsewhere, read by another process, it is the same."""
    for package in ("kernels", "services", "shared"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def told() -> str:
        code = "from services.worker.runtime.numerics import release; print(release())"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    assert told() == release()
    with (tmp_path / "kernels/sample/passes.h").open("a") as file:
        file.write("//\n")
    assert told() != release()
