"""The gated feed-forward layer: down(act(gate(x)) · up(x)). It knows nothing of which model it is part of."""

from dataclasses import dataclass

from torch import Tensor

from kernels.step_ops import Rows, StepOps
from kernels.weight import Linear
from services.worker.layers.linear import Onto


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """gate_up: [T, K] -> [T, 2F], gate first; activation "silu" or "gelu"; down: [T, F] -> [T, K]."""

    gate_up: Linear
    activation: str
    down: Onto

    def __call__(self, ops: StepOps, x: Rows, residual: Tensor) -> None:
        """Adds the layer's result to residual [T, K]."""
        self.down(ops, ops.gated(x, self.gate_up, self.activation), residual)
