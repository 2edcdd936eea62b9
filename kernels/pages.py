"""Memory for what is read from end to end in every step: in huge pages where the system gives them.

A step of a small model reads a hundred megabytes; in pages of 4 KiB the processor spends part of that time looking up
addresses. It knows nothing of what the bytes mean.
"""

import contextlib
import mmap

import torch
from torch import Tensor


def zeros(num_bytes: int) -> Tensor:
    """uint8 [num_bytes], all 0; pages are taken as they are first written."""
    if num_bytes == 0:
        return torch.zeros(0, dtype=torch.uint8)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Advice: a kernel without huge pages refuses it, and loses nothing.
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)
