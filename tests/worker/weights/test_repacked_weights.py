"""Repacked weights kept on disk: used only when whole and of this model, never needed, and never in the way."""

import errno
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernels.matmul.cpu_fast import RepackedWeight
from kernels.weight import Weight
from services.worker.weights import repacked
from services.worker.weights.repacked import Repacked

NAMES = {"blk.0.attn_q.weight": (3, 32), "blk.0.ffn_up.weight": (5, 64)}


class Source:
    """A model of two weights whose tiles are their bytes backwards; counts how often each was read."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def stored(self, name: str) -> Callable[[], Weight]:
        def read() -> Weight:
            self.reads.append(name)
            n, k = NAMES[name]
            return Weight(torch.arange(n * k, dtype=torch.float32).reshape(n, k) + len(name), "F32", k)

        return read

    def load(self, file: Path | None) -> dict[str, torch.Tensor]:
        """All weights as a start would have them; what it leaves behind is in `file`."""
        kept = Repacked(backwards, file)
        found = {}
        for name, (n, k) in NAMES.items():
            weight = kept.weight(name, "F32", n, k, self.stored(name))
            assert weight.tiles is not None
            assert (weight.n, weight.k, weight.format, weight.tiles.kind) == (n, k, "F32", 5)
            found[name] = weight.tiles.data.clone()
        kept.keep()
        return found


def backwards(weight: Weight) -> Weight:
    flat = weight.data.contiguous().view(torch.uint8).flatten().flip(0)
    return Weight(weight.data.new_empty(0, 0), weight.format, weight.k, RepackedWeight(flat, 5, weight.n, weight.k))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any repacking counts as long."""
    monkeypatch.setattr(repacked, "KEEP_FROM_S", 0.0)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("slow")
def test_the_second_start_reads_no_weight(tmp_path: Path) -> None:
    file, source = tmp_path / "cache" / "model-layout.tiles", Source()
    first = source.load(file)
    assert source.reads == list(NAMES)
    source.reads.clear()
    assert same(source.load(file), first)
    assert not source.reads
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_quick_repacking_leaves_nothing(tmp_path: Path) -> None:
    Source().load(tmp_path / "cache" / "model-layout.tiles")
    assert not list(tmp_path.iterdir())


def test_without_a_place_everything_is_repacked() -> None:
    assert same(Source().load(None), Source().load(None))


@pytest.mark.usefixtures("slow")
def test_another_layout_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    Source().load(tmp_path / "model-old.tiles")
    Source().load(tmp_path / "other-old.tiles")
    source = Source()
    source.load(tmp_path / "model-new.tiles")
    assert source.reads == list(NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-new.tiles", "other-old.tiles"]


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("at", [0, 9, 17, 40, 200, 500, -1])
def test_a_flipped_bit_costs_a_repacking_and_no_more(at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "model-layout.tiles"
    whole = Source().load(file)
    damaged = bytearray(file.read_bytes())
    damaged[at] ^= 1
    file.write_bytes(damaged)
    source = Source()
    with caplog.at_level(logging.WARNING):
        assert same(source.load(file), whole)
    assert source.reads
    assert "damaged" in caplog.text
    # It was left anew, whole.
    source.reads.clear()
    assert same(source.load(file), whole)
    assert not source.reads


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("keep", [0, 7, 12, 100, 400, 1000])
def test_a_truncated_file_costs_a_repacking_and_no_more(keep: int, tmp_path: Path) -> None:
    file = tmp_path / "model-layout.tiles"
    whole = Source().load(file)
    file.write_bytes(file.read_bytes()[:keep])
    source = Source()
    assert same(source.load(file), whole)
    assert source.reads == list(NAMES)


@pytest.mark.usefixtures("slow")
def test_tiles_of_another_shape_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model-layout.tiles"
    Source().load(file)
    monkeypatch.setitem(NAMES, "blk.0.attn_q.weight", (6, 16))
    source = Source()
    source.load(file)
    assert "blk.0.attn_q.weight" in source.reads


@pytest.mark.usefixtures("slow")
def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repacked.os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        Source().load(tmp_path / "model-layout.tiles")
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("slow")
def test_a_place_that_is_no_folder_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        Source().load(tmp_path / "cache" / "model-layout.tiles")
    assert "could not be kept" in caplog.text
