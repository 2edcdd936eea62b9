"""The queue as a plain Python model: what reference/protocol.md §3 says, without Redis, time or indexes.

Times are replaced by a counter of calls, epochs by what the queue answered. The state machine compares the two after each call.
"""

from dataclasses import dataclass, field

ACTIVE = ("queued", "running")


@dataclass
class ModelRecord:
    tenant: str
    router: str = ""
    attach: int = 0
    state: str = "queued"
    epoch: int = 0
    owner: str = ""
    revivable: bool = False
    crashes: int = 0
    total_crashes: int = 0
    died_at: int = 0
    progress: int = 0
    suspects: dict[str, int] = field(default_factory=dict)
    counted: bool = False
    reason: str = ""
    has_body: bool = True

    @property
    def doubts(self) -> int:
        return self.crashes + len(self.suspects)

    @property
    def lane(self) -> str:
        if self.state == "running":
            return "leases"
        if self.state != "queued":
            return ""
        return "parked" if self.doubts >= 3 else "solo" if self.doubts == 2 else "waiting"

    def held_by(self, owner: str, epoch: int) -> bool:
        return (self.state, self.owner, self.epoch) == ("running", owner, epoch)

    def advance(self, progress: int) -> None:
        self.progress = max(self.progress, progress)
        if progress > self.died_at:
            self.crashes = 0

    def end(self, state: str, reason: str) -> None:
        self.state, self.reason = state, reason


@dataclass
class WorkerSeen:
    boot: str = ""
    at: int = 0
    exited: str = ""


