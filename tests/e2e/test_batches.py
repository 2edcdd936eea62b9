"""Files and batches through openai's own client, on real routers and workers with computable tokens."""

import asyncio
import json
import os
import signal
from pathlib import Path

import httpx
import openai
import pytest

from services.worker.sim import SimSpec, expected_tokens
from shared.sampling import SamplingParams
from tests.router.plane.rig import text_of
from tests.stack import Stack

SPEC = SimSpec(vocab_size=49152)
NUM_TOKENS = 40


@pytest.fixture
async def client(two_by_two: Stack):
    async with openai.AsyncOpenAI(base_url=f"{two_by_two.url}/v1", api_key="none", max_retries=10) as client:
        yield client


def body_of(index: int) -> dict[str, object]:
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12)]
    return {"model": "default", "prompt": prompt, "max_tokens": NUM_TOKENS, "seed": index, "ignore_eos": True}


def line_of(index: int, **changes: object) -> dict[str, object]:
    return {"custom_id": f"line-{index}", "method": "POST", "url": "/v1/completions", "body": body_of(index)} | changes


def expected(index: int) -> str:
    params = SamplingParams(seed=index, max_tokens=NUM_TOKENS)
    return text_of(expected_tokens(SPEC, body_of(index)["prompt"], params, 0)[0])


async def upload(client: openai.AsyncOpenAI, lines: list[dict[str, object]]) -> str:
    data = "\n".join(json.dumps(line) for line in lines).encode()
    return (await client.files.create(file=("lines.jsonl", data), purpose="batch")).id


async def begin(client: openai.AsyncOpenAI, file_id: str) -> str:
    batch = await client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h")
    assert batch.status == "validating"
    return batch.id


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> openai.types.Batch:
    async with asyncio.timeout(90):
        while (batch := await client.batches.retrieve(batch_id)).status not in ("completed", "failed", "cancelled", "expired"):
            await asyncio.sleep(0.2)
    return batch


async def rows_of(client: openai.AsyncOpenAI, file_id: str) -> list[dict]:
    return [json.loads(row) for row in (await client.files.content(file_id)).text.splitlines()]


async def test_every_line_is_answered_in_order_and_bad_ones_apart(client):
    lines = [line_of(index) for index in range(40)]
    lines[7]["body"] = body_of(7) | {"temperature": 9}
    batch = await ended(client, await begin(client, await upload(client, lines)))
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (40, 39, 1)
    rows = await rows_of(client, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{index}" for index in range(40) if index != 7]
    for row in rows:
        assert row["response"]["status_code"] == 200
        index = int(row["custom_id"].removeprefix("line-"))
        assert row["response"]["body"]["choices"][0]["text"] == expected(index)
    (bad,) = await rows_of(client, batch.error_file_id)
    assert bad["custom_id"] == "line-7"
    assert bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["param"] == "temperature"


async def test_routers_and_workers_die_and_no_line_is_lost_or_doubled(two_by_two: Stack, client):
    number = 150
    file_id = await upload(client, [line_of(index) for index in range(number)])
    batch_id = await begin(client, file_id)
    for name in ("router-0", "worker-1", "router-1", "worker-0"):
        async with asyncio.timeout(60):
            while (before := two_by_two.children().get(name)) is None:
                await asyncio.sleep(0.1)
        os.kill(before, signal.SIGKILL)
        await asyncio.sleep(1.0)
    batch = await ended(client, batch_id)
    assert (batch.status, batch.request_counts.completed) == ("completed", number)
    rows = await rows_of(client, batch.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"line-{index}" for index in range(number)]
    for index, row in enumerate(rows):
        assert row["response"]["body"]["choices"][0]["text"] == expected(index)


async def test_a_batch_is_cancelled_and_keeps_what_it_has(client):
    slow = [line_of(index, body=body_of(index) | {"max_tokens": 3000}) for index in range(200)]
    quick = [line_of(200 + index) for index in range(8)]
    batch_id = await begin(client, await upload(client, quick + slow))
    async with asyncio.timeout(60):
        while (await client.batches.retrieve(batch_id)).request_counts.completed < 8:
            await asyncio.sleep(0.1)
    assert (await client.batches.cancel(batch_id)).status == "cancelling"
    batch = await ended(client, batch_id)
    assert batch.status == "cancelled"
    answered = {row["custom_id"] for row in await rows_of(client, batch.output_file_id)}
    assert answered >= {f"line-{200 + index}" for index in range(8)}
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        await client.batches.cancel(batch_id)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty_file"),
        ("not json", "invalid_json"),
        (json.dumps(line_of(1, url="/v1/embeddings")), "mismatched_endpoint"),
        (json.dumps(line_of(1, method="GET")), "invalid_value"),
        (json.dumps(line_of(1, body="text")), "invalid_value"),
        (json.dumps(line_of(1, custom_id=7)), "invalid_value"),
        (json.dumps(line_of(1)) + "\n" + json.dumps(line_of(1)), "duplicate_custom_id"),
    ],
)
async def test_a_bad_input_fails_the_batch_and_says_where(client, text: str, code: str):
    file = await client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")
    batch = await ended(client, await begin(client, file.id))
    assert batch.status == "failed"
    assert batch.errors.data[0].code == code
    if text:
        assert batch.errors.data[0].line == text.count("\n") + 1


