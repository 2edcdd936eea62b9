"""A model's forward pass over one KV cache, recorded once where the ops can be recorded, else computed op by op.

Letters as in batch.py. It knows nothing of sequences or of sampling.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from kernels.recorder import Recorder
from kernels.recorder_fast import FastRecorder
from kernels.step_ops import Eager, KVCache
from services.worker.engine.step import Row
from services.worker.models import Model
from services.worker.runtime.in_place import Capacity, InPlace
from services.worker.runtime.prepare import prepare

# Logits [S, V] float32 that `rows` want, valid until the next call; keys and values go into the cache.
Forward: TypeAlias = Callable[[Sequence[Row]], Tensor]


def forwarding(model: Model, kv: Sequence[KVCache], capacity: Capacity, device: str) -> Forward:
    """The pass of `model` over `kv`, for steps within `capacity`."""
    if model.ops.library is None:
        eager = Eager(model.ops)

        @torch.inference_mode()
        def forward(rows: Sequence[Row]) -> Tensor:
            return model.decoder.forward(eager, prepare(rows, device), kv)

        return forward
    return Recorded(model, kv, capacity)


class Recorded:
    """The pass as a program: a step is written into place with one call and run with another, and no tensor is made for it."""

    def __init__(self, model: Model, kv: Sequence[KVCache], capacity: Capacity):
        library = model.ops.library
        if library is None:
            raise ValueError("only compiled ops can be recorded")
        self._recorder = (FastRecorder if model.compute == "fast" else Recorder)(library, capacity.num_tokens)
        self._step = InPlace(library, capacity, self._recorder.counts, model.spec.vocab_size)
        self._logits = model.decoder.forward(self._recorder, self._step.batch, kv)
        self._views: dict[int, Tensor] = {}  # the first rows of the logits, by how many
        self.run = self._recorder.program.run

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        num_wanted = self._step.write(rows)
        self.run(torch.get_num_threads())
        view = self._views.get(num_wanted)
        if view is None:
            view = self._views[num_wanted] = self._logits[:num_wanted]
        return view
