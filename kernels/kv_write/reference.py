"""Writing keys and values into the paged cache in plain PyTorch. The truth the fast files are tested against.

The cache's layout, the same for every backend, block_size 16:

    k_cache [num_blocks, Hk, D, 16]     transposed: the 16 tokens of a block lie side by side for each of D elements
    v_cache [num_blocks, Hk, 16, D]

It knows nothing of sequences: a slot is block * 16 + offset.
"""

from torch import Tensor

BLOCK_SIZE = 16


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Puts k and v [T, Hk, D] float32 at `slots` (int64 [T], all different) of the caches (float32 or float16).

    Tokens of k and v may lie apart (any stride of dimension 0).
    """
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    k_cache[blocks, :, :, offsets] = k.to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v.to(v_cache.dtype)
