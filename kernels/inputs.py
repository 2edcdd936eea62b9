"""The inputs of a recorded step, written in place by one C call (inputs.cpp) from one list of numbers.

Tensors and arrays made for every step cost more than what they carry: after a forward pass the interpreter finds its caches
cold. It knows nothing of sequences, nor of what reads the inputs.
"""

import ctypes
from array import array
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kernels.build import Library
from kernels.program import layout
from kernels.step_ops import Places

_TOO_LARGE, _NO_TOKEN = 1, 2


class InputsStruct(ctypes.Structure):
    """Inputs of inputs.cpp."""

    _fields_: ClassVar = layout(
        "p:counts p:token_ids p:positions p:slots p:wanted p:query_start p:seq_lens p:tables "
        "l:most_tokens l:most_rows l:width l:block_size l:vocab"
    )


class Inputs:
    """Where the program reads a step: `places`, token ids, wanted rows (int64 [T]) and `counts`, all of full capacity."""

    def __init__(
        self,
        library: Library,
        places: Places,
        token_ids: Tensor,
        wanted: Tensor,
        counts: NDArray[np.int64],
        *,
        block_size: int,
        vocab_size: int,
    ):
        self._call = library.function("rt_lay_out", "plp", is_brief=True)
        self._kept = (places, token_ids, wanted, counts)
        rows, width = places.block_tables.shape
        own = (counts.ctypes.data, token_ids.data_ptr(), places.positions.data_ptr(), places.slots.data_ptr(), wanted.data_ptr())
        by_row = (places.query_start.data_ptr(), places.seq_lens.data_ptr(), places.block_tables.data_ptr())
        self._struct = InputsStruct(*own, *by_row, len(token_ids), rows, width, block_size, vocab_size)
        self._address = ctypes.addressof(self._struct)

    def lay_out(self, message: list[int], num_rows: int) -> None:
        """Writes a step, told as inputs.cpp says. ValueError if it is too large, IndexError for a token id that is none."""
        numbers = array("q", message)
        wrong = self._call(numbers.buffer_info()[0], num_rows, self._address)
        if wrong == _TOO_LARGE:
            most = f"{self._struct.most_tokens} tokens, {self._struct.most_rows} rows and {self._struct.width} blocks a row"
            raise ValueError(f"a step of {num_rows} rows is larger than what was recorded: {most}")
        if wrong == _NO_TOKEN:
            raise IndexError(f"token ids must lie in [0, {self._struct.vocab})")
