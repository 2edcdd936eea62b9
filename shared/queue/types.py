"""What goes into the queue and what its scripts answer, as values.

Times are durations in milliseconds measured by Redis; epochs and attaches are fencing numbers (microseconds of the Redis
clock, or more). It knows nothing of Redis, of payload contents or of who asks.
"""

import re
from dataclasses import dataclass
from typing import Literal

State = Literal["queued", "running", "done", "cancelled", "dead", ""]
"""State of a record; "" when Redis has none."""

Outcome = Literal["done", "cancelled", "failed"]
"""How a worker ended a request; a failed one is recorded as dead with the reason given."""

CancelReason = Literal["client", "disconnect"]
"""`client` asked and is final; `disconnect` means nobody listens, and a returning client revives the request."""

RenewVerdict = Literal["ok", "unknown", "lost", "cancelled"]
"""`unknown`: Redis forgot it, keep the sequence while its router still serves it. `lost`, `cancelled`: drop it."""

Verdict = Literal[
    "ok",  # done as asked (a repeat after a lost reply answers the same)
    "exists",  # put: a record was there already and was left alone
    "missing",  # there is no record, and none was made
    "refused",  # not yours any more, or already ended otherwise: nothing changed
    "moved",  # finish: the client is at `router` with `attach` now; dial it, do not finish
    "ended",  # adopt: dead, or cancelled by the client: show the end, nothing will run
    "superseded",  # adopt: another attachment is newer; let go of the client
    "gone",  # adopt: it must run again, but nobody has its payload: the client must send it again
]

_WORKER_ID = re.compile(r"[A-Za-z0-9._@:/-]{1,128}")
_BOOT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Owner:
    """One start of one worker process: `worker_id` survives restarts, `boot_id` does not."""

    worker_id: str
    boot_id: str

    def __post_init__(self) -> None:
        if not _WORKER_ID.fullmatch(self.worker_id) or not _BOOT_ID.fullmatch(self.boot_id):
            raise ValueError(
                f"bad owner {self.worker_id!r}:{self.boot_id!r}: use letters, digits and . _ - (@ : / in worker ids)"
            )

    def __str__(self) -> str:
        return f"{self.worker_id}:{self.boot_id}"

    @classmethod
    def parse(cls, text: str) -> "Owner":
        """The owner whose str() is `text`; ValueError if it is none."""
        worker_id, _, boot_id = text.rpartition(":")
        return cls(worker_id, boot_id)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a first put is refused: requests and tokens that wait, and one tenant's that wait or run."""

    max_requests: int = 4096
    max_tokens: int = 8_000_000
    max_tenant_requests: int = 2048
    max_tenant_tokens: int = 4_000_000


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of the protocol, all in milliseconds; every process of one installation uses the same."""

    lease_ms: int = 5_000  # a router's restored lease, and the measure of quiet after a reconnect
    hold_ms: int = 60_000  # T_HOLD: an unheard suspect counts as crashed after this
    solo_wait_ms: int = 1_000  # what must run alone waits so long for a worker that is empty by itself
    solo_hold_ms: int = 3_000  # then one worker runs empty for it, and says so again within this time
    affinity_ms: int = 200  # how long a request waits for the worker that has its prefix
    retain_ms: int = 300_000  # terminal records, payload included
    quarantine_ms: int = 86_400_000  # records dead by crashes, so that a retry is told so


@dataclass(frozen=True, slots=True)
class NewRequest:
    """Everything `put` stores, immutable afterwards.

    num_tokens: cost in tokens, prompt + max new tokens (none given: min(512, room)).
    deadline_ms: time left, None for no deadline. digest: payload.digest(), compared when the rid exists.
    warm_key: key of the prompt's 8th full block (shared.prefix), None when the prompt is shorter.
    weight: the tenant's share in fair queueing.
    """

    rid: str
    router_id: str
    tenant: str
    payload: bytes
    digest: str
    num_tokens: int
    band: int = 5
    deadline_ms: int | None = None
    warm_key: bytes | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Known:
    """What a router that puts a forgotten request back knows of its last assignment.

    owner is set only while that owner's stream to this router is up, bound and unfinished: it is restored as running.
    progress: output tokens that this router has; with crashes, the place of the last one.
    """

    owner: Owner | None = None
    epoch: int = 0
    crashes: int = 0
    progress: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The truth about a record after a script, and what the script did (`verdict`).

    owner is str(Owner) of a running record, of the last owner of an ended one, else "". `reason` says why an ended record
    ended: "client", "disconnect", "orphan", "deadline", "crashes" or what finish gave. `booked`: usage was counted now.
    """

    verdict: Verdict
    state: State
    epoch: int
    owner: str
    router: str
    attach: int
    reason: str = ""
    booked: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """One request assigned to a worker under `epoch`.

    solo: it crashed workers, or may have: run it alone until past token `died_at`. deadline_ms_left None: no deadline.
    """

    rid: str
    epoch: int
    router: str
    attach: int
    payload: bytes
    deadline_ms_left: int | None
    band: int
    tag: float
    tenant: str
    num_tokens: int
    crashes: int
    died_at: int
    solo: bool


@dataclass(frozen=True, slots=True)
class Held:
    """One line of a renewal: what the worker holds; progress counts output tokens over all choices."""

    rid: str
    epoch: int
    attach: int
    progress: int = 0


@dataclass(frozen=True, slots=True)
class Renewal:
    """Answer to one Held; router and attach are where the client is now (with `ok` only)."""

    rid: str
    verdict: RenewVerdict
    router: str = ""
    attach: int = 0


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one reap did; `quiet` means it held still because Redis was just reconnected. `dead`: rids now quarantined."""

    num_requeued: int = 0
    num_expired: int = 0
    dead: tuple[str, ...] = ()
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """One record as reconcile compares it; `usage` is what finish gave, b"" before."""

    rid: str
    state: State
    epoch: int
    owner: str
    router: str
    attach: int
    revivable: bool
    crashes: int
    counted: bool
    reason: str
    tenant: str
    usage: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """One whole record. request.payload is b"" where Redis knows only that it ended; its deadline is the time left."""

    answer: Answer
    request: NewRequest
    crashes: int
    revivable: bool


@dataclass(frozen=True, slots=True)
class Load:
    """How much waits in this shard's queue and how fast it is claimed."""

    num_requests: int
    num_tokens: int
    claims_per_s: float
