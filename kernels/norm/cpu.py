"""RMSNorm in C++ (cpu.cpp); same arguments as reference.py.

It knows nothing of models.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.build import Library


def rms_norm(library: Library) -> Callable[[Tensor, Tensor, float], Tensor]:
    """reference.rms_norm."""
    call = library.function("rt_rms_norm", "pppppllfi")

    def run(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        size = x.shape[-1]
        y = torch.empty_like(x)
        rows = x.numel() // size
        call(x.data_ptr(), None, weight.data_ptr(), y.data_ptr(), None, rows, size, eps, torch.get_num_threads())
        return y

    return run


def add_rms_norm(library: Library) -> Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """reference.add_rms_norm."""
    call = library.function("rt_rms_norm", "pppppllfi")

    def run(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x, residual = x.contiguous(), residual.contiguous()
        size = x.shape[-1]
        y, total = torch.empty_like(x), torch.empty_like(x)
        pointers = (x.data_ptr(), residual.data_ptr(), weight.data_ptr(), y.data_ptr(), total.data_ptr())
        call(*pointers, x.numel() // size, size, eps, torch.get_num_threads())
        return y, total

    return run
