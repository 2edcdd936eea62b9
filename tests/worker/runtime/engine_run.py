"""Runs requests on the real engine and the real runner and gathers what comes out. It knows nothing of queues."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from services.worker.engine.engine import Delta, Engine, EngineLimits, EngineStats, Finish, Work
from services.worker.engine.step import TokenLogprobs
from services.worker.models import Model
from services.worker.runtime.runner import KV_DTYPE, ModelRunner
from shared.sampling import SamplingParams
from shared.vocabulary.files import Tokens

GREEDY = SamplingParams(temperature=0.0, seed=0, max_tokens=16, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    top_k=60,
    min_p=0.01,
    presence_penalty=0.4,
    frequency_penalty=0.3,
    repetition_penalty=1.2,
    logit_bias=((5, 2.0), (9, -4.0)),
    seed=2**40 + 7,
    max_tokens=16,
    min_tokens=12,
)


def runner_of(
    model: Model,
    num_blocks: int,
    kv_dtype: str | None = None,
    max_num_seqs: int = 64,
    max_step_tokens: int = 512,
    read_tokens: Callable[[], Tokens] | None = None,
) -> ModelRunner:
    """kv_dtype: the one that is served where nobody asks for another, if None."""
    limits = {"max_num_seqs": max_num_seqs, "max_step_tokens": max_step_tokens, "num_blocks": num_blocks}
    chosen = kv_dtype or KV_DTYPE[model.compute]
    return ModelRunner(model, kv_dtype=chosen, **limits, num_threads=None, device="cpu", read_tokens=read_tokens)


class EngineRun:
    """One engine; `run` submits works and waits for all their ends. Use as a context."""

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int = 256,
        max_num_seqs: int = 64,
        max_step_tokens: int = 512,
        kv_dtype: str | None = None,
        read_tokens: Callable[[], Tokens] | None = None,
        **options: Any,
    ):
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.logprobs: dict[tuple[str, int], list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self.finishes: dict[tuple[str, int], Finish] = {}
        self.failure: Exception | None = None
        self.runner = runner_of(model, num_blocks, kv_dtype, max_num_seqs, max_step_tokens, read_tokens)
        self._changed = threading.Condition()
        self._engine = Engine(
            self.runner,
            EngineLimits(max_num_seqs, max_step_tokens),
            on_step=self._on_step,
            on_tick=lambda: None,
            on_fatal=self._on_fatal,
            **options,
        )

    def __enter__(self) -> "EngineRun":
        self._engine.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._engine.stop()

    def run(self, works: Iterable[tuple[str, list[int], SamplingParams]], outputs: Mapping[int, list[int]] | None = None) -> None:
        wanted = []
        for name, prompt, params in works:
            for choice in range(params.n):
                self.tokens[name, choice] = list((outputs or {}).get(choice, ()))
                self.logprobs[name, choice] = []
                self.finishes.pop((name, choice), None)
                wanted.append((name, choice))
            guide = self.runner.prepare(params)
            self._engine.submit(Work((name, 1), prompt, params, outputs=outputs or {}, guide=guide))
        with self._changed:
            done = self._changed.wait_for(lambda: self.failure or all(key in self.finishes for key in wanted), 100)
        if self.failure is not None:
            raise self.failure
        if not done:
            raise TimeoutError("the engine did not end all requests")

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def _on_step(self, deltas: list[Delta]) -> None:
        with self._changed:
            for delta in deltas:
                key = (delta.key[0], delta.choice)
                self.tokens[key] += delta.token_ids
                self.logprobs[key] += delta.logprobs or []
                if delta.prompt_logprobs is not None:
                    self.prompt_logprobs[key[0]] = delta.prompt_logprobs
                if delta.finish is not None:
                    self.finishes[key] = delta.finish
            self._changed.notify()

    def _on_fatal(self, error: Exception) -> None:
        with self._changed:
            self.failure = error
            self._changed.notify()
