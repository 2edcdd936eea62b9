"""Repacked products: close to the reference on the weights as the file has them, each row the same in any company."""

import ctypes

import pytest
import torch
from torch.nn.functional import gelu, silu

from kernels import Ops
from kernels.build import Library
from kernels.matmul import reference
from kernels.matmul.cpu_fast import KINDS, EmbedArgs, RepackedWeight, repack
from kernels.matmul.formats import FORMATS
from kernels.rows import runner
from tests.kernels.fast import Fast, same
from tests.kernels.weights import random_weights

# Of the norm of the result: int8 rounding; scales of K formats in 16 bits; float32 alone.
TOLERANCE = {"q8": 7.5e-3, "q16": 4e-4, "y": 2e-6}
ROWS = [*range(1, 14), 64, 100]


@pytest.fixture(scope="module")
def built(ops: Ops) -> Library:
    if ops.library is None or ops.library.variant == "portable":
        pytest.skip("no fast kernels for this processor")
    return ops.library


def _k(fmt: str, blocks: int) -> int:
    return 256 * blocks if FORMATS[fmt].block_size == 256 else 32 * blocks


def _far(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("fmt", KINDS)
@pytest.mark.parametrize(("t", "n", "blocks"), [(3, 17, 3), (13, 40, 5), (101, 33, 9)])
def test_product_is_close_to_the_reference(built: Library, fmt: str, t: int, n: int, blocks: int) -> None:
    data, x = random_weights(fmt, n, _k(fmt, blocks)), torch.randn(t, _k(fmt, blocks))
    weight = repack(built, data, fmt)
    expected = reference.matmul(x, data, fmt, n)
    result = Fast(built).matmul(x, weight)
    assert _far(result, expected) < TOLERANCE[weight.rows_form]
    bias, onto = torch.randn(n), torch.randn(t, n)
    assert torch.equal(Fast(built).matmul(x, weight, bias, onto), onto + (result + bias))


@pytest.mark.parametrize("fmt", KINDS)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(built: Library, fmt: str) -> None:
    n, k = 51, _k(fmt, 3)
    weight, x = repack(built, random_weights(fmt, n, k), fmt), torch.randn(max(ROWS), k)
    whole = Fast(built).matmul(x, weight)
    for rows in ROWS:
        assert torch.equal(Fast(built).matmul(x[-rows:], weight), whole[-rows:]), rows
    assert torch.equal(Fast(built, threads=1).matmul(x, weight), whole)


@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("k", [1, 7, 333])
def test_floats_of_any_length_give_the_bits_of_the_exact_kernel(built: Library, ops: Ops, fmt: str, k: int) -> None:
    data, x = random_weights(fmt, 37, k), torch.randn(9, k)
    assert torch.equal(Fast(built).matmul(x, repack(built, data, fmt)), ops.matmul(x, data, fmt, 37))


def test_four_bit_sums_do_not_overflow(built: Library) -> None:
    data = torch.full((8, 20), 0xFF, dtype=torch.uint8)
    data[:, :4] = torch.tensor([0x00, 0x3C, 0x00, 0x00], dtype=torch.uint8)  # d = 1, m = 0
    for x in (torch.ones(6, 32), -torch.ones(6, 32)):
        assert Fast(built).matmul(x, repack(built, data, "Q4_1")).flatten().tolist() == pytest.approx([480 * x[0, 0].item()] * 48)


@pytest.mark.parametrize("fmt", KINDS)
def test_embedding_rows_come_back_out_of_the_tiles(built: Library, fmt: str) -> None:
    data, ids = random_weights(fmt, 21, _k(fmt, 2)), torch.tensor([20, 0, 7, 7, 13])
    weight, out, count = repack(built, data, fmt), torch.empty(5, _k(fmt, 2)), ctypes.c_int64(5)
    args = EmbedArgs(ctypes.addressof(count), ids.data_ptr(), weight.struct(), 2.0, out.data_ptr(), out.stride(0))
    runner(built, "rt_fast_embed")(args, 2)
    expected = reference.embedding(ids, data, fmt, _k(fmt, 2)) * 2
    assert _far(out, expected) < (5e-4 if fmt.endswith("K") else 1e-7)


@pytest.mark.parametrize("fmt", ["Q4_1", "Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize("with_gelu", [False, True])
def test_gate_and_up_are_multiplied_activated_and_quantised(built: Library, fmt: str, with_gelu: bool) -> None:
    f, k = 96, 160
    halves = [random_weights(fmt, f, k) for _ in range(2)]
    gate, up = (repack(built, data, fmt) for data in halves)
    x = torch.randn(max(ROWS), k) * 0.1
    out = Fast(built).gate_up(x, gate, up, with_gelu, "y", "q8", "q16")
    assert out.y is not None
    g, u = (Fast(built).matmul(x, weight) for weight in (gate, up))
    expected = (gelu(g, approximate="tanh") if with_gelu else silu(g)) * u
    torch.testing.assert_close(out.y, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-5)
    assert same(Fast(built).quantize(out.y, "y", "q8", "q16"), out)
    for rows in ROWS:
        few = Fast(built).gate_up(x[:rows], gate, up, with_gelu, "y")
        assert few.y is not None
        assert torch.equal(few.y, out.y[:rows]), rows
    assert same(Fast(built, threads=1).gate_up(x, gate, up, with_gelu, "y", "q8", "q16"), out)


def test_shapes_that_disagree_are_refused(built: Library) -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        repack(built, torch.zeros(4, 21, dtype=torch.uint8), "Q4_1")


def test_what_a_weight_is_multiplied_with_follows_from_its_format(built: Library) -> None:
    forms = {fmt: RepackedWeight(torch.zeros(0), kind, 0, 0).rows_form for fmt, kind in KINDS.items()}
    assert forms == {fmt: "q8" if "Q4" in fmt else "q16" if "Q" in fmt else "y" for fmt in KINDS}
