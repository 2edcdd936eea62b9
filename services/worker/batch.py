"""The tensors one forward pass sees: the contract between runtime and models.

Letters: T tokens of the step, R rows (sequences), B the longest block table, S rows whose logits are wanted.
All on the model's device. It knows nothing of how they were scheduled or are sampled.
"""

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Batch:
    """One forward pass over ragged rows laid end to end."""

    token_ids: torch.Tensor  # int64 [T]
    positions: torch.Tensor  # int64 [T], position of each token in its sequence
    query_start: torch.Tensor  # int32 [R + 1], row r is tokens query_start[r] to query_start[r + 1]
    seq_lens: torch.Tensor  # int32 [R], tokens of each row's sequence once this step is written
    block_tables: torch.Tensor  # int32 [R, B], padded with 0
    slots: torch.Tensor  # int64 [T], block * block_size + offset where each token's key and value go
    logit_indices: torch.Tensor  # int64 [S], tokens of the step whose logits are wanted
