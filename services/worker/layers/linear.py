"""Products with weights, and embedding. Letters: T tokens, N outputs, K inputs.

It knows nothing of formats, files, tensor names or of what the numbers are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from kernels.step_ops import Norm, Rows, StepOps
from kernels.weight import Linear, Part, Weight


def fused(weights: Sequence[Weight], biases: Sequence[Tensor] = ()) -> Linear:
    """One layer that gives the outputs of all `weights` end to end; neighbours of one format become one product.

    biases: none, or one [N] float32 per weight.
    """
    parts, begin = [], 0
    for _, group in groupby(weights, key=lambda weight: weight.format):
        same = list(group)
        whole = same[0] if len(same) == 1 else Weight(torch.cat([w.data for w in same]), same[0].format, same[0].k)
        bias = torch.cat(list(biases[begin : begin + len(same)])) if biases else None
        parts.append(Part(whole, bias))
        begin += len(same)
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class Embedding:
    """Rows of a weight by token id, times a constant (Gemma's square root of the hidden size; 1 elsewhere)."""

    weight: Weight
    scale: float

    def __call__(self, ops: StepOps, token_ids: Tensor) -> Tensor:
        return ops.embed(token_ids, self.weight, self.scale)


@dataclass(frozen=True, slots=True)
class Onto:
    """A product added to the residual stream, normalised first where there is a norm (Gemma)."""

    linear: Linear
    norm: Norm | None

    def __call__(self, ops: StepOps, x: Rows, residual: Tensor) -> None:
        if self.norm is None:
            ops.linear_add(x, self.linear, residual)
        else:
            ops.norm_add(ops.linear(x, self.linear), self.norm, residual)
