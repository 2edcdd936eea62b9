"""The op table: every op of the forward pass and of sampling, and which files implement it.

    op          what it does                                      shapes, units and errors: its reference.py
    matmul      product with packed weights                       matmul/
    embedding   rows of packed weights                            matmul/
    dequantize  packed weights as float32                         matmul/
    rms_norm, add_rms_norm                                        norm/
    rope        rotary positions, in place                        rope/
    kv_write    keys and values into the paged cache              kv_write/
    attention   paged, ragged, causal                             attention/
    silu_mul, gelu_mul                                            activation/
    sample, logprobs                                              sample/

It knows nothing of models, of batches or of who calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kernels.activation import reference as activation_reference
from kernels.attention import reference as attention_reference
from kernels.kv_write import reference as kv_write_reference
from kernels.matmul import reference as matmul_reference
from kernels.norm import reference as norm_reference
from kernels.rope import reference as rope_reference
from kernels.sample import reference as sample_reference

Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Ops:
    """One function per op, bound to a device. On the CPU tensors are contiguous unless an op says otherwise.

    On "cpu" every row of every result depends on that row's inputs alone, bit for bit: not on the rows beside it, on
    how a prompt was cut into steps, or on the number of threads. The reference does not promise that.
    """

    variant: str  # which code runs, part of the numerics fingerprint: "cpu-avx2", "cpu-portable", "reference"
    matmul: Callable[[Tensor, Tensor, str, int], Tensor]
    embedding: Callable[[Tensor, Tensor, str, int], Tensor]
    dequantize: Callable[[Tensor, str], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    rope: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    kv_write: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    attention: Callable[..., Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    gelu_mul: Callable[[Tensor], Tensor]
    sample: Callable[..., Tensor]
    logprobs: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]


TABLE: dict[str, dict[str, Function]] = {
    "matmul": {"reference": matmul_reference.matmul},
    "embedding": {"reference": matmul_reference.embedding},
    "dequantize": {"reference": matmul_reference.dequantize},
    "rms_norm": {"reference": norm_reference.rms_norm},
    "add_rms_norm": {"reference": norm_reference.add_rms_norm},
    "rope": {"reference": rope_reference.rope},
    "kv_write": {"reference": kv_write_reference.kv_write},
    "attention": {"reference": attention_reference.attention},
    "silu_mul": {"reference": activation_reference.silu_mul},
    "gelu_mul": {"reference": activation_reference.gelu_mul},
    "sample": {"reference": sample_reference.sample},
    "logprobs": {"reference": sample_reference.logprobs},
}


def load(device: str, cache_dir: Path, override: Mapping[str, str] = {}) -> Ops:
    """The ops of a device ("cpu"), compiling into cache_dir on first use; `override` names another file for an op."""
    if device != "cpu":
        raise ValueError(f"no kernels for device {device!r}; the devices are: cpu")
    return Ops(variant="reference", **{op: files[override.get(op, "reference")] for op, files in TABLE.items()})
