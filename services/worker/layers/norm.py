"""RMS normalisation, alone and carrying the residual. It knows nothing of Gemma's offset: weights arrive with it added."""

from torch import Tensor

from kernels import Ops
from services.worker.layers.linear import Layer


class RMSNorm:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension."""

    def __init__(self, ops: Ops, weight: Tensor, eps: float):
        self.ops = ops
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return self.ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(normalised total, total) with total = residual + x."""
        return self.ops.add_rms_norm(x, residual, self.weight, self.eps)


class Then:
    """One layer after another: Gemma's norm behind a projection, before the residual is added."""

    def __init__(self, first: Layer, second: Layer):
        self.first = first
        self.second = second

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))
