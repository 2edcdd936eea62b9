"""Embeddings as a user gets them: MiniLM served by itself, and the default model beside its chats. Real processes."""

import asyncio
import json
import struct
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers.models.auto import AutoModel

from services.launcher.pull import find_or_fetch
from shared.pb import router_pb2, router_pb2_grpc
from tests import stack

TEXTS = [
    "The cat sits on the mat.",
    "A feline is resting on a rug.",
    "Interest rates rose by a quarter point.",
    "Zürich und 北京, [CLS] naïve café!",
    "word " * 200,
]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    running = stack.start(tmp_path_factory.mktemp("minilm"), "--model", "all-minilm", timeout_s=180)
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def client_of(system: stack.Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0, timeout=60)


def wanted(texts: list[str]) -> list[NDArray[np.float32]]:
    """What sentence-transformers computes: BertModel, mean over tokens, length 1. What spells a special token stays text."""
    path = find_or_fetch("all-minilm")
    tokenizer, model = Tokenizer.from_file(str(path / "tokenizer.json")), AutoModel.from_pretrained(path).eval()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    vectors = []
    for text in texts:
        ids = tokenizer.encode(text.replace("[CLS]", "[ cls ]")).ids
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        vectors.append(torch.nn.functional.normalize(mean, dim=0).numpy())
    return vectors


def post(system: stack.Stack, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(f"{system.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_minilm_gives_what_sentence_transformers_gives(minilm: stack.Stack) -> None:
    with client_of(minilm) as api:
        made = api.embeddings.create(model="all-minilm", input=TEXTS)
        numbers = api.embeddings.create(model="default", input=TEXTS, encoding_format="float")
        alone = [api.embeddings.create(model="default", input=text).data[0].embedding for text in TEXTS]
    assert made.model == "all-minilm"
    assert [entry.embedding for entry in made.data] == [entry.embedding for entry in numbers.data] == alone
    for entry, expected in zip(made.data, wanted(TEXTS), strict=True):
        np.testing.assert_allclose(entry.embedding, expected, atol=2e-6)
    assert made.usage.prompt_tokens == made.usage.total_tokens > 200


def test_dimensions_are_the_first_numbers_brought_to_length_1(minilm: stack.Stack) -> None:
    with client_of(minilm) as api:
        whole = np.array(api.embeddings.create(model="default", input=TEXTS[0]).data[0].embedding)
        short = np.array(api.embeddings.create(model="default", input=TEXTS[0], dimensions=64).data[0].embedding)
    np.testing.assert_allclose(short, whole[:64] / np.linalg.norm(whole[:64]), atol=1e-6)


def test_meaning_is_near_and_what_is_wrong_is_said(minilm: stack.Stack) -> None:
    status, answer = post(minilm, "/v1/rerank", {"model": "default", "query": TEXTS[0], "documents": TEXTS[1:3][::-1]})
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [1, 0]
    assert answer["results"][0]["relevance_score"] > answer["results"][1]["relevance_score"] + 0.3
    status, answer = post(minilm, "/v1/score", {"model": "default", "text_1": TEXTS[0], "text_2": TEXTS[0]})
    assert answer["data"][0]["score"] == pytest.approx(1.0, abs=1e-6)
    status, answer = post(minilm, "/v1/embeddings", {"model": "default", "input": ["ok", "word " * 300]})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "input[1]", "context_length_exceeded")
    assert "302" in answer["error"]["message"]
    assert "256" in answer["error"]["message"]
    body = {"model": "default", "input": "word " * 300, "truncate_prompt_tokens": -1}
    status, answer = post(minilm, "/v1/embeddings", body)
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 256)


def test_an_encoder_writes_nothing_and_says_so(minilm: stack.Stack) -> None:
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {"model": "default", "prompt": "hi"})):
        status, answer = post(minilm, path, body)
        assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "model", "unsupported_by_model")
    assert "curl" in minilm.log.read_text()
    assert f"http://127.0.0.1:{minilm.port}/v1/embeddings" in minilm.log.read_text()


def test_many_at_once_and_over_grpc(minilm: stack.Stack) -> None:
    texts = [f"{TEXTS[index % 3]} {index}" for index in range(300)]

    async def many() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{minilm.url}/v1", api_key="none", max_retries=0, timeout=120) as api:
            parts = await asyncio.gather(
                *(api.embeddings.create(model="default", input=texts[at : at + 50]) for at in range(0, len(texts), 50))
            )
        return [entry.embedding for part in parts for entry in part.data]

    embeddings = asyncio.run(many())
    inputs = [router_pb2.EmbedInput(text=text) for text in texts]
    with grpc.insecure_channel(minilm.grpc_address) as channel:
        reply = router_pb2_grpc.RouterStub(channel).Embed(router_pb2.EmbedRequest(model="default", inputs=inputs), timeout=60)
    assert [list(struct.unpack("<384f", vector)) for vector in reply.vectors] == embeddings


def test_a_batch_may_ask_for_embeddings(minilm: stack.Stack) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "default", "input": TEXTS[:2]}}
    with client_of(minilm) as api:
        file = api.files.create(file=("b.jsonl", json.dumps(line).encode() + b"\n"), purpose="batch")
        batch = api.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
        deadline = time.monotonic() + 60
        while (batch := api.batches.retrieve(batch.id)).status not in ("completed", "failed") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert batch.output_file_id is not None, batch
        answer = json.loads(api.files.content(batch.output_file_id).text)["response"]
        direct = api.embeddings.create(model="default", input=TEXTS[:2], encoding_format="float")
    assert answer["status_code"] == 200
    assert [entry["embedding"] for entry in answer["body"]["data"]] == [entry.embedding for entry in direct.data]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_default_model_embeds_beside_its_chats(smollm2: stack.Stack, pooling: str) -> None:
    text = "The cat sits on the mat, and the dog sleeps under the table by the fire. " * 3
    more = {"pooling": pooling}
    with client_of(smollm2) as api:
        one = api.embeddings.create(model="default", input=text, extra_body=more)
        again = api.embeddings.create(model="default", input=[text[:100], text], extra_body=more)
        chat = api.chat.completions.create(model="default", messages=[{"role": "user", "content": "hi"}], max_tokens=4)
        full = [5] * 8192
        assert api.embeddings.create(model="default", input=[5] * 40, extra_body=more).usage.prompt_tokens == 40
        with pytest.raises(openai.BadRequestError) as caught:
            api.embeddings.create(model="default", input=[*full, 5], extra_body=more)
    assert caught.value.code == "context_length_exceeded"
    assert chat.choices[0].message.content
    assert len(one.data[0].embedding) == 576
    assert np.linalg.norm(one.data[0].embedding) == pytest.approx(1.0, abs=1e-6)
    assert again.data[1].embedding == one.data[0].embedding
