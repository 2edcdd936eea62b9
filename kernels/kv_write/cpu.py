"""Writing keys and values into the paged cache in C++ (cpu.cpp); same arguments as reference.py.

It knows nothing of sequences.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.build import Library
from kernels.kv_write.layout import is_half


def kv_write(library: Library) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]:
    """reference.kv_write into float32 and float16 caches."""
    call = library.function("rt_kv_write", "plplppplllii")

    def run(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        tokens, heads, size = k.shape
        if k.stride()[1:] != (size, 1) or v.stride()[1:] != (size, 1):
            raise ValueError("kv_write needs the heads of a token side by side")
        if slots.dtype != torch.int64 or k.dtype != torch.float32 or v.dtype != torch.float32:
            raise ValueError("kv_write needs int64 slots, float32 keys and values")
        new = (k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0))
        cache = (k_cache.data_ptr(), v_cache.data_ptr(), slots.data_ptr())
        call(*new, *cache, tokens, heads, size, is_half(k_cache), torch.get_num_threads())

    return run
