"""How long an encoder takes for a text: many in one step, one by one, and transformers with the same texts in one batch.

All in this process, on random tokens; medians of several runs in turn. It knows nothing of queues, routers or clients.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import kernels
from services.launcher.pull import find_or_fetch
from services.worker.engine.step import Pooling, Row, Start, Step
from services.worker.models import build_encoder
from services.worker.runtime.encoder_runner import EncoderRunner
from shared.config import cache_dir
from shared.sampling import SamplingParams

STEP_TOKENS = 512
ROUNDS = 5
NOTHING = SamplingParams(seed=0, max_tokens=1)


def encode(runner: EncoderRunner, texts: list[list[int]], pooling: Pooling) -> None:
    """All texts in one step."""
    starts = [Start(number, 0, NOTHING, text, (), pooling=pooling) for number, text in enumerate(texts)]
    runner.run(Step([Row(number, 0, text, (), sample=False) for number, text in enumerate(texts)], starts))
    runner.run(Step([], ends=list(range(len(texts)))))


def took_ms(work: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began_at)


def compare(path: Path, length: int) -> str:
    """One line of the table: milliseconds for a text of that length."""
    from transformers.models.auto import AutoModel

    model = build_encoder(path, kernels.load("cpu", cache_dir() / "kernels"))
    runner = EncoderRunner(model, max_num_seqs=64, num_threads=None)
    reference = AutoModel.from_pretrained(path).eval()
    pooling = Pooling(model.pooling, model.spec.hidden_size)
    ids = torch.randint(model.spec.vocab_size, (STEP_TOKENS // length, length))
    texts = ids.tolist()

    @torch.inference_mode()
    def theirs() -> None:
        reference(ids).last_hidden_state.mean(1)

    ways: list[Callable[[], object]] = [
        lambda: encode(runner, texts, pooling),
        lambda: [encode(runner, [text], pooling) for text in texts],
        theirs,
    ]
    rounds = [[took_ms(way) for way in ways] for _ in range(ROUNDS + 1)][1:]
    numbers = [statistics.median(times) / len(texts) for times in zip(*rounds, strict=True)]
    return f"{length:6} {len(texts):6} {numbers[0]:9.1f} {numbers[1]:9.1f} {numbers[2]:13.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 128, 256])
    options = parser.parse_args()
    print("tokens  texts  one step  one each  transformers   (ms a text)")
    for length in options.lengths:
        print(compare(find_or_fetch(options.model), length), flush=True)


if __name__ == "__main__":
    main()
