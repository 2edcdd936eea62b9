"""/tokenize, /detokenize and /tokenizer_info: vLLM's shapes, and bounds on what they are given."""

import httpx
import pytest

from services.router.endpoints.tokenize import MAX_CHARS, MAX_IDS
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_text(client: httpx.AsyncClient, plane: FakePlane) -> None:
    answer = await client.post("/tokenize", json={"prompt": "Hello ! x"})
    assert answer.json() == {"count": 3, "max_model_len": 100, "tokens": [0, 3, 7], "token_strs": None}
    (text,) = plane.texts.asked.texts
    assert (text.HasField("add_special_tokens"), text.read_special_tokens) == (False, True)
    answer = await client.post("/tokenize", json={"prompt": "!", "add_special_tokens": False, "return_token_strs": True})
    assert answer.json()["token_strs"] == ["t3"]
    assert plane.texts.asked.texts[0].add_special_tokens is False


async def test_chat(client: httpx.AsyncClient, plane: FakePlane) -> None:
    messages = [{"role": "user", "content": "Hello !"}]
    answer = await client.post(
        "/tokenize", json={"model": "tiny", "messages": messages, "add_generation_prompt": False, "foo": 1}
    )
    assert answer.json()["tokens"] == [0, 3]
    assert answer.headers["x-roadtrain-ignored-fields"] == "foo"
    assert plane.texts.asked.chat.add_generation_prompt is False


async def test_there_and_back(client: httpx.AsyncClient) -> None:
    answer = await client.post("/detokenize", json={"tokens": [0, 1, 2, 3, 4]})
    assert answer.json() == {"prompt": "Hello wörld!<eos>"}
    answer = await client.get("/tokenizer_info")
    info = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 100, "vocab_size": 7}
    assert answer.json() == info | {"chat_template": "{{ messages }}", "eos_token": "<eos>", "unk_token": "<unk>"}


REFUSED = [
    ("/tokenize", {}, "prompt", "missing_required_parameter"),
    ("/tokenize", {"prompt": ["a"]}, "prompt", "invalid_type"),
    ("/tokenize", {"prompt": "x" * (MAX_CHARS + 1)}, "prompt", "string_above_max_length"),
    ("/tokenize", {"prompt": "x " * (MAX_IDS + 1), "return_token_strs": True}, "return_token_strs", "array_above_max_length"),
    ("/tokenize", {"model": "nobody", "prompt": "x"}, "model", "model_not_found"),
    ("/tokenize", {"messages": []}, "messages", "empty_array"),
    ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ("/tokenize", {"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ x }}"}, "chat_template", None),
    ("/detokenize", {}, "tokens", "missing_required_parameter"),
    ("/detokenize", {"tokens": "x"}, "tokens", "invalid_type"),
    ("/detokenize", {"tokens": [True]}, "tokens[0]", "invalid_type"),
    ("/detokenize", {"tokens": [-1]}, "tokens", "invalid_token_id"),
    ("/detokenize", {"tokens": [2**64]}, "tokens", "invalid_token_id"),
    ("/detokenize", {"tokens": [0] * (MAX_IDS + 1)}, "tokens", "array_above_max_length"),
]


@pytest.mark.parametrize(("path", "body", "param", "code"), REFUSED)
async def test_refusals(client: httpx.AsyncClient, path: str, body: dict[str, object], param: str, code: str | None) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code or "unsupported_parameter")
