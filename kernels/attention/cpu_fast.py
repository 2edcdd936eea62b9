"""Paged attention as a body (cpu_fast.cpp): the struct. It knows nothing of layers."""

import ctypes

from kernels.rows import RowsStruct


class AttentionArgs(ctypes.Structure):
    """rt_fast_attention: as reference.attention, over queries that are already scaled; `counter` an int64 that is zero.

    num_seqs and table_stride point at int64; tables, query_start and seq_lens at int32. d a multiple of 8, and of 32
    where out is quantised. kind: of the cache, a value of kv_write.layout.KINDS.
    With `scores` (float32, `room` of them) rt_fast_attention_scores must run before, with the same
    arguments and number of threads: it shares out the work of very few sequences, whose heads no number of threads divides.
    """

    _fields_ = (
        *(("num_seqs", ctypes.c_void_p), ("q", ctypes.c_void_p), ("q_stride", ctypes.c_int64)),
        *((name, ctypes.c_void_p) for name in ("k_cache", "v_cache", "tables", "table_stride", "query_start", "seq_lens")),
        *(("out", RowsStruct), ("counter", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "d", "kind", "window")),
        *(("softcap", ctypes.c_float), ("scores", ctypes.c_void_p), ("room", ctypes.c_int64)),
    )
