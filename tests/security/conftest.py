"""One system with computable tokens for all of these tests. It knows nothing of what is done to it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests import stack
from tests.security.patient import FLAGS, Patient, patient_of


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    running = stack.start(tmp_path_factory.mktemp("patient"), *FLAGS)
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


@pytest.fixture
async def patient(system: stack.Stack) -> AsyncIterator[Patient]:
    """Examined when the test is over."""
    async with patient_of(system) as opened:
        yield opened
