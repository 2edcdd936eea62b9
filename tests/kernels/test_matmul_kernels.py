"""Packed products: unpacking against the format's own library, products against the reference, rows against themselves."""

import gguf
import numpy as np
import pytest
import torch

from kernels import Ops
from kernels.matmul import reference
from kernels.matmul.formats import FORMATS
from tests.kernels.weights import PACKED, random_weights

TOLERANCE = 3e-6  # of the largest result; float32 sums of up to 1536 products in another order


def _k(fmt: str, blocks: int) -> int:
    return blocks * max(FORMATS[fmt].block_size, 1)


@pytest.mark.parametrize("fmt", PACKED)
def test_unpacking_equals_the_gguf_library(ops: Ops, fmt: str) -> None:
    data = random_weights(fmt, 5, _k(fmt, 6))
    expected = torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[fmt]))
    assert torch.equal(reference.dequantize(data, fmt), expected)
    assert torch.equal(ops.dequantize(data, fmt), expected)
    ids = torch.tensor([4, 0, 4, 2])
    assert torch.equal(ops.embedding(ids, data, fmt, _k(fmt, 6)), expected[ids])


def test_unpacking_follows_subnormal_infinite_and_negative_scales(ops: Ops) -> None:
    halves = np.array([0x0001, 0x83FF, 0x7C00, 0x0000, 0x8000, 0x7BFF], dtype="<u2")
    data = torch.randint(0, 256, (6, 20), dtype=torch.uint8)
    data[:, 0:2] = torch.from_numpy(halves.view(np.uint8).reshape(6, 2))
    data[:, 2:4] = 0
    assert torch.equal(ops.dequantize(data, "Q4_1").nan_to_num(7.0), reference.dequantize(data, "Q4_1").nan_to_num(7.0))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(("t", "n", "blocks"), [(1, 1, 1), (3, 17, 3), (13, 40, 5), (101, 33, 9)])
def test_product_is_close_to_the_reference(ops: Ops, fmt: str, t: int, n: int, blocks: int) -> None:
    k = _k(fmt, blocks) if FORMATS[fmt].block_size > 1 else 37 * blocks
    data, x = random_weights(fmt, n, k), torch.randn(t, k)
    expected = x.double() @ reference.dequantize(data, fmt).double().T
    bound = TOLERANCE * (x.abs().double() @ reference.dequantize(data, fmt).abs().double().T)
    assert bool(((ops.matmul(x, data, fmt, n) - expected).abs() <= bound).all())


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(ops: Ops, fmt: str) -> None:
    n, k = 51, _k(fmt, 3) if FORMATS[fmt].block_size > 1 else 333
    data, x = random_weights(fmt, n, k), torch.randn(101, k)
    whole = ops.matmul(x, data, fmt, n)
    for size in (2, 3, 4, 5, 7, 11, 64):
        parts = [ops.matmul(part, data, fmt, n) for part in x.split(size)]
        assert torch.equal(torch.cat(parts), whole), size
    assert torch.equal(torch.cat([ops.matmul(row, data, fmt, n) for row in x[:9].split(1)]), whole[:9])
    torch.set_num_threads(1)
    assert torch.equal(ops.matmul(x, data, fmt, n), whole)


def test_a_column_does_not_depend_on_the_columns_beside_it(ops: Ops) -> None:
    data, x = random_weights("Q4_1", 49, 96), torch.randn(4, 96)
    whole = ops.matmul(x, data, "Q4_1", 49)
    assert torch.equal(ops.matmul(x, data[31:44], "Q4_1", 13), whole[:, 31:44])


def test_wrong_shapes_formats_and_ids_are_refused(ops: Ops) -> None:
    data, x = random_weights("Q4_0", 8, 64), torch.randn(2, 64)
    with pytest.raises(ValueError, match="not one of"):
        ops.matmul(x, data, "Q3_K", 8)
    with pytest.raises(ValueError, match="not a multiple"):
        ops.matmul(x[:, :40], data, "Q4_0", 8)
    with pytest.raises(ValueError, match="are \\[9, 36 bytes\\]"):
        ops.matmul(x, data, "Q4_0", 9)
    for bad in (-1, 8):
        with pytest.raises(IndexError, match="token ids"):
            ops.embedding(torch.tensor([0, bad]), data, "Q4_0", 64)
        with pytest.raises(IndexError, match="token ids"):
            reference.embedding(torch.tensor([0, bad]), data, "Q4_0", 64)


def test_no_rows_give_no_rows(ops: Ops) -> None:
    data = random_weights("Q8_0", 8, 64)
    assert ops.matmul(torch.empty(0, 64), data, "Q8_0", 8).shape == (0, 8)
