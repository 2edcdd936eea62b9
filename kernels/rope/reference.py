"""Rotary positions in plain PyTorch, half-split (NeoX) pairs. The truth the fast files are tested against.

Element i of the first half of the rotated part is paired with element i of its second half:

    x1' = x1 cos - x2 sin        x2' = x2 cos + x1 sin

It knows nothing of frequencies or of scaling laws: those are in the table.
"""

from torch import Tensor


def rope(q: Tensor, k: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
    """Rotates q [T, H, D] and k [T, Hk, D] float32 in place; tokens may lie apart (any stride of dimension 0).

    positions: int64 [T]. cos_sin: float32 [P, R], row p the R / 2 cosines, then the R / 2 sines of position p; only
    the first R of D elements turn.
    """
    half = cos_sin.shape[1] // 2
    rows = cos_sin[positions][:, None, :]
    cos, sin = rows[..., :half], rows[..., half:]
    for x in (q, k):
        first, second = x[..., :half].clone(), x[..., half : 2 * half].clone()
        x[..., :half] = first * cos - second * sin
        x[..., half : 2 * half] = second * cos + first * sin
