"""The ops every model test runs on, compiled into the user's cache like the worker's own."""

import pytest

import kernels
from shared.config import cache_dir


@pytest.fixture(scope="session")
def ops() -> kernels.Ops:
    return kernels.load("cpu", cache_dir() / "kernels")
