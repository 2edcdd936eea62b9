"""How keys and values lie in the paged cache, the same for every backend.

float32 and float16:

    k_cache [N, Hk, D, 16]     transposed: the 16 tokens of a block lie side by side for each of D elements
    v_cache [N, Hk, 16, D]

int8, [N, Hk, 64 + 16 D] bytes: in each block of a head first a word for each of its 16 tokens, then whole numbers from -127 to
127, in pairs, as products of 16 bits want them (whole.py says what words and numbers mean):

    keys    [D / 2, 16, 2]     two elements of a token side by side
    values  [8, D, 2]          one element of two tokens side by side

Letters: N blocks, Hk key heads, D head size. It knows nothing of sequences: a slot is block * 16 + offset.
"""

import math

import torch
from torch import Tensor

from kernels import pages

BLOCK_SIZE = 16
WORD_BYTES = 4 * BLOCK_SIZE
KINDS = {torch.float32: 0, torch.float16: 1, torch.int8: 2}  # as the fast bodies are told them (layout.h)


def empty(num_blocks: int, num_heads: int, size: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Uninitialised (k_cache, v_cache) of a dtype in KINDS."""
    if dtype == torch.int8:
        keys = values = (num_blocks, num_heads, WORD_BYTES + BLOCK_SIZE * size)
    else:
        keys, values = (num_blocks, num_heads, size, BLOCK_SIZE), (num_blocks, num_heads, BLOCK_SIZE, size)
    return _empty(keys, dtype, device), _empty(values, dtype, device)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    if device != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return pages.zeros(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def is_half(cache: Tensor) -> bool:
    """Whether a cache is float16 rather than float32. ValueError if it is neither: only the fast bodies know others."""
    if cache.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"these kernels know float32 and float16 caches, not {cache.dtype}")
    return cache.dtype == torch.float16
