"""Step -> Batch: ragged rows laid end to end, computed whole with numpy and copied to the device once.

Letters: T tokens, R rows, B the longest block table, S wanted logits. It knows nothing of sampling or of models.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.worker.batch import Batch
from services.worker.engine.step import BLOCK_SIZE, Row


def prepare(rows: Sequence[Row], device: str) -> Batch:
    """The batch of `rows`, which are not empty.

    Logits are wanted, row by row, of every token of a row that asks for prompt logprobs, else of the last
    1 + num_drafts tokens of a row that samples (`num_wanted`).
    """
    counts = _whole(len(row.token_ids) for row in rows)
    computed = _whole(row.num_computed for row in rows)
    lengths = _whole(len(row.block_table) for row in rows)
    query_start = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(counts, out=query_start[1:])
    row_of = np.repeat(np.arange(len(rows)), counts)  # [T]
    positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - computed, counts)
    tables = np.zeros((len(rows), int(lengths.max())), dtype=np.int32)
    blocks = np.fromiter(chain.from_iterable(row.block_table for row in rows), np.int32, int(lengths.sum()))
    tables[np.arange(tables.shape[1]) < lengths[:, None]] = blocks
    slots = tables[row_of, positions // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    wanted = _whole(num_wanted(row) for row in rows)
    ends = np.cumsum(wanted)
    logit_indices = np.arange(ends[-1]) + np.repeat(query_start[1:] - ends, wanted)

    def put(values: NDArray[np.generic], dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, dtype=dtype)).to(device)

    return Batch(
        token_ids=put(np.fromiter(chain.from_iterable(row.token_ids for row in rows), np.int64, len(positions)), np.int64),
        positions=put(positions, np.int64),
        query_start=put(query_start, np.int32),
        seq_lens=put(computed + counts, np.int32),
        block_tables=put(tables, np.int32),
        slots=put(slots, np.int64),
        logit_indices=put(logit_indices, np.int64),
    )


def num_wanted(row: Row) -> int:
    """How many of a row's tokens, counted from its end, give logits."""
    if row.prompt_logprobs:
        return len(row.token_ids)
    return 1 + row.num_drafts if row.sample else 0


def _whole(numbers: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(numbers, np.int64)
