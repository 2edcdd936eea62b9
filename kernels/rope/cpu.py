"""Rotary positions in C++ (cpu.cpp); same arguments as reference.py, in place too.

It knows nothing of frequencies.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.build import Library


def rope(library: Library) -> Callable[[Tensor, Tensor, Tensor, Tensor], None]:
    """reference.rope."""
    call = library.function("rt_rope", "pllpllppllli")

    def run(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        tokens, heads, size = q.shape
        kv_heads = k.shape[1]
        if q.stride()[1:] != (size, 1) or k.stride()[1:] != (size, 1):
            raise ValueError("rope needs the heads of a token side by side")
        if positions.dtype != torch.int64 or cos_sin.dtype != torch.float32 or not q.dtype == k.dtype == torch.float32:
            raise ValueError("rope needs int64 positions and float32 everything else")
        first = (q.data_ptr(), q.stride(0), heads, k.data_ptr(), k.stride(0), kv_heads)
        half = cos_sin.shape[1] // 2
        call(*first, positions.data_ptr(), cos_sin.data_ptr(), tokens, size, half, torch.get_num_threads())

    return run
