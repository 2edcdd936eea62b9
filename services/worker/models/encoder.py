"""An encoder's forward pass (BERT and its kin): every token of a text sees all others, forwards and backwards.

It has no cache that outlives a step, and no kernel of its own. Keys and values of one layer go into scratch blocks, and each
query is a row by itself at its text's end, so that causal attention lets it see all of it; what the kernels promise of rows
(none depends on those beside it) then holds for texts. Letters: T tokens of all texts, H heads, D head size. It knows
nothing of tensor names or of who wants its hidden states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from kernels import Ops
from kernels.kv_write import layout
from kernels.step_ops import Eager
from kernels.weight import Linear, Weight

BLOCK_SIZE = layout.BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """weight and bias [K] float32."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Each row of x [T, K] by itself."""
        return layer_norm(x, (x.shape[1],), self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Attend, add, normalise; two products with gelu between them, add, normalise."""

    qkv: Linear
    out: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    output_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class Head:
    """What a cross-encoder says of the first token's state: a dense layer, tanh, and a product with one result."""

    dense: Linear
    out: Linear


@dataclass(frozen=True, slots=True)
class Texts:
    """What a step encodes, end to end: T tokens in texts that begin at starts[i] (the last entry is T)."""

    token_ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], as the model counts them
    types: Tensor  # int64 [T], 0 or 1: of which text of a pair
    starts: Sequence[int]


@dataclass(frozen=True, slots=True)
class Places:
    """Where texts lie in the scratch blocks, and each query as a row of its own at its text's end."""

    num_blocks: int
    slots: Tensor  # int64 [T]
    block_tables: Tensor  # int32 [T, B]
    query_start: Tensor  # int32 [T + 1]
    seq_lens: Tensor  # int32 [T]

    @staticmethod
    def of(starts: Sequence[int]) -> "Places":
        """For texts that begin at `starts`."""
        lengths = [end - begin for begin, end in pairwise(starts)]
        counts = [-(-length // BLOCK_SIZE) for length in lengths]
        longest, first, slots, tables = max(counts), 0, [], []
        for length, count in zip(lengths, counts, strict=True):
            slots.append(torch.arange(length) + first * BLOCK_SIZE)
            table = torch.zeros(longest, dtype=torch.int32)
            table[:count] = torch.arange(first, first + count)
            tables.append(table.expand(length, longest))
            first += count
        num_tokens, sizes = starts[-1], torch.tensor(lengths, dtype=torch.int32)
        return Places(
            first,
            torch.cat(slots),
            torch.cat(tables),
            torch.arange(num_tokens + 1, dtype=torch.int32),
            torch.repeat_interleave(sizes, sizes),
        )


@dataclass(frozen=True, slots=True)
class Encoder:
    """A model's forward pass."""

    words: Weight
    positions: Weight
    types: Weight
    norm: LayerNorm
    layers: Sequence[EncoderLayer]
    num_heads: int
    head_dim: int
    head: Head | None

    def forward(self, ops: Ops, texts: Texts) -> Tensor:
        """The last layer's hidden states [T, H D] float32."""
        eager, where = Eager(ops), Places.of(texts.starts)
        caches = layout.empty(where.num_blocks, self.num_heads, self.head_dim, torch.float32)
        # In the order in which transformers adds them.
        x = _rows(ops, self.words, texts.token_ids) + _rows(ops, self.types, texts.types)
        x = self.norm(x + _rows(ops, self.positions, texts.positions))
        for layer in self.layers:
            mixed = self._attend(ops, eager.linear(x, layer.qkv), caches, where)
            x = layer.attention_norm(eager.linear(mixed, layer.out) + x)
            x = layer.output_norm(eager.linear(ops.gelu(eager.linear(x, layer.up)), layer.down) + x)
        return x

    def score(self, ops: Ops, first: Tensor) -> Tensor:
        """What the head says of first tokens' states [R, H D]: [R]."""
        if self.head is None:
            raise ValueError("this encoder has no head")
        eager = Eager(ops)
        # Row by row: torch's tanh is not the same everywhere in a tensor.
        dense = [eager.linear(row, self.head.dense).tanh() for row in first.split(1)]
        return torch.cat([eager.linear(row, self.head.out) for row in dense]).flatten()

    def _attend(self, ops: Ops, qkv: Tensor, caches: tuple[Tensor, Tensor], where: Places) -> Tensor:
        queries, keys, values = qkv.view(len(qkv), 3, self.num_heads, self.head_dim).unbind(1)
        ops.kv_write(keys, values, *caches, where.slots)
        rows = (where.block_tables, where.query_start, where.seq_lens)
        return ops.attention(queries, *caches, *rows, self.head_dim**-0.5, 0, 0.0).flatten(1)


def _rows(ops: Ops, table: Weight, ids: Tensor) -> Tensor:
    return ops.embedding(ids, table.data, table.format, table.k)
