"""Who gets in over HTTP: every route with no key, a wrong one and a good one; no spelling of a path, a key or a host opens it."""

import ast
import asyncio
import inspect
import socket
import textwrap
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.router.app import ADMIN_ENDPOINTS, ENDPOINTS
from services.router.auth import PUBLIC_PATHS, KeyRing
from services.router.batch.inner import ask
from services.router.endpoints import chat
from services.router.server import Doors
from shared.api_keys import digest_of
from shared.errors import StartupError, Unauthenticated
from tests.router.doors.fake_plane import NAMES, FakePlane
from tests.router.doors.keys import doors_with, write_keys

pytestmark = pytest.mark.asyncio(loop_scope="module")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
KEYS = {"alice": {}, "bob": {"models": ["tiny"]}}


@dataclass
class Locked:
    """Doors with keys."""

    doors: Doors
    plane: FakePlane
    file: Path
    keys: dict[str, str]
    client: httpx.AsyncClient

    def headers(self, who: str = "alice") -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[who]}"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Locked]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = write_keys(file, KEYS)
    async with (
        doors_with(file) as (doors, plane),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors.port}", timeout=10) as client,
    ):
        yield Locked(doors, plane, file, keys, client)


def paths(endpoints: object) -> list[str]:
    return [path.replace("{rid}", "0" * 34).replace("{name:path}", "tiny") for path in endpoints]  # type: ignore[attr-defined]


def check_401(answer: httpx.Response, code: str | None) -> None:
    assert answer.status_code == 401, (answer.request.url, answer.text)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]
    if answer.request.method != "HEAD":
        error = answer.json()["error"]
        if isinstance(error, str):
            # Ollama's and TGI's errors are a text.
            assert "key" in error
        elif "/messages" in answer.request.url.path:
            assert error["type"] == "authentication_error"
        else:
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, None)


@pytest.mark.parametrize("path", paths(ENDPOINTS))
async def test_every_route_of_the_public_port_asks_for_a_key(locked: Locked, path: str) -> None:
    """security.md 71: no key, a wrong key, a user's key; every method; what is added to the table is asked here by itself."""
    for method in METHODS:
        bare = await locked.client.request(method, path)
        if path.encode() in PUBLIC_PATHS:
            assert bare.status_code in (200, 405), path
            continue
        check_401(bare, None)
        check_401(await locked.client.request(method, path, headers={"authorization": "Bearer sk-rt-wrong"}), "invalid_api_key")
        known = await locked.client.request(method, path, headers=locked.headers())
        # This plane has no Redis, so what is kept there cannot be asked for: 503.
        assert known.status_code in (200, 400, 404, 405, 415, 422, 503), (method, path, known.text)


async def test_only_four_paths_are_public(locked: Locked) -> None:
    assert {b"/health", b"/livez", b"/readyz", b"/version"} == PUBLIC_PATHS


@pytest.mark.parametrize("path", [path for path in paths(ADMIN_ENDPOINTS) if path.encode() not in PUBLIC_PATHS])
async def test_what_is_for_operators_is_not_on_the_public_port(locked: Locked, path: str) -> None:
    """Metrics have a port of their own, on loopback; a user's key opens nothing there, nor does it need to."""
    check_401(await locked.client.get(path), None)
    assert (await locked.client.get(path, headers=locked.headers())).status_code == 404
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{locked.doors.admin_port}") as admin:
        for headers in ({}, locked.headers()):
            assert (await admin.get(path, headers=headers)).status_code == 200
            for public in paths(ENDPOINTS):
                if public not in paths(ADMIN_ENDPOINTS):
                    assert (await admin.post(public, headers=headers)).status_code == 404
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", locked.doors.admin_port), timeout=5)


