"""Products with packed weights in plain PyTorch: unpack, then multiply. The truth the fast files are tested against.

It knows nothing of layers, biases or of where the weights came from.
"""

import torch
from torch import Tensor

from kernels.matmul.formats import FORMATS, row_bytes


def matmul(x: Tensor, data: Tensor, fmt: str, n: int) -> Tensor:
    """x [T, K] float32 times the transpose of the n x K weights in `data`: [T, n] float32.

    data: uint8 [n, row_bytes] for the packed formats, a tensor [n, K] of the named type for F32, F16 and BF16.
    Raises ValueError when shapes and format disagree.
    """
    check(data, fmt, n, x.shape[1])
    return x @ dequantize(data, fmt).T


def embedding(ids: Tensor, data: Tensor, fmt: str, k: int) -> Tensor:
    """Rows `ids` (int64 [T]) of the weights in `data`, unpacked: [T, k] float32. Raises IndexError for an id outside."""
    check(data, fmt, data.shape[0], k)
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= data.shape[0]):
        raise IndexError(f"token ids must lie in [0, {data.shape[0]})")
    return dequantize(data[ids], fmt)


def dequantize(data: Tensor, fmt: str) -> Tensor:
    """All weights of `data` as float32 [N, K]."""
    if fmt in ("F32", "F16", "BF16"):
        return data.float()
    form = FORMATS[fmt]
    blocks = data.reshape(-1, form.block_bytes)
    return _UNPACK[fmt](blocks).reshape(data.shape[0], -1)


def check(data: Tensor, fmt: str, n: int, k: int) -> None:
    """Raises ValueError unless `data` holds n rows of k weights in `fmt`."""
    width = row_bytes(fmt, k)
    if data.dim() != 2 or data.shape[0] != n or data.shape[1] * data.element_size() != width:
        raise ValueError(f"{n} x {k} weights in {fmt} are [{n}, {width} bytes], not {tuple(data.shape)} of {data.dtype}")


def _half(blocks: Tensor, at: int) -> Tensor:
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(qs: Tensor) -> Tensor:
    return torch.cat([qs & 15, qs >> 4], dim=1).float()


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _scales_k(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and mins of Q4_K and Q5_K, times d and dmin: two tensors [blocks, 8, 1].

    Bytes 0-3 and 4-7 hold scales and mins 0-3 in their low six bits; bytes 8-11 the low four bits of scales (low
    nibble) and mins (high nibble) 4-7, whose upper two bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], dim=1).float()
    mins = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], dim=1).float()
    return (_half(blocks, 0) * scales)[:, :, None], (_half(blocks, 2) * mins)[:, :, None]


def _nibbles_k(qs: Tensor) -> Tensor:
    """Each 32 bytes hold 32 weights in their low nibbles, then 32 in their high ones: [blocks, 8, 32]."""
    chunks = qs.reshape(-1, 4, 1, 32)
    return torch.cat([chunks & 15, chunks >> 4], dim=2).reshape(-1, 8, 32)


def _q4_k(blocks: Tensor) -> Tensor:
    scales, mins = _scales_k(blocks)
    return (scales * _nibbles_k(blocks[:, 16:]).float() - mins).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, mins = _scales_k(blocks)
    bits = torch.arange(8, dtype=torch.uint8)[None, :, None]
    high = blocks[:, None, 16:48] >> bits & 1
    return (scales * (_nibbles_k(blocks[:, 48:]) | high << 4).float() - mins).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = torch.cat([low & 15, low >> 4], dim=2).reshape(-1, 2, 4, 32)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    quants = (low | high << 4).reshape(-1, 16, 16).float() - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    return (scales[:, :, None] * quants).flatten(1)


_UNPACK = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
