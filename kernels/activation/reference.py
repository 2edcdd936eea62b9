"""Activations in plain PyTorch. The truth the fast files are tested against.

They know nothing of the products before and after them.
"""

from torch import Tensor, nn
from torch.nn.functional import silu


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up of x [T, 2F] float32, whose rows are the F gates, then the F ups: [T, F]."""
    gate, up = x.chunk(2, dim=-1)
    return silu(gate) * up


def gelu_mul(x: Tensor) -> Tensor:
    """gelu(gate) * up, gelu in its tanh form, of x [T, 2F] float32 laid out as for silu_mul: [T, F]."""
    gate, up = x.chunk(2, dim=-1)
    return nn.functional.gelu(gate, approximate="tanh") * up


def gelu(x: Tensor) -> Tensor:
    """gelu in its form with erf, element by element, of x float32 of any shape."""
    return nn.functional.gelu(x)
