"""Fast bodies run alone, for tests: a library, a number of threads, tensors in and out."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention.cpu_fast import AttentionArgs
from kernels.build import Library
from kernels.kv_write.layout import KINDS
from kernels.matmul.cpu_fast import GateUpArgs, MatmulArgs, RepackedWeight
from kernels.norm.cpu_fast import NormArgs, QuantizeArgs
from kernels.rope.cpu_fast import RopeArgs
from kernels.rows import Rows, runner


class PeaksArgs(ctypes.Structure):
    """rt_peaks: 0 read, 1 fma, 2 madd, 3 maddubs; bytes to read; how many bytes, or rounds."""

    _fields_ = (("what", ctypes.c_int64), ("data", ctypes.c_void_p), ("count", ctypes.c_int64))


def same(a: Rows, b: Rows) -> bool:
    """Whether all forms of two matrices agree bit for bit."""
    pairs = [(a.y, b.y), *zip(a.q8 or (), b.q8 or (), strict=True), *zip(a.q16 or (), b.q16 or (), strict=True)]
    return all((x is None and y is None) or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


@dataclass(frozen=True, slots=True)
class Fast:
    """The fast bodies on `threads` threads."""

    library: Library
    threads: int = 2

    def _run(self, name: str, args: ctypes.Structure) -> None:
        runner(self.library, name)(args, self.threads)

    def quantize(self, x: Tensor, *forms: str) -> Rows:
        count, out = ctypes.c_int64(len(x)), Rows.empty(len(x), x.shape[1], forms)
        self._run("rt_fast_quantize", QuantizeArgs(ctypes.addressof(count), x.data_ptr(), x.stride(0), out.struct()))
        return out

    def norm(
        self, x: Tensor, add: Tensor | None, weight: Tensor, eps: float, wanted: Tensor | None, *forms: str
    ) -> tuple[Rows, Tensor]:
        rows = len(x) if wanted is None else len(wanted)
        count, out, total = ctypes.c_int64(rows), Rows.empty(rows, x.shape[1], forms), torch.empty(rows, x.shape[1])
        more = (None, 0) if add is None else (add.data_ptr(), add.stride(0))
        args = NormArgs(
            *(ctypes.addressof(count), None if wanted is None else wanted.data_ptr(), x.data_ptr(), x.stride(0), *more),
            *(total.data_ptr(), weight.data_ptr(), out.struct(), eps),
        )
        self._run("rt_fast_norm", args)
        return out, total

    def matmul(self, x: Tensor, weight: RepackedWeight, bias: Tensor | None = None, onto: Tensor | None = None) -> Tensor:
        count, rows = ctypes.c_int64(len(x)), self.quantize(x, weight.rows_form)
        out = torch.full((len(x), weight.n), torch.nan) if onto is None else onto.clone()
        bias_at = None if bias is None else bias.data_ptr()
        where = (out.data_ptr(), out.stride(0), bias_at, int(onto is not None))
        self._run("rt_fast_matmul", MatmulArgs(ctypes.addressof(count), weight.struct(), rows.struct(), *where))
        return out

    def gate_up(self, x: Tensor, gate: RepackedWeight, up: RepackedWeight, gelu: bool, *forms: str) -> Rows:
        count, rows, out = ctypes.c_int64(len(x)), self.quantize(x, gate.rows_form), Rows.empty(len(x), gate.n, forms)
        args = GateUpArgs(ctypes.addressof(count), gate.struct(), up.struct(), rows.struct(), out.struct(), int(gelu))
        self._run("rt_fast_gate_up", args)
        return out

    def rope(
        self,
        qkv: Tensor,
        heads: tuple[int, int, int],
        norms: tuple[Tensor, Tensor] | None,
        cos_sin: Tensor,
        places: tuple[Tensor, Tensor],
        caches: tuple[Tensor, Tensor],
        scale: float,
    ) -> Tensor:
        """heads: query heads, key heads, size; places: positions, slots."""
        count, q = ctypes.c_int64(len(qkv)), torch.empty(len(qkv), heads[0], heads[2])
        weights = (None, None) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
        args = RopeArgs(
            *(ctypes.addressof(count), qkv.data_ptr(), qkv.stride(0), *weights, cos_sin.data_ptr()),
            *(places[0].data_ptr(), places[1].data_ptr(), q.data_ptr(), q.stride(0), caches[0].data_ptr(), caches[1].data_ptr()),
            *(*heads, cos_sin.shape[1], KINDS[caches[0].dtype], scale, 1e-6),
        )
        self._run("rt_fast_rope", args)
        return q

    def attention(
        self,
        q: Tensor,
        caches: tuple[Tensor, Tensor],
        tables: Tensor,
        start: Tensor,
        lens: Tensor,
        window: int = 0,
        softcap: float = 0.0,
        forms: tuple[str, ...] = ("y",),
        scores: Tensor | None = None,
    ) -> Rows:
        heads, size = q.shape[1:]
        count, counter, stride = ctypes.c_int64(len(lens)), ctypes.c_int64(0), ctypes.c_int64(tables.stride(0))
        out = Rows.empty(len(q), heads * size, forms)
        args = AttentionArgs(
            *(ctypes.addressof(count), q.data_ptr(), q.stride(0), caches[0].data_ptr(), caches[1].data_ptr()),
            *(tables.data_ptr(), ctypes.addressof(stride), start.data_ptr(), lens.data_ptr(), out.struct()),
            *(ctypes.addressof(counter), heads, caches[0].shape[1], size, KINDS[caches[0].dtype], window, softcap),
        )
        if scores is not None:
            args.scores, args.room = scores.data_ptr(), scores.numel()
            self._run("rt_fast_attention_scores", args)
        self._run("rt_fast_attention", args)
        return out
