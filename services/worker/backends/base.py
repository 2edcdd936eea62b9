"""What an attention layer asks of a backend.

Letters: T tokens, H query heads, K key-value heads, D head size. It knows nothing of projections or layers.
"""

from typing import Protocol

from torch import Tensor

from kernels.step_ops import KVCache, Place, Rows, Scores, StepOps
from services.worker.batch import Batch


class AttentionBackend(Protocol):
    """Writes this step's keys and values, then attends to all that the block tables name."""

    def attend(self, ops: StepOps, qkv: Tensor, place: Place, cache: KVCache, batch: Batch, scores: Scores) -> Rows:
        """qkv [T, H + 2K, D], as projected: the mixed values [T, H D]."""
        ...
