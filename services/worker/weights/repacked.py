"""Weights in the tiles that fast products read: repacked now, or mapped from the file that an earlier start left.

A file is left only where repacking took long, whole or not at all, and every weight in it is checked when it is taken: what
is missing, damaged or of another model costs a repacking, and is never used. File: magic, length and CRC-32 of the header
(u64, u32), header (JSON: one record a weight), then each weight's bytes at a multiple of 64. It knows nothing of models.
"""

import contextlib
import json
import logging
import mmap
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch

from kernels.matmul.cpu_fast import RepackedWeight
from kernels.weight import Weight

MAGIC = b"RTTILES1"
KEEP_FROM_S = 2.0
_LENGTH = struct.Struct("<QI")
_ALIGNMENT = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """One weight in the file: n x k numbers once stored in `format`, as `num_bytes` bytes of tiles of `kind` at `offset`."""

    format: str
    n: int
    k: int
    kind: int
    offset: int
    num_bytes: int
    crc: int


class Repacked:
    """The tiles of one model, by name. repack: what makes them; file: where they are kept, unique to model and layout; None:
    nowhere.
    """

    def __init__(self, repack: Callable[[Weight], Weight], file: Path | None):
        self._repack = repack
        self._file = file
        self._took_s = 0.0
        self._done: dict[str, Weight] = {}
        self._data, self._records = (None, {}) if file is None else _opened(file)

    def weight(self, name: str, fmt: str, n: int, k: int, read: Callable[[], Weight]) -> Weight:
        """The n x k weight `name` in tiles; `read` gives it as it is stored, and is called only if there are none."""
        tiles = self._kept(name, fmt, n, k)
        if tiles is not None:
            done = Weight(torch.empty(0, 0, dtype=torch.uint8), fmt, k, tiles)
        else:
            stored = read()
            started_at = time.monotonic()
            done = self._repack(stored)
            self._took_s += time.monotonic() - started_at
        self._done[name] = done
        return done

    def keep(self) -> None:
        """Leaves a file for the next start, if this one repacked for long; files of the same model in other layouts go."""
        file = self._file
        if file is None or self._took_s < KEEP_FROM_S:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            for old in file.parent.glob(f"{file.name.partition('-')[0]}-*"):
                old.unlink()
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix="keeping-", delete=False) as out:
                try:
                    _write(out, self._done)
                    os.replace(out.name, file)
                except BaseException:
                    os.unlink(out.name)
                    raise
        except OSError as error:
            logger.warning(f"the repacked weights could not be kept in {file.parent}: {error.strerror}")
        else:
            logger.info(f"repacking took {self._took_s:.1f} s; kept for the next start: {file}")

    def _kept(self, name: str, fmt: str, n: int, k: int) -> RepackedWeight | None:
        record = self._records.get(name)
        if record is None or self._data is None:
            return None
        data = memoryview(self._data)[record.offset : record.offset + record.num_bytes]
        if (record.format, record.n, record.k) != (fmt, n, k) or zlib.crc32(data) != record.crc:
            logger.warning(f"{self._file} is damaged; the model's weights are repacked")
            self._records = {}
            return None
        return RepackedWeight(torch.frombuffer(data, dtype=torch.uint8), record.kind, n, k)


def _opened(file: Path) -> tuple[mmap.mmap | None, Mapping[str, Record]]:
    """The mapped file and its records; none if there is no such file or its header is not whole."""
    try:
        with file.open("rb") as source:
            # Copy on write: torch wants writable memory, the file must never change.
            data = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        return None, {}
    except (OSError, ValueError) as error:
        logger.warning(f"{file} cannot be read, and the model's weights are repacked: {error}")
        return None, {}
    begin = len(MAGIC) + _LENGTH.size
    with contextlib.suppress(struct.error, ValueError, TypeError, AttributeError):
        length, crc = _LENGTH.unpack_from(data, len(MAGIC))
        header = data[begin : begin + length]
        if data[: len(MAGIC)] == MAGIC and zlib.crc32(header) == crc:
            records = {name: Record(**record) for name, record in json.loads(header).items()}
            if all(record.offset + record.num_bytes <= len(data) for record in records.values()):
                return data, records
    logger.warning(f"{file} is damaged; the model's weights are repacked")
    return None, {}


def _write(out: IO[bytes], weights: Mapping[str, Weight]) -> None:
    """All of `weights` and, before them, what they are."""
    tiles = {name: weight.tiles for name, weight in weights.items() if weight.tiles is not None}
    views = {name: memoryview(tile.data.numpy()) for name, tile in tiles.items()}
    crcs = {name: zlib.crc32(view) for name, view in views.items()}

    def header(first: int) -> bytes:
        records: dict[str, Any] = {}
        offset = first
        for name, tile in tiles.items():
            size = tile.data.numel()
            records[name] = asdict(Record(weights[name].format, tile.n, tile.k, tile.kind, offset, size, crcs[name]))
            offset += -(-size // _ALIGNMENT) * _ALIGNMENT
        return json.dumps(records).encode()

    # Offsets counted from the largest number they can be are at least as long as the real ones.
    room = len(header(1 << 52))
    first = -(-(len(MAGIC) + _LENGTH.size + room) // _ALIGNMENT) * _ALIGNMENT
    written = header(first).ljust(room)
    out.write(MAGIC + _LENGTH.pack(len(written), zlib.crc32(written)) + written)
    for view in views.values():
        out.write(bytes(-out.tell() % _ALIGNMENT))
        out.write(view)
    out.flush()
    os.fsync(out.fileno())
