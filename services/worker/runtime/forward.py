"""A model's forward pass over one KV cache, recorded once where the ops can be recorded, else computed op by op.

Letters as in batch.py. It knows nothing of sequences or of sampling.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.recorder import Recorder
from kernels.recorder_fast import FastRecorder
from kernels.step_ops import Eager, KVCache
from services.worker.engine.step import Row
from services.worker.models import Model
from services.worker.runtime.in_place import Capacity, InPlace
from services.worker.runtime.prepare import prepare


class Forward(Protocol):
    """One step after the other. `states`: what stood before the last norm, [T, hidden], of the last step's tokens.

    Both it and what a call returns are valid until the next call.
    """

    @property
    def states(self) -> Tensor:
        """Of every token of the last step, in the order of its rows."""
        ...

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """Logits [S, V] float32 that `rows` want; keys and values go into the cache."""
        ...


def forwarding(model: Model, kv: Sequence[KVCache], capacity: Capacity, device: str) -> Forward:
    """The pass of `model` over `kv`, for steps within `capacity`."""
    return Computed(model, kv, device) if model.ops.library is None else Recorded(model, kv, capacity)


class Computed:
    """The pass op by op."""

    def __init__(self, model: Model, kv: Sequence[KVCache], device: str):
        self._model, self._kv, self._device = model, kv, device
        self._ops = Eager(model.ops)
        self.states = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row]) -> Tensor:
        logits, self.states = self._model.decoder.forward(self._ops, prepare(rows, self._device), self._kv)
        return logits


class Recorded:
    """The pass as a program: a step is written into place with one call and run with another, and no tensor is made for it."""

    def __init__(self, model: Model, kv: Sequence[KVCache], capacity: Capacity):
        library = model.ops.library
        if library is None:
            raise ValueError("only compiled ops can be recorded")
        self._recorder = (FastRecorder if model.compute == "fast" else Recorder)(library, capacity.num_tokens)
        self._step = InPlace(library, capacity, self._recorder.counts, model.spec.vocab_size)
        self._logits, self.states = model.decoder.forward(self._recorder, self._step.batch, kv)
        self._views: dict[int, Tensor] = {}  # the first rows of the logits, by how many
        self.run = self._recorder.program.run

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        num_wanted = self._step.write(rows)
        self.run(torch.get_num_threads())
        view = self._views.get(num_wanted)
        if view is None:
            view = self._views[num_wanted] = self._logits[:num_wanted]
        return view