@pytest.mark.parametrize(
    "target",
    [
        "//health", "/health/", "/health;x", "/health%00", "/health/../v1/models", "/v1/../health/../v1/models", "/%68ealth/x",
        "/HEALTH", "/health%2f..%2fv1/models", "//v1/models", "/%76%31/models", "/v1/models;/health", "/v1/models%3f/health",
        "/./v1/models", "/health\\..\\v1/models", "/v1/models?/health", "http://a/v1/models", "http://health/v1/models", "*",
    ],
)  # fmt: skip
async def test_no_other_spelling_of_a_path_gets_in(locked: Locked, target: str) -> None:
    """security.md 70: the raw path decides, before routing."""
    answer = await raw(locked, f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert status(answer) in (400, 401), answer[:200]


HOSTS = [
    b"a/health?", b"a/x?", b"health", b"a b", b"a,b", b"", b"a:b", b"a:999999", b"[::1", b"a@b", b"a#b", b"\xff\xfe",
    b"a\\health", b"a%2fhealth", b"http://a", b"a\tb", b"127.0.0.1/health",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
async def test_no_host_gets_in(locked: Locked, host: bytes) -> None:
    """security.md 70: BadHost and its kin, once alone and once beside a good one."""
    for lines in (b"Host: %s\r\n" % host, b"Host: a\r\nHost: %s\r\n" % host):
        answer = await raw(locked, b"GET /v1/models HTTP/1.1\r\n" + lines + b"Connection: close\r\n\r\n")
        assert status(answer) in (400, 401), (host, answer[:200])
    for header in (
        b"X-Forwarded-Host: a/health",
        b"X-Original-URL: /health",
        b"X-Rewrite-URL: /health",
        b"Forwarded: for=127.0.0.1",
    ):
        answer = await raw(locked, b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + header + b"\r\nConnection: close\r\n\r\n")
        assert status(answer) == 401


async def test_both_spellings_of_a_key(locked: Locked) -> None:
    key = locked.keys["alice"]
    good = [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"authorization": f"BEARER   {key}"},
        {"x-api-key": key},
        {"x-api-key": key, "authorization": f"Bearer {key}"},
    ]
    for headers in good:
        assert (await locked.client.get("/v1/models", headers=headers)).status_code == 200, headers
    mixed = {"x-api-key": key, "authorization": f"Bearer {locked.keys['bob']}"}
    check_401(await locked.client.get("/v1/models", headers=mixed), "invalid_api_key")


def bad_values(key: str) -> list[bytes]:
    digest = digest_of(key.encode()).hex()
    texts = [
        "", " ", "Bearer", "Bearer ", key, f"Basic {key}", f"Bearer{key}", f"Bearer {key}x", f"Bearer {key[:-1]}",
        f"Bearer {key.upper()}", f"Bearer {key} {key}", f"Bearer {key},{key}", f"Bearer Bearer {key}", f"Token {key}",
        f"Bearer {digest}", f"Bearer sha256:{digest}", "Bearer ' OR '1'='1", f'Bearer "{key}"', f"Bearer {key}' --",
        "Bearer default", "Bearer EMPTY", "Bearer none", "Bearer null", "Bearer *", "Bearer anonymous", "Bearer sk-1234",
        f"Bearer {key}%00", f"Bearer\t{key}", "Bearer " + "x" * 10_000, f"Digest {key}", "Bearer ${jndi:ldap://a}",
        "Bearer ../../etc/passwd", f"Bearer {key}é",
    ]  # fmt: skip
    return [*(text.encode() for text in texts), b"Bearer \xff\xfe", b"Bearer \xe2\x80\x8b" + key.encode()]


async def test_bad_keys_are_all_401(locked: Locked) -> None:
    """security.md 73: quotes, digests, defaults, other schemes, bytes that are no text; never a fall-back, never a 500."""
    for value in bad_values(locked.keys["alice"]):
        answer = await raw(
            locked, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: " + value + b"\r\n\r\n"
        )
        assert status(answer) == 401, (value, answer[:200])
        assert b"invalid_api_key" in answer
        assert locked.keys["alice"].encode() not in answer


async def test_keys_that_break_the_header_get_nobody_in(locked: Locked) -> None:
    good = f"Bearer {locked.keys['alice']}".encode()
    twice = b"Authorization: " + good + b"\r\nAuthorization: " + good
    for lines, allowed in (
        (twice, {401}),
        (twice.replace(b"\r\nA", b"\r\na"), {401}),
        (b"X-Api-Key: a\r\nX-Api-Key: b", {401}),
        (b"Authorization: Bearer a\x00b", {400, 401}),
        (b"Authorization: Bearer\r\n " + good[7:], {400, 401}),
        (b"Authorization: Bearer " + b"x" * 2**20, {431}),
        (b"Authorization : " + good, {400, 401}),
        (b"\tAuthorization: " + good, {400, 401}),
    ):
        answer = await raw(locked, b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\nConnection: close\r\n\r\n")
        assert status(answer) in allowed, (lines[:60], answer[:200])


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(value=st.binary(max_size=80), scheme=st.sampled_from([b"", b"Bearer ", b"Basic ", b"bearer"]))
async def test_whatever_stands_there(locked: Locked, value: bytes, scheme: bytes) -> None:
    """Any bytes at all: the one thing that may come of them is Unauthenticated."""
    ring = KeyRing(locked.file)
    with pytest.raises(Unauthenticated):
        ring.authenticate([scheme + value])
    with pytest.raises(Unauthenticated):
        ring.authenticate([], [value])


async def test_keys_are_compared_in_constant_time() -> None:
    """security.md 72: digests by compare_digest, every key visited, nothing known before the end (of the source)."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(KeyRing._find)))
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert len(loops) == 1
    inside = list(ast.walk(loops[0]))
    assert not [node for node in inside if isinstance(node, ast.Break | ast.Return | ast.Continue | ast.Compare | ast.Raise)]
    assert "hmac.compare_digest(digest, known)" in ast.unparse(loops[0])
    whole = ast.walk(ast.parse(inspect.getsource(KeyRing)))
    reads = [
        node for node in whole if isinstance(node, ast.Attribute) and node.attr == "_keys" and isinstance(node.ctx, ast.Load)
    ]
    assert len(reads) == 1, "something else reads the digests"


async def test_a_key_has_its_models(locked: Locked) -> None:
    async def names(who: str) -> list[str]:
        answer = await locked.client.get("/v1/models", headers=locked.headers(who))
        return [entry["id"] for entry in answer.json()["data"]]

    assert await names("alice") == list(NAMES)
    assert await names("bob") == ["tiny"]
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for name, code, wanted in (("tiny", None, 200), ("default", "model_not_allowed", 403), ("nobody", "model_not_found", 404)):
        asked = await locked.client.post("/v1/chat/completions", json={"model": name, **body}, headers=locked.headers("bob"))
        shown = await locked.client.get(f"/v1/models/{name}", headers=locked.headers("bob"))
        for answer in (asked, shown):
            assert answer.status_code == wanted
            if code is not None:
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == (code, "model")
                assert "org/alias" not in answer.text
    assert locked.plane.generations[-1].request.tenant == "bob"


async def test_what_is_done_later_for_a_key_is_done_as_the_key_is_then(locked: Locked) -> None:
    """A batch goes on after its call: it may use no more than its key, and nothing once the key is gone."""
    for tenant, key_id, model, wanted in (
        ("bob", "bob", "tiny", 200),
        ("bob", "bob", "default", 403),
        ("bob", "alice", "tiny", 401),
        ("bob", "gone", "tiny", 401),
        ("bob", "", "tiny", 401),
    ):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        who = {"path": "/v1/chat/completions", "tenant": tenant, "key_id": key_id}
        status, _, data = await ask(chat.chat, locked.doors.front, **who, body=body, headers={})
        assert status == wanted, data
    assert locked.plane.generations[-1].request.tenant == "bob"


async def test_another_tenants_stream_is_one_that_never_was(locked: Locked) -> None:
    """security.md 66, at the door; e2e/test_tenants.py asks a whole system."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    mine = await locked.client.post("/v1/chat/completions", json=body, headers=locked.headers("alice"))
    assert mine.status_code == 200
    rid = locked.plane.generations[-1].rid
    own = await locked.client.get(f"/v1/streams/{rid}", headers=locked.headers("alice"))
    assert own.status_code == 200
    answers = [
        await locked.client.get(f"/v1/streams/{name}", headers=locked.headers("bob")) for name in (rid, rid[:-1] + "x", "0" * 34)
    ]
    assert [answer.status_code for answer in answers] == [404] * 3
    assert len({answer.content for answer in answers}) == 1


async def test_keys_come_and_go_without_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    old = write_keys(file, {"a": {}})["a"]
    async with (
        doors_with(file) as (doors, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors.port}", timeout=10) as client,
    ):

        async def answered(key: str) -> int:
            return (await client.get("/v1/models", headers={"x-api-key": key})).status_code

        assert await answered(old) == 200
        file.write_text("keys: [broken")
        doors.front.keys.look_again()
        assert await answered(old) == 200
        file.unlink()
        doors.front.keys.look_again()
        assert await answered(old) == 200
        new = write_keys(file, {"b": {}})["b"]
        async with asyncio.timeout(20):
            while await answered(new) != 200:
                await asyncio.sleep(0.05)
        assert await answered(old) == 401


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "valid dictionary"),
        ("keys: []", "at least 1 item"),
        ("keys:\n  - id: a", "keys.0.tenant"),
        ("keys:\n  - {id: a, tenant: t, sha256: abc}", "keys.0.sha256"),
        ("keys:\n  - {id: 'a b', tenant: t, sha256: '" + "0" * 64 + "'}", "keys.0.id"),
        ("keys:\n  - {id: a, tenant: t, sha256: '" + "0" * 64 + "', wieght: 2}", "keys.0.wieght"),
        ("keys:\n  - {id: a, tenant: t, sha256: '" + "0" * 64 + "', weight: 0}", "keys.0.weight"),
        ("keys:\n  - {id: a, tenant: t, sha256: '" + "0" * 64 + "', models: []}", "keys.0.models"),
        ("keys:\n" + ("  - {id: a, tenant: t, sha256: '" + "0" * 64 + "'}\n") * 2, "keys.1.id"),
        (
            "keys:\n  - {id: a, tenant: t, sha256: '" + "0" * 64 + "'}\n  - {id: b, tenant: t, sha256: '" + "0" * 64 + "'}",
            "sha256",
        ),
        ("keys: !!python/object/apply:os.getpid []", "no YAML"),
        ("keys: [", "no YAML"),
    ],
)
async def test_a_bad_keys_file_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(StartupError) as caught:
        KeyRing(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "0" * 64 not in str(caught.value)


async def raw(locked: Locked, data: bytes) -> bytes:
    """All that comes back for `data` until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", locked.doors.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(-1), 10)
    finally:
        writer.close()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])
