"""Each line of protocol §4's Reconcile, as a row."""

import pytest

from services.router.reconcile import Act, View, decide, ended_error
from shared.errors import DeadlineExceeded, InternalError, InvalidRequest, Quarantined
from shared.queue.types import Record, State


def record(state: State, *, attach: int = 5, router: str = "me", revivable: bool = False) -> Record:
    return Record("r", state, 1, "", router, attach, revivable, 0, False, "", "t", b"")


OWED = View("me", 5, owes_ids=True, cancelled=False)
GIVING = View("me", 5, owes_ids=False, cancelled=False)
TOMBSTONE = View("me", 5, owes_ids=False, cancelled=True)


@pytest.mark.parametrize(
    ("mine", "theirs", "act"),
    [
        (OWED, None, Act.PUT),
        (OWED, record("queued"), Act.NOTHING),
        (OWED, record("running"), Act.NOTHING),
        (OWED, record("running", attach=4), Act.ADOPT),
        (OWED, record("done", attach=4), Act.ADOPT),
        (OWED, record("running", attach=6, router="you"), Act.SUPERSEDED),
        (OWED, record("done", attach=6), Act.SUPERSEDED),
        (OWED, record("running", router="you"), Act.ADOPT_FRESH),
        (OWED, record("done"), Act.ADOPT_FRESH),
        (OWED, record("cancelled", revivable=True), Act.ADOPT_FRESH),
        (OWED, record("cancelled"), Act.ENDED),
        (OWED, record("dead"), Act.ENDED),
        (OWED, record("dead", attach=4), Act.ENDED),
        # Every id is here already: what the record says cannot take them back.
        (GIVING, None, Act.NOTHING),
        (GIVING, record("done"), Act.NOTHING),
        (GIVING, record("dead"), Act.NOTHING),
        (GIVING, record("running", attach=6), Act.SUPERSEDED),
        (TOMBSTONE, record("queued"), Act.CANCEL),
        (TOMBSTONE, record("running"), Act.CANCEL),
        (TOMBSTONE, record("running", router="you"), Act.NOTHING),
        (TOMBSTONE, record("cancelled", revivable=True), Act.NOTHING),
        # Without a client nobody puts (H2).
        (TOMBSTONE, None, Act.NOTHING),
    ],
)
def test_what_a_router_does(mine: View, theirs: Record | None, act: Act) -> None:
    assert decide(mine, theirs) is act


def test_what_a_client_is_told() -> None:
    assert isinstance(ended_error("deadline"), DeadlineExceeded)
    assert isinstance(ended_error("crashes"), Quarantined)
    assert isinstance(ended_error("client"), InvalidRequest)
    assert isinstance(ended_error("bad_payload"), InternalError)
