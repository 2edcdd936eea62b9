"""What a forward pass is made of: a few operations larger than the table's, so that each can be one or two bodies.

`StepOps` is what layers ask for; `Eager` is its truth, composed of the table's ops; Recorder (recorder.py) writes the same
operations down as a program. Letters: T tokens, N outputs, K inputs, H heads, D head size. It knows nothing of models.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from kernels import Ops
from kernels.weight import Linear, Weight

Rows: TypeAlias = Any  # activations on their way into a product; only the ops that made them look inside
KVCache: TypeAlias = tuple[Tensor, Tensor]  # one layer's k_cache and v_cache, laid out as kernels/kv_write/layout.py says


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are made: scale q·k, then softcap·tanh(score / softcap) if softcap > 0, the last `window` tokens (0: all)."""

    scale: float
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm's numbers: weight [K] float32."""

    weight: Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Place:
    """What happens to queries and keys before they meet: norms of every head, if any, then the turn by position."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    cos_sin: Tensor  # float32 [P, R]
    norms: tuple[Norm, Norm] | None = None  # of queries, of keys


class Places(Protocol):
    """Where the tokens of a step belong: the fields of Batch that ops read."""

    positions: Tensor  # int64 [T]
    slots: Tensor  # int64 [T]
    block_tables: Tensor  # int32 [R, B]
    query_start: Tensor  # int32 [R + 1]
    seq_lens: Tensor  # int32 [R]


class StepOps(Protocol):
    """The operations of one forward pass, called in the order they run in."""

    def embed(self, ids: Tensor, weight: Weight, scale: float) -> Tensor:
        """Rows `ids` times scale: the residual stream [T, K]."""
        ...

    def norm(self, x: Tensor, norm: Norm, wanted: Tensor | None = None) -> Rows:
        """x [T, K] normalised; only rows `wanted` (int64), and what comes after has that many rows."""
        ...

    def linear(self, x: Rows, linear: Linear) -> Tensor:
        """[T, N]."""
        ...

    def linear_add(self, x: Rows, linear: Linear, into: Tensor) -> None:
        """into [T, N] += the product."""
        ...

    def norm_add(self, x: Tensor, norm: Norm, into: Tensor) -> None:
        """into [T, K] += x normalised."""
        ...

    def gated(self, x: Rows, gate_up: Linear, activation: str) -> Rows:
        """act(gate) · up of the product [T, 2F], gate first; activation "silu" or "gelu" (tanh form): [T, F]."""
        ...

    def attend(self, qkv: Tensor, place: Place, cache: KVCache, batch: Places, scores: Scores) -> Rows:
        """qkv [T, H + 2K, D], which is written over: heads normalised and turned, keys and values put into the cache, and
        queries answered: [T, H D]."""
        ...

    def softcap(self, x: Tensor, cap: float) -> None:
        """x = cap tanh(x / cap), in place."""
        ...


class Eager:
    """StepOps computed at once with the table's ops: the truth the recorded programs are tested against."""

    def __init__(self, ops: Ops):
        self.ops = ops

    def embed(self, ids: Tensor, weight: Weight, scale: float) -> Tensor:
        x = self.ops.embedding(ids, weight.data, weight.format, weight.k)
        return x if scale == 1 else x * scale

    def norm(self, x: Tensor, norm: Norm, wanted: Tensor | None = None) -> Rows:
        return self.ops.rms_norm(x if wanted is None else x[wanted], norm.weight, norm.eps)

    def linear(self, x: Rows, linear: Linear) -> Tensor:
        products = []
        for part in linear:
            y = self.ops.matmul(x, part.weight.data, part.weight.format, part.weight.n)
            products.append(y if part.bias is None else y.add_(part.bias))
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def linear_add(self, x: Rows, linear: Linear, into: Tensor) -> None:
        into += self.linear(x, linear)

    def norm_add(self, x: Tensor, norm: Norm, into: Tensor) -> None:
        into += self.norm(x, norm)

    def gated(self, x: Rows, gate_up: Linear, activation: str) -> Rows:
        activate = {"silu": self.ops.silu_mul, "gelu": self.ops.gelu_mul}[activation]
        return activate(self.linear(x, gate_up))

    def attend(self, qkv: Tensor, place: Place, cache: KVCache, batch: Places, scores: Scores) -> Rows:
        h, k = place.num_heads, place.num_kv_heads
        queries, keys, values = qkv[:, :h], qkv[:, h : h + k], qkv[:, h + k :]
        if place.norms is not None:
            for x, norm in zip((queries, keys), place.norms, strict=True):
                x.copy_(self.ops.rms_norm(x.contiguous(), norm.weight, norm.eps))
        self.ops.rope(queries, keys, batch.positions, place.cos_sin)
        self.ops.kv_write(keys, values, *cache, batch.slots)
        tables = (batch.block_tables, batch.query_start, batch.seq_lens)
        return self.ops.attention(queries, *cache, *tables, scores.scale, scores.window, scores.softcap).flatten(1)

    def softcap(self, x: Tensor, cap: float) -> None:
        x.copy_(torch.tanh(x / cap) * cap)
