"""The Runner of an encoder. See engine/step.py for the contract.

An encoder sees a text whole, so rows before a text's last one are only taken note of (their tokens are paid for in their
steps' budgets), and the last one encodes it; no key or value outlives a step. A vector depends on its text alone, as every
operation treats a token by itself but attention, which treats a text by itself (models/encoder.py). It knows nothing of
requests, of time or of why a step was put together.
"""

import threading
import time
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from services.worker.engine.step import BLOCK_SIZE, Pooling, Row, RowResult, RunnerLimits, Start, Step, StepResult
from services.worker.models import EncoderModel
from services.worker.models.encoder import Texts
from services.worker.runtime.numerics import release
from services.worker.runtime.pooling import add, finish
from shared.errors import StartupError
from shared.sampling import SamplingParams

PROBE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Text:
    """One sequence: all of its tokens, and what it shall give."""

    token_ids: list[int]
    pooling: Pooling


class EncoderRunner:
    """An encoder on one device. Build it anywhere; `run` belongs to one thread, whose compute threads it sets."""

    def __init__(self, model: EncoderModel, *, max_num_seqs: int, num_threads: int | None):
        spec = model.spec
        # The engine counts blocks, and there are none: as many as never keep a sequence with a seat waiting.
        num_blocks = (max_num_seqs + 1) * (-(-model.max_model_len // BLOCK_SIZE) + 1)
        # torch has several versions of the operations that are not ours, by processor.
        torch_uses = torch.backends.cpu.get_cpu_capability()
        self.limits = RunnerLimits(
            num_blocks=num_blocks,
            max_model_len=model.max_model_len,
            vocab_size=spec.vocab_size,
            eos_token_ids=(),
            fingerprint=f"{model.numerics} exact {model.ops.variant} {torch_uses} {release()}",
            kinds=("score",) if spec.scores else ("embed",),
            vector_size=1 if spec.scores else spec.hidden_size,
            pooling=model.pooling,
            encodes=True,
        )
        self._model = model
        self._texts: dict[int, Text] = {}
        self._num_threads = num_threads
        self._thread = 0

    def prepare(self, params: SamplingParams) -> object:
        """Nothing: an encoder samples nothing."""
        return None

    def run(self, step: Step) -> StepResult:
        """Computes one step."""
        if self._thread != threading.get_ident():
            # OpenMP keeps the number per calling thread.
            self._thread = threading.get_ident()
            if self._num_threads is not None:
                torch.set_num_threads(self._num_threads)
        for seq_id in step.ends:
            self._texts.pop(seq_id, None)
        for start in step.starts:
            if start.pooling is not None:
                self._texts[start.seq_id] = Text(list(start.prompt), start.pooling)
        results = [RowResult() for _ in step.rows]
        ended = [(self._texts[row.seq_id], result) for row, result in zip(step.rows, results, strict=True) if self._ends(row)]
        if ended:
            self._encode(ended)
        return StepResult(results)

    def close(self) -> None:
        """Forgets all texts."""
        self._texts.clear()

    def _ends(self, row: Row) -> bool:
        return row.num_computed + len(row.token_ids) == len(self._texts[row.seq_id].token_ids)

    @torch.inference_mode()
    def _encode(self, ended: list[tuple[Text, RowResult]]) -> None:
        texts = [text for text, _ in ended]
        batch = batch_of(texts, self._model.spec.first_position, self._model.spec.num_types)
        states = self._model.encoder.forward(self._model.ops, batch)
        ends = list(batch.starts)
        if self._model.spec.scores:
            self._score(ended, states[ends[:-1]])
            return
        for (text, result), begin, end in zip(ended, ends, ends[1:], strict=False):
            kind, total = text.pooling.kind, np.zeros(states.shape[1])
            pooled = {"mean": states[begin:end], "cls": states[begin : begin + 1], "last": states[end - 1 : end]}[kind]
            add(total, pooled)
            finish(result, total / len(pooled), text.pooling)

    def _score(self, ended: list[tuple[Text, RowResult]], first: Tensor) -> None:
        scores = self._model.encoder.score(self._model.ops, first).double().numpy()
        for (text, result), score in zip(ended, scores, strict=True):
            whole = text.pooling.raw or not self._model.spec.sigmoid
            shown = score if whole else 1.0 / (1.0 + np.exp(-score))
            finish(result, np.array([shown]), Pooling("score", 1, raw=True))


def batch_of(texts: list[Text], first_position: int, num_types: int) -> Texts:
    """These texts end to end."""
    ids, positions, types = [], [], []
    for text in texts:
        num_tokens, num_first = len(text.token_ids), text.pooling.num_first or len(text.token_ids)
        ids += text.token_ids
        positions += range(first_position, first_position + num_tokens)
        types += [0] * num_first + [min(1, num_types - 1)] * (num_tokens - num_first)
    starts = [0, *accumulate(len(text.token_ids) for text in texts)]
    return Texts(torch.tensor(ids), torch.tensor(positions), torch.tensor(types), starts)


def probe(runner: EncoderRunner, max_step_tokens: int) -> float:
    """Seconds that a step of max_step_tokens takes, from a shorter one that also shows that the model computes numbers.

    For a runner that no engine uses yet. Raises StartupError if the model's output is not a number.
    """
    num_tokens = min(PROBE_TOKENS, runner.limits.max_model_len)
    prompt = [index % runner.limits.vocab_size for index in range(num_tokens)]
    kind = "score" if "score" in runner.limits.kinds else runner.limits.pooling
    start = Start(0, 0, SamplingParams(seed=0, max_tokens=1), prompt, (), pooling=Pooling(kind, runner.limits.vector_size))
    started_at = time.monotonic()
    result = runner.run(Step([Row(0, 0, prompt, (), sample=False)], [start])).rows[0]
    took_s = time.monotonic() - started_at
    if result.error is not None:
        raise StartupError(f"the model does not work: {result.error}; are its files whole?")
    runner.run(Step([], ends=[0]))
    return took_s * max(1.0, max_step_tokens / num_tokens)
