"""One trial: a cluster, clients and a nemesis for a while, then rest, then judgement. It knows the order of things only."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.pb import tokenizer_pb2, tokenizer_pb2_grpc
from shared.rpc import connect
from tests.chaos import rest
from tests.chaos.checkers import Judge, Verdict, Vocabulary
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster, Plan, cluster
from tests.chaos.history import Seen, Struck
from tests.chaos.load import Load, spec_of
from tests.chaos.nemesis import FAULTS, Nemesis
from tests.chaos.resources import RESOURCE_FAULTS

QUIET_S = 60.0


@dataclass
class Trial:
    """A running trial, and after `finish` its verdict and leaks."""

    seed: int
    cluster: Cluster
    clients: Clients
    load: Load
    nemesis: Nemesis
    vocabulary: Vocabulary
    files_before: dict[str, int]
    began_at: float = field(default_factory=time.monotonic)
    verdict: Verdict = field(default_factory=Verdict)
    quiet_s: float = 0.0

    async def finish(self) -> Verdict:
        """Heals all, waits for every client and for rest, judges."""
        self.cluster.heal()
        await self.load.stop()
        await self.cluster.ready()
        left, self.quiet_s = await rest.until_quiet(self.cluster, QUIET_S)
        self.verdict = Judge(spec_of(self.cluster.plan), self.vocabulary).judge(self.clients.seen)
        self.verdict.findings += left
        self.verdict.findings += rest.grown(self.cluster, self.files_before)
        self.verdict.findings += rest.crashes(self.cluster)
        return self.verdict

    def keep_logs(self, folder: Path) -> None:
        """Copies what the services logged, with their settings."""
        ignored = shutil.ignore_patterns("*.sock", "secret", "appendonly*")
        shutil.copytree(self.cluster.folder, folder, dirs_exist_ok=True, ignore=ignored)

    def by_fault(self) -> dict[str, dict[str, Any]]:
        """For each kind of fault: how often, how long, and the longest silence of a stream that overlapped it."""
        table: dict[str, dict[str, Any]] = {}
        for struck in self.nemesis.struck:
            row = table.setdefault(struck.kind, {"times": 0, "lasted_s": [], "silence_s": [], "seen": set()})
            row["times"] += 1
            row["lasted_s"].append(struck.healed_at - struck.at)
            row["silence_s"].append(longest_silence(self.clients.seen, struck))
            row["seen"].add(struck.detail)
        return table


def longest_silence(history: list[Seen], struck: Struck) -> float:
    """Seconds of the longest silence between two events of one stream that overlapped a fault; 0 if none passed 0.25 s."""
    gaps = [end - start for seen in history for start, end in seen.gaps if start < struck.healed_at and end > struck.at]
    return max(gaps, default=0.0)


@asynccontextmanager
async def trial(seed: int, width: int, plan: Plan | None = None) -> AsyncIterator[Trial]:
    """A cluster under load."""
    async with cluster(plan) as running:
        vocabulary = await _vocabulary(running)
        files = {name: rest.open_files(service.pid) for name, service in running.services.items() if service.pid}
        clients = Clients(running, seed)
        load = Load(clients, spec_of(running.plan), seed, width)
        faults = {**FAULTS, **RESOURCE_FAULTS, "herd": load.herd, "cancel_storm": load.cancel_storm}
        try:
            yield Trial(seed, running, clients, load, Nemesis(running, seed, faults), vocabulary, files)
        finally:
            running.heal()
            await _end(load)
            await clients.close()


async def _end(load: Load) -> None:
    for slot in load.slots:
        slot.cancel()
    await asyncio.gather(*load.slots, return_exceptions=True)


async def _vocabulary(running: Cluster) -> Vocabulary:
    async with connect(f"unix:{running.folder}/tokenizer-0.sock") as channel:
        stub = tokenizer_pb2_grpc.TokenizerStub(channel)
        reply = await stub.Vocabulary(tokenizer_pb2.VocabularyRequest(), timeout=20)
    pieces, at = [], 0
    for length in reply.length:
        pieces.append(reply.data[at : at + length])
        at += length
    return Vocabulary(pieces, frozenset(reply.special_token_ids))
