"""Norms, quantisation, rotation and attention as bodies: against the references, and rows against themselves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import Ops
from kernels.attention import reference as attention_reference
from kernels.build import Library
from kernels.kv_write import reference as kv_reference
from kernels.kv_write import whole
from kernels.kv_write.layout import KINDS
from kernels.norm import reference as norm_reference
from kernels.rope import reference as rope_reference
from tests.kernels.caches import unwritten
from tests.kernels.fast import Fast, same
from tests.kernels.test_attention_kernels import make_case

ALL = ("y", "q8", "q16")


@pytest.fixture(scope="module")
def built(ops: Ops) -> Library:
    if ops.library is None or ops.library.variant == "portable":
        pytest.skip("no fast kernels for this processor")
    return ops.library


def test_a_group_is_rounded_to_its_largest_number_and_int8_keeps_that_one_whole(built: Library) -> None:
    x = torch.randn(7, 96) * torch.tensor([1e-3, 1, 1e4]).repeat_interleave(32)
    x[2, 32:64] = 0
    x[3, 32:64] = -7.5
    x[4] = x[4].abs()
    rows = Fast(built).quantize(x, *ALL)
    groups = x.view(7, 3, 32)
    assert rows.q8 is not None
    assert rows.q16 is not None
    second, most = groups.abs().sort(-1).values[..., -2:].unbind(-1)
    torch.testing.assert_close(rows.q8[1][..., 0], second / 127)
    torch.testing.assert_close(rows.q16[1][..., 0], groups.abs().amax(-1) / 32767)
    assert torch.equal(rows.q8[1][..., 2].abs(), most)
    assert bool((rows.q16[1][..., 2] == 0).all())
    for form, (numbers, about) in (("q8", rows.q8), ("q16", rows.q16)):
        scale, total = about[..., 0], about[..., 1]
        kept = rows.dequantized(form).view(7, 3, 32)
        torch.testing.assert_close(total, kept.sum(-1), atol=1e-5 * float(groups.abs().max()), rtol=1e-5)
        assert bool(((kept - groups).abs() <= scale[..., None] * 0.501 + groups.abs() * 1e-7).all())
        assert int(numbers.view(7, 3, 32).abs().amax()) == (127 if form == "q8" else 32767)
    assert rows.y is not None
    assert torch.equal(rows.y, x)


@pytest.mark.parametrize("width", [32, 576, 1000])
def test_norm_adds_normalises_and_picks_rows(built: Library, width: int) -> None:
    x, add, weight = torch.randn(13, width), torch.randn(13, width), torch.randn(width)
    forms = ALL if width % 32 == 0 else ("y",)
    out, total = Fast(built).norm(x, add, weight, 1e-5, None, *forms)
    expected, expected_total = norm_reference.add_rms_norm(x, add, weight, 1e-5)
    assert torch.equal(total, expected_total)
    assert out.y is not None
    torch.testing.assert_close(out.y, expected, atol=1e-5, rtol=1e-5)
    assert same(Fast(built).quantize(out.y, *forms), out)
    wanted = torch.tensor([12, 3, 3])
    few, few_total = Fast(built, threads=1).norm(x, add, weight, 1e-5, wanted, "y")
    assert few.y is not None
    assert torch.equal(few.y, out.y[wanted])
    assert torch.equal(few_total, total[wanted])
    alone, _ = Fast(built).norm(total, None, weight, 1e-5, None, "y")
    assert alone.y is not None
    assert torch.equal(alone.y, out.y)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("d", "turned", "normed"), [(64, 64, False), (80, 32, True), (128, 128, True)])
def test_rope_turns_queries_and_fills_the_cache(built: Library, dtype: torch.dtype, d: int, turned: int, normed: bool) -> None:
    t, heads, kv_heads = 21, 6, 2
    qkv, table = torch.randn(t, (heads + 2 * kv_heads) * d), torch.randn(50, turned)
    norms = (torch.randn(d), torch.randn(d)) if normed else None
    positions, slots = torch.randint(0, 50, (t,)), torch.randperm(64)[:t]
    caches, expected = (unwritten(4, kv_heads, d, dtype) for _ in range(2))
    q, k, v = (part.contiguous() for part in torch.split(qkv.view(t, -1, d), [heads, kv_heads, kv_heads], dim=1))
    if norms is not None:
        q, k = (norm_reference.rms_norm(x, weight, 1e-6) for x, weight in zip((q, k), norms, strict=True))
    rope_reference.rope(q, k, positions, table)
    kv_reference.kv_write(k, v, *expected, slots)
    result = Fast(built).rope(qkv, (heads, kv_heads, d), norms, table, (positions, slots), caches, 0.125)
    expected_q = whole.spread(q) / (d & -d) if dtype == torch.int8 else q
    torch.testing.assert_close(result, expected_q * 0.125, atol=1e-5, rtol=1e-5)
    for cache, other in zip(kv_reference.kept(*caches), kv_reference.kept(*expected), strict=True):
        # Turned keys differ in their last bits, and those may round to the neighbouring step.
        rtol = {torch.float32: 1e-5, torch.float16: 2e-3, torch.int8: 1e-5}[dtype]
        atol = float(k.abs().max()) / 60 if dtype == torch.int8 else 2e-5
        torch.testing.assert_close(cache, other, atol=atol, rtol=rtol, equal_nan=True)
    again = Fast(built, threads=1).rope(qkv[5:6], (heads, kv_heads, d), norms, table, (positions[5:6], slots[5:6]), caches, 0.125)
    assert torch.equal(again, result[5:6])


def test_int8_keys_and_values_are_whole_steps_of_each_head_alone(built: Library) -> None:
    d, slots = 96, torch.tensor([5, 40, 17, 33])
    k, v = torch.randn(2, 4, 2, d) * torch.tensor([1e-20, 1.0, 3e9, 1e-35])[:, None, None]
    k[1, 0] = 0
    v[1, 1, 3], v[2, 0, 7] = torch.nan, torch.inf
    k[2, 1, 5], v[0, 0] = torch.inf, 3.0
    qkv = torch.cat([torch.zeros(4, 1, d), k, v], 1).flatten(1)
    still = torch.cat([torch.ones(1, d // 2), torch.zeros(1, d // 2)], 1)
    caches, expected = (unwritten(3, 2, d, torch.int8) for _ in range(2))
    places = (torch.zeros(4, dtype=torch.int64), slots)
    Fast(built).rope(qkv, (1, 2, d), None, still, places, caches, 1.0)
    kv_reference.kv_write(k, v, *expected, slots)
    assert all(torch.equal(cache, other) for cache, other in zip(caches, expected, strict=True))
    keys, values = (part[slots // 16, :, slots % 16] for part in kv_reference.kept(*caches))
    for token in range(4):
        for kept, given in ((keys[token], whole.spread(k[token])), (values[token], v[token])):
            kept = whole.spread(kept) if kept.data_ptr() == keys[token].data_ptr() else kept
            finite = given.isfinite().all(-1)
            reach = (given.amax(-1) - given.amin(-1))[:, None]
            # Half a step, a 256th of it for its rounding, and what the centre's rounding adds to the reach.
            close = (kept - given).abs() <= reach / 508 * 1.02 + given.abs().amax(-1, keepdim=True) / 127 / 256 + 1e-30
            assert bool(close[finite].all())
            assert bool(kept[~finite].isnan().all())


def test_spread_keys_have_the_products_of_the_keys(built: Library) -> None:
    for d in (8, 40, 64, 96):
        q, k = torch.randn(2, 5, d)
        torch.testing.assert_close(whole.spread(q) @ whole.spread(k).T / (d & -d), q @ k.T, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(whole.spread(whole.spread(k)) / (d & -d), k)


def _attention(built: Library, threads: int = 2) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, tables: Tensor, start: Tensor, lens: Tensor, scale: float, **law: float) -> Tensor:
        q = (whole.spread(q) / (q.shape[-1] & -q.shape[-1]) if k.dtype == torch.int8 else q) * scale
        out = Fast(built, threads).attention(q.contiguous(), (k, v), tables, start, lens, **law)  # type: ignore[arg-type]
        assert out.y is not None
        return out.y.view(q.shape)

    return run


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(9, 3, 64), (4, 1, 80), (4, 4, 16), (30, 1, 32), (12, 6, 96), (5, 1, 128)])
def test_ragged_attention_equals_the_reference(
    built: Library, ops: Ops, heads: int, kv_heads: int, d: int, dtype: torch.dtype
) -> None:
    case = make_case(ops, [1, 16, 17, 75, 200], heads, kv_heads, d, dtype)
    spans = [(0, 0, 1), (1, 3, 16), (2, 16, 17), (3, 40, 75), (4, 0, 200)]
    for law in ({}, {"window": 20}, {"softcap": 3.0}, {"window": 1}, {"window": 16, "softcap": 30.0}):
        result, expected = case.run(_attention(built), spans, **law), case.run(attention_reference.attention, spans, **law)
        torch.testing.assert_close(result, expected, atol=3e-4 if dtype == torch.int8 else 2e-5, rtol=0)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("heads", "kv_heads", "d"), [(9, 3, 64), (8, 1, 32), (2, 2, 80), (40, 1, 16), (5, 1, 64)])
@pytest.mark.parametrize("law", [{}, {"window": 37, "softcap": 20.0}])
def test_a_query_does_not_depend_on_chunk_batch_or_threads(
    built: Library, ops: Ops, heads: int, kv_heads: int, d: int, dtype: torch.dtype, law: dict[str, float]
) -> None:
    case, run = make_case(ops, [130, 45, 3], heads, kv_heads, d, dtype), _attention(built)
    whole = case.run(run, [(0, 0, 130)], **law)
    for chunk in (1, 3, 16, 50):
        spans = [(0, first, min(first + chunk, 130)) for first in range(0, 130, chunk)]
        assert torch.equal(case.run(run, spans, **law), whole), chunk
        apart = [case.run(run, [span], **law) for span in spans[-9:]]
        assert torch.equal(torch.cat(apart), whole[spans[-9:][0][1] :]), chunk
    together = case.run(run, [(1, 0, 45), (0, 0, 130), (2, 2, 3)], **law)
    assert torch.equal(together[45:175], whole)
    assert torch.equal(case.run(_attention(built, threads=1), [(0, 0, 130)], **law), whole)


def test_attention_quantises_what_it_gives(built: Library, ops: Ops) -> None:
    case = make_case(ops, [50], 6, 2, 64, torch.float16)
    start, lens = torch.tensor([0, 50]).int(), torch.tensor([50]).int()
    out = Fast(built).attention(case.q, (case.k_cache, case.v_cache), case.tables, start, lens, forms=ALL)
    assert out.y is not None
    assert same(Fast(built).quantize(out.y, *ALL), out)


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize(("heads", "kv_heads", "d", "threads"), [(9, 3, 64, 2), (5, 1, 64, 2), (2, 1, 96, 3), (3, 1, 128, 4)])
@pytest.mark.parametrize("law", [{}, {"window": 37, "softcap": 20.0}])
def test_few_queries_shared_out_finer_keep_their_bits(
    built: Library, ops: Ops, heads: int, kv_heads: int, d: int, threads: int, dtype: torch.dtype, law: dict[str, float]
) -> None:
    for lengths in ([1], [16], [200], [17, 75, 130]):
        case = make_case(ops, lengths, heads, kv_heads, d, dtype)
        q = torch.stack([case.q[sum(lengths[: i + 1]) - 1] for i in range(len(lengths))])
        rest = ((case.k_cache, case.v_cache), case.tables, torch.arange(len(lengths) + 1).int(), torch.tensor(lengths).int())
        whole = Fast(built, threads).attention(q, *rest, **law, forms=ALL)  # type: ignore[arg-type]
        num_tasks = len(lengths) * kv_heads
        for room in (1 << 16, 8):
            scores = torch.full((room,), torch.nan)
            finer = Fast(built, threads).attention(q, *rest, **law, forms=ALL, scores=scores)  # type: ignore[arg-type]
            assert same(finer, whole), lengths
            used = room > 8 and num_tasks % threads != 0 and num_tasks <= 4 * threads
            assert bool(scores.isnan().all()) is not used
