"""A Roadtrain of separate processes with a cable that can be cut between every two of them: the patient of the chaos tests.

Each worker reaches each router, and each process reaches Redis, through a proxy of its own. Processes that die are started
again, as a supervisor would. It knows how services are wired, and nothing of what is done to them.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
from redis.asyncio import Redis

from services.launcher import private_redis
from shared.config import child_environment
from shared.pb import worker_pb2, worker_pb2_grpc
from shared.queue.keys import new_key
from tests.chaos.proxy import Proxy
from tests.stack import ROOT, free_ports

RESTART_S = 0.3
LAUNCHER = "services.launcher"


@dataclass(frozen=True)
class Plan:
    """How many of each, and what the services are told beyond the wiring. `modules`: another program for a service's name.

    runner: "model" runs the real one. crash_orders: services of a role die at the step that is written into their file of
    `Cluster.crash_order`, see shared/crash.py.
    """

    num_routers: int = 2
    num_tokenizers: int = 2
    num_workers: int = 3
    worker: Mapping[str, Any] = field(default_factory=lambda: {"sim_step_ms": 20.0, "sim_num_blocks": 2048, "drain_grace_s": 1.0})
    router: Mapping[str, Any] = field(default_factory=lambda: {"max_tenant_requests": 100, "drain_grace_s": 5.0})
    modules: Mapping[str, str] = field(default_factory=dict)
    runner: str = "sim"
    ready_s: float = 60.0
    crash_orders: bool = False


class Life(NamedTuple):
    """One process from start to end. ended_at: of the clock of the day, as Redis tells it. log: from and to which byte."""

    code: int
    ran_s: float
    ended_at: float
    log: tuple[int, int]


@dataclass
class Service:
    """One process, started again when it ends until `stop`. Its output is appended to `log`; exits: the lives that are over.

    module: the Python program that `command` are the arguments of, "" where command is all. environment: beyond the common one.
    Both may be changed, for its next start. starved: numbers of the starts that were left without descriptors.
    """

    name: str
    command: Sequence[str]
    cwd: Path
    log: Path
    module: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    exits: list[Life] = field(default_factory=list)
    starved: set[int] = field(default_factory=set)
    started_at: float = 0.0
    log_from: int = 0
    stopped: bool = False
    keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it and its keeper."""
        await self._launch()
        self.keeper = asyncio.create_task(self._keep())

    @property
    def pid(self) -> int | None:
        """The running process."""
        return self.process.pid if self.process is not None and self.process.returncode is None else None

    def signal(self, number: signal.Signals) -> bool:
        """Whether there was somebody to tell."""
        if self.pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    async def stop(self) -> None:
        """Ends it for good, however it stands."""
        self.stopped = True
        if self.keeper is not None:
            self.keeper.cancel()
            await asyncio.gather(self.keeper, return_exceptions=True)
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def _launch(self) -> None:
        environment = {**child_environment(), "PYTHONPATH": str(ROOT), **self.environment}
        with self.log.open("ab") as out:
            self.log_from = out.tell()
            self.process = await asyncio.create_subprocess_exec(
                *((sys.executable, "-m", self.module) if self.module else ()),
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=out,
                stderr=out,
                cwd=self.cwd,
                env=environment,
                start_new_session=True,
                # Python's way with a full disk, a refused write instead of a death, is Redis's too.
                restore_signals=False,
            )
        self.starts += 1
        self.started_at = time.monotonic()

    async def _keep(self) -> None:
        while not self.stopped:
            code = await self.process.wait()
            log = self.log_from, self.log.stat().st_size
            self.exits.append(Life(code, time.monotonic() - self.started_at, time.time(), log))
            await asyncio.sleep(RESTART_S)
            await self._launch()


