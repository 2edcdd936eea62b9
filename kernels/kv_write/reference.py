"""Writing keys and values into the paged cache (layout.py) in plain PyTorch. The truth the fast files are tested against.

It knows nothing of sequences.
"""

import torch
from torch import Tensor

from kernels.kv_write.layout import BLOCK_SIZE, numbers, scales

STEPS = 127  # from zero to the largest magnitude of an int8 row
NOTHING = 1e-30  # rows below it are zero, as their scale would not have all of its bits


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Puts k and v [T, Hk, D] float32 at `slots` (int64 [T], all different) of the caches (float32, float16 or int8).

    Tokens of k and v may lie apart (any stride of dimension 0). A row with a number that is none stays none: its scale is NaN.
    """
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    if k_cache.dtype == torch.int8:
        k, v = (_whole(x, scales(cache), blocks, offsets) for x, cache in ((k, k_cache), (v, v_cache)))
    keys, values = numbers(k_cache, v_cache)
    keys[blocks, :, :, offsets] = k.to(k_cache.dtype)
    values[blocks, :, offsets] = v.to(v_cache.dtype)


def _whole(x: Tensor, scale: Tensor, blocks: Tensor, offsets: Tensor) -> Tensor:
    """x [T, Hk, D] in whole steps, halves to even; their sizes go to `scale` [N, Hk, 16]."""
    most = x.abs().amax(-1)
    nothing = most < NOTHING
    scale[blocks, :, offsets] = (most / STEPS).masked_fill(nothing, 0)
    return (x * (STEPS / most).masked_fill(nothing, 0)[..., None]).round().nan_to_num(0)
