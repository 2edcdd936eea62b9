"""Tokens that keep to a grammar, to a list, or off bad words: the same solo, batched, chunked, preempted, resumed, drafted.

On a tiny model whose tokens are bytes, so that what comes is noise unless something forbids it.
"""

import itertools
import json
import random
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from kernels import Ops
from services.worker.models import Model, build
from services.worker.runtime import grammar
from services.worker.runtime.grammar import MAX_KEPT, Grammars
from services.worker.runtime.masks import FAILED
from shared.errors import InvalidRequest
from shared.grammars import Grammar
from shared.sampling import SamplingParams
from shared.vocabulary.files import Tokens
from tests.worker.models import tiny
from tests.worker.runtime.engine_run import SEEDED, EngineRun

EOS, VOCAB = 2, 131
TOKENS = Tokens((b"<pad>", b"<s>", b"</s>", *(bytes([byte]) for byte in range(VOCAB - 3))), frozenset({0, 1, 2}))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "kind": {"enum": ["a", "bb"]}, "on": {"type": "boolean"}},
    "required": ["name", "kind", "on"],
    "additionalProperties": False,
}
PLAIN = replace(SEEDED, min_tokens=0, max_tokens=120, logit_bias=())
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "schema": {"grammar": Grammar("json_schema", json.dumps(SCHEMA))},
    "regex": {"grammar": Grammar("regex", "[a-c]{8,20}(-[0-9]{2,4}){3}")},
    "greedy": {"grammar": Grammar("lark", 'start: ("ab" | "a" "c")~20'), "temperature": 0.0},
    "list": {"allowed_token_ids": (70, 71, 72, 90), "max_tokens": 40},
    "words": {"bad_word_ids": ((70,), (71, 72), (90, 91, 92)), "allowed_token_ids": (70, 71, 72, 90, 91, 92), "max_tokens": 60},
    "free": {"max_tokens": 30},
}
PARAMS = {name: replace(PLAIN, **changes) for name, changes in CONSTRAINTS.items()}


def text_of(ids: list[int]) -> str:
    return b"".join(TOKENS.token_bytes[token] for token in ids if token != EOS).decode()


@pytest.fixture(scope="module")
def model(ops: Ops, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("constrained")
    tiny.save(tiny.random_model("llama"), folder)
    return build(folder, ops)


def engine_of(model: Model, **options: Any) -> EngineRun:
    return EngineRun(model, read_tokens=lambda: TOKENS, **options)


def prompt_of(seed: int, length: int = 37) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=length)


PROMPT = prompt_of(1)


def alone(model: Model, params: SamplingParams, outputs: list[int] | None = None, **options: Any) -> list[int]:
    with engine_of(model, **options) as engine:
        engine.run([("it", PROMPT, params)], {0: outputs} if outputs else None)
        assert engine.finishes["it", 0].error is None
        return engine.tokens["it", 0]


@pytest.fixture(scope="module")
def solo(model: Model) -> dict[str, list[int]]:
    """The truth: each request alone on a fresh engine."""
    return {name: alone(model, params) for name, params in PARAMS.items()}


def test_what_comes_keeps_to_what_was_asked(solo: dict[str, list[int]]) -> None:
    assert solo["schema"][-1] == solo["regex"][-1] == solo["greedy"][-1] == EOS
    jsonschema.validate(json.loads(text_of(solo["schema"])), SCHEMA)
    assert re.fullmatch(r"[a-c]{8,20}(-[0-9]{2,4}){3}", text_of(solo["regex"]))
    assert re.fullmatch("(ab|ac){20}", text_of(solo["greedy"]))
    assert {70, 71} < set(solo["list"]) <= {70, 71, 72, 90}
    words = solo["words"]
    assert set(words) <= {71, 72, 90, 91, 92}
    assert (71, 72) not in itertools.pairwise(words)
    assert (90, 91, 92) not in zip(words, words[1:], words[2:], strict=False)
    assert {71, 72, 90, 91} <= set(words)


@pytest.mark.parametrize("chunk", [8, 96])
def test_all_in_one_batch(model: Model, solo: dict[str, list[int]], chunk: int) -> None:
    works = [(name, PROMPT, params) for name, params in PARAMS.items()]
    works += [(f"{name}-{seed}", prompt_of(seed), replace(PARAMS[name], seed=seed)) for seed in (5, 6) for name in PARAMS]
    random.Random(chunk).shuffle(works)
    with engine_of(model, max_step_tokens=chunk) as engine:
        engine.run(works)
        assert {name: engine.tokens[name, 0] for name in solo} == solo
        for seed in (5, 6):
            jsonschema.validate(json.loads(text_of(engine.tokens[f"schema-{seed}", 0])), SCHEMA)


def test_preempted(model: Model, solo: dict[str, list[int]]) -> None:
    works = [(name, PROMPT, params) for name, params in PARAMS.items()]
    works += [(f"{name}-{seed}", prompt_of(seed), replace(PARAMS[name], seed=seed)) for seed in (5, 6) for name in PARAMS]
    with engine_of(model, num_blocks=14) as engine:
        engine.run(works)
        assert engine.stats().preemptions > 0
        assert {name: engine.tokens[name, 0] for name in solo} == solo


