"""Structured output from the real model, through every door: valid, the same tokens whatever happens, safe from hostile grammars.

Two workers with little memory for keys and values, so that sequences are preempted, and one of them may be killed.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import jsonschema
import pytest

from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2, types_pb2, worker_pb2, worker_pb2_grpc
from tests import stack
from tests.e2e.sse_client import Seen, read
from tests.hostile_grammars import HOSTILE, REFUSED

CHAT = "/v1/chat/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 2},
        "kind": {"enum": ["friend", "foe"]},
    },
    "required": ["name", "age", "hobbies", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    flags = ("--num-workers", "2", "--kv-memory", "4MiB", "--max-model-len", "256")
    running = stack.start(tmp_path_factory.mktemp("structured"), *flags, timeout_s=120)
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def client_of(system: stack.Stack) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=system.url, timeout=100, verify=False)


def body_of(index: int = 0, **fields: Any) -> dict[str, Any]:
    words = ["sailor", "baker", "physicist", "poet", "clown", "judge"]
    question = f"Describe a {words[index % len(words)]} as JSON with name, age, hobbies and kind."
    body = {"model": "default", "messages": [{"role": "user", "content": question}], "response_format": FORMAT}
    return body | {"seed": index, "temperature": 0.8, "max_tokens": 130} | fields


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def valid(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


async def test_whole_streamed_and_grpc_are_one_valid_answer(system: stack.Stack) -> None:
    body = body_of()
    async with client_of(system) as client:
        whole = await ask(client, body)
        seen = Seen(body, CHAT)
        await read(client, seen)
    choice = whole["choices"][0]
    assert valid(choice["message"]["content"])
    assert (choice["finish_reason"], seen.ends[0], seen.done) == ("stop", "stop", True)
    assert seen.texts[0] == choice["message"]["content"]
    sampling = types_pb2.Sampling(seed=0, temperature=0.8, max_tokens=130)
    sampling.grammar.kind, sampling.grammar.source = types_pb2.GRAMMAR_KIND_JSON_SCHEMA, json.dumps(PERSON)
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content=body["messages"][0]["content"])])
    async with grpc.aio.insecure_channel(system.grpc_address) as channel:
        router = router_pb2_grpc.RouterStub(channel)
        asked = router_pb2.ChatRequest(model="default", chat=chat, options=router_pb2.Options(sampling=sampling))
        text = "".join([event.delta.text async for event in router.Chat(asked, timeout=60)])
        assert text == seen.texts[0]
        sampling.grammar.source = "{"
        asked.options.sampling.CopyFrom(sampling)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [event async for event in router.Chat(asked, timeout=60)]
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_three_choices_with_logprobs_and_penalties(system: stack.Stack) -> None:
    fields = {"n": 3, "logprobs": True, "top_logprobs": 3, "presence_penalty": 0.4, "repetition_penalty": 1.05}
    async with client_of(system) as client:
        answer = await ask(client, body_of(3, **fields))
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert all(valid(text) for text in texts)
    assert len(set(texts)) == 3
    for choice in answer["choices"]:
        rows = choice["logprobs"]["content"]
        assert all(len(row["top_logprobs"]) == 3 and row["logprob"] <= 0 for row in rows)
        # Raw: where the grammar leaves one token, the model may like others better.
        assert any(row["logprob"] < row["top_logprobs"][0]["logprob"] for row in rows)


KINDS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": r"[0-9]{3}-[0-9]{4}"}}, r"[0-9]{3}-[0-9]{4}"),
    ({"structured_outputs": {"choice": ["yes", "no", "no way"]}}, "yes|no|no way"),
    ({"structured_outputs": {"grammar": 'start: "a" ("," /[0-9]/)~3'}}, "a(,[0-9]){3}"),
    ({"structured_outputs": {"json": {"const": {"a": [1, None]}}}}, r'\{\s*"a"\s*:\s*\[\s*1\s*,\s*null\s*\]\s*\}'),
    ({"bad_words": ["Paris", "the"], "temperature": 0, "max_tokens": 30}, r"(?s)(?!.*(Paris| the )).*"),
]


@pytest.mark.parametrize(("fields", "pattern"), KINDS)
async def test_every_kind(system: stack.Stack, fields: dict[str, Any], pattern: str) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 60}
    async with client_of(system) as client:
        text = (await ask(client, body | {"seed": 1} | fields))["choices"][0]["message"]["content"]
    assert re.fullmatch(pattern, text), text


async def test_only_the_tokens_allowed(system: stack.Stack) -> None:
    body = {"model": "default", "prompt": "1 2 3", "max_tokens": 12, "allowed_token_ids": [33, 34, 35], "seed": 1}
    async with client_of(system) as client:
        text = (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    assert len(text) == 12
    assert set(text) <= set("123")


async def statuses(system: stack.Stack) -> list[worker_pb2.StatusReply]:
    found = []
    for path in system.sockets("worker"):
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            found.append(await stub.Status(worker_pb2.StatusRequest(), timeout=60, wait_for_ready=True))
    return found


async def texts_of(client: httpx.AsyncClient, bodies: list[dict[str, Any]]) -> list[list[str]]:
    answers = await asyncio.gather(*(ask(client, body) for body in bodies))
    return [[choice["message"]["content"] for choice in answer["choices"]] for answer in answers]


@pytest.mark.full
async def test_preempted_ones_give_the_same(system: stack.Stack) -> None:
    bodies = [body_of(index) for index in range(3)]
    async with client_of(system) as client:
        alone = [(await texts_of(client, [body]))[0] for body in bodies]
        together = await texts_of(client, bodies + [body_of(40 + index, n=6) for index in range(3)])
    assert together[:3] == alone
    assert all(valid(text) for texts in together for text in texts)
    assert sum(status.num_preemptions for status in await statuses(system)) > 0


async def test_a_worker_killed_under_them(system: stack.Stack) -> None:
    bodies = [body_of(index) for index in range(4)]
    async with client_of(system) as client:
        alone = await texts_of(client, bodies)
        streams = [Seen(body, CHAT) for body in bodies]
        reading = [asyncio.create_task(read(client, seen)) for seen in streams]
        async with asyncio.timeout(60):
            while sum(len(seen.times) >= 2 for seen in streams) < 2:
                await asyncio.sleep(0.005)
        killed = system.children()["worker-0"]
        os.kill(killed, signal.SIGKILL)
        await asyncio.gather(*reading)
    for seen, (text,) in zip(streams, alone, strict=True):
        assert (seen.error, seen.done) == (None, True)
        assert seen.texts[0] == text
        assert valid(text)
    async with asyncio.timeout(60):
        while system.children().get("worker-0", killed) == killed or len(await statuses(system)) < 2:
            await asyncio.sleep(0.05)


async def test_hostile_grammars_hurt_nobody(system: stack.Stack) -> None:
    words = {"json_schema": "json", "regex": "regex", "lark": "grammar"}
    asked = {name: {words[grammar.kind]: grammar.source} for name, grammar in (REFUSED | HOSTILE).items()}
    before = {name: pid for name, pid in system.children().items() if name.startswith(("worker", "tokenizer", "router"))}
    longest_s, deadly = 0.0, "ten thousand stars"
    async with client_of(system) as client:
        canary = await texts_of(client, [body_of(1)])
        others = [asyncio.create_task(ask(client, body_of(1))) for _ in range(2)]
        for name, outputs in asked.items():
            began_at = time.monotonic()
            answer = await client.post(CHAT, json=body_of(structured_outputs=outputs, response_format=None, max_tokens=4))
            if name in REFUSED or name == deadly:
                longest_s = max(longest_s, time.monotonic() - began_at)
                assert answer.status_code == 400, (name, answer.text)
                assert answer.json()["error"]["param"] == f"structured_outputs.{next(iter(outputs))}"
            else:
                assert answer.status_code in (200, 400) or answer.json()["error"]["type"] == "server_error", (name, answer.text)
        answers = await asyncio.gather(*others)
        assert [[answer["choices"][0]["message"]["content"]] for answer in answers] == canary * 2
        assert await texts_of(client, [body_of(1)]) == canary
    print(f"longest refusal: {longest_s:.2f} s")
    assert {name: system.children()[name] for name in before} == before
