"""Loading: overrides, no compiler, a broken compiler, two processes at once, and one OpenMP runtime."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import Ops, build
from tests.kernels.weights import random_weights


def test_every_op_has_a_row_and_can_be_overridden(ops: Ops, cache_dir: Path) -> None:
    assert {field.name for field in dataclasses.fields(Ops)} == {"variant", *kernels.TABLE}
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
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_processes_compile_at_once(tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    # Compiling nothing is enough here: an empty library is renamed into place by both.
    compiler.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done\n[ -z "$out" ] || : > "$out"\n')
    compiler.chmod(0o755)
    code = (
        "import os, sys, pathlib; os.environ['PATH'] = sys.argv[1]; from kernels import build\n"
        "try: build.library(pathlib.Path(sys.argv[2]))\nexcept OSError as error: sys.exit(0 if 'too short' in str(error) else 1)"
    )
    command = [sys.executable, "-c", code, f"{compiler.parent}:/bin:/usr/bin", str(tmp_path / "cache")]
    root = Path(kernels.__file__).parents[1]
    both = [subprocess.Popen(command, cwd=root) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_only_one_openmp_runtime_is_mapped(ops: Ops) -> None:
    ops.matmul(torch.randn(64, 64), random_weights("Q4_0", 64, 64), "Q4_0", 64)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    assert len({line.split()[-1] for line in maps.read_text().splitlines() if "gomp" in line}) == 1
