"""Weight formats: how many bytes a block of weights takes, and how each GGUF block is laid out.

Layouts, little-endian, as GGUF stores them (a row of K weights is K / block_size blocks end to end):

    Q8_0   32 weights:  f16 d; i8 q[32]                                            w = d q
    Q4_0   32 weights:  f16 d; u8 qs[16]     low nibbles first 16, high last 16    w = d (q - 8)
    Q4_1   32 weights:  f16 d, m; u8 qs[16]  as Q4_0                               w = d q + m
    Q4_K  256 weights:  f16 d, dmin; u8 scales[12]; u8 qs[128]                     w = d s q - dmin m
    Q5_K  256 weights:  f16 d, dmin; u8 scales[12]; u8 qh[32]; u8 qs[128]          w = d s q - dmin m
    Q6_K  256 weights:  u8 ql[128]; u8 qh[64]; i8 scales[16]; f16 d                w = d s (q - 32)

The integer factors are so short that every product above is exact in float32: dequantisation rounds at most once.
It knows nothing of files, tensor names or of how weights are multiplied.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Format:
    """One packed format; `code` is the number the C++ side knows it by."""

    block_size: int
    block_bytes: int
    code: int


FORMATS = {
    "Q8_0": Format(32, 34, 0),
    "Q4_0": Format(32, 18, 1),
    "Q4_1": Format(32, 20, 2),
    "Q4_K": Format(256, 144, 3),
    "Q5_K": Format(256, 176, 4),
    "Q6_K": Format(256, 210, 5),
    "F32": Format(1, 4, 6),
    "F16": Format(1, 2, 7),
    "BF16": Format(1, 2, 8),
}


def row_bytes(fmt: str, k: int) -> int:
    """Bytes of one row of k weights. Raises ValueError for an unknown format or a k that is no whole number of blocks."""
    known = FORMATS.get(fmt)
    if known is None:
        raise ValueError(f"weight format {fmt!r} is not one of {', '.join(FORMATS)}")
    if k % known.block_size:
        raise ValueError(f"{fmt} rows are whole blocks of {known.block_size} weights; {k} is not a multiple")
    return k // known.block_size * known.block_bytes


def row_length(fmt: str, num_bytes: int) -> int:
    """The k for which row_bytes gives num_bytes."""
    known = FORMATS.get(fmt)
    if known is None:
        raise ValueError(f"weight format {fmt!r} is not one of {', '.join(FORMATS)}")
    if num_bytes % known.block_bytes:
        raise ValueError(f"{fmt} rows are whole blocks of {known.block_bytes} bytes; {num_bytes} is not a multiple")
    return num_bytes // known.block_bytes * known.block_size
