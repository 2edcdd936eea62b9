"""Weights as the ops take them. A format is a name of matmul/formats.py.

It knows nothing of files, of tensor names or of what the numbers are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from kernels.matmul.cpu_fast import RepackedWeight


@dataclass(frozen=True, slots=True)
class Weight:
    """N x K numbers: `data` is [N, K] for F32, F16 and BF16, the packed rows uint8 [N, row_bytes] for other formats.

    Once repacked for fast products they are in `tiles`, and `data` holds no rows.
    """

    data: Tensor
    format: str
    k: int
    tiles: RepackedWeight | None = None

    @property
    def n(self) -> int:
        return self.data.shape[0] if self.tiles is None else self.tiles.n


@dataclass(frozen=True, slots=True)
class Part:
    """A weight and what is added to its products: bias [N] float32."""

    weight: Weight
    bias: Tensor | None = None


Linear: TypeAlias = Sequence[Part]  # products of one input, end to end; more than one only where formats differ
