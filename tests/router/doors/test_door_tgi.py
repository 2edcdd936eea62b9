"""TGI's endpoints over a fake plane: whole answers with details, tokens one by one, what its words become, its errors."""

import json
from typing import Any

import httpx
import msgspec
import pytest

from services.router.tgi import TgiAnswer, TgiError, TgiEvent, TgiParameters
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXT = "Hello wörld!"


def asked(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "hi", "parameters": parameters}


async def test_a_whole_answer(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await client.post("/generate", json={"inputs": "hi"})
    assert answer.json() == {"generated_text": TEXT}
    params = plane.generations[-1].request.sampling
    assert (params.temperature, params.max_tokens) == (0.0, 100)
    assert (await client.post("/", json={"inputs": "hi"})).json() == [{"generated_text": TEXT}]
    full = await client.post("/generate", json=asked(return_full_text=True))
    assert full.json()["generated_text"] == "hi" + TEXT


async def test_details(client: httpx.AsyncClient) -> None:
    body = asked(details=True, decoder_input_details=True, top_n_tokens=2, best_of=2, do_sample=True, seed=3)
    whole = msgspec.json.decode((await client.post("/generate", json=body)).content, type=TgiAnswer)
    details = whole.details
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("eos_token", 4, 3)
    assert [(token.id, token.logprob) for token in details.prefill] == [(5, None), (6, -0.5)]
    assert "".join(token.text for token in details.tokens) == TEXT
    assert [len(top) for top in details.top_tokens] == [2, 2, 2, 2]
    assert [one.generated_text for one in details.best_of_sequences] == [TEXT]


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
async def test_a_stream(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json=asked(top_n_tokens=1) | {"stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [msgspec.json.decode(line[5:], type=TgiEvent) for line in answer.text.splitlines() if line.startswith("data:")]
    assert "".join(event.token.text for event in events) == TEXT
    assert [event.index for event in events] == [1, 2, 3, 4, 4]
    assert all(event.generated_text is None for event in events[:-1])
    assert events[-1].generated_text == TEXT
    assert (events[-1].details.finish_reason, events[-1].details.input_length) == ("eos_token", 2)
    assert "[DONE]" not in answer.text


async def test_parameters_become_sampling(client: httpx.AsyncClient, plane: FakePlane) -> None:
    body = asked(top_p=0.5, top_k=3, seed=1, stop=["x"], truncate=4, max_new_tokens=9, repetition_penalty=1.2, odd=1)
    answer = await client.post("/generate", json=body)
    assert answer.headers["x-roadtrain-ignored-fields"] == "parameters.odd"
    request = plane.generations[-1].request
    params = request.sampling
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.stop) == (1.0, 0.5, 3, 1, ("x",))
    assert (params.max_tokens, params.repetition_penalty, request.truncate_prompt_tokens) == (9, 1.2, 4)


REFUSED = [
    ({}, 422, "'inputs'"),
    ({"inputs": ""}, 422, "'inputs'"),
    (asked(max_new_tokens=0), 422, "'parameters.max_new_tokens'"),
    (asked(temperature=3.0), 422, "'parameters.temperature'"),
    (asked(top_n_tokens=21), 422, "'parameters.top_n_tokens'"),
    (asked(typical_p=0.5), 422, "'parameters.typical_p'"),
    (asked(watermark=True), 422, "'parameters.watermark'"),
    (asked(stop="x"), 422, "'parameters.stop'"),
    ({"inputs": "refuse"}, 429, "No room"),
    ({"inputs": "break at once"}, 424, "broken"),
]


@pytest.mark.parametrize(("body", "status", "said"), REFUSED)
async def test_errors_are_tgis(client: httpx.AsyncClient, body: dict[str, Any], status: int, said: str) -> None:
    for path in ("/generate", "/generate_stream"):
        answer = await client.post(path, json=body)
        assert answer.status_code == status, answer.text
        error = msgspec.json.decode(answer.content, type=TgiError)
        assert said in error.error
        assert error.error_type == {422: "validation", 429: "overloaded", 424: "generation"}[status]


async def test_an_error_in_the_stream_is_its_last_event(client: httpx.AsyncClient) -> None:
    answer = await client.post("/generate_stream", json={"inputs": "break"})
    last = answer.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data:")) == {"error": "broken on the way", "error_type": "generation"}


async def test_info_says_the_limits(client: httpx.AsyncClient) -> None:
    info = (await client.get("/info")).json()
    assert (info["model_id"], info["max_total_tokens"], info["max_input_tokens"]) == ("tiny", 100, 99)


async def test_whatever_is_sent_is_answered(client: httpx.AsyncClient) -> None:
    odd = (None, True, 0, -1, 1.5, "", "x", [], {}, 2**64, [None], {"x": None}, [[]])
    bodies = [asked(**{name: value}) for name in TgiParameters.__struct_fields__ for value in odd]
    bodies += [{"inputs": "hi", name: value} for name in ("inputs", "parameters", "stream") for value in odd]
    for body in bodies:
        for path in ("/generate", "/"):
            answer = await client.post(path, json=body)
            assert answer.status_code in (200, 422), body
