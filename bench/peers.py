"""The engine beside llama.cpp's own benchmarks, in turns: tokens per second and the ratio, round by round.

Both compute the same model file on as many threads, without server or network. The machine's speed drifts; a ratio of two
runs a minute apart does not, so the median of the ratios is what counts. llama.cpp's batch shares one prompt (`-pps`), which
spares it most of the prefill and its caches most of the reading; ours decodes sequences of their own, and samples. It
knows nothing of servers.
"""

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.engine import Bench
from services.launcher.pull import find_or_fetch
from services.worker.runtime.runner import KV_DTYPE
from shared.sampling import SamplingParams

TIMEOUT_S = 600
NEW_TOKENS = 16  # that llama.cpp decodes a round


@dataclass(frozen=True, slots=True)
class Llama:
    """llama.cpp's programs in `folder`, on a model file."""

    folder: Path
    model: Path
    threads: int

    def prefill(self, length: int) -> float:
        """Prompt tokens per second of a prompt of `length` tokens."""
        told = self._run("llama-bench", "-p", length, "-n", 0, "-r", 1, "-o", "json")
        return float(json.loads(told)[0]["avg_ts"])

    def decode(self, batch: int, context: int) -> float:
        """Tokens per second of `batch` sequences at about `context` tokens."""
        prompt = context - NEW_TOKENS // 2
        room = batch * (context + NEW_TOKENS)
        lengths = ("-npp", prompt, "-ntg", NEW_TOKENS, "-npl", batch)
        return read_batched(self._run("llama-batched-bench", "-pps", "-c", room, "-b", 512, *lengths))

    def _run(self, program: str, *arguments: object) -> str:
        command = [str(self.folder / program), "-m", str(self.model), "-t", str(self.threads), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def read_batched(table: str) -> float:
    """Decoded tokens per second from the last line of llama-batched-bench's table. Raises ValueError if there is none."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines() if line.count("|") > 2]
    names = next((line for line in lines if "S_TG t/s" in line), None)
    if names is None or lines[-1] is names:
        raise ValueError(f"llama-batched-bench printed no table: {table!r}")
    return float(lines[-1][names.index("S_TG t/s")])


@dataclass(slots=True)
class Case:
    """One row: what is run, ours and theirs, tokens per second of each round."""

    name: str
    ours: Callable[[], float]
    theirs: Callable[[], float]
    found: list[tuple[float, float]] = field(default_factory=list)

    def __str__(self) -> str:
        ours, theirs = (statistics.median(column) for column in zip(*self.found, strict=True))
        ratios = sorted(a / b for a, b in self.found)
        middle = statistics.median(ratios)
        return f"{self.name:24}{ours:10.1f}{theirs:12.1f}{middle:10.2f} x  ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def cases(bench: Bench, llama: Llama, batches: list[int], context: int, prompts: list[int], steps: int) -> list[Case]:
    """The rows of a comparison."""

    def decode(batch: int) -> Case:
        ours = lambda: bench.decode(batch, context, steps).tokens_per_s  # noqa: E731
        return Case(f"decode {batch} at {context}", ours, lambda: llama.decode(batch, context))

    def prefill(length: int) -> Case:
        return Case(f"prefill {length}", lambda: bench.prefill(length, 1).tokens_per_s, lambda: llama.prefill(length))

    return [*map(prefill, prompts), *map(decode, batches)]


def main() -> None:
    """Prints a table of medians."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama", type=Path, required=True, help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or a name of one")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8, 32], help="sequences decoded together")
    parser.add_argument("--context", type=int, default=256, help="tokens of each sequence while decoding")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512], help="lengths of prompts")
    parser.add_argument("--rounds", type=int, default=5, help="times that both are run")
    parser.add_argument("--steps", type=int, default=20, help="of ours, of which the median counts")
    parser.add_argument("--temperature", type=float, default=0.8, help="of our sampling; 0: greedy")
    parser.add_argument("--top-p", type=float, default=0.95, help="of our sampling")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="compute threads of each")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    params = SamplingParams(temperature=chosen.temperature, top_p=chosen.top_p, seed=0, ignore_eos=True)
    most = max(2 * chosen.context + chosen.steps, *chosen.prefill, 1)
    bench = Bench(chosen.model, "fast", KV_DTYPE["fast"], max([1, *chosen.batch]), most, params)
    llama = Llama(chosen.llama, find_or_fetch(chosen.model), chosen.threads)
    rows = cases(bench, llama, chosen.batch, chosen.context, chosen.prefill, chosen.steps)
    for number in range(chosen.rounds):
        print(f"round {number + 1} of {chosen.rounds}", flush=True)
        for row in rows:
            row.found.append((row.ours(), row.theirs()))
    print(f"{'tokens/s, medians':24}{'roadtrain':>10}{'llama.cpp':>12}{'ratio':>12}")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
