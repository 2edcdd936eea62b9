"""`roadtrain dead` on a real Redis: a request that ended three boots is listed, shown, forgiven, dropped."""

import asyncio
from pathlib import Path

import pytest

from services.launcher.coroner import report_exit
from services.launcher.dead import dead
from shared.config import Settings
from shared.errors import StartupError
from shared.queue.client import Queue
from shared.queue.connection import connect
from shared.queue.registry import Registry, WorkerFacts
from shared.queue.types import NewRequest, Owner
from tests.redis_server import launch

RID = "00" + "ab" * 16
REQUEST = NewRequest(rid=RID, router_id="r0", tenant="t", payload=b"sealed", digest="d", num_tokens=7)


async def kill_three(url: str) -> str:
    """Ends three boots with the request; how its record ended."""
    redis = connect(url)
    settings = Settings(redis_url=url)
    try:
        queue = Queue(redis, model=settings.names[0])
        await queue.load()
        await queue.put(REQUEST)
        for boot in ("b1", "b2", "b3"):
            owner = Owner("w", boot)
            await Registry(redis).announce_worker(WorkerFacts("w", boot))
            (claim,) = await queue.claim(owner, 1, solo=True)
            await queue.revoke("r0", RID, owner, claim.epoch, 4)
            await queue.reap()
            await report_exit(settings, "w")
            await queue.reap()
        found = await queue.look(RID)
        assert found is not None
        return f"{found.answer.state} {found.answer.reason}"
    finally:
        await redis.aclose()


async def revive(url: str) -> tuple[str, str]:
    """What a put of the same says, and an adopt after it."""
    redis = connect(url)
    try:
        queue = Queue(redis, model=Settings().names[0])
        return (await queue.put(REQUEST)).state, (await queue.adopt(RID, tenant="t", router_id="r1")).state
    finally:
        await redis.aclose()


def test_from_the_third_crash_to_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = launch(tmp_path / "redis.sock")
    url = ["--redis-url", server.url]
    try:
        assert dead(["ls", *url]) == 0
        assert "no dead letters" in capsys.readouterr().out
        assert asyncio.run(kill_three(server.url)) == "dead crashes"
        assert dead(["ls", *url]) == 0
        assert capsys.readouterr().out.startswith(RID)
        assert dead(["show", RID, *url]) == 0
        shown = capsys.readouterr().out
        assert "3 crashes" in shown
        assert "7 tokens" in shown
        assert dead(["retry", RID, *url]) == 0
        assert asyncio.run(revive(server.url)) == ("cancelled", "queued")
        assert dead(["drop", RID, *url]) == 1
        assert asyncio.run(kill_again_and_drop(server.url)) == ""
    finally:
        server.stop()


async def kill_again_and_drop(url: str) -> str:
    redis = connect(url)
    try:
        queue = Queue(redis, model=Settings().names[0])
        for boot in ("b4", "b5", "b6"):
            owner = Owner("w", boot)
            (claim,) = await queue.claim(owner, 1, solo=True)
            await queue.revoke("r1", RID, owner, claim.epoch)
            await queue.reap()
            await queue.exited(owner)
            await queue.reap()
        assert [rid for rid, _ in await queue.dead()] == [RID]
        return (await queue.discard(RID)).state.replace("dead", "") if await queue.look(RID) else "not there"
    finally:
        await redis.aclose()


def test_wrong_usage_and_no_redis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dead(["show"]) == 2
    assert dead(["bury", RID]) == 2
    with pytest.raises(StartupError, match="no rid"):
        dead(["show", "7"])
    with pytest.raises(StartupError, match="--redis-url"):
        dead(["ls"])
    with pytest.raises(StartupError, match="no Redis answers"):
        dead(["ls", "--redis-url", f"unix://{tmp_path}/none.sock"])
