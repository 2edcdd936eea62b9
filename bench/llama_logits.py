"""llama.cpp's predictions on a text, from its llama-perplexity --kl-divergence-base, and that file's way to store them.

The file (tools/perplexity/perplexity.cpp): "_logits_", int32 n tokens of a window, V and number of windows, int32 token ids,
then for each window the predictions at positions n // 2 to n - 2: float32 step and least, 2 of 16 bits unused in all V odd,
V numbers of 16 bits. A log-probability is least + step * number; what lies more than 16 below the likeliest is stored as 0.
It knows nothing of Roadtrain's models.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.errors import StartupError

MAGIC = b"_logits_"
DEPTH = 16  # what is that much below the likeliest is not told apart
LEVELS = 65535


@dataclass(frozen=True, slots=True)
class Stored:
    """Log-probabilities [T, V] float64 as the file holds them; kept [T, V]: those not stored as 0, the floor."""

    log_probs: Tensor
    kept: Tensor


def stored(log_probs: Tensor) -> Stored:
    """`log_probs` [T, V], rounded as llama.cpp would."""
    most = log_probs.amax(-1, keepdim=True)
    least = log_probs.amin(-1, keepdim=True).maximum(most - DEPTH)
    step = (most - least) / LEVELS
    numbers = ((log_probs - least) / step).round().clamp(min=0)
    return Stored(least + step * numbers, numbers > 0)


@dataclass(frozen=True, slots=True)
class LlamaLogits:
    """What one file holds: token ids [windows, n] of the text, and predictions read a window at a time."""

    path: Path
    vocab_size: int
    token_ids: Tensor

    def pieces(self, size: int) -> Iterator[Stored]:
        """The predictions of each window, at most `size` positions at a time."""
        num_windows, window = self.token_ids.shape
        width = 4 + (self.vocab_size + 1) // 2 * 2
        scored = window - 1 - window // 2
        begin = len(MAGIC) + 4 * (3 + num_windows * window)
        rows = np.memmap(self.path, np.uint16, "r", begin, (num_windows, scored, width))
        for i, start in product(range(num_windows), range(0, scored, size)):
            piece = rows[i, start : start + size]
            scales = torch.from_numpy(piece[:, :4].copy().view(np.float32)).double()
            numbers = torch.from_numpy(piece[:, 4 : 4 + self.vocab_size].astype(np.int32))
            yield Stored(scales[:, 1:] + scales[:, :1] * numbers, numbers > 0)


def read(path: Path) -> LlamaLogits:
    """Opens a file that llama-perplexity wrote. Raises StartupError if it is none, or not whole."""
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
        header = np.frombuffer(file.read(12), np.int32)
        if magic != MAGIC or len(header) < 3:
            raise StartupError(f"{path}: not a file of llama-perplexity --kl-divergence-base")
        window, vocab_size, num_windows = (int(number) for number in header)
        token_ids = np.frombuffer(file.read(4 * num_windows * window), np.int32)
    row = 2 * (4 + (vocab_size + 1) // 2 * 2)
    whole = len(MAGIC) + 4 * (3 + num_windows * window) + num_windows * (window - 1 - window // 2) * row
    if path.stat().st_size != whole:
        raise StartupError(f"{path}: {path.stat().st_size} bytes, not {whole}; llama-perplexity did not finish")
    return LlamaLogits(path, vocab_size, torch.from_numpy(token_ids.reshape(num_windows, window).copy()).long())


def run(program: Path, model: Path, text: Path, window: int, num_windows: int, num_threads: int, folder: Path) -> LlamaLogits:
    """Has llama-perplexity predict the text, all else as it does by default; the file goes into folder, 0.1 MB a position.

    Raises StartupError with llama.cpp's last words if it fails.
    """
    file = folder / "llama-logits"
    command = [program, "-m", model, "-f", text, "-c", window, "--chunks", num_windows, "-t", num_threads]
    told = subprocess.run([*map(str, command), "--kl-divergence-base", str(file)], capture_output=True, text=True)
    if told.returncode:
        raise StartupError(f"{program} failed: {' '.join(told.stderr.strip().splitlines()[-1:]) or told.returncode}")
    return read(file)
