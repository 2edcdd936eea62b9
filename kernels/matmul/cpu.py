"""Products with packed weights in C++ (cpu.cpp); same arguments and errors as reference.py.

It knows nothing of formats beyond their names and sizes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.build import Library
from kernels.matmul.formats import FORMATS, row_length
from kernels.matmul.reference import check


def matmul(library: Library) -> Callable[[Tensor, Tensor, str, int], Tensor]:
    """reference.matmul; every element is one chain of fused multiply-adds in rising k."""
    call = library.function("rt_matmul", "pppllllii")

    def run(x: Tensor, data: Tensor, fmt: str, n: int) -> Tensor:
        rows, k = x.shape
        check(data, fmt, n, k)
        if x.dtype != torch.float32:
            raise ValueError(f"matmul needs float32 activations, not {x.dtype}")
        x = x.contiguous()
        y = torch.empty(rows, n)
        width = data.shape[1] * data.element_size()
        call(x.data_ptr(), data.data_ptr(), y.data_ptr(), rows, k, n, width, FORMATS[fmt].code, torch.get_num_threads())
        return y

    return run


def embedding(library: Library) -> Callable[[Tensor, Tensor, str, int], Tensor]:
    """reference.embedding, same bits."""
    call = library.function("rt_unpack", "pppllllii")

    def run(ids: Tensor, data: Tensor, fmt: str, k: int) -> Tensor:
        n, width = data.shape[0], data.shape[1] * data.element_size()
        check(data, fmt, n, k)
        if ids.dtype != torch.int64:
            raise ValueError(f"embedding needs int64 ids, not {ids.dtype}")
        ids = ids.contiguous()
        y = torch.empty(len(ids), k)
        code, threads = FORMATS[fmt].code, torch.get_num_threads()
        if call(ids.data_ptr(), data.data_ptr(), y.data_ptr(), len(ids), k, n, width, code, threads):
            raise IndexError(f"token ids must lie in [0, {n})")
        return y

    return run


def dequantize(library: Library) -> Callable[[Tensor, str], Tensor]:
    """reference.dequantize, same bits."""
    call = library.function("rt_unpack", "pppllllii")

    def run(data: Tensor, fmt: str) -> Tensor:
        n, width = data.shape[0], data.shape[1] * data.element_size()
        k = row_length(fmt, width)
        check(data, fmt, n, k)
        y = torch.empty(n, k)
        call(None, data.data_ptr(), y.data_ptr(), n, k, n, width, FORMATS[fmt].code, torch.get_num_threads())
        return y

    return run
