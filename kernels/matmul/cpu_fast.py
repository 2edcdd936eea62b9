"""Products of repacked weights with quantised activations (cpu_fast.cpp): the structs, and weights in tiles.

Which rows a weight is multiplied with follows from its kind: int8 for four-bit weights, int16 for wider packed ones,
float32 for floats. It knows nothing of layers or of the order bodies run in.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import pages
from kernels.build import Library
from kernels.matmul.formats import FORMATS, row_length
from kernels.matmul.reference import check
from kernels.rows import RowsStruct

KINDS = {"Q4_0": 0, "Q4_1": 1, "Q4_K": 1, "Q8_0": 2, "Q5_K": 3, "Q6_K": 4, "F32": 5, "F16": 6, "BF16": 7}
_GROUP = 32


class WeightStruct(ctypes.Structure):
    """rt_weight."""

    _fields_ = (("data", ctypes.c_void_p), ("kind", ctypes.c_int64), ("n", ctypes.c_int64), ("k", ctypes.c_int64))


class MatmulArgs(ctypes.Structure):
    """rt_fast_matmul: out = or += x Wᵀ + bias."""

    _fields_ = (
        *(("num_rows", ctypes.c_void_p), ("weight", WeightStruct), ("x", RowsStruct)),
        *(("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64), ("bias", ctypes.c_void_p), ("add", ctypes.c_int64)),
        ("counter", ctypes.c_void_p),
    )


class GateUpArgs(ctypes.Structure):
    """rt_fast_gate_up: out = act(x gateᵀ) · (x upᵀ)."""

    _fields_ = (
        *(("num_rows", ctypes.c_void_p), ("gate", WeightStruct), ("up", WeightStruct)),
        *(("x", RowsStruct), ("out", RowsStruct), ("gelu", ctypes.c_int64)),
        ("counter", ctypes.c_void_p),
    )


class EmbedArgs(ctypes.Structure):
    """rt_fast_embed: rows `ids` (int64, checked by the caller) of a repacked weight times scale."""

    _fields_ = (
        *(("num_rows", ctypes.c_void_p), ("ids", ctypes.c_void_p), ("weight", WeightStruct)),
        *(("scale", ctypes.c_float), ("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64)),
    )


@dataclass(frozen=True, slots=True)
class RepackedWeight:
    """N x K weights in tiles of 8 or 16 rows (cpu_fast.h); `data` is uint8, flat. Keep it as long as its struct."""

    data: Tensor
    kind: int
    n: int
    k: int

    @property
    def rows_form(self) -> str:
        """The form of activations it is multiplied with: "q8", "q16" or "y"."""
        return "q8" if self.kind <= KINDS["Q4_1"] else "q16" if self.kind <= KINDS["Q6_K"] else "y"

    def struct(self) -> WeightStruct:
        return WeightStruct(self.data.data_ptr(), self.kind, self.n, self.k)


def repack(library: Library, data: Tensor, fmt: str) -> RepackedWeight:
    """The rows `data` as matmul's `data` of the exact kernels, in tiles. Raises ValueError when shape and format disagree."""
    n, width = data.shape[0], data.shape[1] * data.element_size()
    k = row_length(fmt, width)
    check(data, fmt, n, k)
    if FORMATS[fmt].block_size > 1 and k % _GROUP:
        raise ValueError(f"{fmt} weights of {k} inputs are not whole groups of {_GROUP}")
    data = data.contiguous()
    kind = KINDS[fmt]
    size: Any = library.symbols.rt_fast_repacked_bytes
    size.argtypes, size.restype = (ctypes.c_int64,) * 3, ctypes.c_int64
    call = library.function("rt_fast_repack", "plilllpi")
    out = pages.zeros(size(kind, n, k))
    call(data.data_ptr(), width, FORMATS[fmt].code, kind, n, k, out.data_ptr(), torch.get_num_threads())
    return RepackedWeight(out, kind, n, k)
