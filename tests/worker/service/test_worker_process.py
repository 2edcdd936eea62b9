"""A worker as a process: it serves, drains on SIGTERM with exit 0, and ends start-up in one line when something is wrong."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest

from services.worker.__main__ import EXIT_STUCK, Built, start
from services.worker.sim import SimRunner
from shared.config import Settings, WorkerConfig, child_environment
from shared.errors import StartupError
from tests.worker.service.conftest import KEY, SPEC, Plane, answer, params
from tests.worker.service.router_double import until

ROOT = Path(__file__).resolve().parents[3]
PROMPT = list(range(40))
STUCK = """
import sys, time
from services.worker.__main__ import run
from services.worker.sim import SimRunner
from services.worker.engine.engine import EngineStats
from shared.config import load
SimRunner.run = lambda self, step: time.sleep(60)
EngineStats.stall_limit_s = property(lambda self: 0.5)
run(load(sys.argv[1:]))
"""


def arguments(plane: Plane) -> list[str]:
    return [
        *("--model", "test", "--redis-url", plane.url, "--secret-file", str(plane.folder / "secret"), "--runner", "sim"),
        *(
            "--worker.worker-id",
            "w0",
            "--worker.admin-address",
            f"unix:{plane.folder}/w0.admin",
            "--worker.sim-vocab-size",
            "1000",
        ),
        *("--max-model-len", "2048", "--worker.sim-step-ms", "5"),
    ]


async def launch(plane: Plane, *command: str) -> asyncio.subprocess.Process:
    """The command with the arguments above; its own come last and win."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command[:2],
        *arguments(plane),
        *command[2:],
        cwd=ROOT,
        env=child_environment(),
        stderr=asyncio.subprocess.PIPE,
    )
    plane.stack.callback(lambda: process.returncode is None and process.kill())
    return process


async def test_sigterm_drains_and_exits_0(plane: Plane) -> None:
    router = await plane.router()
    process = await launch(plane, "-m", "services.worker")
    owed = await plane.put(router, params(max_tokens=100), PROMPT)
    await until(lambda: len(owed.choices[0]) > 3, owed, 30)
    assert [worker.facts["max_model_len"] for worker in await plane.registry.workers()] == [2048]
    process.send_signal(signal.SIGTERM)
    await until(lambda: owed.whole, owed)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert owed.choices[0] == answer(PROMPT, params(max_tokens=100))
    assert (await plane.record(owed)).state == "done"
    assert not await plane.registry.workers()


async def test_a_stuck_engine_exits_70_and_keeps_its_lease_to_run_out(plane: Plane) -> None:
    router = await plane.router()
    process = await launch(plane, "-c", STUCK)
    owed = await plane.put(router, params(), PROMPT)
    assert await asyncio.wait_for(process.wait(), 30) == EXIT_STUCK
    record = await plane.record(owed)
    assert (record.state, record.owner.split(":")[0]) == ("running", "w0")


async def test_the_process_ends_with_that_line_and_1(plane: Plane) -> None:
    process = await launch(plane, "-m", "services.worker", "--runner", "model")
    _, output = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 1
    assert output.decode().splitlines() == ["worker: a worker needs the model's files: set model_path"]


async def test_what_is_missing_is_named_in_one_line(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.worker.__main__.REDIS_PATIENCE_S", 0.0)
    worker = WorkerConfig(admin_address=f"unix:{plane.folder}/w.admin", runner="sim")
    secret = plane.folder / "secret"
    nowhere = Settings(redis_url=f"unix://{plane.folder}/none.sock", secret_file=secret, worker=worker)
    listener = plane.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    taken = Settings(redis_url=plane.url, secret_file=secret, worker=WorkerConfig(admin_address=address, runner="sim"))
    short = Settings(redis_url=plane.url, secret_file=plane.folder / "short", worker=worker)
    (plane.folder / "short").write_bytes(KEY[:8])
    for settings, match in ((nowhere, "no Redis answers"), (taken, "worker.admin-address"), (short, "32 characters")):
        with pytest.raises(StartupError, match=match) as caught:
            async with start(settings, Built(SimRunner(SPEC))):
                pass
        assert "\n" not in str(caught.value)
