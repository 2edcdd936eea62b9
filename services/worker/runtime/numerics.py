"""Which release's numbers these are: a digest of every source that a token's value depends on.

Two releases may compute the same model with the same kernel variant and differ in the last bit, and then in a token; this
tells them apart, and is the same on every machine with the same release. It says more than it must: a comment changes
it, too. It knows nothing of models, formats or variants, which the fingerprint names beside it.
"""

import hashlib
from functools import cache
from pathlib import Path

import torch

import kernels
from services import worker

# Scheduling, delivery and the rest of a worker change when a token comes, not which one.
ROOMS = ("backends", "layers", "models", "runtime", "weights")
SUFFIXES = (".py", ".cpp", ".h")


@cache
def release() -> str:
    """Twelve hex digits for the sources here and the version of torch."""
    package = Path(worker.__file__).parent
    folders = [Path(kernels.__file__).parent, *(package / room for room in ROOMS)]
    digest = hashlib.sha256(torch.__version__.partition("+")[0].encode())
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            # Line ends are a matter of how the sources were fetched.
            digest.update(name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]
