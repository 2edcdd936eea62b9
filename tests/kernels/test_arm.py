"""The kernels of 64-bit ARM, emulated: every number is that of AVX2, bit for bit.

Not run where the cross compiler or qemu is missing. How fast they are is not known.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from kernels import Ops, build, selfcheck, variants
from kernels.build import Library
from kernels.kv_write.layout import KINDS
from kernels.matmul.cpu_fast import KINDS as WEIGHT_KINDS
from kernels.matmul.cpu_fast import repack
from kernels.matmul.formats import FORMATS
from kernels.recorder import Recorder
from kernels.recorder_fast import FastRecorder
from kernels.sample.params import SampleParams
from tests.kernels.arm import ArmFast, Machine, compile_driver, missing, program_on
from tests.kernels.caches import unwritten
from tests.kernels.fast import Fast, PeaksArgs, same
from tests.kernels.sample_params import plain
from tests.kernels.test_attention_kernels import make_case
from tests.kernels.weights import random_weights

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]
ALL = ("y", "q8", "q16")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if (absent := missing()) is not None:
        pytest.skip(absent)
    started = Machine(compile_driver(tmp_path_factory.mktemp("arm"), build.FLAGS))
    yield started
    started.close()


@pytest.fixture
def both(machine: Machine, cache_dir: Path) -> tuple[ArmFast, Fast]:
    """On ARM, and here: with tiles of eight rows, as ARM has them, whatever else this processor knows."""
    if "avx2" not in variants.here():
        pytest.skip("compared with AVX2, which this processor lacks")
    here = build.library(cache_dir, "avx2")
    return ArmFast(here, machine=machine), Fast(here)


@pytest.fixture
def on_arm(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded programs run on ARM."""
    monkeypatch.setattr("kernels.recorder.Program", program_on(machine))


def test_the_check_at_load_passes(both: tuple[ArmFast, Fast], on_arm: None) -> None:
    assert selfcheck.fault(Library("neon", both[0].library.symbols)) is None


def _k(fmt: str) -> int:
    return 512 if FORMATS[fmt].block_size == 256 else 160


@pytest.mark.parametrize("fmt", WEIGHT_KINDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_products_have_the_same_bits(both: tuple[ArmFast, Fast], fmt: str, shifted: bool) -> None:
    arm, here = both
    weight, bias = repack(here.library, random_weights(fmt, 37, _k(fmt)), fmt), torch.randn(37)
    for rows in (1, 2, 3, 4, 5, 6, 13):
        x, onto = torch.randn(rows, _k(fmt)) + float(shifted), torch.randn(rows, 37)
        assert torch.equal(arm.matmul(x, weight, bias, onto), here.matmul(x, weight, bias, onto)), rows


@pytest.mark.parametrize("gelu", [False, True])
def test_gate_and_up_have_the_same_bits(both: tuple[ArmFast, Fast], gelu: bool) -> None:
    arm, here = both
    for fmt in ("Q4_1", "Q8_0", "BF16"):
        gate, up = (repack(here.library, random_weights(fmt, 64, 160), fmt) for _ in range(2))
        x = torch.randn(7, 160)
        assert same(arm.gate_up(x, gate, up, gelu, *ALL), here.gate_up(x, gate, up, gelu, *ALL)), fmt


def test_norms_and_quantised_rows_have_the_same_bits(both: tuple[ArmFast, Fast]) -> None:
    arm, here = both
    x, add, weight = torch.randn(13, 576), torch.randn(13, 576), torch.randn(576)
    x[3, 32:64] = 0
    result, expected = (each.norm(x, add, weight, 1e-5, None, *ALL) for each in both)
    assert same(result[0], expected[0])
    assert torch.equal(result[1], expected[1])
    ties = torch.arange(-64, 64).float()[None] / 2
    assert same(arm.quantize(ties, *ALL), here.quantize(ties, *ALL))


@pytest.mark.parametrize("dtype", KINDS)
def test_rotation_and_cache_have_the_same_bits(both: tuple[ArmFast, Fast], dtype: torch.dtype) -> None:
    qkv, table, norms = torch.randn(9, 10 * 80), torch.randn(50, 32), (torch.randn(80), torch.randn(80))
    places = torch.randint(0, 50, (9,)), torch.randperm(64)[:9]
    results = []
    for each in both:
        caches = unwritten(4, 2, 80, dtype)
        turned = each.rope(qkv, (6, 2, 80), norms, table, places, caches, 0.125)
        results.append((turned, *(cache.view(torch.uint8) for cache in caches)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(9, 3, 64), (4, 1, 80), (30, 1, 32)])
@pytest.mark.parametrize("law", [{}, {"window": 20, "softcap": 3.0}])
def test_attention_has_the_same_bits(
    both: tuple[ArmFast, Fast], ops: Ops, heads: int, kv_heads: int, d: int, dtype: torch.dtype, law: dict[str, float]
) -> None:
    case = make_case(ops, [1, 17, 75], heads, kv_heads, d, dtype)
    caches = tuple(cache.nan_to_num(0) for cache in (case.k_cache, case.v_cache))
    start, lens = torch.tensor([0, 1, 18, 93]).int(), torch.tensor([1, 17, 75]).int()
    result, expected = (each.attention(case.q.contiguous(), caches, case.tables, start, lens, **law) for each in both)  # type: ignore[arg-type]
    assert same(result, expected)
    last = case.q[[0, 17, 92]].contiguous()
    one = torch.arange(4).int()
    few, expected = (
        each.attention(last, caches, case.tables, one, lens, **law, scores=torch.zeros(1 << 16))  # type: ignore[arg-type]
        for each in both
    )
    assert same(few, expected)


@pytest.mark.parametrize("recorder", [Recorder, FastRecorder])
def test_exact_and_fast_layers_have_the_same_bits(
    both: tuple[ArmFast, Fast], machine: Machine, monkeypatch: pytest.MonkeyPatch, recorder: type[Recorder]
) -> None:
    library = both[1].library
    for name, trial in (selfcheck.TRIALS | (selfcheck.FAST_TRIALS if recorder is FastRecorder else {})).items():
        expected = selfcheck.recorded(recorder, library, trial)
        with monkeypatch.context() as patched:
            patched.setattr("kernels.recorder.Program", program_on(machine))
            assert torch.equal(selfcheck.recorded(recorder, library, trial), expected), name


def test_the_limits_can_be_measured(machine: Machine) -> None:
    data = torch.zeros(512, dtype=torch.uint8)
    for what in range(4):
        machine.run("rt_peaks", PeaksArgs(what, data.data_ptr(), 512 if what == 0 else 3), 2)


class _SampleArgs(ctypes.Structure):
    """SampleArgs of the driver."""

    _fields_ = tuple(
        (name, ctypes.c_int64 if name in ("rows", "v") else ctypes.c_void_p)
        for name in ("logits", *(each.name for each in fields(SampleParams)), "out", "rows", "v")
    )


@pytest.mark.parametrize("truncated", [{}, {"top_p": 0.9, "top_k": 50}, {"min_p": 0.05}, {"temperature": 0.0}])
def test_the_same_tokens_are_drawn(machine: Machine, ops: Ops, truncated: dict[str, float]) -> None:
    logits, params = torch.randn(20, 3001) * 3, plain(20, position=list(range(20)), **truncated)
    out = torch.zeros(20, dtype=torch.int64)
    pointers = [getattr(params, each.name).data_ptr() for each in fields(SampleParams)]
    machine.run("sample", _SampleArgs(logits.data_ptr(), *pointers, out.data_ptr(), *logits.shape), 1)
    assert torch.equal(out, ops.sample(logits, params))
