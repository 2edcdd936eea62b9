"""Times the CPU kernels, exact and fast, beside the same work in torch: `python -m bench.kernels [--threads 2] [--only matmul]`.

Weights and caches are cycled through copies larger than the last cache, as a decode step meets them. The best of many runs
is printed, because other work on the machine only ever makes a run slower: ms, GFLOP/s, GB/s of weights or cache read, and
the percentage of the roofline, which is measured first. It knows nothing of models or of serving.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

import kernels
from bench import kernels_fast
from bench.roofline import Roofline, measure, shortest
from kernels.kv_write.layout import KINDS, empty
from kernels.kv_write.reference import kv_write
from kernels.matmul.formats import FORMATS, row_bytes
from kernels.sample.params import SampleParams
from shared import config

SHAPES = (
    ("Q4_1", 960, 576),
    ("Q4_1", 576, 576),
    ("Q4_1", 3072, 576),
    ("Q4_1", 576, 1536),
    ("Q8_0", 49152, 576),
    ("F16", 3072, 576),
)
ROWS = (1, 8, 32, 512)
COLD_BYTES = 80_000_000
MOST_HEAD_ROWS = 64  # logits are wanted for sequences, not for tokens


@dataclass(frozen=True, slots=True)
class Line:
    """One measurement, in seconds, operations and bytes; torch_seconds the same work in torch."""

    name: str
    kernel: str  # "exact" or "fast"
    seconds: float
    operations: float
    num_bytes: float
    roofline_percent: float
    torch_seconds: float

    def __str__(self) -> str:
        ms, torch_ms, per_ns = self.seconds * 1e3, self.torch_seconds * 1e3, self.seconds * 1e9
        rates = f"{self.operations / per_ns:7.1f} GFLOP/s {self.num_bytes / per_ns:6.1f} GB/s {self.roofline_percent:4.0f} %"
        return f"{self.name:36} {self.kernel:5} {ms:9.3f} ms {rates} {torch_ms:9.3f} ms {torch_ms / ms:5.1f} x"


@dataclass(slots=True)
class Bench:
    """What the benches run on, and what they found."""

    ops: kernels.Ops
    fast: kernels_fast.FastKernels
    roofline: Roofline
    seconds: float
    lines: list[Line] = field(default_factory=list)

    def best(self, run: Callable[[int], object]) -> float:
        return shortest(run, self.seconds)

    def line(
        self, name: str, kernel: str, run: Callable[[int], object], unit: str, work: tuple[float, float], theirs: float
    ) -> None:
        """work: operations and bytes; unit: the instruction that bounds the operations."""
        seconds = self.best(run)
        percent = self.roofline.percent(seconds, unit, *work)
        self.lines.append(Line(name, kernel, seconds, *work, percent, theirs))
        print(self.lines[-1], flush=True)


def random_weights(fmt: str, n: int, k: int) -> torch.Tensor:
    """Weights of any value whose scales are small numbers."""
    if fmt == "F16":
        return torch.randn(n, k).half()
    data = torch.randint(0, 256, (n, row_bytes(fmt, k)), dtype=torch.uint8)
    blocks = data.view(-1, FORMATS[fmt].block_bytes)
    for at in (0,) if fmt == "Q8_0" else (0, 2):
        blocks[:, at + 1] = blocks[:, at + 1] & 0x83 | 0x20
    return data


def matmul(bench: Bench) -> None:
    """Products with packed weights; torch multiplies the same weights unpacked to float32."""
    for fmt, n, k in SHAPES:
        size = n * row_bytes(fmt, k)
        first = random_weights(fmt, n, k)
        packed = [first.clone() for _ in range(max(2, COLD_BYTES // size))]
        plain = [bench.ops.dequantize(data, fmt) for data in packed[: max(2, COLD_BYTES // (n * k * 4) + 1)]]
        tiles = bench.fast.weights(first, fmt, len(packed))
        for rows in (m for m in ROWS if n <= 8192 or m <= MOST_HEAD_ROWS):
            x = torch.randn(rows, k)
            theirs = bench.best(lambda i, x=x, p=plain: linear(x, p[i % len(p)]))
            name, work = f"matmul {fmt} {n} x {k}, M = {rows}", (2.0 * rows * n * k, float(size))
            exact = lambda i, x=x, p=packed, f=fmt, n=n: bench.ops.matmul(x, p[i % len(p)], f, n)  # noqa: E731
            bench.line(name, "exact", exact, "fma", work, theirs)
            bench.line(name, "fast", bench.fast.matmul(x, tiles), bench.fast.unit(tiles[0]), work, theirs)


def gated(bench: Bench) -> None:
    """Gate, up, SiLU and product of SmolLM2-135M in one body; torch in float32, unpacked."""
    fmt, f, k = "Q4_1", 1536, 576
    first, size = random_weights(fmt, 2 * f, k), 2 * f * row_bytes(fmt, k)
    count = COLD_BYTES // size
    tiles = bench.fast.weights(first, fmt, count)
    plain = [bench.ops.dequantize(first, fmt) for _ in range(COLD_BYTES // (f * k * 8) + 1)]

    def whole(i: int, x: torch.Tensor) -> torch.Tensor:
        both = linear(x, plain[i % len(plain)])
        return silu(both[:, :f]) * both[:, f:]

    for rows in ROWS:
        x = torch.randn(rows, k) * 0.1
        theirs = bench.best(lambda i, x=x: whole(i, x))
        work = (4.0 * rows * f * k, float(size))
        bench.line(f"gate and up {fmt} {f} x {k}, M = {rows}", "fast", bench.fast.gate_up(x, tiles), "maddubs", work, theirs)


def attention(bench: Bench) -> None:
    """Nine query heads over three of 64; torch reads the same keys and values already gathered and contiguous, float32."""
    for rows, queries, length in ((1, 1, 256), (8, 1, 256), (32, 1, 256), (32, 1, 1024), (1, 512, 512)):
        blocks, causal = -(-length // 16), queries > 1
        q = torch.randn(rows * queries, 9, 64)
        tables = torch.randperm(rows * blocks).int().view(rows, blocks)
        start, lens = (torch.arange(rows + 1) * queries).int(), torch.full((rows,), length).int()
        k, v = torch.randn(2, rows, 3, length, 64)
        shaped = q.view(rows, queries, 9, 64).transpose(1, 2)
        theirs = bench.best(lambda _, s=(shaped, k, v), c=causal: scaled_dot_product_attention(*s, is_causal=c, enable_gqa=True))
        pairs = rows * (queries * (queries + 1) / 2 if causal else length)
        for dtype in KINDS:
            first = empty(rows * blocks, 3, 64, dtype)
            kv_write(*torch.randn(2, rows * blocks * 16, 3, 64), *first, torch.arange(rows * blocks * 16))
            size = sum(part.nbytes for part in first)
            caches = [(first[0].clone(), first[1].clone()) for _ in range(min(max(2, COLD_BYTES // size), 30))]
            name = f"attention {rows} x {queries}, ctx {length} {str(dtype)[6:]}"
            work, where = (4.0 * 64 * 9 * pairs, float(size)), (tables, start, lens)
            exact = lambda i, q=q, c=caches, w=where: bench.ops.attention(q, *c[i % len(c)], *w, 0.125)  # noqa: E731
            if dtype != torch.int8:
                bench.line(name, "exact", exact, "fma", work, theirs)
            bench.line(name, "fast", bench.fast.attention(q, caches, *where), "fma", work, theirs)


def sample(bench: Bench) -> None:
    """Temperature 0.8, top-p 0.95 over 49152 logits; torch sorts, cuts and draws."""
    for rows in (1, 32):
        logits = torch.randn(rows, 49152) * 3
        none, start = torch.zeros(0, dtype=torch.int32), torch.zeros(rows + 1, dtype=torch.int32)
        zero, wide = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        params = SampleParams(
            *(torch.full((rows,), 0.8), torch.zeros(rows, dtype=torch.int32), torch.full((rows,), 0.95)),
            *(zero, zero, zero, torch.ones(rows), wide, wide, wide),
            *(start, none, none, start, none, start, none, torch.zeros(0), start, none),
            *(torch.full((rows,), -1, dtype=torch.int32), none),
        )

        def theirs(_: int, logits: torch.Tensor = logits) -> torch.Tensor:
            probs, ids = torch.softmax(logits / 0.8, -1).sort(descending=True)
            probs[probs.cumsum(-1) - probs > 0.95] = 0
            return ids.gather(1, torch.multinomial(probs, 1))

        ours = lambda _, x=logits, p=params: bench.ops.sample(x, p)  # noqa: E731
        bench.line(f"sample {rows} x 49152", "exact", ours, "fma", (0.0, logits.numel() * 4.0), bench.best(theirs))


def small(bench: Bench) -> None:
    """RMSNorm with residual, and SiLU-mul, at the widths of SmolLM2-135M; the fast norm quantises too."""
    for rows in (1, 32):
        x, weight, wide = torch.randn(rows, 576), torch.ones(576), torch.randn(rows, 3072)
        theirs = bench.best(lambda _, x=x, w=weight: rms_norm(x + x, (576,), w, 1e-5))
        work = (0.0, x.numel() * 8.0)
        ours = lambda _, x=x, w=weight: bench.ops.add_rms_norm(x, x, w, 1e-5)  # noqa: E731
        bench.line(f"add_rms_norm {rows} x 576", "exact", ours, "fma", work, theirs)
        bench.line(f"add_rms_norm {rows} x 576", "fast", bench.fast.norm(x, weight), "fma", work, theirs)
        theirs = bench.best(lambda _, x=wide: silu(x[:, :1536]) * x[:, 1536:])
        bench.line(
            f"silu_mul {rows} x 1536", "exact", lambda _, x=wide: bench.ops.silu_mul(x), "fma", (0.0, wide.numel() * 4.0), theirs
        )


BENCHES = {"matmul": matmul, "gated": gated, "attention": attention, "sample": sample, "small": small}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen benches."""
    parser = argparse.ArgumentParser(prog="roadtrain bench kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads to compute with")
    parser.add_argument("--only", choices=sorted(BENCHES), help="one bench instead of all")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long each thing is repeated (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    ops = kernels.load("cpu", config.cache_dir() / "kernels")
    if ops.library is None:
        parser.error("there are no compiled kernels to measure")
    fast, limits = kernels_fast.FastKernels(ops.library, chosen.threads), measure(ops.library, chosen.threads)
    bench = Bench(ops, fast, limits, chosen.seconds)
    print(f"{ops.variant}, {chosen.threads} threads, torch {torch.__version__}; {bench.roofline}")
    print("work, kernels, time, rates, % of the roofline, the same in torch and how many times as long that took")
    for name, run in BENCHES.items():
        if chosen.only in (None, name):
            run(bench)
    if chosen.json:
        result = {"threads": chosen.threads, "roofline": asdict(bench.roofline), "lines": [asdict(line) for line in bench.lines]}
        chosen.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
