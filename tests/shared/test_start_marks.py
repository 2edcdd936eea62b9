"""What a starting process tells its parent, and imports that leave something out."""

import importlib
import json
import socket
import sys
import time
from pathlib import Path

import pytest

from shared.imports import hollow
from shared.marks import Marks, own_start


def test_one_line_says_when_each_part_ended() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began_at = time.monotonic()
        marks = Marks(theirs.fileno())
        marks("imports")
        marks.ready({"room": 3})
        line = ours.recv(1 << 16)
    told = json.loads(line)
    assert line.endswith(b"\n")
    assert [name for name, _ in told["ends"]] == ["imports", "ready"]
    times = [began_at, *(at for _, at in told["ends"]), time.monotonic()]
    assert times == sorted(times)
    assert told["facts"] == {"room": 3}


def test_a_parent_that_is_gone_does_not_matter() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        Marks(theirs.fileno()).ready()
    Marks().ready()


def test_a_process_knows_when_it_began() -> None:
    assert own_start() < time.monotonic()
    assert abs(own_start() - own_start()) < 0.1


def test_a_hollow_module_is_empty_inside_the_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_part.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    with hollow("heavy_part"):
        assert not hasattr(importlib.import_module("heavy_part"), "VALUE")
    assert "heavy_part" not in sys.modules
    assert importlib.import_module("heavy_part").VALUE == 7
    with hollow("heavy_part"):
        assert importlib.import_module("heavy_part").VALUE == 7
    monkeypatch.delitem(sys.modules, "heavy_part")
