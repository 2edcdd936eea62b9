"""ROADTRAIN_CRASH_AT ends a process at the step it names, always or once per writing of a file; every point is in the source."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import child_environment
from shared.crash import POINTS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "from shared import crash\nfor name in ('worker.claimed', 'router.put', 'router.put'):\n  crash.point(name)\n  print(name)"
)


def run(where: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**child_environment(), "ROADTRAIN_CRASH_AT": where}, capture_output=True
    )
    return done.returncode, done.stdout.decode().split()


@pytest.mark.parametrize(
    ("where", "code", "reached"), [("", 0, 3), ("elsewhere", 0, 3), ("@/nonexistent", 0, 3), ("worker.claimed", -9, 0)]
)
def test_by_name(where: str, code: int, reached: int) -> None:
    returncode, printed = run(where)
    assert returncode == code
    # What was printed before a kill may not have been flushed.
    assert len(printed) <= reached


def test_by_file_it_is_one_death(tmp_path: Path) -> None:
    order = tmp_path / "order"
    order.write_text("router.put\n")
    assert run(f"@{order}")[0] == -9
    assert not order.exists()
    assert run(f"@{order}")[0] == 0


def test_every_point_is_reached_somewhere_and_has_a_name() -> None:
    used = set()
    for room in ("router", "worker"):
        for path in (ROOT / "services" / room).rglob("*.py"):
            used |= set(re.findall(r'crash\.point\("([^"]+)"\)', path.read_text()))
    assert used == set(POINTS)
