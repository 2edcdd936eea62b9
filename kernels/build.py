"""Compiles the C++ kernels into a shared library, once per source, flags and compiler, and loads it.

torch must be loaded first (this module imports it): the library then shares the OpenMP runtime torch brought, so
there is one pool of threads, of the size torch.set_num_threads gives. Where others want the same cores, start the
process with OMP_WAIT_POLICY=passive: at a load of 7 on 2 cores a small product on 2 threads took 24 ms (median) with
threads that spin and 0.1 ms with threads that sleep. It knows nothing of what the kernels compute.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: F401  its OpenMP runtime must be loaded first

from kernels import variants
from kernels.sources import digest

_LOG = logging.getLogger(__name__)
_COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi"),
    # No rounding may depend on what the optimiser felt like fusing, and nothing may assume away NaN.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_TIMEOUT_S = 300
_TYPES: dict[str, Any] = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int,
    "f": ctypes.c_float,
}


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library and the instruction set it was compiled for, by its name in variants.py."""

    variant: str
    symbols: ctypes.CDLL

    def function(self, name: str, arguments: str, *, is_brief: bool = False) -> Callable[..., int]:
        """An exported C function; one letter per argument: p pointer, l int64, i int, f float. It returns an int.

        Meanwhile another thread may run Python, and keep it for longer than a brief function takes: such a one lets none.
        """
        types = [_TYPES[letter] for letter in arguments]
        if is_brief:
            return ctypes.PYFUNCTYPE(ctypes.c_int, *types)((name, self.symbols))
        found = self.symbols[name]
        found.argtypes = types
        return found


class BuildError(RuntimeError):
    """There is no compiler, or it refused the sources; the message says which and what to do."""


class NoCompilerError(BuildError):
    """There is no compiler."""


def library(cache_dir: Path, variant: str | None = None) -> Library:
    """The kernels, compiled into cache_dir if they are not there yet, in the best variant for this processor unless one
    is named. Whether it works on this processor is for the caller to check. Raises BuildError.

    Several processes may call this at once: each compiles in a directory of its own and keeps the result whole.
    """
    compiler = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise NoCompilerError(f"no C++ compiler ({', '.join(_COMPILERS)}) on PATH: install g++ or clang++")
    variant = variant or variants.here()[0]
    flags = FLAGS + variants.FLAGS[variant]
    folder = Path(__file__).parent
    sources = sorted((folder / "inputs.cpp", folder / "program.cpp", *folder.glob("*/cpu*.cpp")))
    target = cache_dir / f"kernels-{variant}-{_key(compiler, flags, folder)}.so"
    if target.exists():
        return Library(variant, ctypes.CDLL(str(target)))
    with tempfile.TemporaryDirectory(prefix="roadtrain-compiling-") as work:
        built = Path(work) / target.name
        # A compiler that does not know the instructions says so here, in half a second.
        _run([compiler, *flags, "-c", str(folder / "probe.cpp"), "-o", str(Path(work) / "probe.o")])
        _compile(compiler, flags, sources, built)
        # Loaded before the folder goes: a cache that is full or read-only costs the next start a compilation, no more.
        loaded = Library(variant, ctypes.CDLL(str(built)))
        try:
            _keep(built, target)
        except OSError as error:
            _LOG.warning("The compiled kernels could not be kept in %s: %s", cache_dir, error.strerror)
    return loaded


def _keep(built: Path, target: Path) -> None:
    """Puts a file in the cache whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix="keeping-")
    os.close(descriptor)
    try:
        shutil.copyfile(built, name)
        os.replace(name, target)
    except OSError:
        os.unlink(name)
        raise


def _key(compiler: str, flags: tuple[str, ...], folder: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False, timeout=_TIMEOUT_S).stdout
    sources = (*folder.glob("*.h"), *folder.glob("*/*.h"), *folder.glob("*.cpp"), *folder.glob("*/*.cpp"))
    return digest(folder, sources, version, *(flag.encode() for flag in flags))[:16]


def _compile(compiler: str, flags: tuple[str, ...], sources: list[Path], target: Path) -> None:
    objects = [target.parent / f"{source.parent.name}-{source.stem}.o" for source in sources]
    commands = [[compiler, *flags, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands))
    _run([compiler, *flags, "-shared", *map(str, objects), "-o", str(target)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        raise BuildError(f"{command[0]} failed on the CPU kernels: {_first_error(done.stderr)}")


def _first_error(text: str) -> str:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it said nothing")
