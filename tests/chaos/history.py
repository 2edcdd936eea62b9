"""What was asked and what clients saw, as plain records that the checkers judge. It knows nothing of how either came about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shared.sampling import SamplingParams

Outcome = Literal["open", "done", "left", "cancelled", "failed", "given up"]
"""left: the client hung up; cancelled: it asked for the end; failed: told of an error; given up: waited too long."""

Manner = Literal["stay", "leave", "cancel", "slow"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. leave and cancel act after `after` tokens; a slow reader rests before each event."""

    number: int
    door: Literal["grpc", "http"]
    prompt: tuple[int, ...]
    params: SamplingParams
    manner: Manner = "stay"
    after: int = 0

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return f"chaos-{self.number}"


@dataclass(slots=True)
class Attempt:
    """One connection to one router. `start`: tokens of each choice the client had before it.

    tokens: ids by choice (gRPC door). positions: (event's rid, counts by choice, hash) in order. text: by choice (HTTP door).
    ends: (reason, or "" ) by choice. broke: how the connection ended, if not well.
    """

    router: str
    start: tuple[int, ...]
    rid: str = ""
    tokens: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    positions: list[tuple[str, tuple[int, ...], str]] = field(default_factory=list)
    ends: dict[int, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = None
    broke: str = ""
    asked_to_end: bool = False


@dataclass(slots=True, eq=False)
class Seen:
    """All that one client saw of its request. Times are of the monotonic clock, seconds.

    unheard: connections that ended, or were given up, before anything came; when, where and how.
    """

    ask: Ask
    began_at: float
    attempts: list[Attempt] = field(default_factory=list)
    outcome: Outcome = "open"
    ended_at: float = 0.0
    error: str = ""
    refusals: list[str] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)
    unannounced: int = 0
    gaps: list[tuple[float, float]] = field(default_factory=list)
    last_at: float = 0.0

    @property
    def quarantined(self) -> bool:
        """It was ended as one that crashes workers."""
        return self.outcome == "failed" and "request_quarantined" in self.error

    def heard(self, now: float) -> None:
        """Something arrived; silence of more than a quarter second is kept."""
        if self.last_at and now - self.last_at > 0.25:
            self.gaps.append((self.last_at, now))
        self.last_at = now


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A request that was ended as poison: its number, and what Redis's record of its deaths said then."""

    number: int
    rid: str
    record: Mapping[str, int]
    story: str


@dataclass(slots=True)
class Struck:
    """One fault: what, when, and what the nemesis says it did. missed: it could not be done."""

    kind: str
    at: float
    healed_at: float = 0.0
    detail: str = ""

    @property
    def missed(self) -> bool:
        """Nothing was struck."""
        return self.detail.startswith(("skipped", "could not")) or self.detail.endswith("was not there")
