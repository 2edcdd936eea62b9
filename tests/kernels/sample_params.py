"""Sampling parameters for tests, from plain lists."""

from typing import Any

import torch
from torch import Tensor

from kernels.sample.params import SampleParams

Lists = list[list[tuple[int, float]]]


def _flat(lists: Lists) -> tuple[Tensor, Tensor, Tensor]:
    start = torch.tensor([0] + [len(entries) for entries in lists]).cumsum(0).int()
    pairs = [pair for entries in lists for pair in entries]
    return start, torch.tensor([i for i, _ in pairs]).int(), torch.tensor([v for _, v in pairs]).float()


NO_MASK = torch.zeros(0, 0, dtype=torch.int32)


def mask_of(allowed: list[set[int]], vocab: int) -> Tensor:
    """A row of bits for each set of token ids."""
    bits = torch.zeros(len(allowed), -(-vocab // 32) * 32, dtype=torch.int64)
    for row, ids in enumerate(allowed):
        bits[row, sorted(ids)] = 1
    words = (bits.view(len(allowed), -1, 32) << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def make_params(
    rows: int, *, output: Lists, seen: Lists, bias: Lists, banned: Lists, mask: Tensor = NO_MASK, **values: Any
) -> SampleParams:
    """Parameters of `rows` rows; a value may be one number for all rows or a list."""

    def column(name: str, default: float, dtype: torch.dtype) -> Tensor:
        value = values.get(name, default)
        return torch.tensor(value if isinstance(value, list) else [value] * rows, dtype=dtype)

    floats = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    columns = {name: column(name, default, torch.float32) for name, default in floats.items()}
    columns |= {name: column(name, 0, torch.int64) for name in ("seed", "position", "choice")}
    output_start, output_ids, output_counts = _flat(output)
    seen_start, seen_ids, _ = _flat(seen)
    bias_start, bias_ids, bias_values = _flat(bias)
    banned_start, banned_ids, _ = _flat(banned)
    return SampleParams(
        **columns,
        top_k=column("top_k", 0, torch.int32),
        repetition_penalty=column("repetition_penalty", 1.0, torch.float32),
        output_start=output_start,
        output_ids=output_ids,
        output_counts=output_counts.int(),
        seen_start=seen_start,
        seen_ids=seen_ids,
        bias_start=bias_start,
        bias_ids=bias_ids,
        bias_values=bias_values.float(),
        banned_start=banned_start,
        banned_ids=banned_ids,
        mask_row=column("mask_row", -1, torch.int32),
        mask=mask,
    )


def plain(rows: int, **values: Any) -> SampleParams:
    """Parameters without lists."""
    none: Lists = [[] for _ in range(rows)]
    return make_params(rows, output=none, seen=none, bias=none, banned=none, **values)
