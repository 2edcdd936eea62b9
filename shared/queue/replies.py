"""What the scripts answer, as values, and what they take of a request. It knows nothing of Redis or of shards."""

from typing import Any, cast

from shared.errors import NotFound
from shared.queue.types import Answer, Claim, Found, NewRequest, Record, State, Verdict


def body_of(request: NewRequest) -> tuple[object, ...]:
    """What put and adopt take of a request."""
    warm_key = request.warm_key.hex() if request.warm_key else ""
    deadline_ms = 0 if request.deadline_ms is None else max(request.deadline_ms, 1)
    shape = (request.band, request.num_tokens, deadline_ms)
    return request.rid, request.tenant, *shape, request.digest, warm_key, request.payload


def answer_of(reply: list[bytes]) -> Answer:
    """What most scripts answer."""
    verdict, state, epoch, owner, router, attach, reason, booked = (value.decode() for value in reply)
    return Answer(cast(Verdict, verdict), cast(State, state), int(epoch), owner, router, int(attach), reason, booked == "1")


def own_answer(reply: list[bytes], rid: str) -> Answer:
    """The same, of a script that tells a stranger nothing. Raises NotFound."""
    if reply[0] == b"foreign":
        raise NotFound(f"There is no request {rid}.")
    return answer_of(reply)


def claim_of(line: list[bytes]) -> Claim:
    """One line of claim."""
    rid, epoch, router, attach, payload, left, band, tag, tenant, cost, crashes, died_at, solo = line
    return Claim(
        rid=rid.decode(),
        epoch=int(epoch),
        router=router.decode(),
        attach=int(attach),
        payload=payload,
        deadline_ms_left=None if left == b"-1" else int(left),
        band=int(band),
        tag=float(tag),
        tenant=tenant.decode(),
        num_tokens=int(cost),
        crashes=int(crashes),
        died_at=int(died_at),
        solo=solo == b"1",
    )


def found_of(rid: str, reply: list[Any]) -> Found:
    """What look answers."""
    answer = answer_of(reply[0])
    tenant, payload, digest, cost, band, left, warm_key, crashes, revivable = reply[1:]
    request = NewRequest(
        rid=rid,
        router_id=answer.router,
        tenant=tenant.decode(),
        payload=payload,
        digest=digest.decode(),
        num_tokens=int(cost),
        band=int(band),
        deadline_ms=None if left == b"-1" else int(left),
        warm_key=bytes.fromhex(warm_key.decode()) or None,
    )
    return Found(answer, request, int(crashes), revivable == b"1")


def record_of(rid: str, line: list[bytes | None]) -> Record | None:
    """One line of read; None if there is no record."""
    if line[0] is None:
        return None
    state, epoch, owner, router, attach, revivable, crashes, counted, reason, tenant, usage = (value or b"" for value in line)
    return Record(
        rid=rid,
        state=cast(State, state.decode()),
        epoch=int(epoch or 0),
        owner=owner.decode(),
        router=router.decode(),
        attach=int(attach or 0),
        revivable=revivable == b"1",
        crashes=int(crashes or 0),
        counted=counted == b"1",
        reason=reason.decode(),
        tenant=tenant.decode(),
        usage=usage,
    )
