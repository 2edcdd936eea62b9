"""The backend over the op table's kv_write and attention: whatever device the ops were loaded for.

It knows nothing of which file implements an op.
"""

from torch import Tensor

from kernels import Ops
from services.worker.backends.base import KVCache, Scores
from services.worker.batch import Batch


class PagedBackend:
    """Needs no plan of its own: the ops read the batch as it is."""

    def __init__(self, ops: Ops):
        self.ops = ops

    def plan(self, batch: Batch) -> Batch:
        return batch

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, plan: Batch, scores: Scores) -> Tensor:
        k_cache, v_cache = cache
        self.ops.kv_write(k, v, k_cache, v_cache, plan.slots)
        return self.ops.attention(
            q,
            k_cache,
            v_cache,
            plan.block_tables,
            plan.query_start,
            plan.seq_lens,
            scores.scale,
            scores.window,
            scores.softcap,
        )
