"""StepOps written down instead of computed: a forward pass run once over buffers of full capacity leaves a Program.

Tensors that pass between layers are real but hold nothing while recording; a view of one is a pointer and a stride. How many
rows a step has is read when the program runs. The exact bodies here give, bit for bit, what the table's ops give;
FastRecorder (recorder_fast.py) has the fast ones. Letters as in step_ops.py. It knows nothing of models.
"""

import ctypes
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from kernels.build import Library
from kernels.kv_write.layout import is_half
from kernels.matmul.formats import FORMATS
from kernels.program import Arena, Program, layout
from kernels.step_ops import KVCache, Norm, Place, Places, Rows, Scores
from kernels.weight import Linear, Part, Weight

PAGE = 1024  # floats
APART = 16  # floats, a cache line


class NormArgs(ctypes.Structure):
    """rt_norm_args of norm/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:x p:residual p:weight p:y p:total l:x_stride l:y_stride l:groups l:d f:eps i:add")


class RopeArgs(ctypes.Structure):
    """rt_rope_args of rope/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:positions p:cos_sin p:q p:k l:q_stride l:q_heads l:k_stride l:k_heads l:d l:half")


class KVWriteArgs(ctypes.Structure):
    """rt_kv_write_args of kv_write/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:slots p:k p:v p:k_cache p:v_cache l:k_stride l:v_stride l:heads l:d l:half")


class AttentionArgs(ctypes.Structure):
    """rt_attention_args of attention/cpu.cpp."""

    _fields_: ClassVar = layout(
        "p:num_rows p:q p:k_cache p:v_cache p:tables p:query_start p:seq_lens p:out l:q_stride l:table_stride l:heads "
        "l:kv_heads l:d l:window l:half p:counter f:scale f:softcap"
    )


class MatmulArgs(ctypes.Structure):
    """rt_matmul_args of matmul/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:x p:data p:y p:bias l:k l:n l:row_bytes l:ldy l:fmt p:counter p:into")


class UnpackArgs(ctypes.Structure):
    """rt_unpack_args of matmul/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:ids p:data p:y l:k l:row_bytes l:fmt f:scale")


class TakeArgs(ctypes.Structure):
    """rt_take_args of matmul/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:indices p:x p:y l:k")


