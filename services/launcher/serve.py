"""`roadtrain serve`: every service on this machine, started together, watched over, ended together.

Only HTTP, gRPC and admin are TCP ports, on loopback; the rest are unix sockets in a private folder that goes when
serve goes. It knows how services are wired, and nothing of what they do.
"""

import asyncio
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from services.launcher import private_redis
from services.launcher.exposure import check_exposure
from services.launcher.roles import with_model_path
from services.launcher.summary import summary
from services.launcher.supervise import Child, Supervisor
from shared.config import RouterConfig, Settings
from shared.errors import StartupError
from shared.marks import own_start
from shared.ports import port_is_free
from shared.queue.keys import new_key

READY_POLL_S = 0.02
SLOW_AFTER_S = 20.0
STOP_MARGIN_S = 5.0
# Routers first: they take no more requests and see their streams through; what they need goes after them.
STOP_ORDER = {"router": 0, "worker": 1, "tokenizer": 2, "redis": 3}

logger = logging.getLogger(__name__)


async def serve(settings: Settings) -> int:
    """Runs until a signal or a failure; the exit code. Leaves no process and no file behind."""
    # What it starts besides has addresses of its own choice, on this machine.
    check_exposure(settings, "router")
    _check_ports(settings.router)
    settings = with_model_path(settings)
    runtime_dir = Path(tempfile.mkdtemp(prefix="roadtrain-"))
    stopping = asyncio.Event()
    supervisor = Supervisor()

    def stop_or_hurry() -> None:
        """The first signal ends gracefully, a second one at once."""
        if stopping.is_set():
            supervisor.kill()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_or_hurry)
    try:
        settings = await _start_redis(settings, runtime_dir, supervisor)
        starting = asyncio.create_task(_start_all(settings, runtime_dir, supervisor))
        return await _watch(settings, supervisor, stopping, starting)
    finally:
        await supervisor.stop()
        shutil.rmtree(runtime_dir, ignore_errors=True)


def _check_ports(router: RouterConfig) -> None:
    hosts = (router.host, router.host, router.admin_host)
    for host, port, what in zip(hosts, router.ports, ("HTTP", "gRPC", "admin"), strict=True):
        if port and not port_is_free(host, port):
            raise StartupError(f"port {port} ({what}) on {host} is in use: end what listens there, or choose others with --port")
    if 0 in router.ports:
        raise StartupError("serve needs fixed ports: give --port a number above 0")


async def _start_redis(settings: Settings, runtime_dir: Path, supervisor: Supervisor) -> Settings:
    """`settings` with a secret and the address of a Redis, this system's own where none is given."""
    if settings.secret_file is None:
        secret_file = runtime_dir / "secret"
        secret_file.write_text(new_key() + "\n")
        secret_file.chmod(0o600)
        settings = settings.model_copy(update={"secret_file": secret_file})
    if settings.redis_url is None:
        socket = runtime_dir / "redis.sock"
        await supervisor.add(Child("redis", private_redis.command(socket), order=STOP_ORDER["redis"], grace_s=STOP_MARGIN_S))
        settings = settings.model_copy(update={"redis_url": f"unix://{socket}"})
    return settings


async def _start_all(settings: Settings, runtime_dir: Path, supervisor: Supervisor) -> None:
    """Starts all services and waits until requests can be taken.

    The worker takes longest and begins first. The others follow each other: a small machine has one core left for them, and
    what they took of the worker's would come on top.
    """
    for index in range(settings.serve.num_workers):
        facts = {"worker_id": f"worker-{index}", "admin_address": f"unix:{runtime_dir}/worker-{index}.sock"}
        await _start(supervisor, settings, runtime_dir, "worker", index, facts)
    tokenizers = tuple(f"unix:{runtime_dir}/tokenizer-{i}.sock" for i in range(settings.serve.num_tokenizers))
    for index, address in enumerate(tokenizers):
        await _start(supervisor, settings, runtime_dir, "tokenizer", index, {"address": address})
    await _all_ready([child for child in supervisor.children if child.name.startswith("tokenizer")])
    for index in range(settings.serve.num_routers):
        await _start(supervisor, settings, runtime_dir, "router", index, _router_facts(index, runtime_dir, tokenizers))
    await _all_ready([child for child in supervisor.children if child.name != "redis"])
    await _takes_requests(settings.router)


