"""A model's forward pass over one KV cache, recorded once where the ops can be recorded, else computed op by op.

Letters as in batch.py. It knows nothing of rows, sequences or sampling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kernels.recorder import Recorder
from kernels.recorder_fast import FastRecorder
from kernels.step_ops import Eager, KVCache
from services.worker.batch import Batch
from services.worker.models import Model

# Logits [S, V] float32 of batch.logit_indices, valid until the next call; keys and values go into the cache.
Forward: TypeAlias = Callable[[Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The largest step: T, R and B of a batch."""

    num_tokens: int
    num_rows: int
    num_blocks: int


def forwarding(model: Model, kv: Sequence[KVCache], capacity: Capacity) -> Forward:
    """The pass of `model` over `kv`, for batches within `capacity`."""
    if model.ops.library is None:
        eager = Eager(model.ops)
        return lambda batch: model.decoder.forward(eager, batch, kv)
    return Recorded(model, kv, capacity)


class Recorded:
    """The pass as a program: a step is copied into place and run with one call."""

    def __init__(self, model: Model, kv: Sequence[KVCache], capacity: Capacity):
        library = model.ops.library
        if library is None:
            raise ValueError("only compiled ops can be recorded")
        tokens, rows = capacity.num_tokens, capacity.num_rows
        self._inputs = Batch(
            token_ids=torch.zeros(tokens, dtype=torch.int64),
            positions=torch.zeros(tokens, dtype=torch.int64),
            query_start=torch.zeros(rows + 1, dtype=torch.int32),
            seq_lens=torch.zeros(rows, dtype=torch.int32),
            block_tables=torch.zeros(rows, capacity.num_blocks, dtype=torch.int32),
            slots=torch.zeros(tokens, dtype=torch.int64),
            logit_indices=torch.zeros(tokens, dtype=torch.int64),
        )
        # The same memory: arrays are sliced and filled in a fraction of the time that tensors take.
        self._arrays = {name: getattr(self._inputs, name).numpy() for name in Batch.__slots__}
        self._recorder = (FastRecorder if model.compute == "fast" else Recorder)(library, tokens)
        self._vocab_size = model.spec.vocab_size
        self._logits = model.decoder.forward(self._recorder, self._inputs, kv)

    def __call__(self, batch: Batch) -> Tensor:
        num_tokens, num_wanted = len(batch.token_ids), len(batch.logit_indices)
        num_rows, num_blocks = batch.block_tables.shape
        if num_tokens > len(self._inputs.token_ids) or num_rows > len(self._inputs.seq_lens):
            raise ValueError(f"a step of {num_tokens} tokens and {num_rows} rows is larger than what was recorded")
        token_ids = batch.token_ids.numpy()
        if token_ids.max() >= self._vocab_size or token_ids.min() < 0:
            raise IndexError(f"token ids must lie in [0, {self._vocab_size})")
        for name, array in self._arrays.items():
            given = getattr(batch, name).numpy()
            if name == "block_tables":
                array[:num_rows, :num_blocks] = given
            else:
                array[: len(given)] = given
        self._recorder.set_counts((num_tokens, num_rows, num_wanted))
        self._recorder.program.run(torch.get_num_threads())
        return self._logits[:num_wanted]
