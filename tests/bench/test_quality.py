"""The quality bench's numbers are what their definitions say; llama.cpp's file is read as written. It knows no model."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import llama_logits
from bench.divergence import Score, divergence
from bench.quality import compare, pieces, table, verdict
from services.worker.engine.step import Row
from shared.errors import StartupError

V = 5


def predictions(seed: int, rows: int, spread: float = 1.0) -> Tensor:
    """Log-probabilities [rows, V] float64."""
    logits = torch.randn(rows, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (spread * logits).log_softmax(-1)


def test_divergence_is_the_textbook_sum() -> None:
    p, q = predictions(1, 4), predictions(2, 4)
    assert torch.allclose(divergence(p, q), (p.exp() * (p - q)).sum(-1))
    assert divergence(p, p).abs().max() == 0


def test_tokens_left_out_only_lower_it_and_a_wrong_total_does_not_count() -> None:
    p, q = predictions(1, 4), predictions(2, 4)
    kept = torch.tensor([True, True, False, True, False])
    assert (divergence(p, q, kept) >= 0).all()
    assert (divergence(p, q, kept) < divergence(p, q)).all()
    # To the first order a q that sums to 1.0001 has the same divergence; the textbook sum would be 1e-4 lower.
    assert torch.allclose(divergence(p, p + 1e-4), torch.zeros(4, dtype=torch.float64), atol=1e-8)


def test_a_score_sums_up_all_its_pieces() -> None:
    score, base, other = Score(8), predictions(1, 6), predictions(2, 6)
    targets = torch.tensor([0, 1, 2, 3, 4, 0])
    for part in (slice(0, 2), slice(2, 6)):
        score.add(base[part], other[part], targets[part])
    summary, each = score.summary(), divergence(base, other)
    assert summary.num_tokens == 6
    assert summary.kl_mean == pytest.approx(each.mean().item())
    assert summary.kl_max == pytest.approx(each.max().item())
    assert summary.kl_error == pytest.approx(each.std().item() / 6**0.5)
    chances = torch.tensor([other[i, target].exp().item() for i, target in enumerate(targets)])
    assert summary.perplexity == pytest.approx(1 / chances.prod().item() ** (1 / 6), rel=1e-5)
    assert summary.same_top == pytest.approx((base.argmax(-1) == other.argmax(-1)).double().mean().item())


def test_stored_numbers_are_near_and_the_far_ones_are_left_out() -> None:
    exact = torch.tensor([[0.0, -1.0, -15.9, -16.1, -40.0]], dtype=torch.float64).log_softmax(-1)
    rounded = llama_logits.stored(exact)
    assert rounded.kept.tolist() == [[True, True, True, False, False]]
    assert (rounded.log_probs - exact)[rounded.kept].abs().max() <= 16 / 65535 / 2 + 1e-12
    assert divergence(exact, rounded.log_probs, rounded.kept).item() < 1e-7


def write(file: Path, token_ids: Tensor, rows: list[tuple[float, float, list[int]]]) -> None:
    """A file as process_logits of perplexity.cpp writes it."""
    data = b"_logits_" + struct.pack("<3i", token_ids.shape[1], V, len(token_ids))
    data += struct.pack(f"<{token_ids.numel()}i", *token_ids.flatten().tolist())
    for step, least, numbers in rows:
        data += struct.pack("<2f6H", step, least, *numbers, 0)  # V is odd, so one more
    file.write_bytes(data)


def test_llama_file_is_read_as_written(tmp_path: Path) -> None:
    file, token_ids = tmp_path / "logits", torch.arange(10).view(2, 5)  # windows of 5: positions 2 and 3 are stored
    rows = [(0.5, -20.0 - i, [0, 1, 2, 3, 65535 - i]) for i in range(4)]
    write(file, token_ids, rows)
    found = llama_logits.read(file)
    assert torch.equal(found.token_ids, token_ids)
    first, second = found.pieces(2)
    assert first.log_probs.shape == (2, V)
    assert second.log_probs[1].tolist() == [-23.0 + 0.5 * number for number in (0, 1, 2, 3, 65532)]
    assert second.kept[1].tolist() == [False, True, True, True, True]
    assert torch.equal(torch.cat([piece.log_probs for piece in found.pieces(1)]), torch.cat([first.log_probs, second.log_probs]))


def test_a_broken_llama_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "logits"
    write(file, torch.arange(10).view(2, 5), [(0.5, -20.0, [0, 1, 2, 3, 4])] * 3)  # one row is missing
    with pytest.raises(StartupError, match="did not finish"):
        llama_logits.read(file)
    file.write_bytes(b"GGUF")
    with pytest.raises(StartupError, match="not a file of"):
        llama_logits.read(file)


def test_pieces_cover_what_predicts_and_part_at_the_middle() -> None:
    for length in (2, 5, 130, 512):
        covered = [position for piece in pieces(length) for position in range(length)[piece]]
        assert covered == list(range(length - 1))
        assert all((piece.start < length // 2) == (piece.stop <= length // 2) for piece in pieces(length))


class FakeRunner:
    """Logits that depend on the token alone."""

    def __init__(self, logits: Tensor):
        self._logits = logits

    def forward(self, rows: Sequence[Row]) -> Tensor:
        return self._logits[[token_id for row in rows for token_id in row.token_ids]]


def test_late_positions_are_those_that_llama_stores(tmp_path: Path) -> None:
    base, other, windows = predictions(1, V), predictions(2, V), torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    late = torch.tensor([2, 3, 2, 1])  # the tokens at positions 2 and 3
    # Their predictions are those of `other`, so that any difference is one of positions.
    least, step = other.amin(-1), (other.amax(-1) - other.amin(-1)) / 65535
    numbers = ((other - least[:, None]) / step[:, None]).round().int()
    write(tmp_path / "logits", windows, [(step[i].item(), least[i].item(), numbers[i].tolist()) for i in late.tolist()])
    result = compare(FakeRunner(base), {"fast": FakeRunner(other)}, windows, llama_logits.read(tmp_path / "logits"))
    each = divergence(base, other)
    # The last bit of a softmax may depend on how many rows it is taken of.
    assert torch.allclose(result.whole["fast"].divergences, each[windows[:, :-1].flatten()], rtol=1e-12)
    assert torch.allclose(result.late["fast"].divergences, each[late], rtol=1e-12)
    kept = numbers[late] > 0
    for name in ("llama.cpp", "fast, stored"):
        assert torch.allclose(result.late[name].divergences, divergence(base[late], other[late], kept), rtol=1e-3)
    assert result.late["exact"].summary().kl_max == 0
    assert "mean KL 1.000 x" in verdict(result.late, ["fast, stored"])[0]
    assert len(table("late", result.late)) == 6
