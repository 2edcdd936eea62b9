"""The kernels on 64-bit ARM without such a machine: cross-compiled, run by qemu, called like those of this processor.

Python and torch run here; a body's arguments and all memory they point into go to arm_driver.cpp and come back. Pointers are
found in the fields of the arguments, the memory behind them among the tensors that are alive and what a program keeps; any
other pointer points at one int64. It knows nothing of what the bodies compute.
"""

import ctypes
import gc
import shutil
import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kernels
from kernels import variants
from kernels.program import Program
from tests.kernels.fast import Fast

COMPILER, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
_FOLDER = Path(kernels.__file__).parent


def missing() -> str | None:
    """What has to be installed first, or None."""
    absent = [name for name in (COMPILER, QEMU) if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} (Debian: g++-aarch64-linux-gnu, qemu-user)" if absent else None


def compile_driver(work: Path, flags: tuple[str, ...]) -> Path:
    """The driver with all kernels in one static program."""
    sources = [Path(__file__).with_name("arm_driver.cpp"), *sorted((*_FOLDER.glob("*/cpu*.cpp"), _FOLDER / "program.cpp"))]
    objects = [work / f"{source.parent.name}-{source.stem}.o" for source in sources]
    every = (COMPILER, *flags, *variants.FLAGS["neon"])

    def run(source: Path, target: Path) -> None:
        subprocess.run([*every, "-Wall", "-Werror", "-c", str(source), "-o", str(target)], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, sources, objects))
    subprocess.run([*every, "-static", *map(str, objects), "-o", str(work / "driver")], check=True)
    return work / "driver"


def _pointers(kind: type[ctypes.Structure], start: int = 0) -> list[int]:
    """Where the pointers lie in a structure."""
    found = []
    for name, inner in (each[:2] for each in kind._fields_):
        at = start + getattr(kind, name).offset
        if inner is ctypes.c_void_p:
            found.append(at)
        elif issubclass(inner, ctypes.Structure):
            found += _pointers(inner, at)
    return found


def _memory() -> list[tuple[int, int]]:
    """First and last address but one of every tensor's memory."""
    storages = [each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor]
    return sorted({(storage.data_ptr(), storage.data_ptr() + storage.nbytes()) for storage in storages if storage.nbytes()})


class Machine:
    """A running driver."""

    def __init__(self, driver: Path):
        self._process = subprocess.Popen([QEMU, str(driver)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        with self._process:  # closes the pipes, which end it, and waits
            self._process.kill()

    def run(self, body: str, args: ctypes.Structure, num_threads: int, kept: Sequence[np.ndarray[Any, Any]] = ()) -> None:
        """One body; what it wrote is where its arguments say when this returns. They may point into `kept`, too."""
        raw, spans, patches = bytes(args), list[tuple[int, int]](), list[tuple[int, int, int, int]]()
        memory = [*((each.ctypes.data, each.ctypes.data + each.nbytes) for each in kept), *_memory()]
        for at in _pointers(type(args)):
            (address,) = struct.unpack_from("<q", raw, at)
            if not address:
                continue
            span = next((each for each in memory if each[0] <= address < each[1]), (address, address + 8))
            if span not in spans:
                spans.append(span)
            patches.append((0, at, spans.index(span) + 1, address - span[0]))
        buffers = [raw, *(ctypes.string_at(first, end - first) for first, end in spans)]
        message = [struct.pack("<q", len(body)), body.encode(), struct.pack("<qq", num_threads, len(buffers))]
        for buffer in buffers:
            message += (struct.pack("<q", len(buffer)), buffer)
        message.append(struct.pack("<q", len(patches)))
        message += (struct.pack("<4q", *patch) for patch in patches)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"".join(message))
        self._process.stdin.flush()
        answers = [self._process.stdout.read(len(buffer)) for buffer in buffers]
        assert len(answers[-1]) == len(buffers[-1]), f"{body} broke the driver"
        for (first, _), answer in zip(spans, answers[1:], strict=True):
            ctypes.memmove(first, answer, len(answer))


@dataclass(frozen=True, slots=True)
class ArmFast(Fast):
    """Fast's bodies on ARM. `library` packs the weights: their bytes are the same wherever tiles have eight rows."""

    machine: Machine = field(kw_only=True)

    def _run(self, name: str, args: ctypes.Structure) -> None:
        self.machine.run(name, args, self.threads)


def program_on(machine: Machine) -> type[Program]:
    """A Program whose commands run there."""

    class ArmProgram(Program):
        def __init__(self, library: Any):
            super().__init__(library)
            self.listed: list[tuple[str, ctypes.Structure]] = []

        def add(self, body: str, args: ctypes.Structure, *keep: Any) -> None:
            super().add(body, args, *keep)
            self.listed.append((body, args))

        def run(self, num_threads: int) -> None:
            kept = [each for each in self._kept if isinstance(each, np.ndarray)]
            for body, args in self.listed:
                machine.run(body, args, num_threads, kept)

    return ArmProgram
