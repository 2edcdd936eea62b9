"""Ollama's endpoints over a fake plane: lines and whole answers, what its words become, its errors."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from services.router import shapes_ollama as shown
from services.router.ollama import Options
from services.router.operations import OPERATIONS
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
PROMPT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(("path", "body"), [("/api/chat", CHAT), ("/api/generate", PROMPT)])
async def test_a_stream_is_the_default(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    found = lines(await client.post(path, json=body | {"logprobs": True}))
    for line in found:
        msgspec.convert(line, OPERATIONS[f"POST {path}"].events)
    texts = [line["message"]["content"] if "message" in line else line["response"] for line in found]
    assert texts == ["Hello", " wörld", "!", ""]
    assert [line["done"] for line in found] == [False, False, False, True]
    last = found[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 2, 5)
    assert last["total_duration"] >= last["eval_duration"] >= 0
    assert found[0]["logprobs"][0]["token"] == "Hello"


@pytest.mark.parametrize(("path", "body"), [("/api/chat", CHAT), ("/api/generate", PROMPT)])
async def test_a_whole_answer(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
    answer = await client.post(path, json=body | {"stream": False, "logprobs": True, "model": "tiny:latest"})
    whole = msgspec.json.decode(answer.content, type=OPERATIONS[f"POST {path}"].answer)
    assert (whole.model, whole.done, whole.eval_count) == ("tiny:latest", True, 5)
    assert (whole.message.content if "chat" in path else whole.response) == "Hello wörld!"
    assert whole.logprobs[0].token == "Hello"


async def test_options_become_sampling(client: httpx.AsyncClient, plane: FakePlane) -> None:
    await client.post("/api/chat", json=CHAT)
    params = plane.generations[-1].request.sampling
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens) == (0.8, 40, 0.9, None)
    options = {
        "temperature": 0,
        "num_predict": 7,
        "seed": 5,
        "stop": ["x"],
        "repeat_penalty": 1.5,
        "min_p": 0.1,
        "num_ctx": 4096,
        "num_gpu": 1,
        "typical_p": 1.0,
        "what": 1,
    }
    answer = await client.post("/api/chat", json=CHAT | {"options": options, "keep_alive": "5m", "odd": 1})
    assert answer.headers["x-roadtrain-ignored-fields"] == "odd, options.what"
    params = plane.generations[-1].request.sampling
    assert (params.temperature, params.max_tokens, params.seed, params.stop) == (0, 7, 5, ("x",))
    assert (params.repetition_penalty, params.min_p) == (1.5, 0.1)
    await client.post("/api/generate", json=PROMPT | {"raw": True, "options": {"num_predict": -1}})
    request = plane.generations[-1].request
    assert (request.prompt, request.sampling.max_tokens) == ("hi", None)
    await client.post("/api/generate", json=PROMPT | {"system": "Be brief."})
    messages = plane.generations[-1].request.prompt.messages
    assert [(message.role, message.content) for message in messages] == [("system", "Be brief."), ("user", "hi")]


async def test_a_history_with_calls(client: httpx.AsyncClient, plane: FakePlane) -> None:
    calls = [{"function": {"name": name, "arguments": {"city": "Paris"}}} for name in ("weather", "time")]
    messages = [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "tool", "tool_name": "weather", "content": "sun"},
    ]
    answer = await client.post("/api/chat", json=CHAT | {"messages": messages, "stream": False})
    assert answer.status_code == 200, answer.text
    seen = plane.generations[-1].request.prompt.messages
    ids = [call.id for call in seen[1].tool_calls]
    assert len(set(ids)) == 2
    assert [seen[2].tool_call_id, seen[3].tool_call_id] == [ids[1], ids[0]]
    assert json.loads(seen[1].tool_calls[0].arguments_json) == {"city": "Paris"}


async def test_asking_for_nothing_loads_the_model(client: httpx.AsyncClient, plane: FakePlane) -> None:
    before = len(plane.generations)
    (line,) = lines(await client.post("/api/chat", json={"model": "tiny"}))
    assert (line["done"], line["done_reason"]) == (True, "load")
    answer = await client.post("/api/generate", json={"model": "tiny", "keep_alive": 0, "stream": False})
    assert answer.json()["done_reason"] == "unload"
    assert len(plane.generations) == before


async def test_embeddings(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await client.post("/api/embed", json={"model": "tiny:latest", "input": ["a", "b"]})
    made = msgspec.json.decode(answer.content, type=shown.OllamaEmbedded)
    assert (made.model, len(made.embeddings)) == ("tiny:latest", 2)
    assert made.prompt_eval_count > 0
    expected = await client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]})
    assert made.embeddings == [one["embedding"] for one in expected.json()["data"]]
    assert (await client.post("/api/embed", json={"model": "tiny", "input": []})).json()["embeddings"] == []
    wrong = await client.post("/api/embed", json={"model": "tiny", "input": ["a", ""]})
    assert (wrong.status_code, "input[1]" in wrong.json()["error"]) == (400, True)
    wrong = await client.post("/api/embed", json={"model": "nobody", "input": "a"})
    assert wrong.status_code == 404


async def test_models(client: httpx.AsyncClient) -> None:
    models = msgspec.json.decode((await client.get("/api/tags")).content, type=shown.OllamaModels).models
    assert [model.name for model in models] == ["tiny", "org/alias", "default"]
    assert (await client.get("/api/ps")).json()["models"][0]["context_length"] == 100
    answer = await client.post("/api/show", json={"model": "tiny"})
    info = msgspec.json.decode(answer.content, type=shown.OllamaShown)
    assert info.model_info["roadtrain.context_length"] == 100
    assert info.template == "{{ messages }}"
    assert "version" in (await client.get("/api/version")).json()


REFUSED = [
    ("/api/chat", CHAT | {"model": "nobody"}, 404, "nobody"),
    ("/api/show", {"model": "nobody"}, 404, "nobody"),
    ("/api/chat", {"messages": []}, 400, "'model'"),
    ("/api/chat", CHAT | {"options": {"temperature": 3}}, 400, "'options.temperature'"),
    ("/api/chat", CHAT | {"options": {"stop": ["x"] * 5}}, 400, "'options.stop'"),
    ("/api/chat", CHAT | {"options": {"mirostat": 1}}, 400, "'options.mirostat'"),
    ("/api/chat", CHAT | {"options": {"seed": "x"}}, 400, "'options.seed'"),
    ("/api/chat", CHAT | {"messages": [{"role": "user", "content": "x", "images": ["eA=="]}]}, 400, "images"),
    ("/api/chat", CHAT | {"format": "yaml"}, 400, "'format'"),
    ("/api/generate", PROMPT | {"template": "{{ .Prompt }}"}, 400, "'template'"),
    ("/api/generate", PROMPT | {"suffix": "x"}, 400, "'suffix'"),
    ("/api/nothing", {}, 404, "/api/nothing"),
    ("/api/chat", CHAT | {"messages": [{"role": "user", "content": "refuse"}]}, 503, "No room"),
]


@pytest.mark.parametrize(("path", "body", "status", "said"), REFUSED)
async def test_errors_are_ollamas(client: httpx.AsyncClient, path: str, body: dict[str, Any], status: int, said: str) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert said in msgspec.json.decode(answer.content, type=shown.OllamaError).error


async def test_an_error_in_the_stream_is_its_last_line(client: httpx.AsyncClient) -> None:
    found = lines(await client.post("/api/chat", json=CHAT | {"messages": [{"role": "user", "content": "break"}]}))
    assert found[-1] == {"error": "broken on the way"}


async def test_an_idle_stream_holds_nothing_but_lines(client: httpx.AsyncClient, plane: FakePlane) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "hold"}]}
    async with client.stream("POST", "/api/chat", json=body) as answer:
        found = []
        async for line in answer.aiter_lines():
            found.append(json.loads(line))
            plane.generations[-1].go_on.set()
    assert found[-1]["done"]


async def test_whatever_is_sent_is_answered(client: httpx.AsyncClient) -> None:
    odd = (None, True, 0, -1, 1.5, "", "x", [], {}, 2**64, [None], {"x": None}, [[]])
    for path, good in (("/api/chat", CHAT), ("/api/generate", PROMPT)):
        body = OPERATIONS[f"POST {path}"].bodies[0]
        bodies = [good | {name: value} for name in body.__struct_fields__ for value in odd]
        bodies += [good | {"options": {name: value}} for name in Options.__struct_fields__ for value in odd]
        for one in bodies:
            answer = await client.post(path, json=one)
            assert answer.status_code in (200, 400, 404), one
            assert answer.status_code == 200 or answer.json()["error"]
