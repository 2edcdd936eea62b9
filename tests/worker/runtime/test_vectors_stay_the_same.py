"""A vector depends on its prompt alone: solo, among strangers, in any chunks, after preemption, beside a warm cache.

Decoders by the real engine and runner, compared with transformers; encoders are in tests/worker/models/. It knows no queues.
"""

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kernels import Ops
from services.worker.engine.engine import Delta, Engine, EngineLimits, Work
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.step import Pooling
from services.worker.models import Model, build
from services.worker.runtime.pooling import NOT_A_NUMBER
from services.worker.runtime.runner import ModelRunner
from shared.sampling import SamplingParams
from tests.worker.models import tiny
from tests.worker.runtime.engine_run import GREEDY, runner_of
from tests.worker.runtime.test_runner_parts import Spoiled

NOTHING = SamplingParams(seed=0, max_tokens=1)
KINDS = {"mean": Pooling("mean", 64), "last": Pooling("last", 64, needs_all=False), "cls": Pooling("cls", 64)}


def prompt_of(seed: int, length: int, vocab_size: int = 131) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, vocab_size) for _ in range(length)]


class Vectors:
    """One engine; `make` waits for the ends of all works. Use as a context."""

    def __init__(self, model: Model, *, num_blocks: int = 256, max_step_tokens: int = 512):
        self.ends: dict[str, Delta] = {}
        self.failure: Exception | None = None
        self._changed = threading.Condition()
        self.runner = runner_of(model, num_blocks, max_step_tokens=max_step_tokens)
        self.engine = Engine(
            self.runner,
            EngineLimits(64, max_step_tokens),
            on_step=self._on_step,
            on_tick=lambda: None,
            on_fatal=self._on_fatal,
        )

    def __enter__(self) -> "Vectors":
        self.engine.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.stop()

    def make(self, works: Sequence[Work]) -> list[bytes | None]:
        names = [work.key[0] for work in works]
        for work in works:
            self.ends.pop(work.key[0], None)
            self.engine.submit(work)
        with self._changed:
            assert self._changed.wait_for(lambda: self.failure is not None or all(name in self.ends for name in names), 120)
        assert self.failure is None, self.failure
        finishes = [self.ends[name].finish for name in names]
        assert all(finish is not None and finish.error is None for finish in finishes)
        return [finish.vector for finish in finishes if finish is not None]

    def _on_step(self, deltas: list[Delta]) -> None:
        with self._changed:
            self.ends |= {delta.key[0]: delta for delta in deltas if delta.finish is not None}
            self._changed.notify()

    def _on_fatal(self, failure: Exception) -> None:
        with self._changed:
            self.failure = failure
            self._changed.notify()


def pooled(name: str, prompt: list[int], pooling: Pooling) -> Work:
    return Work((name, 1), prompt, NOTHING, pooling=pooling)


