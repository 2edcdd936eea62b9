"""Paging holds at least twice the requests of preallocation, and wastes little. It knows bench/capacity.py alone."""

import pytest

from bench.capacity import measure

pytestmark = pytest.mark.optimized


def test_paging_holds_twice_as_many_requests() -> None:
    result = measure(num_blocks=1024, max_model_len=2048, steps=1000, seed=2)
    assert result["ratio"] >= 2
    assert result["kv_waste"] < 0.04
