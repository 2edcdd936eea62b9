"""Paged attention in plain PyTorch, prefill and decode in one signature. The truth the fast files are tested against.

It knows nothing of positions' encodings, of projections or of who shares a block.
"""

import torch
from torch import Tensor

from kernels.kv_write.layout import BLOCK_SIZE
from kernels.kv_write.reference import kept


def attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Causal attention of ragged rows over block tables: [T, H, D] float32.

    q: [T, H, D] float32, tokens may lie apart. Caches as in kernels/kv_write/layout.py; H a multiple of Hk,
    query head h reads key head h // (H / Hk). Row r is the tokens query_start[r] to query_start[r + 1] (int32 [R + 1]),
    the last of the seq_lens[r] (int32 [R]) tokens of its sequence, whose keys and values lie in the blocks
    block_tables[r] (int32 [R, B]). score = scale q·k; softcap > 0: softcap tanh(score / softcap). The token at position
    p sees positions p - window < j <= p (window 0: all j <= p). Slots it does not see may hold anything, NaN included.
    """
    out = torch.zeros(q.shape)
    num_kv_heads, head_size = k_cache.shape[1], q.shape[2]
    group = q.shape[1] // num_kv_heads
    for row in range(len(seq_lens)):
        start, end, length = int(query_start[row]), int(query_start[row + 1]), int(seq_lens[row])
        blocks = block_tables[row, : -(-length // BLOCK_SIZE)].long()
        keys, values = kept(k_cache[blocks], v_cache[blocks])
        keys = keys.transpose(0, 1).reshape(num_kv_heads, -1, head_size)[:, :length]
        values = values.transpose(0, 1).reshape(num_kv_heads, -1, head_size)[:, :length]
        queries = q[start:end].reshape(end - start, num_kv_heads, group, head_size).permute(1, 2, 0, 3)
        scores = queries @ keys[:, None].transpose(-1, -2) * scale
        if softcap > 0:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(length - (end - start), length)[:, None]
        seen = torch.arange(length)[None] <= position
        if window > 0:
            seen &= torch.arange(length)[None] > position - window
        used = seen.any(0)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        result = weights[..., used] @ values[:, None, used]
        out[start:end] = result.permute(2, 0, 1, 3).flatten(1, 2)
    return out
