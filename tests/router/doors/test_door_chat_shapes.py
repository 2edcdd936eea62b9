"""Chat answers, byte for byte where OpenAI's clients look: streams, whole answers, log-probabilities, errors in a stream."""

import json

import httpx
import msgspec
import pytest

from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")
URL = "/v1/chat/completions"
FINGERPRINT = "fp_44863b03e9"


USAGE = {
    "prompt_tokens": 2,
    "completion_tokens": 5,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0, "image_tokens": 0, "text_tokens": 2},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "text_tokens": 5,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def ask(text: str = "hi", **fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}


def chunks(text: str) -> list[dict[str, object]]:
    """The JSON of every data line but [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_stream_byte_for_byte(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await client.post(URL, json=ask(stream=True, stream_options={"include_usage": True}))
    rid = plane.generations[-1].rid
    head = (
        f'"id":"chatcmpl-{rid}","object":"chat.completion.chunk","created":1700000000,"model":"tiny",'
        f'"system_fingerprint":"{FINGERPRINT}",'
    )

    def event(count: int, delta: str, reason: str = "null") -> str:
        choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}'
        return f'id: {rid}:{count}:00000000\ndata: {{{head}"choices":[{choice}],"usage":null}}\n\n'

    usage = msgspec.json.encode(USAGE).decode()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.text == (
        event(0, '{"role":"assistant","content":"","refusal":null}')
        + event(1, '{"content":"Hello"}')
        + event(3, '{"content":" wörld"}')
        + event(4, '{"content":"!"}')
        + event(5, "{}", '"stop","stop_reason":null')
        + f'data: {{{head}"choices":[],"usage":{usage}}}\n\n'
        + "data: [DONE]\n\n"
    )


async def test_without_usage_no_chunk_speaks_of_it(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=ask(stream=True))
    assert "usage" not in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_whole_answer(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await client.post(URL, json=ask())
    assert answer.json() == {
        "id": f"chatcmpl-{plane.generations[-1].rid}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "system_fingerprint": FINGERPRINT,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello wörld!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": USAGE,
    }


async def test_choices_are_apart(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=ask(n=3, stream=True))
    roles: list[int] = []
    texts = {0: "", 1: "", 2: ""}
    for chunk in chunks(answer.text):
        choice = chunk["choices"][0]
        if "role" in choice["delta"]:
            roles.append(choice["index"])
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert roles == [0, 1, 2]
    assert set(texts.values()) == {"Hello wörld!"}
    whole = await client.post(URL, json=ask(n=3))
    assert [choice["index"] for choice in whole.json()["choices"]] == [0, 1, 2]


@pytest.mark.parametrize("streamed", [False, True])
async def test_logprobs(client: httpx.AsyncClient, streamed: bool) -> None:
    answer = await client.post(URL, json=ask(logprobs=True, top_logprobs=1, stream=streamed))
    if streamed:
        found = [chunk["choices"][0]["logprobs"] for chunk in chunks(answer.text)]
        content = [entry for logprobs in found if logprobs for entry in logprobs["content"]]
    else:
        content = answer.json()["choices"][0]["logprobs"]["content"]
    hello = {"token": "Hello", "logprob": -0.5, "bytes": list(b"Hello")}
    assert content[0] == hello | {"top_logprobs": [hello]}
    assert content[1]["token"] == " w\N{REPLACEMENT CHARACTER}"
    assert content[1]["bytes"] == [32, 119, 195]
    assert [entry["token"] for entry in content] == ["Hello", " w\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}rld", "!"]


async def test_logprobs_without_alternatives(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=ask(logprobs=True))
    assert all(entry["top_logprobs"] == [] for entry in answer.json()["choices"][0]["logprobs"]["content"])


async def test_prompt_logprobs_as_vllm_has_them(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=ask(prompt_logprobs=0))
    assert answer.json()["prompt_logprobs"] == [None, {"6": {"logprob": -0.5, "rank": None, "decoded_token": " prompt"}}]


async def test_an_error_in_the_stream_ends_it_without_done(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await client.post(URL, json=ask("break", stream=True))
    assert answer.status_code == 200
    last = chunks(answer.text)[-1]
    expected = {"message": "broken on the way", "type": "server_error", "param": None, "code": "internal_error"}
    assert last == {"error": expected}
    assert "[DONE]" not in answer.text
    assert plane.generations[-1].cancelled == ["disconnect"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_error_before_the_first_text_is_a_status(client: httpx.AsyncClient, streamed: bool) -> None:
    answer = await client.post(URL, json=ask("break at once", stream=streamed))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "broken before the first text"


async def test_refused_at_the_start(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=ask("refuse", stream=True))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["retry-after-ms"] == "1500"
    assert answer.headers["x-should-retry"] == "true"


async def test_our_own_faults_say_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=ask("crash"))
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "ZeroDivision" not in answer.text


async def test_an_idle_stream_is_kept_alive(client: httpx.AsyncClient, plane: FakePlane) -> None:
    async with client.stream("POST", URL, json=ask("hold", stream=True)) as answer:
        async for line in answer.aiter_lines():
            if line == ": keep-alive":
                plane.generations[-1].go_on.set()
            if line == "data: [DONE]":
                break
        else:
            raise AssertionError("no [DONE]")