@pytest.mark.parametrize("name", ["schema", "regex", "greedy", "words"])
def test_resumed_elsewhere_from_any_token(model: Model, solo: dict[str, list[int]], name: str) -> None:
    for at in range(1, len(solo[name]), 7):
        assert alone(model, PARAMS[name], solo[name][:at]) == solo[name]


@pytest.mark.parametrize("name", list(PARAMS))
def test_drafts_right_wrong_and_forbidden(model: Model, solo: dict[str, list[int]], name: str) -> None:
    def guess(tokens: list[int], most: int) -> list[int]:
        done = len(tokens) - len(PROMPT)
        right = solo[name][done : done + 3]
        return [right, [*right[:1], 40, 41], [3, 3, 3], [*right[:2], EOS]][done % 4][:most]

    assert alone(model, PARAMS[name], drafter=guess) == solo[name]


def test_choices_are_constrained_one_by_one(model: Model, solo: dict[str, list[int]]) -> None:
    with engine_of(model) as engine:
        engine.run([("it", PROMPT, replace(PARAMS["schema"], n=3))])
        texts = [text_of(engine.tokens["it", choice]) for choice in range(3)]
    assert engine.tokens["it", 0] == solo["schema"]
    assert len(set(texts)) > 1
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_logprobs_are_of_raw_logits(model: Model) -> None:
    free, bound = (replace(PARAMS[name], num_logprobs=20, max_tokens=1) for name in ("free", "schema"))
    with engine_of(model) as engine:
        engine.run([("free", PROMPT, free), ("bound", PROMPT, bound)])
        (loose,), (tight,) = engine.logprobs["free", 0], engine.logprobs["bound", 0]
    assert tight.token_ids[0] == 3 + ord("{")
    assert tight.token_ids[1:] == loose.token_ids[1:]
    assert tight.logprobs[1:] == loose.logprobs[1:]


DEAD: dict[str, dict[str, Any]] = {
    "list against grammar": {"grammar": Grammar("regex", "x+"), "allowed_token_ids": (70,)},
    "too early to end": {"grammar": Grammar("regex", "ab"), "min_tokens": 9},
    "bias against grammar": {"grammar": Grammar("regex", "ab"), "bad_word_ids": ((3 + ord("a"), 3 + ord("b")),)},
    "no guide": {"grammar": Grammar("regex", "ab")},
}


def test_a_dead_end_ends_its_own_sequence_and_no_other(model: Model, solo: dict[str, list[int]]) -> None:
    works = [(name, PROMPT, replace(PLAIN, **changes)) for name, changes in DEAD.items()]
    with engine_of(model) as engine:
        prepare: Callable[[SamplingParams], object] = engine.runner.prepare
        # One sequence comes without what its grammar was compiled to: a fault of ours is contained as well.
        engine.runner.prepare = lambda params: None if params is works[3][2] else prepare(params)  # type: ignore[method-assign]
        engine.run([*works, *((name, PROMPT, params) for name, params in PARAMS.items())])
        assert {name: engine.tokens[name, 0] for name in solo} == solo
        for name, _, _ in works:
            assert engine.finishes[name, 0].reason == "error", name
        assert "leaves no token" in str(engine.finishes["too early to end", 0].error)
        assert engine.finishes["no guide", 0].error == FAILED


def test_too_much_work_per_token_ends_its_own_sequence_and_no_other(
    model: Model, solo: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "LIMITS", {**grammar.LIMITS, "step_max_items": 20})
    ambiguous = Grammar("lark", 'start: e\ne: e e | e e e | "a" | "b"')
    with engine_of(model) as engine:
        engine.run([("ambiguous", PROMPT, replace(PLAIN, grammar=ambiguous)), ("regex", PROMPT, PARAMS["regex"])])
        finish = engine.finishes["ambiguous", 0]
        assert (finish.reason, finish.error, finish.num_tokens) == ("error", FAILED, 1)
        assert engine.tokens["regex", 0] == solo["regex"]


def test_what_cannot_be_compiled_is_refused(model: Model) -> None:
    with EngineRun(model) as blind, engine_of(model) as engine:
        with pytest.raises(InvalidRequest, match="vocabulary"):
            blind.runner.prepare(PARAMS["schema"])
        with pytest.raises(InvalidRequest) as caught:
            engine.runner.prepare(replace(PLAIN, grammar=Grammar("regex", "(")))
        assert caught.value.code == "invalid_regex"


def test_compiled_grammars_are_kept_within_bounds_and_shared_by_threads() -> None:
    reads = []
    grammars = Grammars(lambda: reads.append(1) or TOKENS, VOCAB, (EOS,))  # type: ignore[func-returns-value]
    texts = [f"a{{{number}}}" for number in range(1, MAX_KEPT + 40)]
    threads = [threading.Thread(target=lambda: [grammars.compile(Grammar("regex", text)) for text in texts]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == [1]
    assert len(grammars._kept) == MAX_KEPT
    newest = Grammar("regex", texts[-1])
    assert grammars.compile(newest) is grammars.compile(newest)
    for number in range(40):
        grammars.compile(Grammar("lark", f'start: "{number}"\n' + "// a long comment\n" * 3000))
    assert sum(len(each.source) for each in grammars._kept) <= 2**20


def test_a_model_without_an_end_of_text_follows_no_grammar() -> None:
    with pytest.raises(InvalidRequest, match="end-of-text"):
        Grammars(lambda: TOKENS, VOCAB, ()).compile(Grammar("regex", "a"))
