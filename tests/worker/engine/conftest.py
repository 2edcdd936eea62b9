"""Keeps the asserts of drive.py alive under python -O. It knows nothing of the tests."""

import pytest

pytest.register_assert_rewrite("tests.worker.engine.drive")
