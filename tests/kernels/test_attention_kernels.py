"""Paged attention and KV write: against the reference, and each query against itself in other company."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels import Ops
from kernels.attention import reference
from kernels.kv_write import reference as kv_reference
from tests.kernels.caches import unwritten

TOLERANCE = 2e-5  # absolute, for outputs of unit normal values


@dataclass(slots=True)
class Case:
    """Sequences whose keys and values lie in shuffled blocks of a cache that is NaN everywhere else."""

    q: Tensor  # [all tokens of all sequences, H, D]
    k_cache: Tensor
    v_cache: Tensor
    tables: Tensor
    lengths: list[int]

    def run(self, attention, spans: list[tuple[int, int, int]], **law) -> Tensor:  # type: ignore[no-untyped-def]
        """Attention of rows (sequence, first, end): those tokens, with the sequence known up to end."""
        starts = [sum(self.lengths[:s]) for s, _, _ in spans]
        q = torch.cat([self.q[at + first : at + end] for at, (_, first, end) in zip(starts, spans, strict=True)])
        counts = torch.tensor([0] + [end - first for _, first, end in spans])
        query_start, seq_lens = counts.cumsum(0).int(), torch.tensor([end for _, _, end in spans]).int()
        tables = self.tables[[s for s, _, _ in spans]].contiguous()
        return attention(q, self.k_cache, self.v_cache, tables, query_start, seq_lens, q.shape[-1] ** -0.5, **law)


def make_case(ops: Ops, lengths: list[int], heads: int, kv_heads: int, d: int, dtype: torch.dtype) -> Case:
    total, most = sum(lengths), max(-(-n // 16) for n in lengths)
    num_blocks = most * len(lengths) + 3
    k_cache, v_cache = unwritten(num_blocks, kv_heads, d, dtype)
    tables = torch.randperm(num_blocks)[: most * len(lengths)].view(len(lengths), most).int()
    slots = torch.cat([tables[s].long()[torch.arange(n) // 16] * 16 + torch.arange(n) % 16 for s, n in enumerate(lengths)])
    qkv = torch.randn(total, heads + 2 * kv_heads, d)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    kv_reference.kv_write(k, v, k_cache, v_cache, slots)
    if dtype != torch.int8:
        other = unwritten(num_blocks, kv_heads, d, dtype)
        ops.kv_write(k, v, *other, slots)
        assert torch.equal(k_cache.nan_to_num(9), other[0].nan_to_num(9))
        assert torch.equal(v_cache.nan_to_num(9), other[1].nan_to_num(9))
    return Case(q, k_cache, v_cache, tables, lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("d", [16, 20, 32, 64, 80, 96, 128, 256])
def test_ragged_rows_equal_the_reference(ops: Ops, d: int, dtype: torch.dtype) -> None:
    heads, kv_heads = (9, 3) if d == 64 else (4, 4) if d == 20 else (4, 1)
    case = make_case(ops, [1, 16, 17, 75], heads, kv_heads, d, dtype)
    spans = [(0, 0, 1), (1, 3, 16), (2, 16, 17), (3, 40, 75)]
    for law in ({}, {"window": 20}, {"softcap": 3.0}, {"window": 1}, {"window": 16, "softcap": 30.0}):
        result, expected = case.run(ops.attention, spans, **law), case.run(reference.attention, spans, **law)
        torch.testing.assert_close(result, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(9, 3, 64), (8, 1, 32), (2, 2, 80), (40, 1, 16)])
@pytest.mark.parametrize("law", [{}, {"window": 37, "softcap": 20.0}])
def test_a_query_does_not_depend_on_chunk_batch_or_threads(
    ops: Ops, heads: int, kv_heads: int, d: int, dtype: torch.dtype, law: dict[str, float]
) -> None:
    case = make_case(ops, [130, 45, 3], heads, kv_heads, d, dtype)
    whole = case.run(ops.attention, [(0, 0, 130)], **law)
    for chunk in (1, 3, 16, 50):
        spans = [(0, first, min(first + chunk, 130)) for first in range(0, 130, chunk)]
        assert torch.equal(case.run(ops.attention, spans, **law), whole), chunk
        apart = [case.run(ops.attention, [span], **law) for span in spans[-9:]]
        assert torch.equal(torch.cat(apart), whole[spans[-9:][0][1] :]), chunk
    together = case.run(ops.attention, [(1, 0, 45), (0, 0, 130), (2, 2, 3)], **law)
    assert torch.equal(together[45:175], whole)
    torch.set_num_threads(1)
    assert torch.equal(case.run(ops.attention, [(0, 0, 130)], **law), whole)


def test_large_scores_and_unread_infinities_do_no_harm(ops: Ops) -> None:
    case = make_case(ops, [21], 2, 1, 32, torch.float32)
    case.q *= 1000
    case.k_cache[case.k_cache.isnan()] = torch.inf
    result, expected = case.run(ops.attention, [(0, 0, 21)]), case.run(reference.attention, [(0, 0, 21)])
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)
    assert bool(result.isfinite().all())


def test_half_rounds_as_torch_does(ops: Ops) -> None:
    special = torch.tensor(
        [0.0, -0.0, 1e-8, 6e-8, 65504.0, 65519.9, 65520.0, 1e9, -(2.0**-14), 2.0**-24, 1 + 2.0**-11, torch.inf]
    )
    k = torch.cat([special, torch.randn(52) * 1e-5]).view(1, 1, 64)
    k_cache, v_cache = torch.zeros(1, 1, 64, 16).half(), torch.zeros(1, 1, 16, 64).half()
    ops.kv_write(k, k, k_cache, v_cache, torch.tensor([5]))
    assert torch.equal(k_cache[0, 0, :, 5], k[0, 0].half())
    assert torch.equal(v_cache[0, 0, 5], k[0, 0].half())


def test_wrong_types_are_refused(ops: Ops) -> None:
    case = make_case(ops, [5], 2, 1, 16, torch.float32)
    case.tables = case.tables.long()
    with pytest.raises(ValueError, match="int32 block_tables"):
        case.run(ops.attention, [(0, 0, 5)])
    with pytest.raises(ValueError, match="int64 slots"):
        ops.kv_write(case.q[:, :1], case.q[:, :1], case.k_cache, case.v_cache, torch.arange(5).int())


def test_exact_kernels_refuse_int8(ops: Ops) -> None:
    if ops.library is None:
        pytest.skip("the reference reads it")
    case = make_case(ops, [5], 2, 1, 16, torch.int8)
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        case.run(ops.attention, [(0, 0, 5)])
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        ops.kv_write(case.q[:, :1], case.q[:, :1], case.k_cache, case.v_cache, torch.arange(5))
