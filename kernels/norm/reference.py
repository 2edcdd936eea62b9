"""RMSNorm in plain PyTorch: y = x / sqrt(mean(x^2) + eps) * weight. The truth the fast files are tested against.

It knows nothing of models; Gemma's 1 + weight is folded into the weight before it gets here.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] float32 normalised over its last dimension; weight [D] float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(total), total) with total = residual + x, both [..., D] float32; the arguments stay as they are."""
    total = residual + x
    return rms_norm(total, weight, eps), total
