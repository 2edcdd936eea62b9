"""Grouped-query attention: project, normalise heads, rotate, attend, project.

Letters: T tokens, H query heads, K key-value heads, D head size. It knows nothing of block tables or kernels.
"""

from dataclasses import dataclass

from torch import Tensor

from kernels.step_ops import KVCache, Place, Rows, Scores, StepOps
from kernels.weight import Linear
from services.worker.backends.base import AttentionBackend
from services.worker.batch import Batch
from services.worker.layers.linear import Onto


@dataclass(frozen=True, slots=True)
class Attention:
    """qkv gives queries, keys and values end to end: [T, (H + 2K) D]."""

    backend: AttentionBackend
    qkv: Linear
    place: Place
    scores: Scores
    out: Onto

    def __call__(self, ops: StepOps, x: Rows, residual: Tensor, cache: KVCache, batch: Batch) -> None:
        """Adds the layer's result to residual [T, hidden]."""
        heads = self.place.num_heads + 2 * self.place.num_kv_heads
        qkv = ops.linear(x, self.qkv).view(-1, heads, self.place.head_dim)
        self.out(ops, self.backend.attend(ops, qkv, self.place, cache, batch, self.scores), residual)
