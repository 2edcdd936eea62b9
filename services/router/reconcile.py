"""What a router does about each record it holds, when it compares its own view with Redis (protocol §4, Reconcile).

Pure: one function of two views. It knows nothing of how the answer is carried out.
"""

from dataclasses import dataclass
from enum import Enum

from services.router.sequencer import Held
from shared.errors import DeadlineExceeded, InternalError, InvalidRequest, Quarantined, RoadtrainError
from shared.queue.types import Record


class Act(Enum):
    """The answers."""

    NOTHING = "nothing"
    PUT = "put"  # Redis forgot it
    ADOPT = "adopt"  # with my attach: a failover lost it, or it ended while tokens are owed
    ADOPT_FRESH = "adopt fresh"  # another router has the same attach: a new one decides
    SUPERSEDED = "superseded"  # its client is elsewhere
    ENDED = "ended"  # nothing will run any more
    CANCEL = "cancel"  # it was cancelled here, and still stands


@dataclass(frozen=True, slots=True)
class View:
    """This router's side. `owes_ids`: tokens are still to come; `cancelled`: it is a tombstone of a cancel."""

    router_id: str
    attach: int
    owes_ids: bool
    cancelled: bool


def view(held: Held, router_id: str, cancelled: bool) -> View:
    """The view of one held request."""
    return View(router_id, held.attach, not all(log.ended for log in held.choices), cancelled)


def decide(mine: View, record: Record | None) -> Act:
    """What to do; every answer may be carried out more than once."""
    if mine.cancelled:
        stands = record is not None and record.state in ("queued", "running") and record.router == mine.router_id
        return Act.CANCEL if stands else Act.NOTHING
    if record is None:
        return Act.PUT if mine.owes_ids else Act.NOTHING
    if record.attach > mine.attach:
        return Act.SUPERSEDED
    if not mine.owes_ids:
        return Act.NOTHING
    if record.state == "dead" or (record.state == "cancelled" and not record.revivable):
        return Act.ENDED
    if record.attach < mine.attach:
        return Act.ADOPT
    if record.router != mine.router_id:
        return Act.ADOPT_FRESH
    # The same attach would not win over itself; done and cancelled ones are queued again under a fresh one.
    return Act.ADOPT_FRESH if record.state in ("done", "cancelled") else Act.NOTHING


def ended_error(reason: str) -> RoadtrainError:
    """What a client is told of a record that ended for `reason`."""
    match reason:
        case "deadline":
            return DeadlineExceeded("The request was not started within its deadline.")
        case "crashes":
            return Quarantined("This request ended the processes that ran it and will not be run again.")
        case "client":
            return InvalidRequest("The request was cancelled.", code="request_cancelled")
        case _:
            return InternalError("The request failed on its worker; it has been logged.")
