"""Hidden states -> a sequence's one vector, over as many steps as its prompt takes.

A sum over tokens is taken in float64, one token after the other, so that how a prompt was cut changes no bit of it. It
knows nothing of how hidden states are made, nor of who wants vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels import Ops
from kernels.step_ops import Norm
from services.worker.engine.step import Pooling, Row, RowResult, Step

NOT_A_NUMBER = "the model's vector of this input is not a number"


@dataclass(slots=True)
class Pooled:
    """One sequence: what it shall give, the length of its prompt, and the sum so far."""

    pooling: Pooling
    num_prompt: int
    total: NDArray[np.float64]
    num_summed: int = 0


class Pooler:
    """All sequences of one runner that give vectors, by seq_id. `norm` is the model's last."""

    def __init__(self, ops: Ops, norm: Norm):
        self._ops = ops
        self._norm = norm
        self._sequences: dict[int, Pooled] = {}

    def update(self, step: Step) -> None:
        """Forgets and learns what `step` says."""
        for seq_id in step.ends:
            self._sequences.pop(seq_id, None)
        for start in step.starts:
            if start.pooling is not None:
                size = self._norm.weight.shape[0]
                self._sequences[start.seq_id] = Pooled(start.pooling, len(start.prompt), np.zeros(size))

    def pool(self, rows: Sequence[Row], results: Sequence[RowResult], states: Tensor) -> None:
        """Adds what rows give; states [T, hidden] are those of their tokens, in order, before the last norm."""
        if not self._sequences:
            return
        end = 0
        for row, result in zip(rows, results, strict=True):
            first, end = end, end + len(row.token_ids)
            pooled = self._sequences.get(row.seq_id)
            if pooled is not None and result.error is None:
                self._take(pooled, row, states[first:end])
                if row.num_computed + len(row.token_ids) == pooled.num_prompt:
                    finish(result, pooled.total / max(1, pooled.num_summed), pooled.pooling)

    def _take(self, pooled: Pooled, row: Row, states: Tensor) -> None:
        if row.num_computed == 0:  # also after a preemption
            pooled.total[:] = 0
            pooled.num_summed = 0
        kind, last = pooled.pooling.kind, row.num_computed + len(row.token_ids) == pooled.num_prompt
        if kind == "last":
            states = states[-1:] if last else states[:0]
        elif kind == "cls":
            states = states[:1] if row.num_computed == 0 else states[:0]
        elif row.num_computed != pooled.num_summed:
            raise RuntimeError(f"a mean over {pooled.num_summed} tokens goes on at token {row.num_computed}")
        with torch.inference_mode():
            normed = self._ops.rms_norm(states, self._norm.weight, self._norm.eps) if len(states) else states
        add(pooled.total, normed)
        pooled.num_summed += len(states)


def add(total: NDArray[np.float64], states: Tensor) -> None:
    """total += every row of states [T, hidden], in order."""
    for state in states.double().cpu().numpy():
        total += state


def finish(result: RowResult, vector: NDArray[np.float64], pooling: Pooling) -> None:
    """Puts `vector`, cut and brought to length 1 as `pooling` says, into a row's result."""
    kept = vector[: pooling.dimensions]
    if not np.isfinite(kept).all():
        result.error = NOT_A_NUMBER
        return
    if not pooling.raw:
        length = math.sqrt(math.fsum((kept * kept).tolist()))
        kept = kept / length if length else kept
    result.vector = kept.astype("<f4").tobytes()
