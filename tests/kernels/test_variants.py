"""Which variant is taken, what happens when it does not work, and the VNNI ones on processors that lack the instructions."""

import ctypes
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kernels
from kernels import Ops, build, selfcheck, variants
from kernels.build import Library
from kernels.matmul.cpu_fast import KINDS, repack
from kernels.recorder_fast import FastRecorder
from kernels.rows import runner
from tests.kernels.fast import Fast, PeaksArgs, same
from tests.kernels.weights import random_weights

_AVX2 = "fpu sse2 avx avx2 fma f16c"
_AVX512 = "avx512f avx512bw avx512vl avx512dq"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("", ("portable",)),
        ("flags\t\t: fpu sse2 avx\n", ("portable",)),
        (f"model name : x\nflags\t\t: {_AVX2}\nbugs : avx_vnni\n", ("avx2", "portable")),
        (f"flags : {_AVX2} {_AVX512}\n", ("avx2", "portable")),
        (f"flags : {_AVX2} {_AVX512} avx512_vnni\n", ("avx512vnni", "avx2", "portable")),
        (f"flags : {_AVX2} avx_vnni\n", ("avxvnni", "avx2", "portable")),
        (f"flags : {_AVX2} {_AVX512} avx512_vnni avx_vnni\n", ("avx512vnni", "avxvnni", "avx2", "portable")),
        ("Features\t: fp asimd atomics asimddp\n", ("neon", "portable")),
        ("Features\t: fp asimd\n", ("portable",)),
    ],
)
def test_the_processor_says_what_it_runs(cpuinfo: str, expected: tuple[str, ...]) -> None:
    assert variants.runnable(cpuinfo) == expected
    assert set(expected) <= set(variants.FLAGS)


