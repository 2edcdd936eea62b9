"""Writes small GGUF files for tests. It knows nothing of reading them."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.gguf import ARRAY, MAGIC, SCALAR_FORMATS, STRING, TENSOR_TYPES

TYPE_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
LETTERS = {letter: number for number, letter in SCALAR_FORMATS.items()}

Entry = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]


def string(text: str) -> bytes:
    """A GGUF string."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def entry(value: Entry) -> bytes:
    """Type and value: whole numbers as uint32, or int32 if one is negative; a list's type is its first item's."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + string(value)
    if isinstance(value, bool | int | float):
        letter = _letter([value])
        return struct.pack("<I" + letter, LETTERS[letter], value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(string(str(item)) for item in value)
    letter = _letter(value)
    return struct.pack(f"<IIQ{len(value)}{letter}", ARRAY, LETTERS[letter], len(value), *value)


def _letter(values: Sequence[object]) -> str:
    if values and isinstance(values[0], bool):
        return "?"
    if any(isinstance(value, float) for value in values):
        return "f"
    return "i" if any(isinstance(value, int) and value < 0 for value in values) else "I"


def write_gguf(
    path: Path,
    metadata: Mapping[str, Entry],
    tensors: Mapping[str, tuple[tuple[int, ...], str, bytes]] | None = None,
    *,
    alignment: int = 32,
) -> Path:
    """Writes a version 3 file; a tensor is (shape as in PyTorch, type name, packed data)."""
    tensors = tensors or {}
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [string(key) + entry(value) for key, value in metadata.items()]
    body, offset = [], 0
    for name, (shape, type_name, data) in tensors.items():
        dims = shape[::-1]
        head.append(string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        head.append(struct.pack("<IQ", TYPE_NUMBERS[type_name], offset))
        padded = data + b"\0" * (-len(data) % alignment)
        body.append(padded)
        offset += len(padded)
    header = b"".join(head)
    path.write_bytes(header + b"\0" * (-len(header) % alignment) + b"".join(body))
    return path
