"""The gated feed-forward layer: down(act(gate(x)) · up(x)). It knows nothing of which activation its model uses."""

from torch import Tensor

from services.worker.layers.linear import Layer


class GatedMLP:
    """gate_up: [T, K] -> [T, 2F], gate first; activate: [T, 2F] -> [T, F]; down: [T, F] -> [T, K]."""

    def __init__(self, gate_up: Layer, activate: Layer, down: Layer):
        self.gate_up = gate_up
        self.activate = activate
        self.down = down

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.activate(self.gate_up(x)))
