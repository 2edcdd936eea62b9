"""The backend over the paged cache: one operation of whatever ops the pass runs on.

It knows nothing of which file implements it.
"""

from torch import Tensor

from kernels.step_ops import KVCache, Place, Rows, Scores, StepOps
from services.worker.batch import Batch


class PagedBackend:
    """The ops read the batch as it is."""

    def attend(self, ops: StepOps, qkv: Tensor, place: Place, cache: KVCache, batch: Batch, scores: Scores) -> Rows:
        return ops.attend(qkv, place, cache, batch, scores)
