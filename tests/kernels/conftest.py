"""The compiled kernels, once for all tests of the room; in the user's cache, so that a second run compiles nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import kernels
from kernels import Ops
from shared import config


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Where compiled kernels lie between runs."""
    return config.cache_dir() / "kernels"


@pytest.fixture(scope="session")
def ops(cache_dir: Path) -> Ops:
    """The C++ kernels; without a compiler there is nothing to test."""
    loaded = kernels.load("cpu", cache_dir)
    if loaded.variant == "reference":
        pytest.skip("no C++ compiler")
    return loaded


@pytest.fixture(autouse=True)
def _seeded_two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
