"""What every test relies on: the generated wire code, and assert rewriting in the modules tests share.

It knows nothing of any one room.
"""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

runpy.run_path(str(ROOT / "protos" / "generate.py"))["generate"](ROOT)
# Under python -O only rewritten asserts check anything.
pytest.register_assert_rewrite("tests.stack", "tests.redis_server", "tests.redis_many", "tests.garbled", "tests.gguf_writer")
