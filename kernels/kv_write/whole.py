"""Keys and values in whole numbers, as int8 caches have them (layout.py says where), in plain PyTorch.

The D elements of a token's head are kept as step * whole number + centre: the centre between the least and the largest of them,
the step what brings the farther of the two to 127. Both are bfloat16 in one word of 32 bits, the step in its upper half, rounded
up so that nothing exceeds 127. They depend on no other token. A head with a number that is none has none for its word.

Keys are first spread, H k: a few elements of every key are far larger than the rest, and steps made for those would be too
large for the others. H is the Hadamard matrix (1 and -1) of the largest power of two S that divides D, for each S elements. As
H H / S = 1, queries that are spread too and divided by S have the same products, and no key need be turned back.

It knows nothing of sequences.
"""

import torch
from torch import Tensor

from kernels.kv_write.layout import BLOCK_SIZE, WORD_BYTES

STEPS = 127  # from the centre to the farthest number
NOTHING = 1e-30  # a reach below it is none: its step would not have all of its bits
_UPPER = -(1 << 16)  # the upper half of a word


def spread(x: Tensor) -> Tensor:
    """H x for x [..., D] float32, in sums of two, the nearest elements first."""
    size, apart = x.shape[-1] & -x.shape[-1], 1
    while apart < size:
        first, second = x.unflatten(-1, (-1, 2, apart)).unbind(-2)
        x = torch.stack([first + second, first - second], -2).flatten(-3)
        apart *= 2
    return x


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] float32 as whole numbers int8 [..., D] and words int32 [...]."""
    low, high = x.amin(-1), x.amax(-1)
    centre = (low * 0.5 + high * 0.5).bfloat16().float()
    reach = torch.maximum(high - centre, centre - low)
    nothing = reach < NOTHING
    step = ((reach / STEPS).view(torch.int32) + 0xFFFF & _UPPER).view(torch.float32).masked_fill(nothing, 0)
    inverse = (1 / step).masked_fill(nothing, 0)
    none = ~x.isfinite().all(-1)
    step, centre = step.masked_fill(none, torch.nan), centre.masked_fill(none, torch.nan)
    numbers = ((x - centre[..., None]) * inverse[..., None]).round().masked_fill(none[..., None], 0)
    words = step.view(torch.int32) & _UPPER | centre.view(torch.int32) >> 16 & 0xFFFF
    return numbers.to(torch.int8), words


def meaning(numbers: Tensor, words: Tensor) -> Tensor:
    """What whole numbers [..., D] and words [...] stand for: float32 [..., D]."""
    step, centre = (words & _UPPER).view(torch.float32), (words << 16).view(torch.float32)
    return numbers * step[..., None] + centre[..., None]


def words(cache: Tensor) -> Tensor:
    """Of the tokens of a cache: a view [N, Hk, 16] int32."""
    return cache[..., :WORD_BYTES].view(torch.int32)


def keys_in(cache: Tensor) -> Tensor:
    """The whole numbers of keys: a view [N, Hk, 16, D / 2, 2]."""
    return cache[..., WORD_BYTES:].unflatten(-1, (-1, BLOCK_SIZE, 2)).transpose(-3, -2)


def values_in(cache: Tensor) -> Tensor:
    """The whole numbers of values: a view [N, Hk, 8, 2, D]."""
    return cache[..., WORD_BYTES:].unflatten(-1, (BLOCK_SIZE // 2, -1, 2)).transpose(-2, -1)


def write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """As reference.kv_write, into int8 caches."""
    blocks, offsets = slots // BLOCK_SIZE, slots % BLOCK_SIZE
    numbers, words(k_cache)[blocks, :, offsets] = whole(spread(k))
    keys_in(k_cache)[blocks, :, offsets] = numbers.unflatten(-1, (-1, 2))
    numbers, words(v_cache)[blocks, :, offsets] = whole(v)
    values_in(v_cache)[blocks, :, offsets // 2, offsets % 2] = numbers


def read(k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values that int8 caches stand for: [N, Hk, 16, D] float32."""
    keys = spread(meaning(keys_in(k_cache).flatten(-2), words(k_cache)))
    values = meaning(values_in(v_cache).flatten(-3, -2), words(v_cache))
    return keys / (keys.shape[-1] & -keys.shape[-1]), values
