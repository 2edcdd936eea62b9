"""The engine without the road: milliseconds of a decode step, prefill tokens a second, and what is not kernels.

Scheduler and runner as a worker has them, sampling included, on the real model; no queue, no network. A step's overhead is its
time less the two calls that compute: the compiled forward pass, and sampling. It knows nothing of other servers.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kernels import load
from services.launcher.pull import find_or_fetch
from services.worker.engine.scheduler import Scheduler
from services.worker.engine.sequence import Work
from services.worker.engine.step import BLOCK_SIZE
from services.worker.models import build
from services.worker.runtime.forward import Recorded
from services.worker.runtime.kv_cache import DTYPES
from services.worker.runtime.runner import KV_DTYPE, ModelRunner
from shared.config import cache_dir
from shared.sampling import SamplingParams

WARM_STEPS = 4
CHUNK = 512  # tokens of a prefill step


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement; medians, milliseconds of a step. Decode: `batch` sequences at about `context` tokens each."""

    what: str
    batch: int
    context: int
    step_ms: float
    tokens_per_s: float
    forward_ms: float
    sample_ms: float
    overhead_ms: float


class Stopwatch:
    """Times of what it wraps, in milliseconds."""

    def __init__(self) -> None:
        self.spent_ms = 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = call(*arguments)
            self.spent_ms += (time.perf_counter() - begin) * 1e3
            return result

        return timed

    def take(self) -> float:
        """Milliseconds since the last take."""
        spent, self.spent_ms = self.spent_ms, 0.0
        return spent


class Bench:
    """One runner; every measurement has a scheduler, and so prompts, of its own."""

    def __init__(self, model_name: str, compute: str, kv_dtype: str, most_rows: int, most_tokens: int, params: SamplingParams):
        ops = load("cpu", cache_dir() / "kernels")
        self.forward, self.sampling = Stopwatch(), Stopwatch()
        ops = replace(ops, sample=self.sampling.around(ops.sample))
        model = build(find_or_fetch(model_name), ops, compute=compute)
        self.title = f"{model_name} {model.compute} kv-{kv_dtype} {ops.variant} {torch.get_num_threads()} threads"
        limits = {"max_num_seqs": most_rows, "max_step_tokens": CHUNK}
        num_blocks = most_rows * (-(-most_tokens // BLOCK_SIZE) + 1)
        self.runner = ModelRunner(model, num_blocks=num_blocks, kv_dtype=kv_dtype, num_threads=None, device="cpu", **limits)
        if isinstance(self.runner.forward, Recorded):
            self.runner.forward.run = self.forward.around(self.runner.forward.run)
        self.params = params
        self._rng = random.Random(1)

    def decode(self, batch: int, context: int, steps: int) -> Line:
        """`steps` steps of `batch` sequences, around `context` tokens."""
        length = max(1, context - steps // 2 - WARM_STEPS)
        times = self._steps(batch, length, WARM_STEPS + steps + 2)[WARM_STEPS:][:steps]
        step, forward, sample, overhead = (statistics.median(column) for column in zip(*times, strict=True))
        return Line("decode", batch, context, step, batch / step * 1e3, forward, sample, overhead)

    def prefill(self, length: int, repeats: int) -> Line:
        """Prompts of `length` tokens, one at a time, until their first token."""
        totals = []
        for _ in range(repeats):
            times = self._steps(1, length, 1, prompt_steps=True)
            totals.append(tuple(sum(column) for column in zip(*times, strict=True)))
        step, forward, sample, overhead = (statistics.median(column) for column in zip(*totals, strict=True))
        return Line("prefill", 1, length, step, length / step * 1e3, forward, sample, overhead)

    def _steps(self, batch: int, length: int, num_tokens: int, prompt_steps: bool = False) -> list[tuple[float, ...]]:
        """(step, forward, sampling, overhead) of each step in which all decode, or of those of the prompt."""
        scheduler = Scheduler(self.runner.limits, max_num_seqs=batch, max_step_tokens=CHUNK)
        keys = [(str(self._rng.random()), 1) for _ in range(batch)]
        for index, key in enumerate(keys):
            prompt = [self._rng.randrange(3, self.runner.limits.vocab_size) for _ in range(length)]
            params = replace(self.params, seed=index, max_tokens=num_tokens)
            scheduler.submit(Work(key, prompt, params, tag=float(index)))
            # Each waits after its first token until all have one: they decode together, at one context.
            while not prompt_steps and not scheduler.take_deltas():
                plan = scheduler.schedule()
                scheduler.finish(plan, self.runner.run(plan.step))
            if not prompt_steps:
                scheduler.pause(key)
        for key in keys:
            scheduler.resume(key)
        times = []
        while scheduler.lines.running or scheduler.lines.waiting:
            self.forward.take(), self.sampling.take()
            begin = time.perf_counter()
            plan = scheduler.schedule()
            scheduler.finish(plan, self.runner.run(plan.step))
            scheduler.take_deltas()
            spent = (time.perf_counter() - begin) * 1e3
            forward, sample = self.forward.take(), self.sampling.take()
            decoding = all(len(row.token_ids) == 1 for row in plan.step.rows) and len(plan.step.rows) == batch
            if decoding != prompt_steps:
                times.append((spent, forward, sample, spent - forward - sample))
        return times


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name, a path or a Hugging Face id")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32], help="sequences decoded together")
    parser.add_argument("--context", type=int, default=256, help="tokens of each sequence while decoding")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512], help="lengths of prompts")
    parser.add_argument("--steps", type=int, default=40, help="decode steps to take the median of")
    parser.add_argument("--compute", choices=("fast", "exact"), default="fast", help="arithmetic")
    parser.add_argument("--kv-dtype", choices=DTYPES, help="default: int8 if fast, else float32")
    parser.add_argument("--temperature", type=float, default=0.8, help="of sampling; 0: greedy")
    parser.add_argument("--top-p", type=float, default=0.95, help="of sampling")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="compute threads")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    params = SamplingParams(temperature=chosen.temperature, top_p=chosen.top_p, seed=0, ignore_eos=True)
    dtype = chosen.kv_dtype or KV_DTYPE[chosen.compute]
    most = max([2 * chosen.context + chosen.steps, *chosen.prefill]) + BLOCK_SIZE
    bench = Bench(chosen.model, chosen.compute, dtype, max([1, *chosen.batch]), most, params)
    lines = [bench.prefill(length, 5) for length in chosen.prefill]
    lines += [bench.decode(batch, chosen.context, chosen.steps) for batch in chosen.batch]
    if chosen.json:
        print(json.dumps({"title": bench.title, "lines": [asdict(line) for line in lines]}))
        return
    print(bench.title)
    print(f"{'':8}{'batch':>6}{'context':>8}{'step ms':>9}{'tok/s':>8}{'forward':>9}{'sample':>8}{'overhead':>10}")
    for line in lines:
        times = f"{line.step_ms:9.2f}{line.tokens_per_s:8.0f}{line.forward_ms:9.2f}{line.sample_ms:8.3f}{line.overhead_ms:10.3f}"
        print(f"{line.what:8}{line.batch:6}{line.context:8}{times}")


if __name__ == "__main__":
    main()
