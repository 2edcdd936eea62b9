"""RMSNorm, RoPE and gated activations: against the reference, and each row against itself in other company."""

import pytest
import torch

from kernels import Ops
from kernels.activation import reference as activation
from kernels.norm import reference as norm
from kernels.rope import reference as rope

TOLERANCE = 2e-6  # relative and absolute, for values around one


@pytest.mark.parametrize("size", [1, 7, 64, 576, 1003])
def test_norm(ops: Ops, size: int) -> None:
    x, residual, weight = torch.randn(37, size), torch.randn(37, size), torch.rand(size) + 0.5
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), norm.rms_norm(x, weight, 1e-5), atol=TOLERANCE, rtol=TOLERANCE)
    (y, total), expected = ops.add_rms_norm(x, residual, weight, 1e-6), norm.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, expected[1])
    torch.testing.assert_close(y, expected[0], atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(torch.cat([ops.rms_norm(row, weight, 1e-6) for row in total.split(1)]), y)


def test_norm_of_heads_inside_a_wider_row(ops: Ops) -> None:
    wide, weight = torch.randn(5, 6, 32), torch.randn(32)
    heads = wide[:, 1:4]
    torch.testing.assert_close(ops.rms_norm(heads, weight, 1e-6), norm.rms_norm(heads, weight, 1e-6), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("d", "rotated"), [(64, 64), (80, 32), (16, 12), (96, 96)])
def test_rope_turns_views_in_place(ops: Ops, d: int, rotated: int) -> None:
    qkv = torch.randn(300, 7, d)
    expected = qkv.clone()
    angles = torch.arange(400)[:, None] * torch.rand(rotated // 2)
    table = torch.cat([angles.cos(), angles.sin()], dim=1)
    positions = torch.randint(0, 400, (300,))
    ops.rope(qkv[:, :4], qkv[:, 4:6], positions, table)
    rope.rope(expected[:, :4], expected[:, 4:6], positions, table)
    assert torch.equal(qkv, expected)


def test_rope_refuses_heads_that_lie_apart(ops: Ops) -> None:
    q = torch.randn(3, 16, 4).transpose(1, 2)
    with pytest.raises(ValueError, match="side by side"):
        ops.rope(q, q, torch.zeros(3, dtype=torch.int64), torch.zeros(1, 16))


@pytest.mark.parametrize("size", [1, 13, 1536])
def test_activations(ops: Ops, size: int) -> None:
    x = torch.randn(41, 2 * size) * 4
    x[0, 0], x[1, 0], x[2, 0] = 200.0, -200.0, 0.0
    for name in ("silu_mul", "gelu_mul"):
        run, expected = getattr(ops, name), getattr(activation, name)(x)
        result = run(x)
        torch.testing.assert_close(result, expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert torch.equal(torch.cat([run(row) for row in x.split(1)]), result)


@pytest.mark.parametrize("size", [1, 13, 1536])
def test_gelu_by_itself(ops: Ops, size: int) -> None:
    x = torch.randn(41, size) * 4
    x[0, 0], x[1, 0], x[2, 0] = 200.0, -200.0, 0.0
    result = ops.gelu(x)
    torch.testing.assert_close(result, activation.gelu(x), atol=TOLERANCE, rtol=TOLERANCE)
    assert torch.equal(torch.cat([ops.gelu(row) for row in x.split(1)]), result)


def test_nan_stays_nan(ops: Ops) -> None:
    x = torch.full((1, 16), torch.nan)
    assert bool(ops.silu_mul(x).isnan().all())
    assert bool(ops.gelu_mul(x).isnan().all())
    assert bool(ops.gelu(x).isnan().all())
