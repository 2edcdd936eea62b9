"""The machine's limits, measured: bytes read per second, and operations per second of each multiply-add instruction.

It knows nothing of kernels beyond which instruction bounds them.
"""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from kernels.build import Library
from kernels.rows import runner

COLD_BYTES = 128 << 20
READ_BYTES = 8 << 20  # at a time: short runs find the moments when nobody else uses the machine
ROUNDS = 100_000
_PER_ROUND = {"fma": 160, "madd": 320, "maddubs": 640}  # multiplications and additions of ten instructions
_WHAT = {"read": 0, "fma": 1, "madd": 2, "maddubs": 3}


class _Args(ctypes.Structure):
    _fields_ = (("what", ctypes.c_int64), ("data", ctypes.c_void_p), ("count", ctypes.c_int64))


def shortest(run: Callable[[int], object], seconds: float) -> float:
    """Shortest of at least four runs within a number of seconds; `run` gets the number of the run."""
    run(0)
    best, count, end = float("inf"), 1, time.perf_counter() + seconds
    while count < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run(count)
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


@dataclass(frozen=True, slots=True)
class Roofline:
    """Bytes per second from memory, and operations per second of float32, int16 and int8 multiply-adds."""

    read: float
    fma: float
    madd: float
    maddubs: float

    def percent(self, seconds: float, unit: str, operations: float, num_bytes: float) -> float:
        """How much of what is possible was reached: 100 if memory or the instruction `unit` was busy all the time."""
        return 100 * max(num_bytes / self.read, operations / getattr(self, unit)) / seconds

    def __str__(self) -> str:
        units = ", ".join(f"{name} {value / 1e9:.0f} G/s" for name, value in asdict(self).items() if name != "read")
        return f"roofline: read {self.read / 1e9:.1f} GB/s, {units}"


def _one(run: Callable[[ctypes.Structure, int], None], args: Sequence[_Args], num_threads: int, i: int) -> None:
    run(args[i % len(args)], num_threads)


def measure(library: Library, num_threads: int, seconds: float = 0.5) -> Roofline:
    """The limits of `num_threads` threads, each measured for about `seconds`."""
    run, data = runner(library, "rt_peaks"), torch.ones(COLD_BYTES + 4096, dtype=torch.uint8)
    count = READ_BYTES // (256 * num_threads) * 256 * num_threads
    args = {name: [_Args(what, data.data_ptr(), ROUNDS)] for name, what in _WHAT.items()}
    args["read"] = [_Args(0, data.data_ptr() + at, count) for at in range(0, COLD_BYTES, READ_BYTES)]
    best = {}
    for name, each in args.items():
        best[name] = shortest(partial(_one, run, each, num_threads), seconds)
    rates = {name: ROUNDS * per * num_threads / best[name] for name, per in _PER_ROUND.items()}
    return Roofline(read=count / best["read"], **rates)
