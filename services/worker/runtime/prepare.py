"""Step -> Batch: ragged rows laid end to end, in plain lists, each copied to the device once.

A step that decodes has few numbers, and after a forward pass the interpreter finds its caches cold: lists take a quarter of the
time of whole-array arithmetic there. Letters: T tokens, R rows, B the longest block table, S wanted logits. It knows
nothing of sampling or of models.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.worker.batch import Batch
from services.worker.engine.step import BLOCK_SIZE, Row


def prepare(rows: Sequence[Row], device: str) -> Batch:
    """The batch of `rows`, which are not empty.

    Logits are wanted, row by row, of every token of a row that asks for prompt logprobs, else of the last
    1 + num_drafts tokens of a row that samples (`num_wanted`).
    """
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    tables: list[int] = []
    wanted: list[int] = []
    starts, lengths = [0], []
    longest = max(len(row.block_table) for row in rows)
    for row in rows:
        first, blocks = row.num_computed, row.block_table
        end = first + len(row.token_ids)
        token_ids += row.token_ids
        positions += range(first, end)
        slots += [blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE for position in range(first, end)]
        tables += blocks
        tables += [0] * (longest - len(blocks))
        starts.append(len(token_ids))
        lengths.append(end)
        wanted += range(len(token_ids) - num_wanted(row), len(token_ids))

    def put(values: list[int], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=dtype)).to(device)

    return Batch(
        token_ids=put(token_ids, np.int64),
        positions=put(positions, np.int64),
        query_start=put(starts, np.int32),
        seq_lens=put(lengths, np.int32),
        block_tables=put(tables, np.int32).view(len(rows), longest),
        slots=put(slots, np.int64),
        logit_indices=put(wanted, np.int64),
    )


def num_wanted(row: Row) -> int:
    """How many of a row's tokens, counted from its end, give logits."""
    if row.prompt_logprobs:
        return len(row.token_ids)
    return 1 + row.num_drafts if row.sample else 0
