"""Step -> Batch where the forward pass is recorded: written by one C call into the memory that the program reads.

It does what prepare.py does with new tensors. It knows nothing of sampling or of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.build import Library
from kernels.inputs import Inputs
from services.worker.batch import Batch
from services.worker.engine.step import BLOCK_SIZE, Row
from services.worker.runtime.prepare import num_wanted


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest step: T, R and B of a batch."""

    num_tokens: int
    num_rows: int
    num_blocks: int


class InPlace:
    """One batch of full capacity. `counts` (int64: tokens, rows, wanted logits) says how much of it a step has."""

    def __init__(self, library: Library, capacity: Capacity, counts: NDArray[np.int64], vocab_size: int):
        tokens, rows = capacity.num_tokens, capacity.num_rows
        self.batch = Batch(
            token_ids=torch.zeros(tokens, dtype=torch.int64),
            positions=torch.zeros(tokens, dtype=torch.int64),
            query_start=torch.zeros(rows + 1, dtype=torch.int32),
            seq_lens=torch.zeros(rows, dtype=torch.int32),
            block_tables=torch.zeros(rows, capacity.num_blocks, dtype=torch.int32),
            slots=torch.zeros(tokens, dtype=torch.int64),
            logit_indices=torch.zeros(tokens, dtype=torch.int64),
        )
        ids, wanted = self.batch.token_ids, self.batch.logit_indices
        self._inputs = Inputs(library, self.batch, ids, wanted, counts, block_size=BLOCK_SIZE, vocab_size=vocab_size)
        self._told: list[tuple[Sequence[int], int]] = []  # by place, the block table that lies there and its length

    def write(self, rows: Sequence[Row]) -> int:
        """Writes a step; how many logits it wants. ValueError if it is too large, IndexError for a token id that is none."""
        told, self._told = self._told, []
        message: list[int] = []
        wanted = 0
        for place, row in enumerate(rows):
            ids, blocks, first = row.token_ids, row.block_table, 0
            # A table only grows (engine/step.py): what lies there of the same one need not be told again.
            if place < len(told) and told[place][0] is blocks:
                first = told[place][1]
            logits = num_wanted(row)
            wanted += logits
            message += (row.num_computed, len(ids), logits, first, len(blocks) - first)
            message += ids
            message += blocks[first:]
        self._inputs.lay_out(message, len(rows))
        self._told = [(row.block_table, len(row.block_table)) for row in rows]
        return wanted
