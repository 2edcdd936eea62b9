"""SEC-33, 40, 48 to 54, 64, 70, 75, 76: what arrives before any field is read, and floods of it."""

import asyncio
import json
import random
import string
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.router.app import ADMIN_ENDPOINTS, ENDPOINTS
from shared import rpc
from shared.pb import router_pb2, router_pb2_grpc, types_pb2
from tests.security.bodies import GOOD, asking, posts
from tests.security.patient import Patient, check_answer, check_error, refusal, resident

CHAT = "/v1/chat/completions"
BODY = json.dumps(GOOD[CHAT]).encode()
JSON = "application/json"


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *lines, "", ""]).encode("latin-1")


def split(answer: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body."""
    top, _, body = answer.partition(b"\r\n\r\n")
    return int(top.split(b" ")[1]), top.lower(), body


TRANSPORT: list[tuple[str, bytes, int, str]] = [
    ("unknown path", head("/v1/nothing"), 404, "unknown_url"),
    ("wrong method", head(CHAT, method="GET"), 405, "method_not_supported"),
    ("strange method", head(CHAT, "Content-Length: 0", method="PATCH"), 405, "method_not_supported"),
    ("announced too large", head(CHAT, "Content-Length: 99999999"), 413, "request_too_large"),
    ("absurd length", head(CHAT, "Content-Length: 999999999999999999"), 413, "request_too_large"),
    ("no JSON type", head(CHAT, "Content-Type: text/plain", "Content-Length: 2") + b"{}", 415, "unsupported_media_type"),
    ("gzip", head(CHAT, "Content-Encoding: gzip", "Content-Length: 2") + b"{}", 415, "unsupported_media_type"),
    ("zstd", head(CHAT, "Content-Encoding: zstd", "Content-Length: 2") + b"{}", 415, "unsupported_media_type"),
    ("two encodings", head(CHAT, "Content-Encoding: identity, gzip", "Content-Length: 2") + b"{}", 415, "unsupported_media_type"),
    ("empty body", head(CHAT, "Content-Length: 0"), 400, "invalid_json"),
    ("byte order mark", head(CHAT, "Content-Length: 5") + b"\xef\xbb\xbf{}", 400, "invalid_json"),
    ("two keys", head(CHAT, "Content-Length: 13") + b'{"a":1,"a":2}', 400, "invalid_json"),
    ("deep", head(CHAT, "Content-Length: 136") + b'{"a":' + b"[" * 65 + b"]" * 65 + b"}", 400, "invalid_json"),
    ("bad deadline", head(CHAT, "X-Roadtrain-Deadline-Ms: 1e3", f"Content-Length: {len(BODY)}") + BODY, 400, "invalid_value"),
]


async def test_the_matrix_of_the_transport(patient: Patient) -> None:
    for name, data, wanted, code in TRANSPORT:
        status, top, body = split(await patient.raw(data))
        assert (status, check_error(body)["code"]) == (wanted, code), name
        assert b"x-request-id: " in top, name
        assert wanted != 405 or b"allow: " in top
        await patient.canary()


async def test_sec_33_a_body_in_a_hundred_thousand_chunks(patient: Patient) -> None:
    text = json.dumps(GOOD["/v1/completions"] | {"prompt": "x" * 99_000}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n"
    status, _, _ = split(await patient.raw(head("/v1/completions", "Transfer-Encoding: chunked") + chunks, 60))
    # It fits or it does not; that is all.
    assert status in (200, 400)
    await patient.canary()


async def test_sec_33_and_75_names_of_models_are_names_only(patient: Patient) -> None:
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "a/../b",
        "file:///etc/passwd",
        "x\x00y",
        "{}",
        "%2e%2e/x",
        "x" * 5000,
    ):
        for path in asking():
            status, body = await patient.post(path, GOOD[path] | {"model": name})
            assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found"), body
            assert len(body) < 1500
    for path in ("/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00"):
        status, _, body = split(await patient.raw(head(path, method="GET")))
        assert status == 404
        assert b"root:" not in body


async def test_sec_40_headers_are_bounded(patient: Patient) -> None:
    before = resident(patient.pids)["router-0"]
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", patient.stack.port)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\nx-long: ")
        # The other side closes long before all of it is sent.
        try:
            for _ in range(256):
                writer.write(b"a" * 2**16)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
    many = [f"x-{number}: 1" for number in range(70)]
    assert split(await patient.raw(head("/livez", *many, method="GET")))[0] == 431
    assert split(await patient.raw(head("/livez", "x: " + "a" * 17_000, method="GET")))[0] == 431
    assert resident(patient.pids)["router-0"] - before < 16 * 1024


async def test_sec_48_a_body_is_counted_while_it_arrives(patient: Patient) -> None:
    before = resident(patient.pids)["router-0"]
    for _ in range(4):
        # Eight megabytes in chunks, unannounced.
        data = head(CHAT, "Transfer-Encoding: chunked") + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 8 + b"0\r\n\r\n"
        status, _, body = split(await patient.raw(data))
        assert (status, check_error(body)["code"]) == (413, "request_too_large")
    assert resident(patient.pids)["router-0"] - before < 32 * 1024


async def test_sec_49_strange_requests_make_no_series(patient: Patient) -> None:
    """However many methods, paths, models and ids are tried, what is counted has the same few names."""

    async def series() -> set[str]:
        async with httpx.AsyncClient() as admin:
            lines = (await admin.get(f"{patient.stack.admin_url}/metrics")).text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    rng = random.Random(49)

    def word() -> str:
        return "".join(rng.choices(string.ascii_uppercase, k=8))

    async def strange(number: int) -> None:
        if number % 3:
            await patient.http.request(word(), f"/{word()}", headers={"x-request-id": word()})
        else:
            await patient.http.post(CHAT, json=GOOD[CHAT] | {"model": word()})

    for number in range(20):
        await strange(number)
    # The first page counts the asking for it.
    await series()
    before = await series()
    for first in range(0, 500, 50):
        await asyncio.gather(*(strange(first + number) for number in range(50)))
    assert await series() == before
    assert len(before) < 200


def num_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def opened_and_dropped(patient: Patient, count: int) -> None:
    """Connections that end before, within and after their request."""
    for number in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", patient.stack.port)
        if number % 4:
            writer.write(
                head(CHAT, "Content-Length: 500") if number % 4 == 1 else head(CHAT, f"Content-Length: {len(BODY)}") + BODY
            )
        if number % 4 == 3:
            await reader.read(1)
        writer.transport.abort()


async def check_drops(patient: Patient, count: int) -> None:
    pid = patient.pids["router-0"]
    await opened_and_dropped(patient, 50)
    await patient.canary()
    files, before = num_descriptors(pid), resident(patient.pids)["router-0"]
    await opened_and_dropped(patient, count)
    await patient.canary()
    async with asyncio.timeout(30):
        while num_descriptors(pid) > files + 20:
            await asyncio.sleep(0.05)
    status = await patient.status()
    assert resident(patient.pids)["router-0"] - before < 16 * 1024
    async with asyncio.timeout(30):
        while (status := await patient.status()).num_running or status.num_free_blocks != status.num_blocks:
            await asyncio.sleep(0.05)


async def test_sec_51_connections_opened_and_dropped_leave_nothing(patient: Patient) -> None:
    await check_drops(patient, 400)


@pytest.mark.full
@pytest.mark.timeout(600)
async def test_sec_51_ten_thousand_connections_opened_and_dropped(patient: Patient) -> None:
    await check_drops(patient, 10_000)


async def test_sec_54_calls_reset_as_soon_as_they_are_made(patient: Patient) -> None:
    long = router_pb2.CompleteRequest(model="default", text="x")
    async with rpc.connect(patient.stack.grpc_address) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        calls = [stub.Complete(long) for _ in range(500)]
        await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*(call.code() for call in calls), return_exceptions=True)
    await patient.canary()
    async with asyncio.timeout(60):
        while (status := await patient.status()).num_running or status.num_free_blocks != status.num_blocks:
            await asyncio.sleep(0.05)


async def test_sec_52_no_multipart_and_no_ranges(patient: Patient) -> None:
    boundary = "-" * 60_000
    for kind in (
        f"multipart/form-data; boundary={boundary[:9000]}",
        "multipart/mixed; boundary=x",
        "application/x-www-form-urlencoded",
    ):
        data = head(CHAT, f"Content-Type: {kind}", f"Content-Length: {len(boundary)}") + boundary.encode()
        status, _, body = split(await patient.raw(data))
        assert (status, check_error(body)["code"]) == (415, "unsupported_media_type")
    ranges = "bytes=" + ",".join(f"{number}-{number}" for number in range(1000))
    assert split(await patient.raw(head("/v1/models", f"Range: {ranges}", method="GET")))[0] == 200


def form(*parts: tuple[str, bytes], boundary: str = "x") -> bytes:
    """A multipart body; a part is (headers, content)."""
    pieces = [b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary.encode(), top.encode(), content) for top, content in parts]
    return b"".join(pieces) + b"--%s--\r\n" % boundary.encode()


FILE, PURPOSE = 'Content-Disposition: form-data; name="file"; filename="a"', 'Content-Disposition: form-data; name="purpose"'
BAD_FORMS: dict[str, tuple[str, bytes]] = {
    "boundary of dashes": ("-" * 70, b"-" * 500_000),
    "long boundary": ("x" * 9000, b"--" + b"x" * 500_000),
    "only dashes": ("x", b"\r\n--" * 100_000),
    "a thousand parts": ("x", form(*[(PURPOSE, b"batch")] * 1000)),
    "no names": ("x", form(("Content-Disposition: form-data", b"x"))),
    "twice": ("x", form((FILE, b"x"), (FILE, b"y"))),
    "endless header": ("x", b"--x\r\nX: " + b"a" * 3_000_000),
    "many headers": ("x", b"--x\r\n" + b"X: a\r\n" * 300_000),
    "odd header": ("x", form(("Content-Disposition: form-data; name*=utf-8''%ff; " + "a=b;" * 20_000, b"x"))),
    "long value": ("x", form((PURPOSE, b"x" * 500_000))),
    "no end": ("x", form((FILE, b"{}"))[:-8]),
    "not begun": ("x", b""),
}


@pytest.mark.parametrize("name", BAD_FORMS)
async def test_sec_52_a_form_is_read_in_little_time_and_little_memory(patient: Patient, name: str) -> None:
    """The one place where multipart is read."""
    boundary, data = BAD_FORMS[name]
    lines = (f"Content-Type: multipart/form-data; boundary={boundary}", f"Content-Length: {len(data)}")
    began_at = time.perf_counter()
    answering = asyncio.create_task(patient.raw(head("/v1/files", *lines) + data, 60))
    await patient.canary()
    status, _, body = split(await answering)
    assert status in (400, 413, 415), body
    check_error(body)
    assert time.perf_counter() - began_at < 20


async def test_sec_64_ids_of_callers_are_echoed_and_never_used(patient: Patient) -> None:
    rids = set()
    for _ in range(3):
        answer = await patient.http.post(CHAT, json=GOOD[CHAT], headers={"x-request-id": "victim"})
        assert answer.headers["x-request-id"] == "victim"
        rids.add(answer.json()["id"])
    assert len(rids) == 3
    assert "victim" not in "".join(rids)
    for odd in ("x" * 129, "a b", "<script>", "a;b", "é"):
        status, top, _ = split(await patient.raw(head("/livez", f"x-request-id: {odd}", method="GET")))
        assert status == 200
        assert odd.encode("latin-1") not in top


async def test_sec_64_a_cancel_takes_one_whole_id(patient: Patient) -> None:
    async with rpc.connect(patient.stack.grpc_address) as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        # So many tokens that it waits for its reader.
        many = router_pb2.Options(sampling=types_pb2.Sampling(n=128))
        running = stub.Complete(router_pb2.CompleteRequest(model="default", text="x", options=many))
        rid = (await running.read()).begun.rid
        for other in (rid[:8], rid[:-1], rid + "0", rid.upper() + " ", "*", "%", rid[:2] + "*"):
            call: Any = stub.Cancel(router_pb2.CancelRequest(rid=other))
            assert (await call.code()).name == "NOT_FOUND", other
        assert (await running.read()) is not None
        assert (await stub.Cancel(router_pb2.CancelRequest(rid=rid))).cancelled


HOSTS = ["a/x?", "a b", "a\tb", "[::1", "a:99999999", "a@b", "évil", "a,b", "a;b", ""]


async def test_sec_70_a_strange_host_reaches_nothing(patient: Patient) -> None:
    for host in HOSTS:
        data = f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1")
        assert split(await patient.raw(data))[0] == 400, host
    twice = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"
    assert split(await patient.raw(twice))[0] == 400


SPELLINGS = [
    "//v1/models",
    "/%761/models",
    "/v1/../v1/models",
    "/v1/models;",
    "/v1/models/",
    "/V1/models",
    "/v1/./models",
    "/livez/../v1/models",
]


async def test_sec_70_other_spellings_of_a_path_are_other_paths(patient: Patient) -> None:
    """None of them is taken for a path that anyone may see; what the URL's escapes spell is the path itself."""
    for path in SPELLINGS:
        status, _, body = split(await patient.raw(head(path, method="GET")))
        assert status in ((200,) if path == "/%761/models" else (404,)), path
        assert status == 200 or check_error(body)["code"] in ("unknown_url", "model_not_found")


async def test_sec_71_every_route_is_known(patient: Patient) -> None:
    """Nothing answers but what stands in the two tables; what others leave open is not there at all."""
    strangers = "invocations pause resume update_weights abort_requests collective_rpc flush_cache workers sleep wake_up"
    for path in [*strangers.split(), "docs", "redoc", "server_info", "get_model_info", "debug/pprof", ".env", "metrics", "admin"]:
        for prefix in ("/", "/v1/"):
            if f"{prefix}{path}" not in ENDPOINTS:
                assert (await patient.http.get(f"{prefix}{path}")).status_code == 404, path
    async with httpx.AsyncClient() as admin:
        for path in ENDPOINTS:
            if path not in ADMIN_ENDPOINTS:
                assert (await admin.get(patient.stack.admin_url + path.replace("{", "").replace("}", ""))).status_code == 404


async def test_sec_75_no_other_site_s_page_may_ask(patient: Patient) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for answer in (
        await patient.http.request("OPTIONS", CHAT, headers=headers),
        await patient.http.get("/v1/models", headers=headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_sec_76_errors_tell_nothing_of_the_server(patient: Patient) -> None:
    """Every error of every test in this folder passes check_error; here are the ones that parsers make."""
    for body in (
        b"{",
        b'{"a":}',
        b"\xff",
        b"[" * 70_000,
        b'{"n":' + b"9" * 5000 + b"}",
        b'{"messages":[{"role":{"a":1}}]}',
        b'{"model":5}',
    ):
        for path in posts():
            status, answer = await patient.post(path, body)
            # A body that names no model asks Ollama's door for one that is not there.
            assert status in {refusal(path), 404}
            check_answer(path, answer)
    status, answer = await patient.post(CHAT, BODY, **{"content-type": "text/x-python"})
    assert status == 415
    check_error(answer)
    answer_raw = await patient.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300))
    assert b"Traceback" not in answer_raw
    assert len(answer_raw) < 500