async def test_files_are_kept_listed_read_and_deleted(client, tmp_path: Path):
    data = os.urandom(1_000_000)
    path = tmp_path / "some name.jsonl"
    path.write_bytes(data)
    file = await client.files.create(file=path, purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.status) == (len(data), "some name.jsonl", "batch", "processed")
    assert (await client.files.content(file.id)).content == data
    assert file.id in [each.id async for each in client.files.list(limit=2)]
    assert (await client.files.delete(file.id)).deleted
    for gone in (client.files.retrieve(file.id), client.files.content(file.id), client.files.delete(file.id)):
        with pytest.raises(openai.NotFoundError):
            await gone
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve("file-../../etc/passwd")
    with pytest.raises(openai.NotFoundError):
        await client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nline'
MANY = [b'Content-Disposition: form-data; name="p%d"\r\n\r\nbatch' % number for number in range(40)]
PURPOSE = b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("multipart/form-data", form(FILE, PURPOSE), 415, "unsupported_media_type"),
        ("multipart/form-data; boundary=B", form(PURPOSE), 400, "missing_required_parameter"),
        ("multipart/form-data; boundary=B", form(FILE), 400, "invalid_value"),
        ("multipart/form-data; boundary=B", form(FILE, PURPOSE.replace(b"batch", b"fine-tune")), 400, "invalid_value"),
        ("multipart/form-data; boundary=B", form(FILE, FILE, PURPOSE), 400, "invalid_form"),
        ("multipart/form-data; boundary=B", form(FILE, PURPOSE, PURPOSE), 400, "invalid_form"),
        ("multipart/form-data; boundary=B", form(FILE, PURPOSE, end=b""), 400, "invalid_form"),
        ("multipart/form-data; boundary=B", form(PURPOSE.replace(b"batch", b"x" * 5000), FILE), 400, "invalid_form"),
        (
            "multipart/form-data; boundary=B",
            form(*MANY),
            400,
            "invalid_form",
        ),
        ("multipart/form-data; boundary=B", b"--" * 100_000, 400, "invalid_form"),
        ("multipart/form-data; boundary=" + "-" * 5000, form(FILE, PURPOSE), 400, "invalid_form"),
    ],
)
async def test_a_bad_form_is_refused(two_by_two: Stack, content_type: str, body: bytes, status: int, code: str):
    async with httpx.AsyncClient(base_url=two_by_two.url, timeout=30) as client:
        response = await client.post("/v1/files", content=body, headers={"content-type": content_type})
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_a_file_over_the_limit_is_refused_while_it_arrives(tmp_path: Path, two_by_two: Stack):
    sent = 0

    async def endless():
        nonlocal sent
        yield b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(500):
            sent += 2**20
            yield b"x" * 2**20

    async with httpx.AsyncClient(base_url=two_by_two.url, timeout=60) as client:
        try:
            headers = {"content-type": "multipart/form-data; boundary=B"}
            response = await client.post("/v1/files", content=endless(), headers=headers)
        except (httpx.WriteError, httpx.ReadError):
            pass  # it was answered and cut off while still sending
        else:
            assert response.status_code == 413
    assert sent < 300 * 2**20
