"""Paged caches for tests, in which nothing was written yet. It knows nothing of kernels."""

import torch
from torch import Tensor

from kernels.kv_write.layout import empty


def unwritten(num_blocks: int, kv_heads: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(k_cache, v_cache) whose every byte is 255, which makes floats, scales among them, NaN."""
    caches = empty(num_blocks, kv_heads, size, dtype)
    for cache in caches:
        cache.view(torch.uint8).fill_(255)
    return caches