@pytest.fixture
def compiled(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Has the processor run everything on x86, and compilers refuse some variants; gives the names that were asked for."""

    def prepare(*refused: str) -> list[str]:
        asked: list[str] = []

        def library(_cache_dir: Path, name: str) -> Library:
            asked.append(name)
            if name in refused:
                raise build.BuildError("unknown instruction")
            assert ops.library is not None
            return replace(ops.library, variant=name)

        monkeypatch.setattr(build, "library", library)
        monkeypatch.setattr(variants, "here", lambda: ("avx512vnni", "avxvnni", "avx2", "portable"))
        return asked

    return prepare


def test_the_best_variant_is_taken_after_a_check(compiled: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, checked = compiled(), []
    monkeypatch.setattr(selfcheck, "fault", lambda library: checked.append(library.variant))
    assert kernels.load("cpu", Path()).variant == "cpu-avx512vnni"
    assert asked == checked == ["avx512vnni"]


def test_what_is_refused_or_wrong_is_passed_over_and_the_log_says_so(
    compiled: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked, checked = compiled("avx512vnni"), []

    def fault(library: Library) -> str:
        checked.append(library.variant)
        return "fast product Q4_0"

    monkeypatch.setattr(selfcheck, "fault", fault)
    with caplog.at_level(logging.WARNING):
        assert kernels.load("cpu", Path()).variant == "cpu-avx2"
    assert asked == ["avx512vnni", "avxvnni", "avx2"]
    assert checked == ["avxvnni"], "avx2 is tested: it costs no time at start"
    assert "avx512vnni kernels are not used: unknown instruction" in caplog.text
    assert "avxvnni kernels are not used: fast product Q4_0 comes out wrong" in caplog.text


def test_where_every_variant_is_refused_the_reference_serves(
    compiled: Callable[..., list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    compiled("avx512vnni", "avxvnni", "avx2", "portable")
    assert kernels.load("cpu", Path()).variant == "reference"
    assert "slow reference kernels" in caplog.text


def test_the_check_finds_no_fault_in_what_works_and_leaves_the_dice_alone(ops: Ops) -> None:
    assert ops.library is not None
    before = torch.random.get_rng_state()
    assert selfcheck.fault(ops.library) is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_check_runs_on_torch_as_a_worker_loads_it(cache_dir: Path) -> None:
    """A worker leaves a part of torch out (services/worker/__main__.py), and some of what torch can do goes with it."""
    lines = (
        "from shared.imports import hollow",
        "with hollow('torch._meta_registrations'):",
        "    import torch",
        "import sys",
        "from pathlib import Path",
        "from kernels import build, selfcheck",
        "print(selfcheck.fault(build.library(Path(sys.argv[1]))))",
    )
    command = [sys.executable, "-c", "\n".join(lines), str(cache_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


class _Broken:
    """A library in which one body computes with one row of numbers less than it is told."""

    def __init__(self, whole: Any, body: str):
        self.whole, self.body = whole, body
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
        original = kind(ctypes.cast(whole[body], ctypes.c_void_p).value or 0)

        def fewer(args: int, tid: int, nth: int) -> None:
            count = ctypes.cast(args, ctypes.POINTER(ctypes.POINTER(ctypes.c_int64)))[0]
            count[0] -= 1
            original(args, tid, nth)
            count[0] += 1

        self.replaced = kind(fewer)

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, name: str) -> Any:
        return self.replaced if name == self.body else self.whole[name]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("rt_matmul_body", "product Q4_0"),
        ("rt_fast_matmul", "fast product Q4_0"),
        ("rt_fast_gate_up", "fast gated Q4_0"),
        ("rt_fast_norm", "fast product Q4_0"),
        ("rt_fast_rope", "fast attention torch.float32"),
        ("rt_attention_body", "attention torch.float32"),
    ],
)
def test_the_check_finds_a_body_that_is_wrong(ops: Ops, monkeypatch: pytest.MonkeyPatch, body: str, expected: str) -> None:
    assert ops.library is not None
    # What is left unwritten must not hold what an earlier trial put there.
    monkeypatch.setattr("kernels.program.np.empty", lambda size, dtype: np.full(size, 255, dtype))
    if "fast" in body and ops.library.variant == "portable":
        pytest.skip("no fast bodies for this processor")
    broken: Any = _Broken(ops.library.symbols, body)
    assert selfcheck.fault(replace(ops.library, symbols=broken)) == expected


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory, ops: Ops) -> ctypes.CDLL:
    """What computes an instruction that this processor does not know."""
    if ops.variant != "cpu-avx2":
        pytest.skip("for processors with AVX2 alone")
    compiler, target = shutil.which("c++") or shutil.which("g++") or "c++", tmp_path_factory.mktemp("trap") / "trap.so"
    source = Path(__file__).with_name("vnni_trap.cpp")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.trap_count.restype = ctypes.c_int64
    return library


@pytest.fixture
def vnni(cache_dir: Path, trap: ctypes.CDLL) -> Iterator[Library]:
    trap.trap_start()
    before = trap.trap_count()
    yield build.library(cache_dir, "avxvnni")
    trap.trap_stop()
    assert trap.trap_count() > before, "the variant's own instructions were not used"


def _agree(one: Library, other: Library) -> None:
    """Products of every kind of weight, and gate and up, give the same bits."""
    for fmt in KINDS:
        data = random_weights(fmt, 67, 512)
        for rows in (1, 2, 3, 4, 5, 6, 7, 9, 13):
            x = torch.randn(rows, 512)
            results = [Fast(library).matmul(x, repack(library, data, fmt)) for library in (one, other)]
            assert torch.equal(*results), (fmt, rows)
    halves, x = [random_weights("Q4_1", 64, 256) for _ in range(2)], torch.randn(7, 256)
    activated = [
        Fast(library).gate_up(x, *(repack(library, data, "Q4_1") for data in halves), False, "y", "q8")
        for library in (one, other)
    ]
    assert same(*activated)


@pytest.mark.parametrize("name", [name for name in variants.here()[1:] if name != "portable"])
def test_what_else_this_processor_runs_gives_the_same_bits(name: str, ops: Ops, cache_dir: Path) -> None:
    assert ops.library is not None
    _agree(ops.library, build.library(cache_dir, name))


@pytest.mark.full
def test_vnni_gives_the_bits_of_avx2(vnni: Library, ops: Ops) -> None:
    assert ops.library is not None
    _agree(vnni, ops.library)
    for what in (2, 3):
        runner(vnni, "rt_peaks")(PeaksArgs(what, None, 3), 1)


@pytest.mark.full
def test_vnni_passes_the_check_it_gets_when_loaded(vnni: Library) -> None:
    assert selfcheck.fault(vnni) is None


@pytest.mark.full
def test_every_variant_of_this_processor_gives_the_same_bits(ops: Ops, cache_dir: Path) -> None:
    assert ops.library is not None
    others = [name for name in variants.here() if name not in (ops.library.variant, "portable")]
    if ops.library.variant == "portable" or not others:
        pytest.skip("this processor has one variant with fast bodies")
    for name in others:
        other = build.library(cache_dir, name)
        for what, trial in (selfcheck.TRIALS | selfcheck.FAST_TRIALS).items():
            result, expected = (selfcheck.recorded(FastRecorder, library, trial) for library in (other, ops.library))
            assert torch.equal(result, expected), (name, what)
