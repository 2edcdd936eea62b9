"""The paged KV cache: how many blocks fit in memory, and the tensors of every layer.

How they are laid out: kernels/kv_write/layout.py. It knows nothing of which sequence a block belongs to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kernels.kv_write import layout
from services.worker.engine.step import BLOCK_SIZE
from shared.errors import StartupError

FREE_SHARE = 4
MOST_UNASKED = 4 * 2**30
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one token takes: keys and values in every layer. dtype: a key of DTYPES."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        keys, values = layout.empty(1, self.num_kv_heads, self.head_dim, DTYPES[self.dtype], "meta")
        return self.num_layers * (keys.nbytes + values.nbytes)

    @property
    def head_bytes(self) -> str:
        """The keys or values of one head and token, for people."""
        numbers = f"{self.head_dim} x {DTYPES[self.dtype].itemsize} bytes"
        return f"({numbers} + 4 of scale)" if self.dtype == "int8" else numbers


@dataclass(frozen=True, slots=True)
class KVPlan:
    """How many blocks, and the sum that led there."""

    num_blocks: int
    arithmetic: str


def plan(shape: KVShape, memory: int | None, max_model_len: int, free: int | None = None) -> KVPlan:
    """Blocks for `memory` bytes, or a quarter of what is free, at most 4 GiB, if None.

    Raises StartupError with the numbers if not even one sequence of max_model_len tokens fits.
    """
    if memory is None:
        free = free_memory() if free is None else free
        memory = min(free // FREE_SHARE, MOST_UNASKED)
        source = f"a quarter of {_size(free)} free, at most {_size(MOST_UNASKED)}"
    else:
        source = "as set by kv-memory"
    num_blocks = memory // shape.block_bytes
    needed = -(-max_model_len // BLOCK_SIZE)
    if num_blocks < needed:
        fits = num_blocks * BLOCK_SIZE
        raise StartupError(
            f"the KV cache gets {_size(memory)} ({source}), room for {fits} tokens, but one request of full context has "
            f"{max_model_len} and needs {_size(needed * shape.block_bytes)}; "
            + (f"raise --kv-memory or set --max-model-len {fits}" if fits else "raise --kv-memory")
        )
    return KVPlan(
        num_blocks,
        f"KV cache {_size(num_blocks * shape.block_bytes)} ({source}) = {num_blocks} blocks of {BLOCK_SIZE} tokens x "
        f"{shape.num_layers} layers x 2 x {shape.num_kv_heads} heads x {shape.head_bytes}: "
        f"{num_blocks * BLOCK_SIZE} tokens, {num_blocks // needed} requests of full context ({max_model_len})",
    )


def allocate(shape: KVShape, num_blocks: int, device: str) -> Sequence[tuple[Tensor, Tensor]]:
    """Uninitialised (k_cache, v_cache) of each layer; pages of memory are taken as they are first written."""
    whole = (num_blocks, shape.num_kv_heads, shape.head_dim, DTYPES[shape.dtype], device)
    return [layout.empty(*whole) for _ in range(shape.num_layers)]


def free_memory() -> int:
    """Bytes this process may still take: what the machine has available, or the container's limit if that is less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return max(0, min(available, limit - used))


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
