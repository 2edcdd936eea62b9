"""Loading: overrides, no compiler, a broken compiler, two processes at once, and one OpenMP runtime."""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import kernels
from kernels import Ops, build
from kernels.matmul import reference as matmul_reference
from kernels.sample import reference as sample_reference
from tests.kernels.sample_params import plain as plain_params
from tests.kernels.weights import PACKED, random_weights


def test_every_op_has_a_row_and_can_be_overridden(ops: Ops, cache_dir: Path) -> None:
    assert {field.name for field in dataclasses.fields(Ops)} == {"variant", "library", *kernels.TABLE}
    changed = kernels.load("cpu", cache_dir, {"rope": "reference", "sample": "cpu"})
    assert changed.rope is kernels.TABLE["rope"].reference
    assert changed.variant == ops.variant + "+rope=reference"


@pytest.mark.parametrize("override", [{"rope": "gpu"}, {"turn": "cpu"}])
def test_unknown_kernels_and_devices_are_refused(cache_dir: Path, override: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no such kernels"):
        kernels.load("cpu", cache_dir, override)
    with pytest.raises(ValueError, match="no kernels for device 'abacus'"):
        kernels.load("abacus", cache_dir)


def test_without_a_compiler_the_reference_serves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        loaded = kernels.load("cpu", tmp_path)
    assert loaded.variant == "reference"
    assert loaded.matmul is kernels.TABLE["matmul"].reference
    assert "install g++ or clang++" in caplog.text


def test_a_compiler_that_fails_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "c++"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no disk >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent))
    with pytest.raises(build.BuildError, match="no disk"):
        build.library(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def copier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    """A compiler that only copies a library that is there already: quick, and its result loads."""
    real = next(cache_dir.glob("kernels-*.so"))
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    script = f'while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done\n[ -z "$out" ] || cp {real} "$out"\n'
    compiler.write_text("#!/bin/sh\n" + script)
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/bin:/usr/bin")


def test_two_at_once_keep_one_whole_library(ops: Ops, copier: None, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(build.library, tmp_path / "cache") for _ in range(2)]
        assert [future.result().variant for future in both]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".so"]


def test_a_cache_that_cannot_be_written_costs_only_the_next_start(
    ops: Ops, copier: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert build.library(tmp_path / "cache").symbols
    assert "could not be kept" in caplog.text


def test_only_one_openmp_runtime_is_mapped(ops: Ops) -> None:
    ops.matmul(torch.randn(64, 64), random_weights("Q4_0", 64, 64), "Q4_0", 64)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    assert len({line.split()[-1] for line in maps.read_text().splitlines() if "gomp" in line}) == 1


@pytest.mark.full
def test_the_portable_variant_keeps_the_same_promises(cache_dir: Path) -> None:
    """Same tokens and unpacked weights as the reference, rows that do not depend on their neighbours."""
    portable = build.library(cache_dir, "portable")
    matmul, dequantize = (kernels.TABLE[op].cpu(portable) for op in ("matmul", "dequantize"))
    for fmt in PACKED:
        data, x = random_weights(fmt, 19, 512), torch.randn(9, 512)
        plain = matmul_reference.dequantize(data, fmt)
        assert torch.equal(dequantize(data, fmt), plain)
        whole = matmul(x, data, fmt, 19)
        torch.testing.assert_close(whole, x @ plain.T, atol=1e-3, rtol=1e-4)
        assert torch.equal(torch.cat([matmul(row, data, fmt, 19) for row in x.split(1)]), whole)
    logits = torch.randn(40, 3001) * torch.linspace(0.1, 9.0, 40)[:, None]
    params = plain_params(40, top_p=[0.9, 1.0] * 20, top_k=[50, 0, 0, 0] * 10, min_p=[0.0] * 39 + [0.1], position=list(range(40)))
    assert torch.equal(kernels.TABLE["sample"].cpu(portable)(logits, params), sample_reference.sample(logits, params))
    k, cache = torch.randn(1, 1, 64) * 1e-5, torch.zeros(2, 1, 1, 64, 16).half()
    kernels.TABLE["kv_write"].cpu(portable)(k, k, cache[0], cache[1].view(1, 1, 16, 64), torch.tensor([3]))
    assert torch.equal(cache[0, 0, 0, :, 3], k[0, 0].half())
