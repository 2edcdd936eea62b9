"""Times each CPU kernel beside the same work in torch: `python -m bench.kernels [--threads 2] [--only matmul]`.

Weights are cycled through copies larger than the last cache, as a decode step meets them. The best of many runs is
printed (ms, GFLOP/s, GB/s of weights or cache read), because other work on the machine only ever makes a run slower.
It knows nothing of models or of serving.
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

import kernels
from kernels.matmul.formats import FORMATS, row_bytes
from kernels.sample.params import SampleParams
from shared import config

SHAPES = (("Q4_1", 960, 576), ("Q4_1", 3072, 576), ("Q4_1", 576, 1536), ("Q8_0", 49152, 576))
ROWS = (1, 8, 32, 512)
COLD_BYTES = 80_000_000
SECONDS = 0.3


def best(run: Callable[[int], object]) -> float:
    """Shortest of many runs, in seconds; `run` gets the number of the run."""
    run(0)
    shortest, count, end = float("inf"), 1, time.perf_counter() + SECONDS
    while count < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        run(count)
        shortest = min(shortest, time.perf_counter() - start)
        count += 1
    return shortest


def line(name: str, seconds: float, flops: float, read: float, torch_seconds: float) -> None:
    """One row of the table."""
    figures = f"{seconds * 1e3:9.3f} ms {flops / seconds / 1e9:7.1f} GFLOP/s {read / seconds / 1e9:6.1f} GB/s"
    print(f"{name:34} {figures}   torch {torch_seconds * 1e3:9.3f} ms   {torch_seconds / seconds:5.1f} x")


def random_bytes(fmt: str, n: int, k: int) -> torch.Tensor:
    """Weights of any value whose scales are small numbers."""
    data = torch.randint(0, 256, (n, row_bytes(fmt, k)), dtype=torch.uint8)
    blocks = data.view(-1, FORMATS[fmt].block_bytes)
    for at in (0,) if fmt == "Q8_0" else (0, 2):
        blocks[:, at + 1] = blocks[:, at + 1] & 0x83 | 0x20
    return data


def matmul(ops: kernels.Ops) -> None:
    """Products with packed weights; torch multiplies the same weights unpacked to float32."""
    for fmt, n, k in SHAPES:
        size = n * row_bytes(fmt, k)
        packed = [random_bytes(fmt, n, k) for _ in range(max(2, COLD_BYTES // size))]
        plain = [ops.dequantize(data, fmt) for data in packed[: max(2, COLD_BYTES // (n * k * 4) + 1)]]
        for rows in ROWS:
            x = torch.randn(rows, k)
            ours = best(lambda i, x=x, p=packed, f=fmt, n=n: ops.matmul(x, p[i % len(p)], f, n))
            theirs = best(lambda i, x=x, p=plain: linear(x, p[i % len(p)]))
            line(f"matmul {fmt} {n} x {k}, M = {rows}", ours, 2.0 * rows * n * k, size, theirs)


def attention(ops: kernels.Ops) -> None:
    """Nine query heads over three of 64; torch reads the same keys and values already gathered and contiguous."""
    for rows, queries, length in ((1, 1, 256), (32, 1, 256), (32, 1, 1024), (1, 512, 512)):
        blocks = -(-length // 16)
        k_cache, v_cache = torch.randn(rows * blocks, 3, 64, 16), torch.randn(rows * blocks, 3, 16, 64)
        tables = torch.randperm(rows * blocks).int().view(rows, blocks)
        q = torch.randn(rows * queries, 9, 64)
        start, lens = (torch.arange(rows + 1) * queries).int(), torch.full((rows,), length).int()
        ours = best(lambda _, a=(q, k_cache, v_cache, tables, start, lens): ops.attention(*a, 0.125))
        shaped = q.view(rows, queries, 9, 64).transpose(1, 2), torch.randn(rows, 3, length, 64), torch.randn(rows, 3, length, 64)
        causal = queries > 1
        theirs = best(lambda _, s=shaped, c=causal: scaled_dot_product_attention(*s, is_causal=c, enable_gqa=True))
        pairs = rows * (queries * (queries + 1) / 2 if causal else length)
        line(f"attention {rows} x {queries}, context {length}", ours, 4 * 64 * 9 * pairs, rows * length * 3 * 64 * 8, theirs)


def sample(ops: kernels.Ops) -> None:
    """Temperature 0.8, top-p 0.95 over 49152 logits; torch sorts, cuts and draws."""
    for rows in (1, 32):
        logits = torch.randn(rows, 49152) * 3
        none, start = torch.zeros(0, dtype=torch.int32), torch.zeros(rows + 1, dtype=torch.int32)
        zero, wide = torch.zeros(rows), torch.zeros(rows, dtype=torch.int64)
        params = SampleParams(
            *(torch.full((rows,), 0.8), torch.zeros(rows, dtype=torch.int32), torch.full((rows,), 0.95)),
            *(zero, zero, zero, torch.ones(rows), wide, wide, wide),
            *(start, none, none, start, none, start, none, torch.zeros(0), start, none),
        )

        def theirs(_: int, logits: torch.Tensor = logits) -> torch.Tensor:
            probs, ids = torch.softmax(logits / 0.8, -1).sort(descending=True)
            probs[probs.cumsum(-1) - probs > 0.95] = 0
            return ids.gather(1, torch.multinomial(probs, 1))

        ours = best(lambda _, x=logits, p=params: ops.sample(x, p))
        line(f"sample {rows} x 49152", ours, 0.0, logits.numel() * 4, best(theirs))


def small(ops: kernels.Ops) -> None:
    """RMSNorm with residual and SiLU-mul at the widths of SmolLM2-135M."""
    for rows in (1, 32):
        x, weight, wide = torch.randn(rows, 576), torch.ones(576), torch.randn(rows, 3072)
        ours = best(lambda _, x=x, w=weight: ops.add_rms_norm(x, x, w, 1e-5))
        line(
            f"add_rms_norm {rows} x 576",
            ours,
            0.0,
            x.numel() * 8,
            best(lambda _, x=x, w=weight: rms_norm(x + x, (576,), w, 1e-5)),
        )
        ours = best(lambda _, x=wide: ops.silu_mul(x))
        theirs = best(lambda _, x=wide: silu(x[:, :1536]) * x[:, 1536:])
        line(f"silu_mul {rows} x 1536", ours, 0.0, wide.numel() * 4, theirs)


BENCHES = {"matmul": matmul, "attention": attention, "sample": sample, "small": small}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the chosen benches."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads to compute with")
    parser.add_argument("--only", choices=sorted(BENCHES), help="one bench instead of all")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    ops = kernels.load("cpu", config.cache_dir() / "kernels")
    print(f"{ops.variant}, {chosen.threads} threads, torch {torch.__version__}")
    for name, bench in BENCHES.items():
        if chosen.only in (None, name):
            bench(ops)


if __name__ == "__main__":
    main()
