"""What an attention layer asks of a backend: plan once a step, attend once a layer.

Letters: T tokens, H query heads, K key-value heads, D head size. It knows nothing of projections, rotations or layers.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from services.worker.batch import Batch

KVCache: TypeAlias = tuple[Tensor, Tensor]  # one layer's k_cache and v_cache, laid out as in kernels/kv_write
Plan: TypeAlias = Any  # what a backend derives from a batch; only the backend that made it looks inside


@dataclass(frozen=True, slots=True)
class Scores:
    """How scores are made: scale q·k, then softcap·tanh(score / softcap) if softcap > 0, the last `window` tokens (0: all)."""

    scale: float
    window: int = 0
    softcap: float = 0.0


class AttentionBackend(Protocol):
    """Writes this step's keys and values, then attends to all that the block tables name."""

    def plan(self, batch: Batch) -> Plan:
        """What every layer of this step shares."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, plan: Plan, scores: Scores) -> Tensor:
        """q [T, H, D], k and v [T, K, D], rotated already: the mixed values [T, H, D]."""
        ...