@pytest.fixture(scope="module", params=[("llama", "exact"), ("llama", "fast"), ("gemma2", "exact")], ids="-".join)
def model(request: pytest.FixtureRequest, ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name, compute = request.param
    folder = tmp_path_factory.mktemp(name)
    tiny.save(tiny.random_model(name), folder)
    return build(folder, ops, compute=compute)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_as_transformers_pools_its_last_hidden_states(name: str, ops: Ops, tmp_path: Path) -> None:
    reference = tiny.save(tiny.random_model(name), tmp_path)
    prompt = prompt_of(1, 53)
    with torch.inference_mode():
        states = reference.model(torch.tensor([prompt])).last_hidden_state[0].double().numpy()
    wanted = {"mean": states.mean(0), "last": states[-1], "cls": states[0]}
    with Vectors(build(tmp_path, ops)) as engine:
        for kind, pooling in KINDS.items():
            (vector,) = engine.make([pooled(kind, prompt, pooling)])
            np.testing.assert_allclose(numbers(vector), wanted[kind] / np.linalg.norm(wanted[kind]), atol=2e-5)
            (raw,) = engine.make([pooled(kind, prompt, Pooling(kind, 64, raw=True))])
            np.testing.assert_allclose(numbers(raw), wanted[kind], atol=1e-4, rtol=1e-4)
            (short,) = engine.make([pooled(kind, prompt, Pooling(kind, 5))])
            np.testing.assert_allclose(numbers(short), wanted[kind][:5] / np.linalg.norm(wanted[kind][:5]), atol=2e-5)


def test_fast_compute_gives_nearly_the_same(ops: Ops, tmp_path: Path) -> None:
    tiny.save(tiny.random_model("llama"), tmp_path)
    vectors = []
    for compute in ("exact", "fast"):
        model = build(tmp_path, ops, compute=compute)
        assert model.compute == compute
        with Vectors(model) as engine:
            vectors.append(
                [numbers(vector) for kind in KINDS for vector in engine.make([pooled("it", prompt_of(1, 53), KINDS[kind])])]
            )
    for exact, fast in zip(*vectors, strict=True):
        assert float(exact @ fast) > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_solo_in_chunks_among_strangers_and_preempted(model: Model, kind: str) -> None:
    prompt, pooling = prompt_of(1, 53), KINDS[kind]
    with Vectors(model) as engine:
        (solo,) = engine.make([pooled("it", prompt, pooling)])
        # A second time its blocks are in the cache: only a last token's vector may be made with them.
        assert engine.make([pooled("it", prompt, pooling)]) == [solo]
        finish = engine.ends["it"].finish
        assert finish is not None
        assert finish.num_cached_tokens == (48 if kind == "last" else 0)
        engine.make([Work(("warm", 1), [*prompt, 7], GREEDY)])
        assert engine.make([pooled("it", prompt, pooling)]) == [solo]
    assert numbers(solo).shape == (64,)
    for chunk in (1, 16, 30):
        with Vectors(model, max_step_tokens=chunk) as engine:
            assert engine.make([pooled("it", prompt, pooling)]) == [solo]
    strangers = [pooled(f"s{seed}", prompt_of(seed, 3 + seed), KINDS["mean"]) for seed in range(20)]
    writers = [Work((f"w{seed}", 1), prompt_of(seed, 3 + seed), GREEDY) for seed in range(4)]
    with Vectors(model, max_step_tokens=96) as engine:
        assert engine.make([*writers, *strangers[:10], pooled("it", prompt, pooling), *strangers[10:]])[14] == solo


def test_a_mean_that_lost_its_blocks_half_way(model: Model) -> None:
    """Paused, and all blocks taken by another: it is computed again from its first token, and so is its sum."""
    prompt, pooling = prompt_of(1, 90), KINDS["mean"]
    with Vectors(model) as engine:
        (solo,) = engine.make([pooled("it", prompt, pooling)])
    runner = runner_of(model, 7, max_step_tokens=32)
    scheduler = Scheduler(runner.limits, 64, 32)
    work = pooled("it", prompt, pooling)
    scheduler.submit(work)
    for _ in range(2):
        take_step(scheduler, runner)
    scheduler.pause(work.key)
    scheduler.submit(pooled("other", prompt_of(2, 100), pooling))
    other = [delta for _ in range(4) for delta in take_step(scheduler, runner)]
    assert [delta.key[0] for delta in other] == ["other"]
    assert scheduler.lines.num_preemptions == 1
    scheduler.resume(work.key)
    (delta,) = [delta for _ in range(3) for delta in take_step(scheduler, runner)]
    assert delta.finish is not None
    assert delta.finish.vector == solo


def take_step(scheduler: Scheduler, runner: ModelRunner) -> list[Delta]:
    plan = scheduler.schedule()
    scheduler.finish(plan, runner.run(plan.step))
    return scheduler.take_deltas()


def test_a_vector_that_is_no_number_ends_its_request_alone(ops: Ops, tmp_path: Path) -> None:
    tiny.save(tiny.random_model("llama"), tmp_path)
    good = pooled("good", prompt_of(1, 20), KINDS["mean"])
    with Vectors(build(tmp_path, ops)) as engine:
        wanted = engine.make([good])
        assert engine.runner.forward is not None
        engine.runner.forward = Spoiled(engine.runner.forward)
        engine.engine.submit(pooled("bad", [5, 66, 7], KINDS["mean"]))
        assert engine.make([good]) == wanted
        finish = engine.ends["bad"].finish
    assert finish is not None
    assert (finish.error, finish.vector) == (NOT_A_NUMBER, None)


def test_a_prompt_may_fill_the_context(ops: Ops, tmp_path: Path) -> None:
    tiny.save(tiny.random_model("llama"), tmp_path)
    with Vectors(build(tmp_path, ops, max_model_len=64)) as engine:
        (vector,) = engine.make([pooled("it", prompt_of(1, 64), KINDS["mean"])])
        assert vector is not None
        engine.engine.submit(pooled("long", prompt_of(1, 65), KINDS["mean"]))
        with engine._changed:
            assert engine._changed.wait_for(lambda: "long" in engine.ends, 60)
        finish = engine.ends["long"].finish
        assert finish is not None
        assert finish.reason == "error"


def numbers(vector: bytes | None) -> NDArray[np.float32]:
    assert vector is not None
    return np.frombuffer(vector, "<f4")
