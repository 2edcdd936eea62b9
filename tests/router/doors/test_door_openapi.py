"""/openapi.json says what is so: every endpoint and no other, types that real answers have, bounds that validators hold."""

from typing import Any

import httpx
import msgspec
import pytest

from services.router import shapes, shapes_anthropic, shapes_files, shapes_responses, shapes_vectors
from services.router.app import ENDPOINTS
from services.router.batch.files import FileRecord
from services.router.batch.record import Batch, Fault
from services.router.endpoints import batches, files
from services.router.endpoints.health import own_version
from services.router.openapi import BOUNDS, description
from services.router.operations import OPERATIONS
from services.router.schema import ChatBody, CompletionBody
from shared.errors import MAPPING

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


async def test_each_endpoint_is_described_and_no_other() -> None:
    served = {f"{method} {path.replace(':path}', '}')}" for path, methods in ENDPOINTS.items() for method in methods}
    assert set(OPERATIONS) == served


async def test_the_document_is_served_and_whole(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document == msgspec.json.decode(msgspec.json.encode(description(OPERATIONS, own_version())))
    schemas = document["components"]["schemas"]
    assert refs(document) <= {f"#/components/schemas/{name}" for name in schemas}
    statuses = set(document["paths"]["/v1/chat/completions"]["post"]["responses"])
    assert statuses == {"200", "431"} | {str(mapped.http_status) for mapped in MAPPING.values()} - {"405"}
    assert "/docs" not in ENDPOINTS


def refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(refs(one) for one in value.values()))
    return set().union(*(refs(one) for one in value)) if isinstance(value, list) else set()


async def test_bounds_are_those_of_the_validators(client: httpx.AsyncClient) -> None:
    """Each number's bound is accepted, and what is just beyond it refused, by the endpoints that take the field."""
    num_checked = 0
    for name, bounds in BOUNDS.items():
        for path, good, body in (("/v1/chat/completions", CHAT, ChatBody), ("/v1/completions", COMPLETION, CompletionBody)):
            if name not in body.__struct_fields__:
                continue
            beside = {"logprobs": True} if name == "top_logprobs" else {"max_tokens": 2**31 - 1} if name == "min_tokens" else {}
            step = 1 if isinstance(bounds.get("minimum", 0), int) and name not in FLOATS else 0.01
            for kind, direction in (("minimum", -1), ("maximum", 1)):
                if kind in bounds:
                    num_checked += 1
                    at, beyond = bounds[kind], bounds[kind] + direction * step
                    assert (await client.post(path, json=good | beside | {name: at})).status_code == 200, (name, at)
                    assert (await client.post(path, json=good | beside | {name: beyond})).status_code == 400, (name, beyond)
    assert num_checked > 30


FLOATS = {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"}


async def test_answers_have_the_shapes_that_are_described(client: httpx.AsyncClient) -> None:
    for path, operation in ((key.split(" ")[1], one) for key, one in OPERATIONS.items() if key.startswith("GET ")):
        if not path.startswith(("/v1/streams", "/v1/files", "/v1/batches", "/v1/responses")):
            answer = await client.get(path.replace("{name}", "org/alias"))
            msgspec.json.decode(answer.content, type=operation.answer, strict=True)
    all_fields = {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1, "service_tier": "auto", "return_token_ids": True}
    answer = await client.post("/v1/chat/completions", json=CHAT | all_fields)
    msgspec.json.decode(answer.content, type=shapes.ChatCompletion)
    all_fields = {"logprobs": 2, "echo": True, "prompt_logprobs": 1, "return_token_ids": True}
    answer = await client.post("/v1/completions", json=COMPLETION | all_fields)
    msgspec.json.decode(answer.content, type=shapes.Completion)
    answer = await client.post("/v1/completions", json={})
    msgspec.json.decode(answer.content, type=shapes.Error)


async def test_files_and_batches_have_the_shapes_that_are_described() -> None:
    record = FileRecord(id="f", bytes=1, created_at=2, expires_at=3, filename="n", purpose="batch")
    page = files.listed([files._shown(record)], 1)
    msgspec.convert(page, shapes_files.FileList)
    batch = Batch(
        id="b",
        tenant="t",
        endpoint="/v1/completions",
        input_file_id="f",
        completion_window="24h",
        status="failed",
        created_at=1,
        expires_at=2,
        faults=(Fault(code="c", message="m"),),
    )
    msgspec.convert(files.listed([batches._shown(batch)], 1), shapes_files.BatchList)


async def test_responses_have_the_shapes_that_are_described(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "input": "hi", "store": False}
    whole = await client.post("/v1/responses", json=body)
    assert msgspec.json.decode(whole.content, type=shapes_responses.Response).status == "completed"
    events = await client.post("/v1/responses", json=body | {"stream": True})
    lines = [line.removeprefix("data: ") for line in events.text.splitlines() if line.startswith("data: ")]
    found = [msgspec.json.decode(line, type=shapes_responses.ResponseEvent) for line in lines]
    assert found[-1].response.status == "completed"


async def test_messages_have_the_shapes_that_are_described(client: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    whole = await client.post("/v1/messages", json=body)
    assert msgspec.json.decode(whole.content, type=shapes_anthropic.MessageAnswer).stop_reason == "end_turn"
    wrong = await client.post("/v1/messages", json=body | {"max_tokens": "x"})
    assert msgspec.json.decode(wrong.content, type=shapes_anthropic.MessageError).error.type == "invalid_request_error"


async def test_vectors_have_the_shapes_that_are_described(client: httpx.AsyncClient) -> None:
    for as_text in ("float", "base64"):
        answer = await client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"], "encoding_format": as_text})
        assert len(msgspec.json.decode(answer.content, type=shapes_vectors.Embeddings).data) == 2
    answer = await client.post("/v1/score", json={"model": "tiny", "text_1": "a", "text_2": ["b", "c"]})
    assert len(msgspec.json.decode(answer.content, type=shapes_vectors.Scores).data) == 2
    answer = await client.post("/v2/rerank", json={"model": "tiny", "query": "a", "documents": ["b", "c"]})
    assert len(msgspec.json.decode(answer.content, type=shapes_vectors.Ranking).results) == 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_events_have_the_shapes_that_are_described(client: httpx.AsyncClient, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True}
    good = CHAT | {"logprobs": True, "service_tier": "flex"} if "chat" in path else COMPLETION | {"logprobs": 1, "echo": True}
    for extra in ({}, {"stream_options": options, "return_token_ids": True}):
        answer = await client.post(path, json=good | {"stream": True, "n": 2} | extra)
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        assert lines.pop() == "[DONE]"
        for line in lines:
            msgspec.json.decode(line, type=OPERATIONS[f"POST {path}"].events)
