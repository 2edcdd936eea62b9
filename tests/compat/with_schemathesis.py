"""schemathesis: requests made from /openapi.json; no answer is a 5xx, each is as described. It knows nothing of the server."""

from typing import Any

import pytest
import schemathesis


@pytest.fixture(scope="session")
def described(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
def test_answers_are_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate(timeout=60)
