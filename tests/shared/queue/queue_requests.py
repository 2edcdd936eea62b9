"""Requests and workers that the queue's tests share."""

from dataclasses import replace
from typing import Any

from shared.queue.client import Queue
from shared.queue.rid import new_rid
from shared.queue.types import Claim, NewRequest, Owner

W0, W1, W2 = Owner("w0", "boot0"), Owner("w1", "boot1"), Owner("w2", "boot2")
BASE = NewRequest("", "r0", "alice", b"payload", "digest", 100)


def request(**changes: Any) -> NewRequest:
    """A request with a random rid unless one is given."""
    return replace(BASE, **({"rid": new_rid()} | changes))


async def put_and_claim(queue: Queue, owner: Owner = W0, **changes: Any) -> Claim:
    """One request put and claimed by `owner`."""
    wanted = request(**changes)
    await queue.put(wanted)
    (claim,) = await queue.claim(owner, 1)
    return claim


async def lose(queue: Queue, claim: Claim, owner: Owner) -> None:
    """The lease of `claim` ends and is reaped."""
    revoked = await queue.revoke(claim.router, claim.rid, owner, claim.epoch)
    reaped = await queue.reap()
    if (revoked.verdict, reaped.num_requeued) != ("ok", 1):
        raise AssertionError(f"could not take {claim.rid} from {owner}: {revoked}, {reaped}")