class Cluster:
    """The processes and cables. Made by `cluster`."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder = folder
        self.plan = plan
        self.services: dict[str, Service] = {}
        self.redis_proxies: dict[str, Proxy] = {}
        self.deliver_proxies: dict[tuple[str, str], Proxy] = {}
        self.ports: dict[str, int] = {}
        self.redis_socket = folder / "redis.sock"
        self.redis = Redis(unix_socket_path=str(self.redis_socket), socket_timeout=5)
        self.http = httpx.AsyncClient(timeout=5)

    def names(self, role: str) -> list[str]:
        """Services of one kind."""
        return [name for name in self.services if name.startswith(role)]

    def grpc_address(self, router: str) -> str:
        """The public gRPC door of a router."""
        return f"127.0.0.1:{self.ports[router] + 1}"

    def url(self, router: str) -> str:
        """The HTTP door of a router."""
        return f"http://127.0.0.1:{self.ports[router]}"

    def deliver_socket(self, router: str) -> Path:
        """Where a router really listens for workers."""
        return self.folder / router / f"{router}.sock"

    def crash_order(self, role: str) -> Path:
        """Where a step of the protocol is written at which the first process of that role to reach it shall die."""
        return self.folder / f"{role}.crash"

    async def start(self) -> None:
        """Starts everything and waits until it answers."""
        secret = self.folder / "secret"
        secret.write_text(new_key() + "\n")
        secret.chmod(0o600)
        command = [*private_redis.command(self.redis_socket), "--appendonly", "yes", "--appendfsync", "everysec"]
        await self._add("redis", command)
        tokenizers = [f"unix:{self.folder}/tokenizer-{index}.sock" for index in range(self.plan.num_tokenizers)]
        routers = [f"router-{index}" for index in range(self.plan.num_routers)]
        for index, address in enumerate(tokenizers):
            await self._add_role(f"tokenizer-{index}", {"tokenizer": {"address": address}})
        for index in range(self.plan.num_workers):
            await self._add_worker(f"worker-{index}", routers)
        for name in routers:
            self.ports[name] = free_ports()
            facts = {
                **self.plan.router,
                "router_id": name,
                "port": self.ports[name],
                # Relative: each process finds something else under that name, a worker its own proxy.
                "deliver_address": f"unix:{name}.sock",
                "tokenizer_addresses": tokenizers,
            }
            await self._add_role(name, {"router": facts})
        await self.ready()

    async def _add_worker(self, name: str, routers: Sequence[str]) -> None:
        (self.folder / name).mkdir()
        for router in routers:
            proxy = Proxy(self.folder / name / f"{router}.sock", self.deliver_socket(router))
            await proxy.start()
            self.deliver_proxies[name, router] = proxy
        facts = {**self.plan.worker, "worker_id": name, "admin_address": f"unix:{self.folder}/{name}-admin.sock"}
        await self._add_role(name, {"worker": {**facts, "runner": self.plan.runner}})

    async def _add_role(self, name: str, sections: Mapping[str, Any]) -> None:
        role = name.partition("-")[0]
        proxy = Proxy(self.folder / f"redis-{name}.sock", self.redis_socket)
        await proxy.start()
        self.redis_proxies[name] = proxy
        settings = {"redis_url": f"unix://{proxy.path}", "secret_file": str(self.folder / "secret"), **sections}
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(settings))
        module = self.plan.modules.get(name, LAUNCHER)
        await self._add(name, [role, "--child", "--config", str(file)], module)

    async def _add(self, name: str, command: Sequence[str], module: str = "") -> None:
        cwd = self.folder / name
        cwd.mkdir(exist_ok=True)
        service = Service(name, command, cwd, self.folder / f"{name}.log", module)
        if self.plan.crash_orders:
            service.environment["ROADTRAIN_CRASH_AT"] = f"@{self.crash_order(name.partition('-')[0])}"
        self.services[name] = service
        await service.start()

    async def ready(self) -> None:
        """Waits until every worker and router would take work, for as long as the plan says."""
        timeout_s = self.plan.ready_s
        deadline = time.monotonic() + timeout_s
        while missing := await self._missing():
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready after {timeout_s} s: {missing}; logs in {self.folder}")
            await asyncio.sleep(0.05)

    async def _missing(self) -> list[str]:
        missing = []
        for router in self.names("router"):
            try:
                answer = await self.http.get(f"http://127.0.0.1:{self.ports[router] + 2}/readyz")
                if answer.status_code != 200:
                    missing.append(f"{router}: {answer.text[:200]}")
            except httpx.HTTPError as error:
                missing.append(f"{router}: {error!r}")
        for worker in self.names("worker"):
            if await self.status(worker) is None:
                missing.append(worker)
        return missing

    async def status(self, worker: str) -> worker_pb2.StatusReply | None:
        """What a worker says of itself; None if it does not answer."""
        async with grpc.aio.insecure_channel(f"unix:{self.folder}/{worker}-admin.sock") as channel:
            try:
                return await worker_pb2_grpc.WorkerStub(channel).Status(worker_pb2.StatusRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return None

    async def metrics(self, router: str) -> str:
        """A router's metrics page."""
        return (await self.http.get(f"http://127.0.0.1:{self.ports[router] + 2}/metrics")).text

    def proxies(self) -> list[Proxy]:
        """Every cable."""
        return [*self.redis_proxies.values(), *self.deliver_proxies.values()]

    def heal(self) -> None:
        """Every cable whole, every process awake."""
        for proxy in self.proxies():
            proxy.heal()
        for service in self.services.values():
            service.signal(signal.SIGCONT)

    async def close(self) -> None:
        """Ends every process and cable."""
        await asyncio.gather(*(service.stop() for service in self.services.values()))
        for proxy in self.proxies():
            await proxy.close()
        await self.http.aclose()
        await self.redis.aclose()


@asynccontextmanager
async def cluster(plan: Plan | None = None) -> AsyncIterator[Cluster]:
    """A running cluster in a short temporary folder of its own (unix sockets have short names)."""
    with tempfile.TemporaryDirectory(prefix="rtc-", ignore_cleanup_errors=True) as folder:
        running = Cluster(Path(folder), plan or Plan())
        try:
            await running.start()
            yield running
        finally:
            await running.close()
