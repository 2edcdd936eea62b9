"""Float weights into every GGUF format, simply: nearest values, no search for better scales.

Layouts: kernels/matmul/formats.py. It knows nothing of files or models.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def encode(weights: Tensor, fmt: str) -> bytes:
    """The rows of `weights` [N, K], one after the other."""
    return ENCODERS[fmt](weights.float()).contiguous().view(torch.uint8).numpy().tobytes()


def _half(x: Tensor) -> Tensor:
    """[...] -> the two bytes of its float16 [..., 2]."""
    return x.to(torch.float16).unsqueeze(-1).contiguous().view(torch.uint8)


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.float16).float()


def _quotient(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Nearest whole numbers x / scale within low and high; 0 where the scale is 0."""
    return torch.where(scale == 0, torch.zeros_like(x), x / scale).nan_to_num(0, 0, 0).round().clamp(low, high)


def _nibbles(q: Tensor) -> Tensor:
    """[blocks, 32] numbers below 16: the first sixteen in the low halves of the bytes."""
    q = q.to(torch.uint8)
    return q[:, :16] | q[:, 16:] << 4


def _q8_0(x: Tensor) -> Tensor:
    blocks = x.reshape(-1, 32)
    scale = _rounded(blocks.abs().amax(1, keepdim=True) / 127)
    q = _quotient(blocks, scale, -127, 127).to(torch.int8).view(torch.uint8)
    return torch.cat([_half(scale).flatten(1), q], 1)


def _q4_0(x: Tensor) -> Tensor:
    blocks = x.reshape(-1, 32)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = _rounded(extreme / -8)
    return torch.cat([_half(scale).flatten(1), _nibbles(_quotient(blocks, scale, -8, 7) + 8)], 1)


def _q4_1(x: Tensor) -> Tensor:
    blocks = x.reshape(-1, 32)
    least = _rounded(blocks.amin(1, keepdim=True))
    scale = _rounded((blocks.amax(1, keepdim=True) - least) / 15)
    q = _nibbles(_quotient(blocks - least, scale, 0, 15))
    return torch.cat([_half(scale).flatten(1), _half(least).flatten(1), q], 1)


def _scaled_k(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Head (d, dmin and the eight 6-bit scales and mins) and quants [blocks, 8, 32] of Q4_K and Q5_K."""
    parts = x.reshape(-1, 8, 32)
    least = (-parts.amin(2)).clamp(min=0)  # [blocks, 8]
    scale = (parts.amax(2) + least).clamp(min=0) / top
    d, dmin = _rounded(scale.amax(1, keepdim=True) / 63), _rounded(least.amax(1, keepdim=True) / 63)
    scales, mins = _quotient(scale, d, 0, 63).to(torch.uint8), _quotient(least, dmin, 0, 63).to(torch.uint8)
    quants = _quotient(parts + (dmin * mins)[..., None], (d * scales)[..., None], 0, top).to(torch.uint8)
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = mins[:, :4] | mins[:, 4:] >> 4 << 6
    third = scales[:, 4:] & 15 | (mins[:, 4:] & 15) << 4
    return torch.cat([_half(d).flatten(1), _half(dmin).flatten(1), first, second, third], 1), quants


def _low_nibbles_k(quants: Tensor) -> Tensor:
    """Parts 0 and 1 share 32 bytes, then 2 and 3, and so on."""
    low = quants & 15
    return (low[:, 0::2] | low[:, 1::2] << 4).flatten(1)


def _q4_k(x: Tensor) -> Tensor:
    head, quants = _scaled_k(x, 15)
    return torch.cat([head, _low_nibbles_k(quants)], 1)


def _q5_k(x: Tensor) -> Tensor:
    head, quants = _scaled_k(x, 31)
    bits = (quants >> 4) << torch.arange(8, dtype=torch.uint8)[None, :, None]
    return torch.cat([head, bits.sum(1).to(torch.uint8), _low_nibbles_k(quants)], 1)


def _q6_k(x: Tensor) -> Tensor:
    parts = x.reshape(-1, 16, 16)
    scale = parts.abs().amax(2) / 31
    d = _rounded(scale.amax(1, keepdim=True) / 127)
    scales = _quotient(scale, d, -127, 127)
    quants = (_quotient(parts, (d * scales)[..., None], -32, 31) + 32).to(torch.uint8).reshape(-1, 2, 4, 32)
    low, high = quants & 15, quants >> 4
    ql = (low[:, :, :2] | low[:, :, 2:] << 4).flatten(1)  # quarters 0 and 2, then 1 and 3, share bytes
    qh = (high << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[None, None, :, None]).sum(2).to(torch.uint8).flatten(1)
    return torch.cat([ql, qh, scales.to(torch.int8).view(torch.uint8), _half(d).flatten(1)], 1)


ENCODERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda x: x,
    "F16": lambda x: x.to(torch.float16),
    "BF16": lambda x: x.to(torch.bfloat16),
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