def _router_facts(index: int, runtime_dir: Path, tokenizers: tuple[str, ...]) -> dict[str, object]:
    return {
        "router_id": f"router-{index}",
        "deliver_address": f"unix:{runtime_dir}/deliver-{index}.sock",
        "tokenizer_addresses": tokenizers,
        # HTTP and gRPC ports are shared by all routers; the admin port answers for one process only.
        "admin_socket": runtime_dir / f"admin-{index}.sock" if index else None,
    }


async def _start(
    supervisor: Supervisor, settings: Settings, runtime_dir: Path, role: str, index: int, facts: dict[str, object]
) -> None:
    """Starts one service with its own file of settings: `facts` replace fields of its section."""
    section = getattr(settings, role).model_copy(update=facts)
    file = runtime_dir / f"{role}-{index}.json"
    file.write_text(json.dumps(settings.model_copy(update={role: section}).model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "services.launcher", role, "--child", "--config", str(file)]
    grace_s = getattr(section, "drain_grace_s", 0.0) + STOP_MARGIN_S
    on_exit = partial(_report_exit, settings, str(facts["worker_id"])) if role == "worker" else None
    await supervisor.add(Child(f"{role}-{index}", command, order=STOP_ORDER[role], grace_s=grace_s, on_exit=on_exit))


async def _report_exit(settings: Settings, worker_id: str) -> None:
    # It brings a client of Redis along, which this process can mostly do without.
    from services.launcher.coroner import report_exit

    await report_exit(settings, worker_id)


async def _watch(settings: Settings, supervisor: Supervisor, stopping: asyncio.Event, ready: asyncio.Task[None]) -> int:
    """Until a signal or a failure; says once when `ready` is done. The exit code."""
    stop = asyncio.create_task(stopping.wait())
    failure = asyncio.create_task(supervisor.failure())
    try:
        await asyncio.wait({stop, failure, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            children = [child for child in supervisor.children if child.name != "redis"]
            starts = {child.name: (child.started_at, child.ready.result()) for child in children}
            # To standard error, so that standard output stays free.
            print(summary(settings, own_start(), starts, time.monotonic()), file=sys.stderr)
            await asyncio.wait({stop, failure}, return_when=asyncio.FIRST_COMPLETED)
        if failure.done() and not stop.done():
            print(f"roadtrain: {failure.result()} could not start; ending the others", file=sys.stderr)
            return 1
        grace_s = settings.router.drain_grace_s
        print(f"roadtrain: ending; open requests have {grace_s:.0f} s to finish, Ctrl-C again ends at once", file=sys.stderr)
        return 0
    finally:
        for task in (stop, failure, ready):
            task.cancel()
        await asyncio.gather(stop, failure, ready, return_exceptions=True)


async def _all_ready(services: Sequence[Child]) -> None:
    """Waits until all say that they are ready; says which do not if that takes long."""
    while left := [child.ready for child in services if not child.ready.done()]:
        _, pending = await asyncio.wait(left, timeout=SLOW_AFTER_S)
        if len(pending) == len(left):
            missing = ", ".join(child.name for child in services if not child.ready.done())
            logger.info("still starting", extra={"missing": missing})


async def _takes_requests(router: RouterConfig) -> None:
    """Waits until the first router's admin port says that it takes requests; says what is missing if that takes long."""
    next_note_at = time.monotonic() + SLOW_AFTER_S
    while True:
        status, body = await _get(router.admin_host, router.ports[2], "/readyz")
        if status == 200:
            return
        if time.monotonic() > next_note_at:
            logger.info("still starting", extra={"missing": body.strip()[:200] or "router"})
            next_note_at += SLOW_AFTER_S
        await asyncio.sleep(READY_POLL_S)


async def _get(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and body; status 0 if nobody answers."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return 0, ""
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(-1), 2.0)).partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body.decode(errors="replace")
    except (OSError, ValueError, IndexError, TimeoutError):
        return 0, ""
    finally:
        writer.close()