class QueueModel:
    """Every method changes the model as the script must, and returns the verdict it must give."""

    def __init__(self) -> None:
        self.records: dict[str, ModelRecord] = {}
        self.workers: dict[str, WorkerSeen] = {}
        self.expired: set[str] = set()
        self.reserved = ""  # the worker that runs empty for the solo lane
        self.now = 0

    def flush(self) -> None:
        self.records, self.workers, self.expired, self.reserved = {}, {}, set(), ""

    def hear(self, owner: str) -> None:
        self.now += 1
        worker, boot = owner.split(":")
        seen = self.workers.setdefault(worker, WorkerSeen())
        seen.boot, seen.at = boot, self.now

    def put(
        self, rid: str, tenant: str, router: str, known_owner: str = "", known_epoch: int = 0, crashes: int = 0, progress: int = 0
    ) -> str:
        if rid in self.records:
            return "exists"
        record = ModelRecord(tenant, router, crashes=crashes, total_crashes=crashes, progress=progress)
        record.died_at = progress if crashes else 0
        if known_owner:
            record.state, record.owner, record.epoch = "running", known_owner, known_epoch
        self.records[rid] = record
        return "ok"

    def claimable(self, *, solo: bool) -> set[str]:
        alone = {rid for rid, record in self.records.items() if record.lane == "solo"}
        if solo and alone:
            return alone
        return {rid for rid, record in self.records.items() if record.lane == "waiting"}

    def claim(self, rid: str, owner: str, epoch: int) -> None:
        record = self.records[rid]
        record.suspects.pop(owner, None)
        record.state, record.owner, record.epoch = "running", owner, epoch

    def renew(self, rid: str, owner: str, epoch: int, progress: int) -> str:
        record = self.records.get(rid)
        if record is None:
            return "unknown"
        record.suspects.pop(owner, None)
        if record.held_by(owner, epoch):
            record.advance(progress)
            self.expired.discard(rid)
            return "ok"
        cancelled = (record.state, record.owner, record.epoch) == ("cancelled", owner, epoch)
        return "cancelled" if cancelled else "lost"

    def expire_all_of(self, owner: str) -> None:
        """Its process is gone for sure."""
        self.expired |= {rid for rid, record in self.records.items() if (record.state, record.owner) == ("running", owner)}

    def revoke(self, router: str, rid: str, owner: str, epoch: int) -> str:
        record = self.records.get(rid)
        if record is None:
            return "missing"
        if not record.held_by(owner, epoch) or record.router != router:
            return "refused"
        self.expired.add(rid)
        return "ok"

    def reserve(self, owner: str) -> bool:
        worker = owner.split(":")[0]
        if not any(record.lane == "solo" for record in self.records.values()):
            self.reserved = ""
        elif not self.reserved:
            self.reserved = worker
        return self.reserved == worker

    def release(self, owner: str, rid: str, epoch: int, progress: int) -> str:
        record = self.records.get(rid)
        if record is None:
            return "missing"
        record.suspects.pop(owner, None)
        if not record.held_by(owner, epoch):
            return "refused"
        record.advance(progress)
        record.state, record.owner = "queued", ""
        return "ok"

    def finish(self, owner: str, rid: str, epoch: int, attach: int, outcome: str, reason: str, tenant: str) -> tuple[str, bool]:
        """Verdict, and whether usage must be booked by this call."""
        state = "dead" if outcome == "failed" else outcome
        record = self.records.get(rid)
        if record is None:
            record = self.records[rid] = ModelRecord(tenant, "", attach, "running", epoch, owner, has_body=False)
        record.suspects.pop(owner, None)
        booked = not record.counted
        if record.held_by(owner, epoch):
            if record.attach != attach:
                return "moved", False
            record.end(state, reason)
            record.revivable = state == "cancelled" and reason != "client"
            record.counted = True
            return "ok", booked
        ended_by = (record.owner, record.epoch) == (owner, epoch)
        if record.state in ACTIVE or not (ended_by or record.owner == ""):
            return "refused", False
        record.counted = True
        return ("ok" if record.state == state and record.owner == owner else "refused"), booked

    def cancel(self, rid: str, tenant: str, router: str, attach: int, why: str) -> str:
        record = self.records.get(rid)
        if record is not None and record.tenant != tenant:
            return "foreign"
        if why == "disconnect":
            if record is None:
                return "missing"
            if (record.router, record.attach) != (router, attach):
                return "refused"
            if record.state in ACTIVE:
                record.end("cancelled", why)
                record.revivable = True
            return "ok" if record.state == "cancelled" else "refused"
        if record is None:
            record = self.records[rid] = ModelRecord(tenant, router, attach, has_body=False)
        if record.state in ACTIVE or record.state == "cancelled":
            record.end("cancelled", why)
            record.revivable = False
        return "ok" if record.state == "cancelled" else "refused"

    def adopt(self, rid: str, tenant: str, router: str, attach: int, *, body: bool) -> str:
        record = self.records.get(rid)
        if record is None:
            return self.put(rid, tenant, router) if body else "missing"
        if record.tenant != tenant:
            return "foreign"
        if record.state == "dead" or (record.state == "cancelled" and not record.revivable):
            return "ended"
        if attach and (attach < record.attach or (attach == record.attach and router != record.router)):
            return "superseded"
        if record.state not in ACTIVE:
            if not record.has_body and not body:
                return "gone"
            record.state, record.owner, record.reason, record.revivable, record.has_body = "queued", "", "", False, True
        record.router = router
        return "ok"

    def reap(self) -> tuple[int, set[str]]:
        """How many lost their owner, and which rids are dead now."""
        self.now += 1
        lost = [rid for rid in self.expired if self.records[rid].state == "running"]
        for rid in lost:
            record = self.records[rid]
            record.suspects.setdefault(record.owner, self.now)
            record.state, record.owner = "queued", ""
        self.expired.clear()
        return len(lost), {rid for rid, record in self.records.items() if record.state == "queued" and self._judge(record)}

    def _judge(self, record: ModelRecord) -> bool:
        for owner, since in list(record.suspects.items()):
            worker, boot = owner.split(":")
            seen = self.workers.get(worker, WorkerSeen())
            crashed = seen.exited == boot or (seen.boot != "" and seen.boot != boot)
            if crashed or seen.at > since:
                del record.suspects[owner]
            if crashed:
                record.crashes += 1
                record.total_crashes += 1
                record.died_at = record.progress
        if record.crashes < 3 and record.total_crashes < 8:
            return False
        record.end("dead", "crashes")
        return True
