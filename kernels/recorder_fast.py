"""The recorder over the fast bodies: repacked weights, activations quantised where they are made.

A body leaves its result in the forms later bodies turn out to want: buffers for all forms are set aside when it is recorded,
and a form is switched on when a product asks for it. It knows nothing of models.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.attention.cpu_fast import AttentionArgs
from kernels.build import Library
from kernels.kv_write.layout import KINDS
from kernels.matmul.cpu_fast import EmbedArgs, GateUpArgs, MatmulArgs, RepackedWeight, repack
from kernels.norm.cpu_fast import NormArgs, QuantizeArgs
from kernels.recorder import Recorder
from kernels.rope.cpu_fast import RopeArgs
from kernels.rows import GROUP_FIELDS, RowsStruct
from kernels.rows import Rows as Buffers
from kernels.step_ops import KVCache, Norm, Place, Places, Scores
from kernels.weight import Linear, Part, Weight

MOST_HEAD_DIM = 1024
SHARED_SCORES = 1 << 16  # floats; queries whose scores are more keep to whole heads


def can_be_fast(library: Library | None, head_dim: int) -> bool:
    """Whether there are fast bodies for heads of this size."""
    return library is not None and library.variant != "portable" and head_dim % 8 == 0 and head_dim <= MOST_HEAD_DIM


def repacked(library: Library, weight: Weight) -> Weight:
    """The same numbers in tiles, without the rows they came in."""
    tiles = repack(library, weight.data, weight.format)
    return replace(weight, data=weight.data.new_empty(0, *weight.data.shape[1:]), tiles=tiles)


@dataclass(frozen=True, slots=True)
class FastRows:
    """Activations [T, width] in the making. `target` is where their maker reads which forms to leave them in."""

    buffers: Buffers
    target: RowsStruct

    def want(self, form: str) -> bool:
        """Has the maker leave `form` as well; False if it cannot."""
        whole = self.buffers.struct()
        if getattr(whole, form) is None:
            return False
        for field, _ in RowsStruct._fields_:
            if field.startswith(form):
                setattr(self.target, field, getattr(whole, field))
        return True


class FastRecorder(Recorder):
    """StepOps over the fast bodies."""

    def __init__(self, library: Library, num_tokens: int):
        super().__init__(library, num_tokens)
        self._stride = torch.zeros(1, dtype=torch.int64)
        self._scores = torch.empty(SHARED_SCORES)

    def embed(self, ids: Tensor, weight: Weight, scale: float) -> Tensor:
        tiles = _tiles(weight)
        y = self.arena.empty((self.capacity, weight.k))
        args = EmbedArgs(self._rows, ids.data_ptr(), tiles.struct(), scale, y.data_ptr(), weight.k)
        self.program.add("rt_fast_embed", args, ids, tiles)
        return y

    def norm(self, x: Tensor, norm: Norm, wanted: Tensor | None = None) -> FastRows:
        if wanted is not None:
            self._rows = self._count(2)
        buffers = self._buffers(x.shape[1])
        indices = None if wanted is None else wanted.data_ptr()
        where = (self._rows, indices, x.data_ptr(), x.stride(0), None, 0, None, norm.weight.data_ptr())
        args = NormArgs(*where, RowsStruct(width=x.shape[1]), norm.eps)
        self.program.add("rt_fast_norm", args, norm.weight, wanted)
        return FastRows(buffers, args.out)

    def _product(self, x: FastRows, part: Part, y: Tensor, into: Tensor | None) -> None:
        tiles, out = _tiles(part.weight), y if into is None else into
        bias = None if part.bias is None else part.bias.data_ptr()
        rows = self._in_form(x, tiles.rows_form)
        where = (out.data_ptr(), out.stride(0), bias, into is not None)
        args = MatmulArgs(self._rows, tiles.struct(), rows, *where, self.program.counter())
        self.program.add("rt_fast_matmul", args, tiles, part.bias)

    def gated(self, x: FastRows, gate_up: Linear, activation: str) -> FastRows:
        halves = _halves(gate_up)
        if halves is None:
            both = self.linear(x, gate_up)
            return self._quantized(self._activate(both, activation))
        gate, up = halves
        buffers = self._buffers(gate.n)
        rows = self._in_form(x, gate.rows_form)
        law = (activation == "gelu", self.program.counter())
        args = GateUpArgs(self._rows, gate.struct(), up.struct(), rows, RowsStruct(width=gate.n), *law)
        self.program.add("rt_fast_gate_up", args, gate, up)
        return FastRows(buffers, args.out)

    def attend(self, qkv: Tensor, place: Place, cache: KVCache, batch: Places, scores: Scores) -> FastRows:
        h, k, d = place.num_heads, place.num_kv_heads, place.head_dim
        stride, kind = qkv.stride(0), KINDS[cache[0].dtype]
        norms = (None, None) if place.norms is None else tuple(norm.weight.data_ptr() for norm in place.norms)
        eps = 0.0 if place.norms is None else place.norms[0].eps
        tables = (place.cos_sin.data_ptr(), batch.positions.data_ptr(), batch.slots.data_ptr(), qkv.data_ptr(), stride)
        caches = (cache[0].data_ptr(), cache[1].data_ptr())
        shape = (h, k, d, place.cos_sin.shape[1], kind, scores.scale, eps)
        args = RopeArgs(self._rows, qkv.data_ptr(), stride, *norms, *tables, *caches, *shape)
        self.program.add("rt_fast_rope", args, place, cache, batch)
        buffers = self._buffers(h * d, quantized=d % 32 == 0)
        self._stride[0] = batch.block_tables.stride(0)
        rows = (batch.block_tables.data_ptr(), self._stride.data_ptr(), batch.query_start.data_ptr(), batch.seq_lens.data_ptr())
        mixed = AttentionArgs(
            self._count(1), qkv.data_ptr(), stride, *caches, *rows, RowsStruct(width=h * d), self.program.counter(),
            h, k, d, kind, scores.window, scores.softcap, self._scores.data_ptr(), self._scores.numel(),
        )  # fmt: skip
        self.program.add("rt_fast_attention_scores", mixed, self._scores)
        self.program.add("rt_fast_attention", mixed)
        return FastRows(buffers, mixed.out)

    def _buffers(self, width: int, *, quantized: bool = True) -> Buffers:
        def groups(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            whole = self.arena.empty((self.capacity, width), dtype)
            return whole, self.arena.empty((self.capacity, width // 32, GROUP_FIELDS))

        many = quantized and width % 32 == 0
        y = self.arena.empty((self.capacity, width))
        return Buffers(y, groups(torch.int8) if many else None, groups(torch.int16) if many else None)

    def _in_form(self, x: FastRows, form: str) -> RowsStruct:
        if not x.want(form):
            x.want("y")
            y = x.buffers.y
            assert y is not None  # every maker leaves it if asked
            x = self._quantized(y)
            x.want(form)
        return x.buffers.struct()

    def _quantized(self, y: Tensor) -> FastRows:
        """y in the forms that will be asked for."""
        width = y.shape[1]
        buffers = replace(self._buffers(width), y=y)
        args = QuantizeArgs(self._rows, y.data_ptr(), y.stride(0), RowsStruct(width=width))
        self.program.add("rt_fast_quantize", args)
        return FastRows(buffers, args.out)


def _tiles(weight: Weight) -> RepackedWeight:
    if weight.tiles is None:
        raise ValueError(f"the {weight.n} x {weight.k} weights in {weight.format} were not repacked")
    return weight.tiles


def _halves(gate_up: Linear) -> tuple[RepackedWeight, RepackedWeight] | None:
    """Gate and up of the fused projection, if one body can do both."""
    if any(part.bias is not None for part in gate_up):
        return None
    parts = [_tiles(part.weight) for part in gate_up]
    if len(parts) == 2:
        same = parts[0].kind == parts[1].kind and parts[0].n == parts[1].n and parts[0].n % 32 == 0
        return (parts[0], parts[1]) if same else None
    whole = parts[0]
    if len(parts) > 2 or whole.n % 64:
        return None
    first, second = whole.data.chunk(2)
    half = whole.n // 2
    return replace(whole, data=first, n=half), replace(whole, data=second, n=half)
