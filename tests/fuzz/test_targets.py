"""Every fuzz target for a moment, on bytes near right ones; `make full` for longer, `make fuzz` for as long as you like."""

import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import targets

SLOW_S = 5.0


def near(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with some places changed, cut or doubled; or two of them; or any bytes."""
    change = st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=12))

    def changed(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
        for place, length, new in changes:
            at = int(place * len(data))
            data = data[:at] + new + data[at + length :]
        return data

    one = st.builds(changed, st.sampled_from(seeds), st.lists(change, max_size=4))
    return one | st.tuples(st.sampled_from(seeds), st.sampled_from(seeds)).map(b"".join) | st.binary(max_size=300)


def drive(name: str, num_examples: int) -> None:
    target = targets()[name]

    @settings(max_examples=num_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(near(target.seeds()))
    def run(data: bytes) -> Any:
        begin = time.thread_time()
        target.run(data)
        assert time.thread_time() - begin < SLOW_S

    run()


@pytest.mark.parametrize("name", targets())
def test_seeds_and_their_neighbours(name: str) -> None:
    for data in targets()[name].seeds():
        targets()[name].run(data)
    drive(name, 60)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", targets())
def test_many_neighbours(name: str) -> None:
    drive(name, 5000)
