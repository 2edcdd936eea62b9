"""A request's tokens depend on the request alone: solo, among strangers, in any chunks, cached, preempted, resumed, drafted.

All of it on tiny models, with the KV cache that is served; on SmolLM2 the parts that cost little, and the rest in `make full`.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernels import Ops
from services.launcher.pull import find_or_fetch
from services.worker.models import Model, build
from shared.sampling import SamplingParams
from tests.worker.models import tiny
from tests.worker.runtime.engine_run import GREEDY, SEEDED, EngineRun


def prompt_of(seed: int, length: int, vocab_size: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, vocab_size) for _ in range(length)]


def smollm2(ops: Ops, compute: str) -> Model:
    return build(Path(find_or_fetch("smollm2")), ops, max_model_len=512, compute=compute)


TINY = [("llama", "exact"), ("llama", "fast"), ("gemma2", "exact"), ("gemma2", "fast")]
REAL = [("smollm2", "exact"), ("smollm2", "fast")]


@pytest.fixture(scope="module", params=[*TINY, *(pytest.param(pair, marks=pytest.mark.full) for pair in REAL)], ids="-".join)
def model(request: pytest.FixtureRequest, ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name, compute = request.param
    if name == "smollm2":
        return smollm2(ops, compute)
    folder = tmp_path_factory.mktemp(name)
    tiny.save(tiny.random_model(name), folder)
    built = build(folder, ops, compute=compute)
    assert built.compute == compute
    return built


@pytest.fixture(scope="module")
def prompt(model: Model) -> list[int]:
    return prompt_of(1, 53, model.spec.vocab_size)


@pytest.fixture(scope="module")
def solo(model: Model, prompt: list[int]) -> dict[str, list[int]]:
    """The truth: each request alone on a fresh engine."""
    return {name: alone(model, prompt, params) for name, params in (("greedy", GREEDY), ("seeded", SEEDED))}


def alone(model: Model, prompt: list[int], params: SamplingParams, outputs: list[int] | None = None, **options: Any) -> list[int]:
    with EngineRun(model, **options) as engine:
        engine.run([("it", prompt, params)], {0: outputs} if outputs else None)
        return engine.tokens["it", 0]


def test_the_two_requests_differ(solo: dict[str, list[int]]) -> None:
    assert len(solo["greedy"]) == 16
    assert 12 < len(solo["seeded"]) <= 16
    assert solo["greedy"] != solo["seeded"]


@pytest.mark.parametrize("chunk", [1, 16, 512])
def test_in_chunks(model: Model, prompt: list[int], solo: dict[str, list[int]], chunk: int) -> None:
    for name, params in (("greedy", GREEDY), ("seeded", SEEDED)):
        if chunk == 1 and model.spec.vocab_size > 1000 and name == "greedy":
            continue
        assert alone(model, prompt, params, max_step_tokens=chunk) == solo[name]


def test_among_32_strangers(model: Model, prompt: list[int], solo: dict[str, list[int]]) -> None:
    rng = random.Random(2)
    strangers = []
    for number in range(32):
        params = replace(rng.choice((GREEDY, SEEDED)), seed=number, max_tokens=8, min_tokens=0)
        strangers.append((f"s{number}", prompt_of(100 + number, rng.randrange(1, 24), model.spec.vocab_size), params))
    with EngineRun(model, max_step_tokens=96) as engine:
        engine.run([*strangers[:16], ("greedy", prompt, GREEDY), ("seeded", prompt, SEEDED), *strangers[16:]])
        assert {name: engine.tokens[name, 0] for name in solo} == solo


def test_with_a_warm_prefix_cache(model: Model, prompt: list[int], solo: dict[str, list[int]]) -> None:
    with EngineRun(model) as engine:
        engine.run([("greedy", prompt, GREEDY)])
        assert engine.finishes["greedy", 0].num_cached_tokens == 0
        engine.run([("greedy", prompt, GREEDY), ("seeded", prompt, SEEDED)])
        assert {name: engine.tokens[name, 0] for name in solo} == solo
        assert engine.finishes["seeded", 0].num_cached_tokens == 48


def test_after_preemption(model: Model, prompt: list[int], solo: dict[str, list[int]]) -> None:
    """Two sequences that need 6 blocks each in the end, and 10 there are: the younger is preempted, and computed again."""
    greedy, seeded = replace(GREEDY, max_tokens=40), replace(SEEDED, max_tokens=40, min_tokens=40)
    other = prompt_of(3, 53, model.spec.vocab_size)
    for victim in (greedy, seeded):
        expected = alone(model, prompt, victim)
        with EngineRun(model, num_blocks=10) as engine:
            engine.run([("other", other, greedy), ("victim", prompt, victim)])
            assert engine.stats().preemptions > 0
            assert engine.tokens["victim", 0] == expected


@pytest.mark.parametrize("at", [1, 11])
def test_resumed_elsewhere(model: Model, prompt: list[int], solo: dict[str, list[int]], at: int) -> None:
    assert alone(model, prompt, SEEDED, solo["seeded"][:at]) == solo["seeded"]
    assert alone(model, prompt, GREEDY, solo["greedy"][:at]) == solo["greedy"]


def test_with_drafts_right_and_wrong(model: Model, prompt: list[int], solo: dict[str, list[int]]) -> None:
    for name, params in (("greedy", GREEDY), ("seeded", SEEDED)):

        def guess(tokens: list[int], most: int, truth: list[int] = solo[name]) -> list[int]:
            done = len(tokens) - len(prompt)
            right = truth[done : done + 3]
            return (right if done % 2 else [*right[:1], 3])[:most]

        with EngineRun(model, drafter=guess) as engine:
            engine.run([("it", prompt, params)])
            assert engine.tokens["it", 0] == solo[name]
            assert engine.stats().steps < 15


def test_choices_share_the_prompt_and_differ(model: Model, prompt: list[int], solo: dict[str, list[int]]) -> None:
    with EngineRun(model) as engine:
        engine.run([("it", prompt, replace(SEEDED, n=3))])
        assert engine.tokens["it", 0] == solo["seeded"]
        assert len({tuple(engine.tokens["it", choice]) for choice in range(3)}) == 3


@pytest.mark.parametrize(("compute", "kv_dtype"), [("exact", "float32"), ("fast", "float16"), ("fast", "int8")])
def test_smollm2_solo_in_a_batch_in_chunks_and_cached(ops: Ops, compute: str, kv_dtype: str) -> None:
    model = smollm2(ops, compute)
    prompt = prompt_of(1, 35, model.spec.vocab_size)
    requests = {"greedy": replace(GREEDY, max_tokens=6), "seeded": replace(SEEDED, max_tokens=6, min_tokens=5)}
    solo = {name: alone(model, prompt, params, kv_dtype=kv_dtype) for name, params in requests.items()}
    short = replace(GREEDY, max_tokens=3)
    strangers = [(f"s{number}", prompt_of(number, 3, model.spec.vocab_size), short) for number in range(6)]
    with EngineRun(model, max_step_tokens=16, kv_dtype=kv_dtype) as engine:
        engine.run([*strangers, *((name, prompt, params) for name, params in requests.items())])
        assert {name: engine.tokens[name, 0] for name in solo} == solo
        engine.run([(name, prompt, params) for name, params in requests.items()])
        assert {name: engine.tokens[name, 0] for name in solo} == solo
        assert engine.finishes["greedy", 0].num_cached_tokens == 32
    assert alone(model, prompt, requests["seeded"], solo["seeded"][:3], kv_dtype=kv_dtype) == solo["seeded"]
