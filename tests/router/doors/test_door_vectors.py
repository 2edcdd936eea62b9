"""Embeddings and scores over both doors: shapes, every field, and that nothing ever becomes a 500."""

import base64
import dataclasses
import json
import struct
from typing import Any

import grpc
import httpx
import openai
import pytest

from services.router.schema_vectors import EmbeddingBody, RerankBody, ScoreBody
from services.router.server import Doors
from shared import rpc
from shared.pb import router_pb2, router_pb2_grpc, types_pb2
from tests.router.doors.fake_plane import FakePlane
from tests.router.doors.test_door_fields import ODD
from tests.router.doors.wire import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")
EMBEDDING: dict[str, Any] = {"model": "tiny", "input": "one two"}
SCORE: dict[str, Any] = {"model": "tiny", "text_1": "one two", "text_2": ["one", "two three"]}
RERANK: dict[str, Any] = {"model": "tiny", "query": "one two", "documents": ["one", {"text": "two three"}]}
ENDPOINTS = {"/v1/embeddings": (EmbeddingBody, EMBEDDING), "/v1/score": (ScoreBody, SCORE), "/v1/rerank": (RerankBody, RERANK)}


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_type_confusion(doors: Doors, path: str) -> None:
    body_type, good = ENDPOINTS[path]
    async with connect(doors.port) as wire:
        for name in body_type.__struct_fields__:
            for value in ODD:
                status, answer = await wire.post(path, good | {name: value})
                allowed = {200, 400, 404} if name == "model" else {200, 400}
                assert status in allowed, (name, value, answer)
                assert status == 200 or json.loads(answer)["error"]["param"] is not None, (name, value, answer)
                assert status == 200 or len(answer) < 1000
        assert (await wire.post(path, good))[0] == 200


async def test_one_text(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = (await client.post("/v1/embeddings", json=EMBEDDING | {"priority": 3, "cache_salt": "s"})).json()
    assert answer["object"] == "list"
    assert answer["model"] == "tiny"
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": pytest.approx([0.6, 0.8])}]
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    request = plane.generations[-1].request
    assert (request.prompt, request.band, request.cache_salt, request.idempotency_key) == ([3, 3], 3, "s", None)


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("one two", [[3, 3]]),
        (["one", "three two"], [[3], [5, 3]]),
        ([7, 8, 9], [[7, 8, 9]]),
        ([[7, 8], [9]], [[7, 8], [9]]),
    ],
)
async def test_what_an_input_may_be(client: httpx.AsyncClient, plane: FakePlane, given: object, prompts: list[list[int]]) -> None:
    before = len(plane.generations)
    answer = (await client.post("/v1/embeddings", json=EMBEDDING | {"input": given}, headers={"idempotency-key": "k"})).json()
    requests = [generation.request for generation in plane.generations[before:]]
    assert [request.prompt for request in requests] == prompts
    assert [entry["index"] for entry in answer["data"]] == list(range(len(prompts)))
    assert answer["usage"]["total_tokens"] == sum(map(len, prompts))
    keys = ["k"] if len(prompts) == 1 else [f"k/{index}" for index in range(len(prompts))]
    assert [request.idempotency_key for request in requests] == keys


