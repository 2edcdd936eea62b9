"""Grouped-query attention: project, normalise heads, rotate, attend, project.

Letters: T tokens, H query heads, K key-value heads, D head size. It knows nothing of block tables or kernels.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels import Ops
from services.worker.backends.base import AttentionBackend, KVCache, Plan, Scores
from services.worker.layers.linear import Layer
from services.worker.layers.norm import RMSNorm


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads of what size."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class Rotated:
    """Turns queries and keys [T, heads, D] by their positions, in place."""

    def __init__(self, ops: Ops, cos_sin: Tensor):
        self.rope = ops.rope
        self.cos_sin = cos_sin

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        self.rope(q, k, positions, self.cos_sin)
        return q, k


class NormedRotated:
    """Normalises every head of queries and keys (Qwen 3, Gemma 3), then turns them."""

    def __init__(self, q_norm: RMSNorm, k_norm: RMSNorm, rotated: Rotated):
        self.q_norm = q_norm
        self.k_norm = k_norm
        self.rotated = rotated

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotated(self.q_norm(q.contiguous()), self.k_norm(k.contiguous()), positions)


class Attention:
    """x [T, hidden] -> [T, hidden]; qkv gives queries, keys and values end to end: [T, (H + 2K) D]."""

    def __init__(
        self,
        backend: AttentionBackend,
        heads: Heads,
        scores: Scores,
        qkv: Layer,
        place: Rotated | NormedRotated,
        out: Layer,
    ):
        self.backend = backend
        self.heads = heads
        self.scores = scores
        self.qkv = qkv
        self.place = place
        self.out = out

    def __call__(self, x: Tensor, positions: Tensor, cache: KVCache, plan: Plan) -> Tensor:
        h, k = self.heads.num_heads, self.heads.num_kv_heads
        qkv = self.qkv(x).view(len(x), h + 2 * k, self.heads.head_dim)  # [T, H + 2K, D]
        queries, keys = self.place(qkv[:, :h], qkv[:, h : h + k], positions)
        mixed = self.backend.attend(queries, keys, qkv[:, h + k :], cache, plan, self.scores)
        return self.out(mixed.flatten(1))
