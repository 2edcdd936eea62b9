"""Layers against plain PyTorch. Products, norms and attention themselves are tested in tests/kernels."""

import pytest
import torch

import kernels
from services.worker.layers.linear import Embedding, Linear, SideBySide, Weight, fused
from services.worker.layers.mlp import GatedMLP
from services.worker.layers.norm import RMSNorm, Then


def weight(n: int, k: int, dtype: torch.dtype) -> Weight:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return Weight(torch.randn(n, k).to(dtype), names[dtype], k)


FULL, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("dtypes", "num_products"), [((FULL,) * 3, 1), ((HALF, HALF, BRAIN), 2), ((HALF, FULL, HALF), 3), ((BRAIN,), 1)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_fused_is_its_parts_end_to_end(
    dtypes: tuple[torch.dtype, ...], num_products: int, biased: bool, ops: kernels.Ops
) -> None:
    parts = [weight(5 + index, 12, dtype) for index, dtype in enumerate(dtypes)]
    biases = [torch.randn(part.n) for part in parts] if biased else []
    layer, x = fused(ops, parts, biases), torch.randn(4, 12)
    assert len(layer.linears if isinstance(layer, SideBySide) else [layer]) == num_products
    expected = torch.cat([x @ part.data.float().T for part in parts], -1) + (torch.cat(biases) if biased else 0)
    torch.testing.assert_close(layer(x), expected)


def test_a_single_weight_is_not_copied(ops: kernels.Ops) -> None:
    only = weight(6, 8, HALF)
    layer = fused(ops, [only], [])
    assert isinstance(layer, Linear)
    assert layer.weight.data.data_ptr() == only.data.data_ptr()


def test_embedding_rows_are_scaled(ops: kernels.Ops) -> None:
    table, ids = weight(9, 8, BRAIN), torch.tensor([3, 8, 3])
    torch.testing.assert_close(Embedding(ops, table, 1.0)(ids), table.data[ids].float())
    torch.testing.assert_close(table.embedding(ops, 8**0.5)(ids), table.data[ids].float() * 8**0.5)


def test_norm_carries_the_residual(ops: kernels.Ops) -> None:
    norm, x, residual = RMSNorm(ops, torch.randn(16), 1e-5), torch.randn(3, 16), torch.randn(3, 16)
    normed, total = norm.add(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, norm(x + residual))
    torch.testing.assert_close(norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-5))


def test_gated_mlp_with_a_norm_behind(ops: kernels.Ops) -> None:
    gate_up, down, norm = weight(20, 8, FULL), weight(8, 10, FULL), RMSNorm(ops, torch.ones(8), 1e-6)
    layer = Then(GatedMLP(gate_up.linear(ops), ops.silu_mul, down.linear(ops)), norm)
    x = torch.randn(5, 8)
    gate, up = (x @ gate_up.data.T).chunk(2, -1)
    expected = norm(torch.nn.functional.silu(gate) * up @ down.data.T)
    torch.testing.assert_close(layer(x), expected)