async def test_base64_is_the_same_numbers(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/embeddings", json=EMBEDDING | {"encoding_format": "base64"})).json()
    assert struct.unpack("<2f", base64.b64decode(answer["data"][0]["embedding"])) == pytest.approx((0.6, 0.8))


async def test_openai_python_asks_for_base64_and_gives_numbers(doors: Doors) -> None:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{doors.port}/v1", api_key="none", max_retries=0) as api:
        made = await api.embeddings.create(model="tiny", input=["a", "b"], dimensions=1, user="u")
        assert [entry.embedding for entry in made.data] == [[1.0], [1.0]]
        assert made.usage.prompt_tokens == 2
        with pytest.raises(openai.BadRequestError) as caught:
            await api.embeddings.create(model="tiny", input="a", dimensions=3)
        assert caught.value.param == "dimensions"


EMBEDDING_ERRORS = [
    ({"input": ""}, "input", "empty_string"),
    ({"input": []}, "input", "empty_array"),
    ({"input": ["a", ""]}, "input[1]", "empty_string"),
    ({"input": [[1], []]}, "input[1]", "empty_array"),
    ({"input": [1, "a"]}, "input", "invalid_type"),
    ({"input": [5, -1]}, "input", "invalid_token_id"),
    ({"input": [5, 1000]}, "input", "invalid_value"),
    ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
    ({"input": ["a", "b " * 101]}, "input[1]", "context_length_exceeded"),
    ({"input": [[1] * 101]}, "input[0]", "context_length_exceeded"),
    ({"dimensions": 0}, "dimensions", "invalid_value"),
    ({"dimensions": 3}, "dimensions", "invalid_value"),
    ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
    ({"pooling": "max"}, "pooling", "invalid_value"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "invalid_value"),
    ({"truncate_prompt_tokens": 101}, "truncate_prompt_tokens", "invalid_value"),
    ({"priority": 10}, "priority", "invalid_value"),
    ({"cache_salt": "x" * 129}, "cache_salt", "invalid_value"),
    ({"user": "x" * 513}, "user", "string_above_max_length"),
]
OTHER_ERRORS = [
    ("/v1/score", {"text_1": ""}, "text_1", "empty_string"),
    ("/v1/score", {"text_2": ["a", ""]}, "text_2[1]", "empty_string"),
    ("/v1/score", {"text_2": []}, "text_2", "empty_array"),
    ("/v1/score", {"text_1": ["a"] * 3}, "text_1", "invalid_value"),
    ("/v1/score", {"text_2": ["a"] * 2049}, "text_2", "array_above_max_length"),
    ("/v1/score", {"text_2": ["a", "b " * 101]}, "text_2[1]", "context_length_exceeded"),
    ("/v1/rerank", {"query": ""}, "query", "empty_string"),
    ("/v1/rerank", {"documents": []}, "documents", "empty_array"),
    ("/v1/rerank", {"documents": ["a", {"title": "b"}]}, "documents[1].text", "invalid_type"),
    ("/v1/rerank", {"top_n": -1}, "top_n", "integer_below_min_value"),
    ("/v1/rerank", {"max_tokens_per_doc": 101}, "max_tokens_per_doc", "invalid_value"),
]


@pytest.mark.parametrize(
    ("path", "changes", "param", "code"), [*(("/v1/embeddings", *row) for row in EMBEDDING_ERRORS), *OTHER_ERRORS]
)
async def test_errors_name_the_field(
    client: httpx.AsyncClient, path: str, changes: dict[str, object], param: str, code: str
) -> None:
    answer = await client.post(path, json=ENDPOINTS[path][1] | changes)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    # A wrong id keeps the code that completions have for it.
    assert (error["param"], error["code"]) == (param, code if "1000" not in str(changes) else error["code"])


async def test_unknown_fields_and_models_are_treated_as_everywhere(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/embeddings", json=EMBEDDING | {"who": 1})
    assert answer.headers["x-roadtrain-ignored-fields"] == "who"
    assert (await client.post("/v1/embeddings", json=EMBEDDING | {"model": "other"})).status_code == 404


async def test_scores_by_cosine_and_by_a_cross_encoder(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = (await client.post("/v1/score", json=SCORE)).json()
    assert answer["object"] == "list"
    assert [(entry["index"], entry["object"], entry["score"]) for entry in answer["data"]] == [
        (0, "score", pytest.approx(1.0)),
        (1, "score", pytest.approx(1.0)),
    ]
    plane.model = dataclasses.replace(plane.model, kinds=("score",))
    try:
        body = SCORE | {"text_1": ["a", "a b c d"], "text_2": ["x", "y"]}
        answer = (await client.post("/v1/score", json=body)).json()
        assert [entry["score"] for entry in answer["data"]] == [1.0, 0.25]
        assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
        for path, refused in (("/v1/embeddings", EMBEDDING), ("/v1/completions", {"model": "tiny", "prompt": "hi"})):
            error = (await client.post(path, json=refused)).json()["error"]
            assert (error["param"], error["code"]) == ("model", "unsupported_by_model")
    finally:
        plane.model = dataclasses.replace(plane.model, kinds=("generate", "embed"))


async def test_rerank_gives_the_best_first(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = (await client.post("/v1/rerank", json=RERANK | {"top_n": 1})).json()
    assert answer["results"] == [{"index": 0, "document": {"text": "one"}, "relevance_score": pytest.approx(1.0)}]
    assert answer["usage"]["total_tokens"] == 5
    whole = (await client.post("/v2/rerank", json=RERANK | {"return_documents": False})).json()
    assert [sorted(result) for result in whole["results"]] == [["index", "relevance_score"]] * 2


async def test_the_grpc_door(doors: Doors, plane: FakePlane) -> None:
    inputs = [router_pb2.EmbedInput(text="one two"), router_pb2.EmbedInput(token_ids=struct.pack("<2I", 7, 8))]
    async with rpc.connect(f"127.0.0.1:{doors.grpc_port}") as channel:
        stub = router_pb2_grpc.RouterStub(channel)
        options = router_pb2.Options(band=2, idempotency_key="k", deadline_ms=9000)
        reply = await stub.Embed(router_pb2.EmbedRequest(model="tiny", inputs=inputs, raw=True, options=options))
        assert [struct.unpack("<2f", vector) for vector in reply.vectors] == [(3.0, 4.0)] * 2
        assert (reply.model, reply.usage.num_prompt_tokens) == ("tiny", 4)
        last = plane.generations[-1].request
        assert (last.prompt, last.band, last.idempotency_key) == ([7, 8], 2, "k/1")
        assert 0 < last.deadline_ms <= 9000
        for request, param in (
            (router_pb2.EmbedRequest(model="tiny"), "inputs"),
            (router_pb2.EmbedRequest(model="tiny", inputs=[router_pb2.EmbedInput()]), "inputs[0]"),
            (router_pb2.EmbedRequest(model="tiny", inputs=[router_pb2.EmbedInput(token_ids=b"abc")]), "inputs[0]"),
            (router_pb2.EmbedRequest(model="tiny", inputs=inputs, dimensions=3), "dimensions"),
            (router_pb2.EmbedRequest(model="tiny", inputs=inputs, pooling=7), "pooling"),  # type: ignore[arg-type]
            (router_pb2.EmbedRequest(model="tiny", inputs=inputs, truncate_tokens=0), "truncate_tokens"),
            (router_pb2.EmbedRequest(inputs=inputs), "model"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            metadata = dict(caught.value.trailing_metadata() or ())
            assert metadata[rpc.ERROR_PARAM_KEY] == param
        pooled = router_pb2.EmbedRequest(model="tiny", inputs=inputs[:1], pooling=types_pb2.POOLING_CLS, truncate_tokens=1)
        await stub.Embed(pooled)
        wanted = plane.generations[-1].request.wanted
        assert wanted is not None
        assert wanted.pooling == "cls"
        assert plane.generations[-1].request.prompt == [3]
