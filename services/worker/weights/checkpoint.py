"""What a checkpoint answers, whatever its file format, and the account of its tensors.

Tensors go by their Hugging Face names and errors by the name in the file. Letters: N rows, K columns.
It knows nothing of file formats or of which tensors a model needs.
"""

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.matmul.formats import FORMATS
from kernels.weight import Linear, Part, Weight
from services.worker.layers.linear import fused
from services.worker.weights.repacked import Repacked
from shared.errors import StartupError

Progress = Callable[[int, int], None]  # bytes read, bytes in all


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as its file describes it; `read` gives the rows as Weight.data wants them (1-D ones as they are)."""

    file: Path
    file_name: str  # the tensor's name in the file
    shape: tuple[int, ...]
    format: str
    num_bytes: int
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model: numbers, tensor table, identity."""

    path: Path
    config: Mapping[str, Any]  # the model's numbers, in the words of a Hugging Face config.json
    config_source: str  # where they are from, for errors
    entries: Mapping[str, Entry]  # by Hugging Face name
    file_name: Callable[[str], str]  # the name a tensor has, or would have, in the file
    revision: str  # hex SHA-256 over the files' headers and sizes and the first 4 KiB of every tensor
    eos_token_ids: tuple[int, ...]


class Weights:
    """Hands out a checkpoint's tensors by name, checked, each at most once; `finish` refuses leftovers.

    All methods raise StartupError naming file and tensor.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress | None = None, repacked: Repacked | None = None):
        self.checkpoint = checkpoint
        self.repacked = repacked
        self.progress = progress or (lambda done, total: None)
        self.unused = dict(checkpoint.entries)
        self.num_bytes = sum(entry.num_bytes for entry in self.unused.values())
        self.num_bytes_read = 0
        self.formats: set[str] = set()
        self._accounted: set[str] = set()

    def linear(self, parts: Mapping[str, int], k: int, *, bias: bool = False) -> Linear:
        """One layer [T, k] -> [T, sum of rows] from the modules in `parts` (name -> rows), in order."""
        entries = [self._take(f"{name}.weight", (n, k)) for name, n in parts.items()]
        biases = [self.vector(f"{name}.bias", n) for name, n in parts.items()] if bias else []
        if self.repacked is None:
            return fused([self._stored([entry], k) for entry in entries], biases)
        linear: list[Part] = []
        for _, group in groupby(entries, key=attrgetter("format")):
            same = list(group)
            begin = sum(part.weight.n for part in linear)
            n = sum(entry.shape[0] for entry in same)
            weight = self.repacked.weight(same[0].file_name, same[0].format, n, k, partial(self._stored, same, k))
            self._account(same)
            linear.append(Part(weight, torch.cat(biases)[begin : begin + n] if bias else None))
        return tuple(linear)

    def vector(self, name: str, n: int) -> Tensor:
        """The n numbers `name` as float32."""
        entry = self._take(name, (n,))
        return self._read(entry).float()

    def _stored(self, entries: Sequence[Entry], k: int) -> Weight:
        """Tensors of one format end to end, as they are stored."""
        (part,) = fused([Weight(self._read(entry), entry.format, k) for entry in entries])
        return part.weight

    def finish(self, ignored: Sequence[str] = ()) -> None:
        """Refuses tensors nobody asked for, except those whose names begin or end with one of `ignored`."""
        left = [e for name, e in self.unused.items() if not name.startswith(tuple(ignored)) and not name.endswith(tuple(ignored))]
        if left:
            others = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise StartupError(
                f"{left[0].file}: extra tensor '{left[0].file_name}'{others}, which this architecture does not use; "
                "the file is damaged or of another architecture"
            )
        self.progress(self.num_bytes, self.num_bytes)
        if self.repacked is not None:
            self.repacked.keep()

    def _take(self, name: str, shape: tuple[int, ...]) -> Entry:
        entry = self.unused.pop(name, None)
        if entry is None:
            raise StartupError(
                f"{self.checkpoint.path}: tensor '{self.checkpoint.file_name(name)}' is missing; "
                "the file is damaged or of another architecture"
            )
        if entry.shape != shape:
            raise StartupError(
                f"{entry.file}: tensor '{entry.file_name}' has the shape {list(entry.shape)}, but "
                f"{self.checkpoint.config_source} makes it {list(shape)}"
            )
        usable = [format for format, layout in FORMATS.items() if len(shape) > 1 or layout.block_size == 1]
        if entry.format not in usable:
            raise StartupError(
                f"{entry.file}: tensor '{entry.file_name}' is stored as {entry.format}, which is not supported; "
                f"use a file of {', '.join(usable)}"
            )
        return entry

    def _read(self, entry: Entry) -> Tensor:
        data = entry.read()
        # Mapped files are read on first touch: touch every page now, so that progress is true and no request waits.
        data.view(torch.uint8).flatten()[:: mmap.PAGESIZE].sum()
        self._account([entry])
        return data

    def _account(self, entries: Sequence[Entry]) -> None:
        """These are in use; safe to call again."""
        for entry in entries:
            if entry.file_name not in self._accounted:
                self._accounted.add(entry.file_name)
                self.formats.add(entry.format)
                self.num_bytes_read += entry.num_bytes
                self.progress(self.num_bytes_read, self.num_bytes)
