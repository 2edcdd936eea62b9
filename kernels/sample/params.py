"""What sampling needs to know of each row, as flat arrays that go straight to any device.

It knows nothing of requests, text or vocabularies.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

NOT_A_NUMBER = -1
NO_TOKEN_LEFT = -2


@dataclass(frozen=True, slots=True)
class SampleParams:
    """S rows. A list per row is three (or two) arrays: row r's entries are start[r] to start[r + 1] of the others.

    Ids within a row's list must be different from each other and inside the vocabulary. Raises ValueError for a tensor
    of another type or one whose elements lie apart.
    """

    temperature: Tensor  # float32 [S]; 0: the most likely token
    top_k: Tensor  # int32 [S]; 0 or less: all
    top_p: Tensor  # float32 [S]
    min_p: Tensor  # float32 [S]
    presence_penalty: Tensor  # float32 [S]
    frequency_penalty: Tensor  # float32 [S]
    repetition_penalty: Tensor  # float32 [S]
    seed: Tensor  # int64 [S]
    position: Tensor  # int64 [S], index of the token in the sequence's output
    choice: Tensor  # int64 [S]
    output_start: Tensor  # int32 [S + 1]
    output_ids: Tensor  # int32: the different tokens of the output so far
    output_counts: Tensor  # int32: how often each occurs there
    seen_start: Tensor  # int32 [S + 1]
    seen_ids: Tensor  # int32: the different tokens of prompt and output together
    bias_start: Tensor  # int32 [S + 1]
    bias_ids: Tensor  # int32
    bias_values: Tensor  # float32
    banned_start: Tensor  # int32 [S + 1]
    banned_ids: Tensor  # int32: tokens that cannot come, as those that would end a sequence short of its min_tokens
    mask_row: Tensor  # int32 [S]: which row of `mask` says what may come; -1: everything
    mask: Tensor  # int32 [M, ceil(V / 32)]: token i may come if bit i % 32 of word i // 32 is set

    def __post_init__(self) -> None:
        for field in fields(self):
            tensor = getattr(self, field.name)
            if tensor.dtype != _TYPES.get(field.name, torch.int32) or not tensor.is_contiguous():
                wanted = _TYPES.get(field.name, torch.int32)
                raise ValueError(f"{field.name} must be contiguous {wanted}, not {tensor.dtype}")


_TYPES = dict.fromkeys(("temperature", "top_p", "min_p", "bias_values"), torch.float32)
_TYPES |= dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), torch.float32)
_TYPES |= dict.fromkeys(("seed", "position", "choice"), torch.int64)
