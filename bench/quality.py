"""What fast arithmetic costs in accuracy: KL divergence and perplexity against exact, and llama.cpp's on the same file and text.

The text, text.txt, is the beginning of Northanger Abbey by Jane Austen (published in 1817, in the public domain; taken from the
Debian package r-cran-janeaustenr, lines joined to paragraphs), cut into windows that are predicted one by one. The baseline is
`--compute exact` over a float32 cache. llama.cpp scores only the second half of each window and stores in 16 bits what it
predicts: the rows named `stored` are our own predictions treated the same. It knows nothing of speed.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from bench import llama_logits
from bench.divergence import Score, standard_error
from kernels import load
from services.launcher.pull import find_or_fetch
from services.tokenizer import vocab
from services.worker.engine.step import BLOCK_SIZE, Row
from services.worker.models import build
from services.worker.runtime.kv_cache import DTYPES
from services.worker.runtime.runner import KV_DTYPE, ModelRunner
from shared.config import cache_dir
from shared.errors import StartupError

TEXT = Path(__file__).with_name("text.txt")
LLAMA = "llama.cpp"
PIECE = 64  # positions at a time: arrays this small are used again where larger ones would be fresh pages each time


def windows_of(model: Path, text: Path, length: int, most: int) -> Tensor:
    """Token ids [windows, length] of the beginning of a text, at most `most` windows. StartupError if it is too short for one."""
    vocabulary = vocab.load(model)
    # llama.cpp takes one line end off the end of the file, and lets every window begin as a text does.
    ids = torch.tensor(vocabulary.encode(text.read_text().removesuffix("\n"), add_special_tokens=True))
    count = min(most, len(ids) // length)
    if not count:
        raise StartupError(f"{text} has {len(ids)} tokens, less than a window of {length}")
    windows = ids[: count * length].view(count, length).clone()
    begin = vocabulary.encode("", add_special_tokens=True)
    if begin:
        windows[:, 0] = begin[0]
    return windows


def open_runner(model: Path, compute: str, kv_dtype: str, most_tokens: int) -> ModelRunner:
    """A runner for `log_probs` of windows of at most most_tokens tokens. StartupError if the model has no such arithmetic."""
    built = build(model, load("cpu", cache_dir() / "kernels"), compute=compute)
    if built.compute != compute:
        raise StartupError(f"{model} cannot be computed {compute} here")
    limits = {"max_num_seqs": 1, "max_step_tokens": most_tokens, "num_blocks": -(-most_tokens // BLOCK_SIZE)}
    return ModelRunner(built, kv_dtype=kv_dtype, num_threads=None, device="cpu", **limits)


def pieces(length: int) -> list[slice]:
    """The positions of a window that predict one of its tokens, a few at a time; none holds both early and late ones."""
    half, end = length // 2, length - 1
    starts = [*range(0, half, PIECE), *range(half, end, PIECE)]
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True)]


def log_probs(runner: ModelRunner, windows: Sequence[Sequence[int]] | Tensor) -> Iterator[Tensor]:
    """Log-probabilities [T, V] float64 of what follows each token of `pieces`; every window is a sequence of its own."""
    if runner.forward is None:
        raise RuntimeError("the runner was closed")
    for window in windows:
        ids = [int(token_id) for token_id in window]
        row = Row(0, 0, ids, range(-(-len(ids) // BLOCK_SIZE)), sample=False, prompt_logprobs=True)
        with torch.inference_mode():
            logits = runner.forward([row])
        for piece in pieces(len(ids)):
            yield logits[piece].double().log_softmax(-1)


@dataclass(frozen=True, slots=True)
class Result:
    """Scores by name: over all positions of the windows, and over those that llama.cpp scores, the late ones."""

    whole: Mapping[str, Score]
    late: Mapping[str, Score]


def compare(
    baseline: ModelRunner, others: Mapping[str, ModelRunner], windows: Tensor, llama: llama_logits.LlamaLogits | None
) -> Result:
    """Predicts every window with every runner; with `llama`, also what its 16 bits do to our own predictions."""
    count, length = windows.shape
    num_whole, num_late = count * (length - 1), count * (length - 1 - length // 2)
    result = Result(defaultdict(lambda: Score(num_whole)), defaultdict(lambda: Score(num_late)))
    theirs = llama.pieces(PIECE) if llama else None
    streams = {"exact": log_probs(baseline, windows)} | {name: log_probs(runner, windows) for name, runner in others.items()}
    for window, piece in product(windows, pieces(length)):
        targets, late = window[1:][piece], piece.start >= length // 2
        found = {name: next(stream) for name, stream in streams.items()}
        for name, other in found.items():
            result.whole[name].add(found["exact"], other, targets)
            if late:
                result.late[name].add(found["exact"], other, targets)
        if late and theirs:
            stored = {f"{name}, stored": llama_logits.stored(other) for name, other in found.items()} | {LLAMA: next(theirs)}
            for name, rounded in stored.items():
                result.late[name].add(found["exact"], rounded.log_probs, targets, rounded.kept)
    return result


def table(title: str, scores: Mapping[str, Score]) -> list[str]:
    """Lines to print."""
    lines = [f"{title:32}{'perplexity':>11}{'ratio':>9}{'mean KL':>11}{'+-':>9}{'p99':>10}{'max':>10}{'same top':>10}"]
    exact = scores["exact"].summary().perplexity
    for name, score in scores.items():
        one = score.summary()
        lines.append(
            f"{name:32}{one.perplexity:11.4f}{one.perplexity / exact:9.5f}{one.kl_mean:11.3e}{one.kl_error:9.1e}"
            f"{one.kl_p99:10.3e}{one.kl_max:10.3e}{100 * one.same_top:9.2f}%"
        )
    return lines


def verdict(scores: Mapping[str, Score], names: Sequence[str]) -> list[str]:
    """How each of ours compares with llama.cpp, position by position."""
    theirs, lines = scores[LLAMA].divergences, []
    for name in names:
        ours = scores[name].divergences
        ratio, gap = (ours.mean() / theirs.mean()).item(), ours - theirs
        lines.append(f"{name}: mean KL {ratio:.3f} x llama.cpp's; difference {gap.mean():.2e} +- {standard_error(gap):.1e}")
    return lines


def main() -> None:
    """Command line: python -m bench.quality."""
    parser = argparse.ArgumentParser(prog="roadtrain bench quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name, a path or a Hugging Face id")
    parser.add_argument("--compute", nargs="+", choices=("fast", "exact"), default=["fast"], help="arithmetic to judge")
    parser.add_argument("--kv-dtype", nargs="+", choices=DTYPES, default=[KV_DTYPE["fast"]], help="KV caches to judge it with")
    parser.add_argument("--windows", type=int, default=1000, help="at most so many windows of the text")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window (default %(default)s)")
    parser.add_argument("--llama", type=Path, help="llama.cpp's llama-perplexity, to be judged too; the model is a .gguf file")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    chosen = parser.parse_args()
    model = find_or_fetch(chosen.model)
    windows = windows_of(model, TEXT, chosen.length, chosen.windows)
    baseline = open_runner(model, "exact", "float32", chosen.length)
    pairs = [(compute, dtype) for compute in chosen.compute for dtype in chosen.kv_dtype]
    others = {f"{compute} kv-{dtype}": open_runner(model, compute, dtype, chosen.length) for compute, dtype in pairs}
    with tempfile.TemporaryDirectory() as folder:
        llama = None
        if chosen.llama:
            threads = torch.get_num_threads()
            llama = llama_logits.run(chosen.llama, model, TEXT, chosen.length, len(windows), threads, Path(folder))
            if not torch.equal(llama.token_ids, windows):
                raise StartupError(f"llama.cpp cuts {TEXT} into other tokens than Roadtrain")
        result = compare(baseline, others, windows, llama)
    print(f"{model.name}, {len(windows)} windows of {chosen.length} tokens; KL in nats per token, of exact from each")
    lines = [*table("all positions", result.whole), "", *table("second half of each window", result.late)]
    if llama:
        lines += ["", *verdict(result.late, list(others))]
    print("\n".join(lines))
    if chosen.json:
        parts = {"whole": result.whole, "late": result.late}
        numbers = {part: {name: asdict(score.summary()) for name, score in scores.items()} for part, scores in parts.items()}
        chosen.json.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
