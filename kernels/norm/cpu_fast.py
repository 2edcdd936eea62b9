"""Adding, RMS normalising and quantising rows (cpu_fast.cpp): the structs. It knows nothing of layers."""

import ctypes

from kernels.rows import RowsStruct


class NormArgs(ctypes.Structure):
    """rt_fast_norm: total = x + add (where add is given); out = total / sqrt(mean(total²) + eps) · weight.

    `wanted` (int64, or null) names the rows of x and add; row i of total and out then belongs to the i-th named.
    """

    _fields_ = (
        *(("num_rows", ctypes.c_void_p), ("wanted", ctypes.c_void_p)),
        *(("x", ctypes.c_void_p), ("x_stride", ctypes.c_int64)),
        *(("add", ctypes.c_void_p), ("add_stride", ctypes.c_int64), ("total", ctypes.c_void_p)),
        *(("weight", ctypes.c_void_p), ("out", RowsStruct), ("eps", ctypes.c_float)),
    )


class QuantizeArgs(ctypes.Structure):
    """rt_fast_quantize: out = x in other forms."""

    _fields_ = (
        *(("num_rows", ctypes.c_void_p), ("x", ctypes.c_void_p), ("x_stride", ctypes.c_int64)),
        ("out", RowsStruct),
    )
