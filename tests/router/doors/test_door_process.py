"""The router as a process: it says when it listens, and ends with 0 on SIGTERM, before and after its plane is open."""

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio
import services.router.__main__ as router
from shared.config import RouterConfig, Settings
from shared.logs import configure_logging
from tests.router.doors.fake_plane import FakePlane

async def opened(settings):
    print("opening", flush=True)
    if {stuck}:
        await asyncio.Event().wait()
    return FakePlane()

configure_logging("router")
router.open_plane = opened
router.run(Settings(router=RouterConfig(port=0, grpc_port=0, admin_port=0)))
"""


@pytest.mark.parametrize(("stuck", "word"), [(False, "listening"), (True, "opening")])
def test_sigterm_ends_it_with_zero(stuck: bool, word: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(stuck=stuck)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                if word in line:
                    break
            process.send_signal(signal.SIGTERM)
            rest = process.communicate(timeout=20)[0]
        finally:
            process.kill()
    assert process.returncode == 0, "".join(lines) + rest
    assert "Traceback" not in "".join(lines) + rest
