"""Activations in C++ (cpu.cpp); same arguments as reference.py.

They know nothing of the products around them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.build import Library


def silu_mul(library: Library) -> Callable[[Tensor], Tensor]:
    """reference.silu_mul."""
    return _gated(library, "rt_silu_mul")


def gelu_mul(library: Library) -> Callable[[Tensor], Tensor]:
    """reference.gelu_mul."""
    return _gated(library, "rt_gelu_mul")


def gelu(library: Library) -> Callable[[Tensor], Tensor]:
    """reference.gelu."""
    call = library.function("rt_gelu", "ppli")

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        call(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
        return y

    return run


def _gated(library: Library, name: str) -> Callable[[Tensor], Tensor]:
    call = library.function(name, "pplli")

    def run(x: Tensor) -> Tensor:
        x = x.contiguous()
        rows, width = x.shape[0], x.shape[1] // 2
        y = torch.empty(rows, width)
        call(x.data_ptr(), y.data_ptr(), rows, width, torch.get_num_threads())
        return y

    return run
