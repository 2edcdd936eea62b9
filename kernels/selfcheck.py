"""Whether a compiled library computes on this processor what the references do: small layers of every kind of weight.

Meant for variants that could not be run where they were written (variants.TESTED are the others). The tolerances leave room
for activations in 8 bits and find a wrong lane. It knows nothing of instruction sets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kernels import TABLE, Ops
from kernels.build import Library
from kernels.kv_write.layout import empty
from kernels.matmul.formats import FORMATS, row_bytes
from kernels.recorder import Recorder
from kernels.recorder_fast import FastRecorder, can_be_fast, repacked
from kernels.step_ops import Eager, Norm, Place, Scores, StepOps
from kernels.weight import Part, Weight

FORMS = ("Q4_0", "Q4_1", "Q8_0", "Q5_K", "Q6_K", "F32", "F16", "BF16")  # one format for every kind of tile
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SCALES_AT = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_TOKENS, _WIDTH, _HEADS, _KV_HEADS, _HEAD_DIM = 19, 256, 4, 2, 32
_EXACT, _FAST = 1e-4, 0.05  # of a column's norm; activations in 8 bits alone take up to 0.02


@dataclass(slots=True)
class _Places:
    """Where the tokens of the one sequence belong; fields as step_ops.Places has them."""

    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    query_start: Tensor
    seq_lens: Tensor


Prepare = Callable[[Weight], Weight]  # how the weights of a library's products are kept
Trial = Callable[[StepOps, Prepare], Tensor]


def fault(library: Library) -> str | None:
    """The first thing that comes out wrong, as a few words for a log, or None. Takes about 0.1 s."""
    truth = Eager(Ops(library=None, variant="reference", **{op: row.reference for op, row in TABLE.items()}))
    for name, trial in (TRIALS | FAST_TRIALS).items():
        expected = trial(truth, _as_it_is)
        if name in TRIALS and _far(recorded(Recorder, library, trial), expected) > _EXACT:
            return name
        if can_be_fast(library, _HEAD_DIM) and _far(recorded(FastRecorder, library, trial), expected) > _FAST:
            return f"fast {name}"
    return None


def recorded(kind: type[Recorder], library: Library, trial: Trial) -> Tensor:
    """What a trial gives as a program of the library's bodies: on one thread, as several would wait more than compute."""
    recorder = kind(library, _TOKENS)
    result = trial(recorder, partial(repacked, library) if kind is FastRecorder else _as_it_is)
    recorder.set_counts((_TOKENS, 1, _TOKENS))
    recorder.program.run(num_threads=1)
    return result


def _far(result: Tensor, expected: Tensor) -> float:
    """The largest difference of a column, of its norm; infinite where a number is not finite."""
    far = ((result - expected).norm(dim=0) / expected.norm(dim=0)).max()
    return float(far.nan_to_num(torch.inf))


def _as_it_is(weight: Weight) -> Weight:
    return weight


def _normal(seed: int, *shape: int) -> Tensor:
    """numpy's numbers: torch makes no generator where it was loaded without its operators for tensors without data."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def _weight(fmt: str, n: int, k: int, seed: int) -> Weight:
    """Random weights: any bytes, with sane scales."""
    if fmt in _FLOATS:
        return Weight(_normal(seed, n, k).to(_FLOATS[fmt]), fmt, k)
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, row_bytes(fmt, k)), dtype=np.uint8))
    blocks = data.view(-1, FORMATS[fmt].block_bytes)
    for at in _SCALES_AT[fmt]:
        blocks[:, at + 1] = blocks[:, at + 1] & 0x83 | 0x20
    return Weight(data, fmt, k)


def _rows(ops: StepOps, width: int, prepare: Prepare) -> Tensor:
    """Some activations: every token has its own."""
    return ops.embed(torch.arange(_TOKENS), prepare(_weight("F32", _TOKENS, width, 1)), 0.5)


def _norm(width: int) -> Norm:
    return Norm(_normal(2, width).abs() + 0.5, 1e-5)


def _product(fmt: str, ops: StepOps, prepare: Prepare) -> Tensor:
    x = ops.norm(_rows(ops, _WIDTH, prepare), _norm(_WIDTH))
    weight = prepare(_weight(fmt, 24, _WIDTH, 3))
    return ops.linear(x, [Part(weight, _normal(4, 24))])


def _gated(fmt: str, ops: StepOps, prepare: Prepare) -> Tensor:
    x = ops.norm(_rows(ops, _WIDTH, prepare), _norm(_WIDTH))
    half = ops.gated(x, [Part(prepare(_weight(fmt, 128, _WIDTH, 5)))], "silu")
    return ops.linear(half, [Part(prepare(_weight("F32", 16, 64, 6)))])


def _attention(dtype: torch.dtype, ops: StepOps, prepare: Prepare) -> Tensor:
    """Of one sequence whose tokens lie in two blocks, the second before the first."""
    kinds, slots, width = _HEADS + 2 * _KV_HEADS, torch.arange(_TOKENS), _HEADS * _HEAD_DIM
    qkv = _rows(ops, kinds * _HEAD_DIM, prepare).view(_TOKENS, kinds, _HEAD_DIM)
    table = _normal(7, _TOKENS, _HEAD_DIM)
    place = Place(_HEADS, _KV_HEADS, _HEAD_DIM, table, (_norm(_HEAD_DIM), _norm(_HEAD_DIM)))
    cache = empty(2, _KV_HEADS, _HEAD_DIM, dtype)
    rows = (torch.tensor([[1, 0]]).int(), torch.tensor([0, _TOKENS]).int(), torch.tensor([_TOKENS]).int())
    places = _Places(slots, (slots + 16) % 32, *rows)
    seen = ops.attend(qkv, place, cache, places, Scores(_HEAD_DIM**-0.5))
    return ops.linear(seen, [Part(prepare(_weight("F32", 32, width, 8)))])


TRIALS: dict[str, Trial] = {f"{what.__name__[1:]} {fmt}": partial(what, fmt) for fmt in FORMS for what in (_product, _gated)}
TRIALS |= {f"attention {dtype}": partial(_attention, dtype) for dtype in (torch.float32, torch.float16)}
FAST_TRIALS: dict[str, Trial] = {"attention torch.int8": partial(_attention, torch.int8)}  # exact bodies know no such cache
