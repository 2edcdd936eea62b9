"""How long `roadtrain serve` takes from the command to the first token of an answer, and where that time goes.

It starts the command so many times on a free port and asks for one token as soon as a connection is accepted. It knows
nothing of what is started, but for the summary that `serve` prints.
"""

import argparse
import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.system import ROOT, free_port
from shared.config import child_environment

ASK = json.dumps({"model": "default", "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0, "stream": True})
POLL_S = 0.02
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class StartUp:
    """One start. cpu_s: processor time of all processes until they had ended; lines: what `serve` says of the time."""

    first_token_s: float
    cpu_s: float
    lines: list[str]


def measure(folder: Path, flags: Sequence[str]) -> StartUp:
    """Starts it once, and ends it. Raises RuntimeError if no token comes."""
    port, log = free_port(), folder / "serve.log"
    command = [sys.executable, "-m", "services.launcher", "serve", "--port", str(port), *flags]
    environment = {**child_environment(), "TMPDIR": str(folder)}
    before = os.times()
    began_at = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, env=environment)
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > began_at + PATIENCE_S:
                raise RuntimeError(f"no token came:\n{log.read_text()[-2000:]}")
            time.sleep(POLL_S)
        took_s = time.monotonic() - began_at
        # The summary is printed when the router says that it is ready, which may be a moment later.
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    summary = re.search(r"^Roadtrain is ready.*?(?=^  model )", log.read_text(), re.MULTILINE | re.DOTALL)
    return StartUp(took_s, cpu_s, summary[0].splitlines() if summary else [])


def _answers(port: int) -> bool:
    """Whether a token was streamed; False while there is no server, or one that is not ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/v1/completions", ASK, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status == 200 and any(line.startswith(b"data: {") for line in reply)
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    """Command line: python -m bench.start."""
    parser = argparse.ArgumentParser(prog="roadtrain bench start", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--times", type=int, default=5, help="(default %(default)s)")
    add("--json", type=Path, help="also write the numbers here")
    options, flags = parser.parse_known_args()
    starts = []
    for _ in range(options.times):
        with tempfile.TemporaryDirectory(prefix="roadtrain-bench-") as name:
            starts.append(measure(Path(name), flags))
        print(f"first token after {starts[-1].first_token_s:.2f} s   CPU {starts[-1].cpu_s:.2f} s", flush=True)
    middle = sorted(starts, key=lambda start: start.first_token_s)[(len(starts) - 1) // 2]
    print(f"median {statistics.median(start.first_token_s for start in starts):.2f} s; of the middle one `serve` says:")
    print("\n".join(middle.lines))
    if options.json:
        options.json.write_text(json.dumps({"command": sys.argv, "starts": [asdict(start) for start in starts]}, indent=1))


if __name__ == "__main__":
    main()
