"""What every test relies on: the generated wire code, and assert rewriting in the modules tests share.

It knows nothing of any one room.
"""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

runpy.run_path(str(ROOT / "protos" / "generate.py"))["generate"](ROOT)
# Under python -O only rewritten asserts check anything.
pytest.register_assert_rewrite(
    "tests.stack", "tests.redis_server", "tests.redis_many", "tests.redis_users", "tests.garbled", "tests.gguf_writer"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The chaos suite draws its requests and faults from a seed; `--seed N` is another one."""
    parser.addoption("--seed", type=int, default=20261122, help="of the chaos suite's requests and faults")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What `--seed` says."""
    return int(request.config.getoption("--seed"))
