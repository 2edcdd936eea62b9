"""Turning queries and keys and filling the cache in one pass (cpu_fast.cpp): the struct. It knows nothing of layers."""

import ctypes


class RopeArgs(ctypes.Structure):
    """rt_fast_rope: qkv rows -> q normalised, turned and scaled; k, v into the cache at `slots`. Heads of at most 1024.

    kind: of the cache, a value of kv_write.layout.KINDS.
    """

    _fields_ = (
        *(("num_rows", ctypes.c_void_p), ("qkv", ctypes.c_void_p), ("qkv_stride", ctypes.c_int64)),
        *(("q_norm", ctypes.c_void_p), ("k_norm", ctypes.c_void_p), ("cos_sin", ctypes.c_void_p)),
        *(("positions", ctypes.c_void_p), ("slots", ctypes.c_void_p)),
        *(("q", ctypes.c_void_p), ("q_stride", ctypes.c_int64)),
        *(("k_cache", ctypes.c_void_p), ("v_cache", ctypes.c_void_p)),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "d", "rot_dim", "kind")),
        *(("q_scale", ctypes.c_float), ("eps", ctypes.c_float)),
    )
