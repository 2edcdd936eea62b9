"""The op table: every op of the forward pass and of sampling, and which files implement it.

    op          what it does                                      shapes, units and errors: its reference.py
    matmul      product with packed weights                       matmul/
    embedding   rows of packed weights                            matmul/
    dequantize  packed weights as float32                         matmul/
    rms_norm, add_rms_norm                                        norm/
    rope        rotary positions, in place                        rope/
    kv_write    keys and values into the paged cache              kv_write/
    attention   paged, ragged, causal                             attention/
    silu_mul, gelu_mul, gelu                                      activation/
    sample, logprobs                                              sample/

It knows nothing of models, of batches or of who calls.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from kernels import build, variants
from kernels.activation import cpu as activation_cpu
from kernels.activation import reference as activation_reference
from kernels.attention import cpu as attention_cpu
from kernels.attention import reference as attention_reference
from kernels.build import Library
from kernels.kv_write import cpu as kv_write_cpu
from kernels.kv_write import reference as kv_write_reference
from kernels.matmul import cpu as matmul_cpu
from kernels.matmul import reference as matmul_reference
from kernels.norm import cpu as norm_cpu
from kernels.norm import reference as norm_reference
from kernels.rope import cpu as rope_cpu
from kernels.rope import reference as rope_reference
from kernels.sample import cpu as sample_cpu
from kernels.sample import reference as sample_reference

Function = Callable[..., Any]

_LOG = logging.getLogger(__name__)
_NO_OVERRIDE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ops:
    """One function per op, bound to a device. On the CPU tensors are contiguous unless an op says otherwise.

    On "cpu" every row of every result depends on that row's inputs alone, bit for bit: not on the rows beside it, on
    how a prompt was cut into steps, or on the number of threads. The reference does not promise that.
    """

    library: Library | None  # the compiled code, if every op runs from it
    variant: str  # which code runs, part of the numerics fingerprint: "cpu-" and a name of variants.py, or "reference"
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
    gelu: Callable[[Tensor], Tensor]
    sample: Callable[..., Tensor]
    logprobs: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Row:
    """One op's files: the reference itself, and what binds the C++ function of a compiled library."""

    reference: Function
    cpu: Callable[[Library], Function]


TABLE = {
    "matmul": Row(matmul_reference.matmul, matmul_cpu.matmul),
    "embedding": Row(matmul_reference.embedding, matmul_cpu.embedding),
    "dequantize": Row(matmul_reference.dequantize, matmul_cpu.dequantize),
    "rms_norm": Row(norm_reference.rms_norm, norm_cpu.rms_norm),
    "add_rms_norm": Row(norm_reference.add_rms_norm, norm_cpu.add_rms_norm),
    "rope": Row(rope_reference.rope, rope_cpu.rope),
    "kv_write": Row(kv_write_reference.kv_write, kv_write_cpu.kv_write),
    "attention": Row(attention_reference.attention, attention_cpu.attention),
    "silu_mul": Row(activation_reference.silu_mul, activation_cpu.silu_mul),
    "gelu_mul": Row(activation_reference.gelu_mul, activation_cpu.gelu_mul),
    "gelu": Row(activation_reference.gelu, activation_cpu.gelu),
    "sample": Row(sample_reference.sample, sample_cpu.sample),
    "logprobs": Row(sample_reference.logprobs, sample_cpu.logprobs),
}


def load(device: str, cache_dir: Path, override: Mapping[str, str] = _NO_OVERRIDE) -> Ops:
    """The ops of a device ("cpu"), compiled into cache_dir on first use; override: op -> "reference" or "cpu".

    Of the variants for this processor the best that works is taken. Without a working compiler every op is the reference.
    The log says when it is not the best one.
    """
    if device != "cpu":
        raise ValueError(f"no kernels for device {device!r}; the devices are: cpu")
    wrong = [f"{op}={kind}" for op, kind in override.items() if op not in TABLE or kind not in ("cpu", "reference")]
    if wrong:
        raise ValueError(f"no such kernels: {', '.join(wrong)}")
    compiled = _compiled(cache_dir, variants.here())
    functions: dict[str, Function] = {op: row.reference for op, row in TABLE.items()}
    if compiled is not None:
        functions |= {op: row.cpu(compiled) for op, row in TABLE.items() if override.get(op) != "reference"}
    variant = "reference" if compiled is None else f"cpu-{compiled.variant}"
    changed = "".join(f"+{op}={kind}" for op, kind in sorted(override.items()) if kind == "reference")
    return Ops(library=None if changed else compiled, variant=variant + changed, **functions)


def _compiled(cache_dir: Path, names: Sequence[str]) -> Library | None:
    """The library of the first of these variants that compiles and, if no test has run it, works here; None if none does."""
    for name in names:
        try:
            library = build.library(cache_dir, name)
        except build.NoCompilerError as error:
            _LOG.warning("The slow reference kernels are used: %s", error)
            return None
        except build.BuildError as error:
            wrong: str | None = str(error)
        else:
            wrong = None if name in variants.TESTED else _fault(library)
        if wrong is None:
            return library
        _LOG.warning("The %s kernels are not used: %s", name, wrong)
    _LOG.warning("The slow reference kernels are used.")
    return None


def _fault(library: Library) -> str | None:
    from kernels import selfcheck  # it needs this module whole; most processors never need it

    wrong = selfcheck.fault(library)
    return None if wrong is None else f"{wrong} comes out wrong on this processor"
