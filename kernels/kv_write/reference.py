"""Writing keys and values into the paged cache (layout.py) in plain PyTorch. The truth the fast files are tested against.

It knows nothing of sequences.
"""

import torch
from torch import Tensor

from kernels.kv_write import whole
from kernels.kv_write.layout import BLOCK_SIZE


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Puts k and v [T, Hk, D] float32 at `slots` (int64 [T], all different) of the caches (float32, float16 or int8).

    Tokens of k and v may lie apart (any stride of dimension 0). A head with a number that is none stays without one in int8.
    """
    if k_cache.dtype == torch.int8:
        whole.write(k, v, k_cache, v_cache, slots)
        return
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    k_cache[blocks, :, :, offsets] = k.to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v.to(v_cache.dtype)


def kept(k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values in blocks of the caches: [N, Hk, 16, D] float32."""
    if k_cache.dtype == torch.int8:
        return whole.read(k_cache, v_cache)
    return k_cache.float().transpose(-1, -2), v_cache.float()
