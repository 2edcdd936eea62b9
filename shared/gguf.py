"""Reads the header of a GGUF file: its key-values and its table of tensors, every length checked against the file.

Layout, little-endian (github.com/ggml-org/ggml, docs/gguf.md): magic, version, tensor count, key-value count,
key-values, tensor infos, padding, tensor data. Versions 2 and 3. Only the header is read, tensor data never is.
A damaged file is a StartupError naming file and fault. It knows nothing of tokenizers, of models or of dequantising.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

from shared.errors import StartupError

Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = Scalar | list[Scalar]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_TENSOR_BYTES = 2**62

STRING, ARRAY = 8, 9
SCALAR_FORMATS: Mapping[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

# number in the file -> (name, elements in a block, bytes of a block); ggml.h, `type_traits`
TENSOR_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table.

    `shape` is row-major as in PyTorch, the packed dimension last (the file stores it first); `type` a name of
    TENSOR_TYPES; the data are `num_bytes` bytes at `offset` from the start of the file, all inside it.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A file's header. The accessors raise StartupError for a key that is missing or of another type."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A truth value."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "true or false")
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "a string")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.metadata.get(key)
        if not isinstance(value, list):
            self._wrong(key, value, "a list of strings")
        texts = [item for item in value if isinstance(item, str)]
        if len(texts) != len(value):
            self._wrong(key, value, "a list of strings")
        return texts

    def numbers(self, key: str) -> list[float]:
        """A list of numbers; whole ones stay int."""
        value = self.metadata.get(key)
        if not isinstance(value, list):
            self._wrong(key, value, "a list of numbers")
        numbers = [item for item in value if not isinstance(item, str)]
        if len(numbers) != len(value):
            self._wrong(key, value, "a list of numbers")
        return numbers

    def _wrong(self, key: str, value: Value | None, wanted: str) -> NoReturn:
        found = "is missing" if value is None else f"is {'a list' if isinstance(value, list) else repr(value)[:60]}"
        raise StartupError(f"{self.path}: key '{key}' {found}; it must be {wanted}")


def read_gguf(path: Path) -> Gguf:
    """The header of the file at `path`; time and memory grow with the header, not with the tensors."""
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise StartupError(f"{path}: not a GGUF file: it does not begin with the bytes 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise StartupError(f"{path}: cannot be read: {error.strerror}") from error


class _Reader:
    """A position in the mapped file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = len(MAGIC)

    def header(self) -> Gguf:
        version = self.unpack("I", "the version")[0]
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            cause = "it is big-endian" if swapped in VERSIONS else f"version {version} is not supported"
            self.fail(f"{cause}; little-endian versions 2 and 3 are")
        num_tensors, num_keys = self.unpack("QQ", "the counts")
        metadata: dict[str, Value] = {}
        self.must_hold(num_keys, 13, "key-values")
        for _ in range(num_keys):
            key = self.string("a key")
            if key in metadata:
                self.fail(f"key '{key}' appears twice")
            metadata[key] = self.value(key)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 2**20:
            self.fail(f"general.alignment is {alignment!r}; it must be a power of two up to 2^20")
        return Gguf(self.path, version, metadata, self.tensor_table(num_tensors, alignment))

    def tensor_table(self, num_tensors: int, alignment: int) -> dict[str, GgufTensor]:
        self.must_hold(num_tensors, 32, "tensors")
        tensors: dict[str, GgufTensor] = {}
        for _ in range(num_tensors):
            tensor = self.tensor(alignment)
            if tensor.name in tensors:
                self.fail(f"tensor '{tensor.name}' appears twice")
            tensors[tensor.name] = tensor
        start = -(-self.position // alignment) * alignment
        placed = {
            name: GgufTensor(name, tensor.shape, tensor.type, start + tensor.offset, tensor.num_bytes)
            for name, tensor in tensors.items()
        }
        self.check_places(placed)
        return placed

    def tensor(self, alignment: int) -> GgufTensor:
        """One tensor info, its offset still counted from the start of the data."""
        name = self.string("a tensor's name")
        (num_dims,) = self.unpack("I", f"tensor '{name}'")
        if not 1 <= num_dims <= MAX_DIMS:
            self.fail(f"tensor '{name}' has {num_dims} dimensions; 1 to {MAX_DIMS} are possible")
        dims = self.unpack("Q" * num_dims, f"tensor '{name}'")
        number, offset = self.unpack("IQ", f"tensor '{name}'")
        if number not in TENSOR_TYPES:
            self.fail(f"tensor '{name}' has the unknown type {number}")
        type_name, block, block_bytes = TENSOR_TYPES[number]
        if 0 in dims or dims[0] % block:
            self.fail(f"tensor '{name}' of type {type_name} cannot have rows of {dims[0]} elements: {dims[::-1]}")
        num_bytes = math.prod(dims) // block * block_bytes
        if num_bytes > MAX_TENSOR_BYTES:
            self.fail(f"tensor '{name}' claims the impossible shape {dims[::-1]}")
        if offset % alignment:
            self.fail(f"tensor '{name}' begins at {offset}, which is no multiple of the alignment {alignment}")
        return GgufTensor(name, tuple(reversed(dims)), type_name, offset, num_bytes)

    def check_places(self, tensors: Mapping[str, GgufTensor]) -> None:
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                self.fail(f"tensors '{before}' and '{tensor.name}' overlap")
            end, before = tensor.offset + tensor.num_bytes, tensor.name
            if end > self.size:
                self.fail(f"tensor '{before}' ends at byte {end}, but the file has {self.size}: it is truncated")

    def value(self, key: str) -> Value:
        (kind,) = self.unpack("I", f"key '{key}'")
        if kind == STRING:
            return self.string(f"key '{key}'")
        if kind != ARRAY:
            scalar: Scalar = self.unpack(self.scalar_format(kind, key), f"key '{key}'")[0]
            return scalar
        kind, count = self.unpack("IQ", f"key '{key}'")
        if kind == STRING:
            self.must_hold(count, 8, f"strings in '{key}'")
            return self.strings(count, f"key '{key}'")
        letter = self.scalar_format(kind, key)
        self.must_hold(count, struct.calcsize("<" + letter), f"numbers in '{key}'")
        return list(self.unpack(f"{count}{letter}", f"key '{key}'"))

    def scalar_format(self, kind: int, key: str) -> str:
        if kind not in SCALAR_FORMATS:
            self.fail(f"key '{key}' has {'a list of lists' if kind == ARRAY else f'the unknown type {kind}'}")
        return SCALAR_FORMATS[kind]

    def string(self, what: str) -> str:
        (length,) = self.unpack("Q", what)
        start, end = self.position, self.position + length
        if end > self.size:
            self.fail(f"{what} claims {length} bytes at {start}, past the file's end: it is truncated or damaged")
        self.position = end
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8 at byte {start}")

    def strings(self, count: int, what: str) -> list[Scalar]:
        """`string` so many times, without a call for each: vocabularies have 100,000 and more."""
        data, size, position, length_at = self.data, self.size, self.position, struct.Struct("<Q").unpack_from
        found: list[Scalar] = []
        try:
            for _ in range(count):
                start = position + 8
                end = start + length_at(data, position)[0]
                if end > size:
                    break
                found.append(data[start:end].decode())
                position = end
        except (struct.error, UnicodeDecodeError):
            pass
        self.position = position
        # What is wrong with one of them, if anything is, the slow way says.
        return found + [self.string(what) for _ in range(count - len(found))]

    def unpack(self, letters: str, what: str) -> tuple[int, ...]:
        layout = struct.Struct("<" + letters)
        if self.position + layout.size > self.size:
            self.fail(f"it ends within {what}: it is truncated")
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def must_hold(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > self.size - self.position:
            self.fail(f"it claims {count} {what}, more than fit into its {self.size} bytes")

    def fail(self, fault: str) -> NoReturn:
        printable = "".join(letter if letter.isprintable() else "?" for letter in fault)
        raise StartupError(f"{self.path}: broken GGUF file: {printable}")
