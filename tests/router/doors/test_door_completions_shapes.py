"""Completions: prompts of every kind, numbering of choices, echo, log-probabilities, streams."""

import json

import httpx
import pytest

from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")
URL = "/v1/completions"
TEXT = "Hello wörld!"


async def whole(client: httpx.AsyncClient, **fields: object) -> dict[str, object]:
    answer = await client.post(URL, json={"model": "tiny", "prompt": "hi", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def streamed(client: httpx.AsyncClient, **fields: object) -> list[dict[str, object]]:
    answer = await client.post(URL, json={"model": "tiny", "prompt": "hi", "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_whole_answer(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await whole(client)
    assert answer["id"] == f"cmpl-{plane.generations[-1].rid}"
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop", "stop_reason": None}]
    assert answer["usage"]["total_tokens"] == 7
    assert plane.generations[-1].request.sampling.max_tokens == 16


async def test_stream(client: httpx.AsyncClient, plane: FakePlane) -> None:
    chunks = await streamed(client, stream_options={"include_usage": True})
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert [choice["text"] for choice in choices] == ["Hello", " wörld", "!", ""]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("one", ["one"]),
        (["one"], ["one"]),
        (["one", "two"], ["one", "two"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
async def test_prompts_of_every_kind(client: httpx.AsyncClient, plane: FakePlane, prompt: object, seen: list[object]) -> None:
    before = len(plane.generations)
    answer = await whole(client, prompt=prompt, n=2)
    assert [generation.request.prompt for generation in plane.generations[before:]] == seen
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(seen)))
    chunks = await streamed(client, prompt=prompt, n=2)
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]]
    assert sorted(ends) == list(range(2 * len(seen)))


async def test_usage_of_many_prompts_is_their_sum(client: httpx.AsyncClient) -> None:
    answer = await whole(client, prompt=[[1, 2, 3], [4]])
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 10


async def test_one_failing_prompt_fails_and_ends_all(client: httpx.AsyncClient, plane: FakePlane) -> None:
    for prompts, status in ((["slow", "refuse"], 503), (["slow", "break"], 500)):
        before = len(plane.generations)
        answer = await client.post(URL, json={"model": "tiny", "prompt": prompts})
        assert answer.status_code == status
        assert all(generation.cancelled for generation in plane.generations[before:])


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs(client: httpx.AsyncClient, stream: bool) -> None:
    if stream:
        pieces = [chunk["choices"][0] for chunk in await streamed(client, echo=True, logprobs=1)]
        text = "".join(piece["text"] for piece in pieces)
        found = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
        logprobs = {name: [entry for piece in found for entry in piece[name]] for name in found[0]}
    else:
        choice = (await whole(client, echo=True, logprobs=1))["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text == "The prompt" + TEXT
    assert logprobs["tokens"] == ["The", " prompt", "Hello", "bytes:\\x20\\x77\\xc3", "bytes:\\xb6\\x72\\x6c\\x64", "!"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5, -0.5]
    assert logprobs["top_logprobs"][:3] == [None, {"Hello": -0.5, " prompt": -0.5}, {"Hello": -0.5}]
    # The third output token begins inside the character that the second one began.
    assert logprobs["text_offset"] == [0, 3, 10, 15, 17, 21]


async def test_logprobs_without_echo_begin_at_the_output(client: httpx.AsyncClient) -> None:
    logprobs = (await whole(client, logprobs=0))["choices"][0]["logprobs"]
    assert logprobs["tokens"][0] == "Hello"
    assert logprobs["top_logprobs"][0] == {"Hello": -0.5}
    assert logprobs["text_offset"][0] == 0


async def test_prompt_logprobs_stand_in_each_choice(client: httpx.AsyncClient) -> None:
    answer = await whole(client, prompt=[[5, 6], [5, 5, 6]], n=2, prompt_logprobs=0)
    assert [len(choice["prompt_logprobs"]) for choice in answer["choices"]] == [2, 2, 3, 3]


async def test_events_of_one_prompt_have_ids(client: httpx.AsyncClient) -> None:
    for prompt, has_ids in (("one", True), (["one", "two"], False)):
        answer = await client.post(URL, json={"model": "tiny", "prompt": prompt, "stream": True})
        assert ("\nid: " in answer.text) == has_ids
