"""Rows of activations between two bodies (rows.h): float32, int8 and int16, whichever are asked for.

It knows nothing of what the rows mean.
"""

import ctypes
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.build import Library


class RowsStruct(ctypes.Structure):
    """rt_rows."""

    _fields_ = (
        *(("y", ctypes.c_void_p), ("y_stride", ctypes.c_int64)),
        *(("q8", ctypes.c_void_p), ("q8_groups", ctypes.c_void_p), ("q16", ctypes.c_void_p), ("q16_groups", ctypes.c_void_p)),
        ("width", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Buffers of one matrix of activations; a form that was not asked for is None. Keep it as long as its struct."""

    y: Tensor | None  # float32 [T, width]
    q8: tuple[Tensor, Tensor] | None  # int8 [T, width]; float32 [T, width / 32, 8]: rt_group
    q16: tuple[Tensor, Tensor] | None  # the same in int16

    @staticmethod
    def empty(num_rows: int, width: int, forms: Collection[str]) -> "Rows":
        """Uninitialised rows in the named forms: "y", "q8", "q16"."""

        def quantized(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            if width % 32:
                raise ValueError(f"rows of {width} cannot be quantised in groups of 32")
            return torch.empty(num_rows, width, dtype=dtype), torch.empty(num_rows, width // 32, GROUP_FIELDS)

        return Rows(
            torch.empty(num_rows, width) if "y" in forms else None,
            quantized(torch.int8) if "q8" in forms else None,
            quantized(torch.int16) if "q16" in forms else None,
        )

    def struct(self) -> RowsStruct:
        """Pointers to the buffers."""
        forms = (*(self.q8 or _NONE), *(self.q16 or _NONE))
        quantized = [None if tensor is None else tensor.data_ptr() for tensor in forms]
        first = next(tensor for tensor in (self.y, *(self.q8 or ()), *(self.q16 or ())) if tensor is not None)
        y = (None, 0) if self.y is None else (self.y.data_ptr(), self.y.stride(0))
        return RowsStruct(*y, *quantized, first.shape[1])

    def dequantized(self, form: str) -> Tensor:
        """What the whole numbers of "q8" or "q16" stand for: float32 [T, width]."""
        whole, groups = (self.q8 if form == "q8" else self.q16) or _NONE
        if whole is None or groups is None:
            raise ValueError(f"these rows have no {form}")
        x = whole.float() * groups[..., 0].repeat_interleave(32, dim=1)
        if form == "q8":
            shift, _, offset, _ = groups[..., 4:].contiguous().view(torch.int32).long().unbind(-1)
            apart = offset // 8 + shift // 8 + shift % 8 * 4
            x.unflatten(1, (-1, 32)).scatter_(-1, apart[..., None], groups[..., 2:3])
        return x


GROUP_FIELDS = 8  # of rt_group: 4 float32, an int64, 2 int32
_NONE = (None, None)


def runner(library: Library, name: str) -> Callable[[ctypes.Structure, int], None]:
    """Runs one body on a number of threads of torch's pool, alone. Raises ValueError for a library without fast bodies."""
    if library.variant == "portable":
        raise ValueError("the fast kernels need AVX2, or ARM with dot products; use compute=exact")
    run: Any = library.symbols.rt_fast_run
    run.argtypes, run.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int), None
    body = ctypes.cast(library.symbols[name], ctypes.c_void_p)

    def call(args: ctypes.Structure, num_threads: int) -> None:
        run(body, ctypes.addressof(args), num_threads)

    return call
