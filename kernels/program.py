"""A step recorded once and run many times with one call (program.cpp): commands, their counters, and memory between them.

It knows nothing of what the bodies compute.
"""

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kernels.build import Library

_LETTERS: dict[str, Any] = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "f": ctypes.c_float, "i": ctypes.c_int32}
_MOST_COUNTERS = 4096
_COUNTER_STRIDE = 8  # a cache line each
_ALIGNMENT = 64


def layout(spec: str) -> list[tuple[str, Any]]:
    """The `_fields_` of a body's arguments, as "letter:name letter:name": p pointer, l int64, i int32, f float."""
    return [(name, _LETTERS[letter]) for letter, name in (each.split(":") for each in spec.split())]


class _Command(ctypes.Structure):
    _fields_: ClassVar = layout("p:body p:args")


class Program:
    """Commands in order; each sees all that those before it wrote."""

    def __init__(self, library: Library):
        self._library = library
        self._call = library.function("rt_run", "plpli")
        self._commands: list[_Command] = []
        self._arguments: tuple[int, ...] = ()  # of the call, made at the first run
        self._array: Any = None
        self._kept: list[Any] = []
        self._counters = np.zeros(_MOST_COUNTERS * _COUNTER_STRIDE, dtype=np.int64)
        self._num_counters = 0

    def __len__(self) -> int:
        return len(self._commands)

    def add(self, body: str, args: ctypes.Structure, *keep: Any) -> None:
        """One more command: the exported body and its arguments. `keep` lives as long as the program."""
        self._kept += (args, *keep)
        address = ctypes.cast(self._library.symbols[body], ctypes.c_void_p).value
        self._commands.append(_Command(address, ctypes.addressof(args)))
        self._arguments = ()

    def counter(self) -> int:
        """The address of a number that is 0 when a run begins."""
        if self._num_counters == _MOST_COUNTERS:
            raise ValueError(f"a program has at most {_MOST_COUNTERS} counters")
        self._num_counters += 1
        return int(self._counters.ctypes.data) + (self._num_counters - 1) * _COUNTER_STRIDE * 8

    def keep(self, *values: Any) -> None:
        """These live as long as the program."""
        self._kept += values

    def run(self, num_threads: int) -> None:
        """All commands, once."""
        if not self._arguments:
            self._array = (_Command * len(self._commands))(*self._commands)
            where, counters = ctypes.addressof(self._array), int(self._counters.ctypes.data)
            self._arguments = (where, len(self._commands), counters, self._num_counters * _COUNTER_STRIDE)
        self._call(*self._arguments, num_threads)


class Arena:
    """Memory for what one command leaves to another: a buffer is used again once the last tensor over it is gone."""

    def __init__(self, program: Program):
        self._program = program
        self._free: dict[int, list[np.ndarray[Any, Any]]] = {}
        self.num_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of any content, for as long as it or a view of it lives."""
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        free = self._free.setdefault(num_bytes, [])
        if free:
            buffer = free.pop()
        else:
            whole = np.empty(num_bytes + _ALIGNMENT, dtype=np.uint8)
            first = -whole.ctypes.data % _ALIGNMENT
            buffer = whole[first : first + num_bytes]
            self._program.keep(buffer)
            self.num_bytes += num_bytes
        lent = buffer[:]  # a view of its own, whose end says that the buffer is free
        weakref.finalize(lent, free.append, buffer).atexit = False
        return torch.from_numpy(lent).view(dtype).view(*shape)
