"""Whole systems for end-to-end tests, started once per session. It knows nothing of what is asked of them."""

from collections.abc import Iterator

import pytest

from tests import stack


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """The default: `roadtrain serve` with the real model."""
    running = stack.start(tmp_path_factory.mktemp("smollm2"))
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


@pytest.fixture(scope="session")
def two_by_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """Two routers, two tokenizers and two workers, with computable tokens."""
    flags = ("--num-routers", "2", "--num-tokenizers", "2", "--num-workers", "2", "--runner", "sim")
    running = stack.start(tmp_path_factory.mktemp("two_by_two"), *flags)
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]
