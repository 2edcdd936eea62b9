"""The fast bodies run one at a time, over buffers set up before the clock starts. It knows nothing of what is measured."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kernels.attention.cpu_fast import AttentionArgs
from kernels.build import Library
from kernels.kv_write.layout import KINDS
from kernels.matmul.cpu_fast import GateUpArgs, MatmulArgs, RepackedWeight, repack
from kernels.norm.cpu_fast import NormArgs, QuantizeArgs
from kernels.rows import Rows, runner

Run = Callable[[int], object]


def _cycle(
    call: Callable[[ctypes.Structure, int], None], args: Sequence[ctypes.Structure], threads: int, keep: object, i: int
) -> None:
    call(args[i % len(args)], threads)


@dataclass(frozen=True, slots=True)
class FastKernels:
    """Each method gives a function of the number of the run, which picks the copy of the weights or of the cache."""

    library: Library
    threads: int

    def weights(self, data: Tensor, fmt: str, copies: int) -> list[RepackedWeight]:
        first = repack(self.library, data, fmt)
        return [replace(first, data=first.data.clone()) for _ in range(copies)]

    @staticmethod
    def unit(weight: RepackedWeight) -> str:
        """The instruction that bounds products with it."""
        return {"q8": "maddubs", "q16": "madd", "y": "fma"}[weight.rows_form]

    def _rows(self, x: Tensor, form: str) -> Rows:
        out, count = Rows.empty(len(x), x.shape[1], (form,)), ctypes.c_int64(len(x))
        args = QuantizeArgs(ctypes.addressof(count), x.data_ptr(), x.stride(0), out.struct())
        runner(self.library, "rt_fast_quantize")(args, 1)
        return out

    def matmul(self, x: Tensor, weights: Sequence[RepackedWeight]) -> Run:
        rows, count = self._rows(x, weights[0].rows_form), ctypes.c_int64(len(x))
        out = torch.empty(len(x), weights[0].n)
        where = (out.data_ptr(), out.stride(0), None, 0)
        args = [MatmulArgs(ctypes.addressof(count), weight.struct(), rows.struct(), *where) for weight in weights]
        return partial(_cycle, runner(self.library, "rt_fast_matmul"), args, self.threads, (rows, count, out))

    def gate_up(self, x: Tensor, weights: Sequence[RepackedWeight]) -> Run:
        """weights: gate and up side by side."""
        rows, count, half = self._rows(x, weights[0].rows_form), ctypes.c_int64(len(x)), weights[0].n // 2
        out, args = Rows.empty(len(x), half, ("q8",)), []
        for weight in weights:
            gate, up = (replace(weight, data=part, n=half) for part in torch.chunk(weight.data, 2))
            args.append(GateUpArgs(ctypes.addressof(count), gate.struct(), up.struct(), rows.struct(), out.struct(), 0))
        return partial(_cycle, runner(self.library, "rt_fast_gate_up"), args, self.threads, (rows, count, out))

    def attention(self, q: Tensor, caches: Sequence[tuple[Tensor, Tensor]], tables: Tensor, start: Tensor, lens: Tensor) -> Run:
        count, counter, stride = ctypes.c_int64(len(lens)), ctypes.c_int64(0), ctypes.c_int64(tables.stride(0))
        out = Rows.empty(len(q), q.shape[1] * q.shape[2], ("q8",))
        shape = (q.shape[1], caches[0][0].shape[1], q.shape[2], KINDS[caches[0][0].dtype], 0, 0.0)
        where = (tables.data_ptr(), ctypes.addressof(stride), start.data_ptr(), lens.data_ptr(), out.struct())
        args = [
            AttentionArgs(
                *(ctypes.addressof(count), q.data_ptr(), q.stride(0), k.data_ptr(), v.data_ptr()),
                *(*where, ctypes.addressof(counter), *shape),
            )
            for k, v in caches
        ]
        call = runner(self.library, "rt_fast_attention")

        def run(i: int, keep: object = (out, count, stride)) -> None:
            counter.value = 0
            call(args[i % len(args)], self.threads)

        return run

    def norm(self, x: Tensor, weight: Tensor) -> Run:
        count, out, total = ctypes.c_int64(len(x)), Rows.empty(len(x), x.shape[1], ("q8",)), torch.empty_like(x)
        args = NormArgs(
            *(ctypes.addressof(count), None, x.data_ptr(), x.stride(0), x.data_ptr(), x.stride(0), total.data_ptr()),
            *(weight.data_ptr(), out.struct(), 1e-5),
        )
        return partial(_cycle, runner(self.library, "rt_fast_norm"), [args], self.threads, (count, out, total))
