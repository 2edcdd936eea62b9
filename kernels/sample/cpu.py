"""Choosing tokens in C++ (cpu.cpp); same arguments as reference.py, the same tokens.

It knows nothing of sequences.
"""

import ctypes
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from kernels.build import Library
from kernels.sample.params import SampleParams

_NAMES = tuple(field.name for field in fields(SampleParams))
_Pointers = ctypes.c_void_p * len(_NAMES)


def sample(library: Library) -> Callable[[Tensor, SampleParams], Tensor]:
    """reference.sample, token for token."""
    call = library.function("rt_sample", "plpplli")
    last: tuple[SampleParams | None, object, int] = (None, None, 0)

    def address_of(params: SampleParams) -> int:
        # The same arrays come again for as long as the same sequences draw.
        nonlocal last
        if params is not last[0]:
            pointers = _Pointers(*(getattr(params, name).data_ptr() for name in _NAMES))
            last = (params, pointers, ctypes.addressof(pointers))
        return last[2]

    def run(logits: Tensor, params: SampleParams) -> Tensor:
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        rows, vocab = logits.shape
        out = torch.empty(rows, dtype=torch.int64)
        call(logits.data_ptr(), logits.stride(0), address_of(params), out.data_ptr(), rows, vocab, torch.get_num_threads())
        return out

    return run


def logprobs(library: Library) -> Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]:
    """reference.logprobs; the same ids, values within a float32 rounding."""
    call = library.function("rt_logprobs", "pplppplli")

    def run(logits: Tensor, token_ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = logits.contiguous()
        rows, vocab = logits.shape
        chosen, ids, top = torch.empty(rows), torch.zeros(rows, k, dtype=torch.int64), torch.empty(rows, k)
        results = (chosen.data_ptr(), ids.data_ptr(), top.data_ptr())
        call(logits.data_ptr(), token_ids.data_ptr(), k, *results, rows, vocab, torch.get_num_threads())
        return chosen, ids, top

    return run
