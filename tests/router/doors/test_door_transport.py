"""What arrives before any field is read: media types, sizes, JSON's traps, headers, methods, paths, leaving clients."""

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from services.router import parse
from services.router.server import Doors
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
JSON = {"content-type": "application/json"}


def check_error(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xef\xbb\xbf{}",
        b'{"model": "\xff"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "model": "x"}',
        b'{"messages": [{"role": "user", "role": "system"}]}',
        b'{"x": ' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": "\\ud800"}',
        b'{"x": "\\uDC00\\uD800"}',
    ],
)
async def test_what_is_no_json_object_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(CHAT, content=body, headers=JSON)
    check_error(answer, 400, "invalid_json")
    assert len(answer.content) < 500


async def test_63_levels_and_pairs_of_surrogates_are_read(client: httpx.AsyncClient) -> None:
    deep = b'{"model":"tiny","messages":[{"role":"user","content":"\\ud83d\\ude00"}],"x":' + b"[" * 63 + b"]" * 63 + b"}"
    answer = await client.post(CHAT, content=deep, headers=JSON)
    assert answer.status_code == 200
    assert answer.headers["x-roadtrain-ignored-fields"] == "x"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-encoding": "gzip", **JSON},
    ],
)
async def test_only_plain_json_is_read(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.post(CHAT, content=json.dumps(GOOD), headers=headers)
    check_error(answer, 415, "unsupported_media_type")


async def test_charset_utf8_is_plain_json(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, content=json.dumps(GOOD), headers={"content-type": 'application/json; charset="UTF-8"'})
    assert answer.status_code == 200


async def test_a_body_too_large_is_refused_whether_announced_or_not(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield b" " * 2**16

    announced = await client.post(CHAT, content=b" " * (5 * 2**20), headers=JSON)
    check_error(announced, 413, "request_too_large")
    chunked = await client.post(CHAT, content=pieces(), headers=JSON)
    check_error(chunked, 413, "request_too_large")


async def test_a_body_that_does_not_come_is_a_408(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse, "BODY_TIMEOUT_S", 0.05)
    answer = await raw(doors, b'POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"model"' % CHAT.encode())
    assert b" 408 " in answer.splitlines()[0]
    assert b"x-should-retry: true" in answer
    assert b'"code":"request_timeout"' in answer


async def test_a_body_in_thousands_of_pieces_is_read(client: httpx.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        body = json.dumps(GOOD | {"messages": [{"role": "user", "content": "x" * 5000}]}).encode()
        for at in range(len(body)):
            yield body[at : at + 1]

    answer = await client.post(CHAT, content=pieces(), headers=JSON)
    assert answer.status_code == 200


async def test_paths_and_methods(client: httpx.AsyncClient) -> None:
    for path in ("/v1", "/v1/", "//v1/models", "/v1/chat/completions/", "/v1/models/../nothing/x", "/docs"):
        answer = await client.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["type"] == "invalid_request_error"
    answer = await client.get(CHAT)
    check_error(answer, 405, "method_not_supported")
    assert answer.headers["allow"] == "POST"
    for method in ("POST", "DELETE", "OPTIONS"):
        answer = await client.request(method, "/v1/models")
        check_error(answer, 405, "method_not_supported")
        assert answer.headers["allow"] == "GET, HEAD"


async def test_request_ids(client: httpx.AsyncClient) -> None:
    kept = await client.get("/livez", headers={"x-request-id": "mine-1"})
    assert kept.headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 129, "<script>"):
        answer = await client.get("/livez", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"] != bad
        assert len(answer.headers["x-request-id"]) == 32


async def raw(doors: Doors, data: bytes) -> bytes:
    """All that comes back for `data` until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(-1), 5)
    finally:
        writer.close()


@pytest.mark.parametrize("host", [b"Host: a/x?y\r\n", b"Host: a\r\nHost: b\r\n", b"Host: a b\r\n", b"Host: \r\n"])
async def test_a_strange_host_is_refused(doors: Doors, host: bytes) -> None:
    answer = await raw(doors, b"GET /v1/models HTTP/1.1\r\n" + host + b"Connection: close\r\n\r\n")
    assert b" 400 " in answer.splitlines()[0]


async def test_headers_are_bounded(doors: Doors) -> None:
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(70))
    large = b"x-large: " + b"a" * 20_000 + b"\r\n"
    for headers in (many, large):
        answer = await raw(doors, b"GET /livez HTTP/1.1\r\nHost: a\r\n" + headers + b"\r\n")
        assert b" 431 " in answer.splitlines()[0]


async def test_headers_without_end_are_cut_off(doors: Doors) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n")
    for number in range(40):
        writer.write(b"x-%d: " % number + b"a" * 1000 + b"\r\n")
    answer = await asyncio.wait_for(reader.read(-1), 5)
    assert b" 431 " in answer.splitlines()[0]
    writer.close()


async def test_a_large_body_is_not_taken_for_headers(client: httpx.AsyncClient) -> None:
    body = GOOD | {"messages": [{"role": "user", "content": "x" * 200_000}]}
    for _ in range(3):
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_ends_its_request(doors: Doors, plane: FakePlane, streamed: bool) -> None:
    plane.started.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", doors.port)
    body = json.dumps(GOOD | {"messages": [{"role": "user", "content": "slow"}], "stream": streamed}).encode()
    writer.write(b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
    await asyncio.wait_for(plane.started.wait(), 5)
    writer.close()
    await asyncio.wait_for(plane.generations[-1].over.wait(), 1)
    assert plane.generations[-1].cancelled == ["disconnect"]


async def test_a_client_that_leaves_while_its_body_is_read_starts_nothing(doors: Doors, plane: FakePlane) -> None:
    before = len(plane.generations)
    _, writer = await asyncio.open_connection("127.0.0.1", doors.port)
    writer.write(b'POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"model"' % CHAT.encode())
    await writer.drain()
    writer.close()
    while doors.front.num_open:
        await asyncio.sleep(0)
    assert len(plane.generations) == before
