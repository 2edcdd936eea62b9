"""What is kept of finished answers is bounded in time and bytes; event ids say where a client is and are checked."""

from zlib import crc32

import pytest

from services.router import position
from services.router.archive import Archive
from services.router.follow import Source, take, watch
from services.router.sequencer import Held, pack
from shared.errors import InternalError, InvalidRequest, Quarantined, from_object
from shared.pb import delivery_pb2, types_pb2
from shared.queue.types import NewRequest

RID = "00" + "cd" * 16


def request(rid: str = RID) -> NewRequest:
    return NewRequest(rid=rid, router_id="r", tenant="t", payload=b"p" * 100, digest="d", num_tokens=1)


def finished(num_tokens: int, num_choices: int = 1) -> Source:
    held = Held(RID, 1, num_choices, None)
    for log in held.choices:
        log.token_ids = list(range(log.index, num_tokens + log.index))
        log.finish = delivery_pb2.Finish(num_tokens=num_tokens, reason=types_pb2.FINISH_REASON_LENGTH)
    return Source(held)


def test_the_archive_forgets_the_oldest_when_it_is_full_and_everything_in_time() -> None:
    archive = Archive(max_bytes=20_000)
    for number in range(5):
        archive.keep(request(f"r{number}"), finished(100))
    assert archive.find("r0") is None
    assert archive.find("r4") is not None
    assert 0 < archive.num_bytes <= 20_000
    archive.keep(request("large"), finished(10_000))
    assert archive.num_bytes == 0
    brief = Archive(keep_s=0.0)
    brief.keep(request(), finished(1))
    assert brief.find(RID) is None


def test_positions_are_read_as_written_and_compared() -> None:
    logs = [[1, 2, 3], [4, 5]]
    text = position.write(RID, [2, 1], [crc32(pack([1, 2])), crc32(pack([4]))])
    read = position.read(text, RID)
    assert read.counts == (2, 1)
    assert read.agrees(logs)
    assert not read.agrees([[1, 9, 3], [4, 5]])
    assert not read.agrees([[1], [4, 5]])
    assert not read.agrees([[1, 2, 3]])


@pytest.mark.parametrize(
    "text", ["", "x", f"{RID}:1", f"{RID}:1:zz", f"{RID}:1.:00000000", f"{'11' * 17}:1:00000000", f"{RID}:-1:00000000"]
)
def test_what_is_no_position(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not the id of an event"):
        position.read(text, RID)


async def test_a_follower_gets_all_in_pieces_and_twice_changes_nothing() -> None:
    source, held, ended = finished(10_000, 2), Held(RID, 0, 2, None), set()
    messages = [message async for message in watch(source)]
    assert len(messages) > 6
    assert not source.watchers
    for message in messages + messages[:4]:
        assert take(held, message, ended)
    assert [log.token_ids for log in held.choices] == [log.token_ids for log in source.logs]
    assert all(log.finish is not None and log.finish.reason == types_pb2.FINISH_REASON_LENGTH for log in held.choices)
    assert ended == {0, 1}


async def test_a_gap_or_a_strange_choice_is_not_taken() -> None:
    held = Held(RID, 0, 1, None)
    assert not take(held, delivery_pb2.Followed(choice=0, idx=3, token_ids=pack([1])), set())
    assert not take(held, delivery_pb2.Followed(choice=4, idx=0, token_ids=pack([1])), set())
    assert held.choices[0].token_ids == []


async def test_an_owner_that_ended_with_an_error_says_so() -> None:
    source = Source(Held(RID, 1, 1, None))
    source.close(Quarantined("It kills."))
    told = [message async for message in watch(source)]
    error = from_object(told[-1].error.message, told[-1].error.code)
    assert isinstance(error, Quarantined)
    assert isinstance(from_object("?", "internal_error"), InternalError)
    assert isinstance(from_object("?", "request_cancelled"), InvalidRequest)
