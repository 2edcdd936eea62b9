"""What `bench start` and the memory figures of `bench serve` read of a real system with the sim runner."""

from pathlib import Path

from bench.memory import held_by
from bench.start import measure
from tests import stack


def test_a_start_is_measured_with_its_parts(tmp_path: Path) -> None:
    start = measure(tmp_path, ("--runner", "sim"))
    assert start.first_token_s > 0.1
    assert start.cpu_s > 0.1
    assert any("worker-0 from" in line for line in start.lines)
    assert not list(tmp_path.glob("roadtrain-*"))


def test_all_processes_of_a_system_are_counted(tmp_path: Path) -> None:
    server = stack.start(tmp_path, "--runner", "sim")
    try:
        held = held_by(server.url)
        assert held is not None
        names = {name.partition(" ")[2] for name in held.processes}
        assert {"router-0", "worker-0", "tokenizer-0"} <= names
        pids = {int(name.partition(" ")[0]) for name in held.processes}
        assert {server.process.pid, *server.children().values()} <= pids
        # Started by the tokenizer, not by `serve`.
        assert any("renderer.py" in name for name in names)
        assert held.total > 30
    finally:
        server.stop()


def test_a_server_elsewhere_or_nowhere_is_not_counted() -> None:
    assert held_by("http://192.0.2.1:8000") is None
    assert held_by(f"http://127.0.0.1:{stack.free_ports()}") is None
