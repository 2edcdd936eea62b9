"""Rate limits at the doors, kept in a real Redis: headers on every answer of a limited key, refusals before a body is read."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import httpx
import pytest
import pytest_asyncio

from services.router.limiter import Limiter, _duration
from services.router.server import Doors
from shared import rpc
from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2
from shared.queue.connection import connect
from shared.queue.rate_limits import RateLimits, Rates
from tests.redis_server import RedisServer, redis_server
from tests.router.doors.fake_plane import FakePlane
from tests.router.doors.keys import doors_with, write_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
KEYS = {
    "free": {},
    "few": {"requests_per_minute": 2},
    "tokens": {"tokens_per_minute": 600},
    "both": {"requests_per_minute": 60, "tokens_per_minute": 6000, "tenant": "free"},
    "grpc": {"requests_per_minute": 1},
}
NAMES = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]


@dataclass
class Limited:
    """Doors with limited keys over a real Redis."""

    doors: Doors
    plane: FakePlane
    keys: dict[str, str]
    client: httpx.AsyncClient
    server: RedisServer
    accounts: RateLimits

    async def ask(self, who: str, method: str = "POST", path: str = CHAT, **kwargs: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        return await self.client.request(method, path, headers=headers, **({"json": BODY} if method == "POST" else {}) | kwargs)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Limited]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = write_keys(file, KEYS)
    with redis_server() as server:
        redis = connect(server.url)
        accounts = RateLimits(redis)
        limiter = Limiter(accounts)
        async with (
            doors_with(file, limiter) as (doors, plane),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors.port}", timeout=10) as client,
        ):
            yield Limited(doors, plane, keys, client, server, accounts)
        await limiter.close()
        await redis.aclose()
        await redis.connection_pool.disconnect()


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("x-ratelimit")}


async def test_headers_are_on_every_answer_of_a_limited_key_and_on_no_other(limited: Limited) -> None:
    asked = [
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/nobody"),
        ("POST", "/v1/nothing"),
        ("GET", CHAT),
        ("PUT", CHAT),
    ]
    for method, path in asked:
        answer = await limited.ask("both", method, path)
        assert sorted(told(answer)) == sorted(NAMES), (method, path)
        assert answer.headers["x-ratelimit-limit-requests"] == "60"
        assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
        assert told(await limited.ask("free", method, path)) == {}
    refused = await limited.ask("both", json={})
    assert refused.status_code == 400
    assert sorted(told(refused)) == sorted(NAMES)
    streamed = await limited.ask("both", json=BODY | {"stream": True})
    assert sorted(told(streamed)) == sorted(NAMES)
    only = await limited.ask("few", "GET", "/v1/models")
    assert sorted(told(only)) == sorted(NAMES[:3])
    assert (only.headers["x-ratelimit-remaining-requests"], only.headers["x-ratelimit-reset-requests"]) == ("2", "0ms")


async def test_too_many_requests_are_a_429_before_their_body_is_read(limited: Limited) -> None:
    before = len(limited.plane.generations)
    answers = [await limited.ask("few") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0"]
    refused = await limited.ask("few", content=b"{ no JSON at all", json=None)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert 0 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert refused.headers["x-should-retry"] == "true"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await limited.ask("few", "GET", "/v1/models")).status_code == 200  # what asks for no work is not counted
    assert len(limited.plane.generations) == before + 2


async def test_a_key_whose_tokens_are_used_up_gets_nothing_in(limited: Limited) -> None:
    rates = Rates("tokens", 0, 600)
    await limited.accounts.charge(rates, "0" * 34, 600, 60)
    refused = await limited.ask("tokens")
    assert refused.status_code == 429
    assert "tokens per minute" in refused.json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    await limited.accounts.settle(rates, "0" * 34, 0)
    assert (await limited.ask("tokens")).status_code == 200


async def test_the_same_over_grpc(limited: Limited) -> None:
    metadata = (("authorization", f"Bearer {limited.keys['grpc']}"),)
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="hi")])
    async with rpc.connect(f"127.0.0.1:{limited.doors.grpc_port}") as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        for wanted in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED):
            call = stub.Chat(router_pb2.ChatRequest(model="tiny", chat=chat), metadata=metadata, timeout=10)
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            assert await call.code() is wanted
            trailing = dict(await call.trailing_metadata())
            assert trailing["x-ratelimit-limit-requests"] == "1"
            assert trailing["x-ratelimit-remaining-requests"] == "0"
        assert trailing[rpc.ERROR_CODE_KEY] == "rate_limit_exceeded"
        assert 0 < float(trailing[rpc.RETRY_AFTER_KEY]) <= 60


async def test_durations_are_written_as_openai_does() -> None:
    shown = {0.0: "0ms", 0.0201: "21ms", 1.0: "1s", 8.64: "8.64s", 59.5: "59.5s", 60.0: "1m0s", 90.0: "1m30s", 360.0: "6m0s"}
    assert {seconds: _duration(seconds) for seconds in shown} == shown


async def test_without_redis_a_limited_key_waits_and_others_do_not(limited: Limited) -> None:
    """Last: it ends the server. As everywhere else: 503 queue_unavailable, to be tried again."""
    limited.server.stop()
    refused = await limited.ask("both")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    facts = await limited.ask("both", "GET", "/v1/models")
    assert facts.status_code == 200
    assert told(facts) == {}
    assert (await limited.ask("free")).status_code == 200