class GatedArgs(ctypes.Structure):
    """rt_gated_args of activation/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:x p:y l:x_stride l:f l:gelu")


class SoftcapArgs(ctypes.Structure):
    """rt_softcap_args of activation/cpu.cpp."""

    _fields_: ClassVar = layout("p:num_rows p:x l:stride l:width f:cap")


class Recorder:
    """StepOps over the exact bodies. `counts` (int64: tokens, sequences, wanted rows) is what a run reads."""

    def __init__(self, library: Library, num_tokens: int):
        self.program = Program(library)
        self.arena = Arena(self.program)
        self.counts = np.zeros(3, dtype=np.int64)
        self.capacity = num_tokens
        self._rows = self._count(0)

    def _count(self, index: int) -> int:
        return int(self.counts.ctypes.data) + 8 * index

    def embed(self, ids: Tensor, weight: Weight, scale: float) -> Tensor:
        y = self.arena.empty((self.capacity, weight.k))
        data, code = weight.data, FORMATS[weight.format].code
        width = data.shape[1] * data.element_size()
        args = UnpackArgs(self._rows, ids.data_ptr(), data.data_ptr(), y.data_ptr(), weight.k, width, code, scale)
        self.program.add("rt_unpack_body", args, ids, data)
        return y

    def norm(self, x: Tensor, norm: Norm, wanted: Tensor | None = None) -> Rows:
        if wanted is not None:
            taken, width = self.arena.empty(x.shape), x.shape[1]
            self._rows = self._count(2)
            args = TakeArgs(self._rows, wanted.data_ptr(), x.data_ptr(), taken.data_ptr(), width)
            self.program.add("rt_take_body", args, wanted)
            x = taken
        y = self.arena.empty(x.shape)
        self._norm(x, norm, y)
        return y

    def _norm(self, x: Tensor, norm: Norm, y: Tensor, *, add: bool = False) -> None:
        """Of every row of x [T, K], or of every head of x [T, H, D]."""
        groups = x.shape[1] if x.dim() == 3 else 1
        rows = (x.data_ptr(), None, norm.weight.data_ptr(), y.data_ptr(), None, x.stride(0), y.stride(0))
        self.program.add("rt_norm_body", NormArgs(self._rows, *rows, groups, x.shape[-1], norm.eps, add), norm.weight)

    def linear(self, x: Rows, linear: Linear) -> Tensor:
        width = sum(part.weight.n for part in linear)
        # Rows a multiple of a page apart would share one set of every cache: a tile of results pushes out the one before.
        y = self.arena.empty((self.capacity, width + (APART if width % PAGE == 0 else 0)))[:, :width]
        begin = 0
        for part in linear:
            self._product(x, part, y[:, begin : begin + part.weight.n], None)
            begin += part.weight.n
        return y

    def linear_add(self, x: Rows, linear: Linear, into: Tensor) -> None:
        (part,) = linear
        self._product(x, part, self.arena.empty(into.shape), into)

    def _product(self, x: Rows, part: Part, y: Tensor, into: Tensor | None) -> None:
        weight, bias = part.weight, None if part.bias is None else part.bias.data_ptr()
        width, code = weight.data.shape[1] * weight.data.element_size(), FORMATS[weight.format].code
        where = (self._rows, x.data_ptr(), weight.data.data_ptr(), y.data_ptr(), bias, weight.k, weight.n, width)
        total = None if into is None else into.data_ptr()
        args = MatmulArgs(*where, y.stride(0), code, self.program.counter(), total)
        self.program.add("rt_matmul_body", args, weight.data, part.bias)

    def norm_add(self, x: Tensor, norm: Norm, into: Tensor) -> None:
        self._norm(x, norm, into, add=True)

    def gated(self, x: Rows, gate_up: Linear, activation: str) -> Rows:
        return self._activate(self.linear(x, gate_up), activation)

    def _activate(self, both: Tensor, activation: str) -> Tensor:
        width = both.shape[1] // 2
        y = self.arena.empty((self.capacity, width))
        args = GatedArgs(self._rows, both.data_ptr(), y.data_ptr(), both.stride(0), width, activation == "gelu")
        self.program.add("rt_gated_body", args)
        return y

    def attend(self, qkv: Tensor, place: Place, cache: KVCache, batch: Places, scores: Scores) -> Rows:
        h, k, d = place.num_heads, place.num_kv_heads, place.head_dim
        queries, keys, values = qkv[:, :h], qkv[:, h : h + k], qkv[:, h + k :]
        for x, norm in zip((queries, keys), place.norms or (), strict=False):
            self._norm(x, norm, x)
        stride, half = qkv.stride(0), is_half(cache[0])
        table = place.cos_sin
        turned = (queries.data_ptr(), keys.data_ptr(), stride, h, stride, k, d, table.shape[1] // 2)
        self.program.add("rt_rope_body", RopeArgs(self._rows, batch.positions.data_ptr(), table.data_ptr(), *turned), table)
        where = (keys.data_ptr(), values.data_ptr(), cache[0].data_ptr(), cache[1].data_ptr())
        written = KVWriteArgs(self._rows, batch.slots.data_ptr(), *where, stride, stride, k, d, half)
        self.program.add("rt_kv_write_body", written, batch.slots, *cache)
        out = self.arena.empty((self.capacity, h * d))
        tables = (batch.block_tables.data_ptr(), batch.query_start.data_ptr(), batch.seq_lens.data_ptr(), out.data_ptr())
        shape = (stride, batch.block_tables.stride(0), h, k, d, scores.window, half)
        law = (self.program.counter(), scores.scale, scores.softcap)
        args = AttentionArgs(self._count(1), queries.data_ptr(), *where[2:], *tables, *shape, *law)
        self.program.add("rt_attention_body", args, batch)
        return out

    def softcap(self, x: Tensor, cap: float) -> None:
        self.program.add("rt_softcap_body", SoftcapArgs(self._rows, x.data_ptr(), x.stride(0), x.shape[1], cap))

    def set_counts(self, counts: Sequence[int]) -> None:
        """Tokens, sequences and wanted rows of the step that runs next."""
        self.counts[:] = counts
