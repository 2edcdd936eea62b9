"""Requests with random faults to a running system, for a moment; `make full` longer, `make fuzz` as long as you like."""

import pytest

from tests.fuzz.live import attack
from tests.security.patient import Patient


async def test_spoilt_requests_change_nothing(patient: Patient) -> None:
    assert await attack(patient, 1.0, 1) > 0


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_many_spoilt_requests_change_nothing(patient: Patient) -> None:
    assert await attack(patient, 120.0, 2) > 1000
