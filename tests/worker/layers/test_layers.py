"""Layers against plain PyTorch. Products, norms and attention themselves are tested in tests/kernels."""

import pytest
import torch

import kernels
from kernels.step_ops import Eager, Norm
from kernels.weight import Weight
from services.worker.layers.linear import Embedding, Onto, fused
from services.worker.layers.mlp import GatedMLP


def weight(n: int, k: int, dtype: torch.dtype) -> Weight:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return Weight(torch.randn(n, k).to(dtype), names[dtype], k)


FULL, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture(scope="module")
def eager(ops: kernels.Ops) -> Eager:
    return Eager(ops)


@pytest.mark.parametrize(
    ("dtypes", "num_products"), [((FULL,) * 3, 1), ((HALF, HALF, BRAIN), 2), ((HALF, FULL, HALF), 3), ((BRAIN,), 1)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_fused_is_its_parts_end_to_end(dtypes: tuple[torch.dtype, ...], num_products: int, biased: bool, eager: Eager) -> None:
    parts = [weight(5 + index, 12, dtype) for index, dtype in enumerate(dtypes)]
    biases = [torch.randn(part.n) for part in parts] if biased else []
    linear, x = fused(parts, biases), torch.randn(4, 12)
    assert len(linear) == num_products
    expected = torch.cat([x @ part.data.float().T for part in parts], -1) + (torch.cat(biases) if biased else 0)
    torch.testing.assert_close(eager.linear(x, linear), expected)


def test_a_single_weight_is_not_copied() -> None:
    only = weight(6, 8, HALF)
    (part,) = fused([only])
    assert part.weight.data.data_ptr() == only.data.data_ptr()


def test_embedding_rows_are_scaled(eager: Eager) -> None:
    table, ids = weight(9, 8, BRAIN), torch.tensor([3, 8, 3])
    torch.testing.assert_close(Embedding(table, 1.0)(eager, ids), table.data[ids].float())
    torch.testing.assert_close(Embedding(table, 8**0.5)(eager, ids), table.data[ids].float() * 8**0.5)


@pytest.mark.parametrize("normed", [False, True])
def test_a_gated_mlp_adds_to_the_residual(eager: Eager, normed: bool) -> None:
    gate_up, down = weight(20, 8, FULL), weight(8, 10, FULL)
    norm = Norm(torch.rand(8), 1e-6) if normed else None
    x, residual = torch.randn(5, 8), torch.randn(5, 8)
    gate, up = (x @ gate_up.data.T).chunk(2, -1)
    added = torch.nn.functional.silu(gate) * up @ down.data.T
    if norm is not None:
        added = torch.nn.functional.rms_norm(added, (8,), norm.weight, 1e-6)
    expected = residual + added
    GatedMLP(fused([gate_up]), "silu", Onto(fused([down]), norm))(eager, x, residual)
    torch.testing.assert_close(residual, expected)
