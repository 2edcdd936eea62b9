"""The masks of a step's constrained draws, filled while the forward pass runs, if that leaves a core for it.

Where compute threads hold every core, a thread beside them makes them wait for one another, and costs more than its work
(docs/structured_output.md); masks are filled before the pass then. It knows nothing of logits, nor of what grammars mean.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.worker.runtime.grammar import GrammarFailed, Guide

FAILED = "the grammar allows no further token here, or takes too much work to follow"

logger = logging.getLogger(__name__)


def bits_of(token_ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    """A mask that lets these tokens come."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Masks of one row: of its next token, and of the one after each of its drafts."""

    seq_id: int
    guide: Guide | None
    allowed: NDArray[np.int32] | None
    drafts: Sequence[int]


class Masks:
    """`begin` in a step's beginning, `take` when its logits are there. beside: a thread of its own fills them in between."""

    def __init__(self, *, beside: bool) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks") if beside else None
        self._rows = np.zeros((0, 0), dtype=np.int32)
        self._filling: Future[dict[int, int | None]] | None = None
        self._places: dict[int, int | None] = {}

    def begin(self, wanted: Sequence[Wanted], vocab_size: int) -> None:
        """Starts to fill the masks of a step; those of the step before are gone."""
        self._filling, self._places = None, {}
        if not wanted:
            return
        num_rows, num_words = sum(1 + len(each.drafts) for each in wanted), -(-vocab_size // 32)
        if self._rows.shape[0] < num_rows or self._rows.shape[1] != num_words:
            self._rows = np.zeros((2 * num_rows, num_words), dtype=np.int32)
        if self._thread is not None:
            self._filling = self._thread.submit(self._fill, wanted)
        else:
            self._places = self._fill(wanted)

    def take(self) -> dict[int, int | None]:
        """By sequence, the first of its masks; None if they could not be made. Waits for the last one."""
        return self._places if self._filling is None else self._filling.result()

    @property
    def tensor(self) -> Tensor:
        """All masks, valid until the next `begin`."""
        return torch.from_numpy(self._rows)

    def close(self) -> None:
        """Ends the thread."""
        if self._thread is not None:
            self._thread.shutdown()

    def _fill(self, wanted: Sequence[Wanted]) -> dict[int, int | None]:
        places: dict[int, int | None] = {}
        first, base, num_bytes = 0, self._rows.ctypes.data, self._rows.shape[1] * 4
        for each in wanted:
            end = first + 1 + len(each.drafts)
            try:
                if each.guide is None:
                    self._rows[first:end] = -1
                else:
                    each.guide.fill(base + first * num_bytes, num_bytes, each.drafts)
                places[each.seq_id] = first
            except GrammarFailed:
                places[each.seq_id] = None
            except Exception:
                logger.exception("a mask could not be made")
                places[each.seq_id] = None
            if each.allowed is not None:
                self._rows[first:end] &= each.allowed
            first = end
        return places
