"""`roadtrain bench serve` and the pace of `bench plane` against a real system with the sim runner."""

import json
import subprocess
from pathlib import Path

from tests import stack


def test_a_served_system_is_measured(tmp_path: Path) -> None:
    server = stack.start(tmp_path, "--runner", "sim", "--worker.sim-step-ms", "4", "--worker.sim-step-ms-per-seq", "0")
    try:
        numbers = tmp_path / "numbers.json"
        loads = ("--clients", "4", "--seconds", "1.5", "--warmup", "0.5", "--rounds", "1", "--intruder", "300")
        sizes = ("--prompt-words", "4-16", "--new-tokens", "8-16", "--shared-prefix", "32", "--limits", "ttft:2000")
        command = stack.roadtrain("bench", "serve", "--url", server.url, "--vs", f"{server.url}/v1", "--names", "us,them")
        output = subprocess.run(
            [*command, *loads, *sizes, "--json", str(numbers)], cwd=stack.ROOT, capture_output=True, text=True, timeout=60
        )
        assert output.returncode == 0, output.stdout + output.stderr
        assert "x them" in output.stdout
        by_server = json.loads(numbers.read_text())["loads"]["4 clients"]
        assert set(by_server) == {"us", "us + intruder", "them", "them + intruder"}
        for rounds in by_server.values():
            assert rounds[0]["num_requests"] > 4
            assert rounds[0]["num_errors"] == 0
            assert rounds[0]["output_tok_s"] > 50
            assert rounds[0]["tpot"]["p50"] > 3.5
        assert by_server["us + intruder"][0]["intruder_ttft"]["p50"] > 0
    finally:
        server.stop()
