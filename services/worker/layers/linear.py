"""Weights in their stored format, and the layers they make of themselves: linear and embedding.

A format is a name of kernels/matmul/formats.py; nothing above this file looks at one. Letters: T tokens, N outputs,
K inputs. It knows nothing of files, of tensor names or of what the numbers are for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor

from kernels import Ops

Layer: TypeAlias = Callable[[Tensor], Tensor]  # [T, K] -> [T, N], float32


@dataclass(frozen=True, slots=True)
class Weight:
    """N x K numbers: `data` is [N, K] for F32, F16 and BF16, the packed rows uint8 [N, row_bytes] for other formats."""

    data: Tensor
    format: str
    k: int

    @property
    def n(self) -> int:
        return self.data.shape[0]

    def linear(self, ops: Ops, bias: Tensor | None = None) -> "Linear":
        return Linear(ops, self, bias)

    def embedding(self, ops: Ops, scale: float) -> "Embedding":
        return Embedding(ops, self, scale)


class Linear:
    """x Wᵀ + bias."""

    def __init__(self, ops: Ops, weight: Weight, bias: Tensor | None):
        self.matmul = ops.matmul
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        y = self.matmul(x, self.weight.data, self.weight.format, self.weight.n)
        return y if self.bias is None else y.add_(self.bias)


class SideBySide:
    """Linears over the same input, their outputs end to end: what cannot be one Linear because formats differ."""

    def __init__(self, linears: Sequence[Linear]):
        self.linears = linears

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def fused(ops: Ops, weights: Sequence[Weight], biases: Sequence[Tensor]) -> Layer:
    """One layer that gives the outputs of all `weights` end to end; neighbours of one format become one product.

    biases: none, or one [N] float32 per weight.
    """
    linears, begin = [], 0
    for _, group in groupby(weights, key=lambda weight: weight.format):
        same = list(group)
        data = same[0].data if len(same) == 1 else torch.cat([weight.data for weight in same])
        bias = torch.cat(list(biases[begin : begin + len(same)])) if biases else None
        linears.append(Weight(data, same[0].format, same[0].k).linear(ops, bias))
        begin += len(same)
    return linears[0] if len(linears) == 1 else SideBySide(linears)


class Embedding:
    """Rows of a weight by token id, times a constant (Gemma's square root of the hidden size; 1 elsewhere)."""

    def __init__(self, ops: Ops, weight: Weight, scale: float):
        self.lookup = ops.embedding
        self.weight = weight
        self.scale = scale

    def __call__(self, token_ids: Tensor) -> Tensor:
        x = self.lookup(token_ids, self.weight.data, self.weight.format, self.weight.k)
        return x if self.scale == 1 else x * self.scale
