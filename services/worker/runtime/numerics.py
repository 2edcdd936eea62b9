"""Which release's numbers these are: a digest of every source that a token's value depends on.

Two releases may compute the same model with the same kernel variant and differ in the last bit, and then in a token; this
tells them apart, and is the same on every machine with the same release. It says more than it must: a comment changes
it, too. It knows nothing of models, formats or variants, which the fingerprint names beside it.
"""

from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

import kernels
from kernels.sources import digest
from services import worker

# Scheduling, delivery and the rest of a worker change when a token comes, not which one.
ROOMS = ("backends", "layers", "models", "runtime", "weights")
# What a grammar lets come depends on these, too.
SHARED = ("grammars.py", "vocabulary/*.py")
SUFFIXES = (".py", ".cpp", ".h")


@cache
def release() -> str:
    """Twelve hex digits for the sources here and the versions of torch and llguidance."""
    package, kernel_room = Path(worker.__file__).parent, Path(kernels.__file__).parent
    folders = (kernel_room, *(package / room for room in ROOMS))
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in SUFFIXES]
    sources += [path for pattern in SHARED for path in (kernel_room.parent / "shared").glob(pattern)]
    libraries = (torch.__version__.partition("+")[0], version("llguidance"))
    return digest(kernel_room.parent, sources, *(library.encode() for library in libraries))[:12]
