"""Paged attention in C++ (cpu.cpp); same arguments as reference.py.

It knows nothing of who shares a block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.build import Library
from kernels.kv_write.layout import is_half


def attention(library: Library) -> Callable[..., Tensor]:
    """reference.attention over float32 and float16 caches; a query's bits do not depend on the chunk or the batch it comes in."""
    call = library.function("rt_attention", "plppplpppllllflfii")

    def run(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_start: Tensor,
        seq_lens: Tensor,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> Tensor:
        heads, size = q.shape[1:]
        if q.stride()[1:] != (size, 1):
            raise ValueError("attention needs the heads of a token side by side")
        if not block_tables.dtype == query_start.dtype == seq_lens.dtype == torch.int32:
            raise ValueError("attention needs int32 block_tables, query_start and seq_lens")
        out = torch.empty(q.shape)
        rows = (block_tables.data_ptr(), block_tables.stride(0), query_start.data_ptr(), seq_lens.data_ptr())
        shape = (len(seq_lens), heads, k_cache.shape[1], size)
        law = (scale, window, softcap, is_half(k_cache))
        caches = (k_cache.data_ptr(), v_cache.data_ptr())
        call(q.data_ptr(), q.stride(0), *caches, *rows, out.data_ptr(), *shape, *law, torch.get_num_threads())
        return out

    return run
