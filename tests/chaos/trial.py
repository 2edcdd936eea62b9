"""One trial: a cluster, clients and a nemesis for a while, then rest, then judgement. It knows the order of things only."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.pb import tokenizer_pb2, tokenizer_pb2_grpc
from shared.rpc import connect
from tests.chaos import coroner, rest
from tests.chaos.checkers import Judge, Verdict, Vocabulary, settle
from tests.chaos.clients import Clients
from tests.chaos.cluster import Cluster, Plan, cluster
from tests.chaos.history import Quarantined, Seen, Struck
from tests.chaos.load import Load, spec_of
from tests.chaos.nemesis import FAULTS, Nemesis
from tests.chaos.resources import RESOURCE_FAULTS

QUIET_S = 60.0


@dataclass
class Trial:
    """A running trial, and after `finish` its verdict and leaks. held_before: when first ready; held_at_rest: at the end."""

    seed: int
    cluster: Cluster
    clients: Clients
    load: Load
    nemesis: Nemesis
    held_before: dict[str, rest.Holdings]
    held_at_rest: dict[str, rest.Holdings] = field(default_factory=dict)
    began_at: float = field(default_factory=time.monotonic)
    verdict: Verdict = field(default_factory=Verdict)
    quiet_s: float = 0.0

    async def finish(self) -> Verdict:
        """Heals all, waits for every client, who hang up, and for rest; judges."""
        self.cluster.heal()
        await self.load.stop()
        await self.clients.close()
        await self.cluster.ready()
        left, self.quiet_s = await rest.until_quiet(self.cluster, QUIET_S)
        self.held_at_rest = await rest.holdings(self.cluster)
        settle(self.verdict, self._wrong)
        self.verdict.findings += left
        self.verdict.findings += rest.grown(self.held_before, self.held_at_rest)
        self.verdict.findings += rest.crashes(self.cluster)
        return self.verdict

    def _wrong(self, ended: Quarantined) -> str:
        deaths = coroner.deaths_of(self.cluster, ended.rid)
        return coroner.unjustified(ended, deaths, self.nemesis.struck, time.time() - time.monotonic())

    def keep_logs(self, folder: Path) -> None:
        """Copies what the services logged, with their settings."""
        ignored = shutil.ignore_patterns("*.sock", "secret", "appendonly*")
        shutil.copytree(self.cluster.folder, folder, dirs_exist_ok=True, ignore=ignored)

    def by_fault(self) -> dict[str, dict[str, Any]]:
        """For each kind of fault: how often, how long, and the longest silence of a stream that overlapped it."""
        table: dict[str, dict[str, Any]] = {}
        for struck in self.nemesis.struck:
            if struck.missed:
                continue
            row = table.setdefault(struck.kind, {"times": 0, "lasted_s": [], "silence_s": [], "seen": set()})
            row["times"] += 1
            row["lasted_s"].append(struck.healed_at - struck.at)
            row["silence_s"].append(longest_silence(self.verdict.gaps, struck))
            row["seen"].add(struck.detail)
        return table


def longest_silence(gaps: Sequence[tuple[float, float, int]], struck: Struck) -> float:
    """Seconds of the longest silence between two events of one stream that overlapped a fault; 0 if none passed 0.25 s."""
    return max((end - start for start, end, _ in gaps if start < struck.healed_at and end > struck.at), default=0.0)


@asynccontextmanager
async def trial(seed: int, width: int, plan: Plan | None = None, spared: Collection[str] = ()) -> AsyncIterator[Trial]:
    """A cluster under load. spared: kinds of faults that are not to be."""
    async with cluster(plan) as running:
        held = await rest.holdings(running)
        spec, verdict = spec_of(running.plan), Verdict()
        judge = Judge(spec, await vocabulary(running))

        async def ended(seen: Seen) -> None:
            record = await coroner.record_of(running, seen.attempts[-1].rid) if seen.quarantined and seen.attempts else {}
            judge.add(seen, verdict, record)

        clients = Clients(running, seed)
        load = Load(clients, spec, seed, width, ended)
        faults = {**FAULTS, **RESOURCE_FAULTS, "herd": load.herd, "cancel_storm": load.cancel_storm}
        faults = {kind: fault for kind, fault in faults.items() if kind not in spared}
        try:
            yield Trial(seed, running, clients, load, Nemesis(running, seed, faults), held, verdict=verdict)
        finally:
            running.heal()
            await _end(load)
            await clients.close()


async def _end(load: Load) -> None:
    for slot in load.slots:
        slot.cancel()
    await asyncio.gather(*load.slots, return_exceptions=True)


async def vocabulary(running: Cluster) -> Vocabulary:
    """The tokenizer's table."""
    async with connect(f"unix:{running.folder}/tokenizer-0.sock") as channel:
        stub = tokenizer_pb2_grpc.TokenizerStub(channel)
        reply = await stub.Vocabulary(tokenizer_pb2.VocabularyRequest(), timeout=20)
    pieces, at = [], 0
    for length in reply.length:
        pieces.append(reply.data[at : at + length])
        at += length
    return Vocabulary(pieces, frozenset(reply.special_token_ids))
