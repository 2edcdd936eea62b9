"""Other servers' own clients, unchanged, against the real model: Ollama's, and huggingface_hub's for TGI."""

from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

from tests.stack import Stack

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 12, "top_k": 0, "top_p": 1.0}
PROMPT = "The capital of France is"


@pytest.fixture
def client(smollm2: Stack) -> Iterator[ollama.Client]:
    with ollama.Client(smollm2.url) as client:
        yield client


@pytest.fixture
def hub(smollm2: Stack) -> Iterator[InferenceClient]:
    with InferenceClient(model=smollm2.url) as client:
        yield client


def openai_text(url: str, path: str, **body: object) -> str:
    choice = openai_answer(url, path, **body)["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def openai_answer(url: str, path: str, **body: object) -> dict[str, Any]:
    return httpx.post(url + path, json={"model": "default", "temperature": 0, "max_tokens": 12, **body}, timeout=60).json()


def test_ollama_answers_what_openai_does(smollm2: Stack, client: ollama.Client) -> None:
    answer = openai_answer(smollm2.url, "/v1/chat/completions", messages=MESSAGES)
    expected = answer["choices"][0]["message"]["content"]
    whole = client.chat("default", MESSAGES, options=GREEDY)
    assert whole.message.content == expected
    assert (whole.done_reason, whole.eval_count) == (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"])
    assert whole.total_duration > whole.eval_duration > 0
    pieces = list(client.chat("default:latest", MESSAGES, options=GREEDY, stream=True, logprobs=True))
    assert "".join(piece.message.content for piece in pieces) == expected
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert "".join(entry.token for piece in pieces for entry in piece.logprobs or ()).removesuffix("<|im_end|>") == expected
    raw = client.generate("default", PROMPT, raw=True, options=GREEDY)
    assert raw.response == openai_text(smollm2.url, "/v1/completions", prompt=PROMPT)
    templated = client.generate("default", MESSAGES[0]["content"], options=GREEDY)
    assert templated.response == expected


def test_ollama_models_and_errors(client: ollama.Client) -> None:
    models = client.list().models
    assert "default" in [model.model for model in models]
    assert client.ps().models[0].context_length > 1000
    assert client.show("default").modelinfo["roadtrain.context_length"] > 1000
    with pytest.raises(ollama.ResponseError, match="does not exist") as missing:
        client.chat("nobody", MESSAGES)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature"):
        list(client.chat("default", MESSAGES, options={"temperature": 5}, stream=True))


def test_tgi_answers_what_openai_does(smollm2: Stack, hub: InferenceClient) -> None:
    expected = openai_text(smollm2.url, "/v1/completions", prompt=PROMPT)
    assert hub.text_generation(PROMPT, max_new_tokens=12) == expected
    assert "".join(hub.text_generation(PROMPT, max_new_tokens=12, stream=True)) == expected
    whole = hub.text_generation(PROMPT, max_new_tokens=12, details=True, decoder_input_details=True, top_n_tokens=2)
    details = whole.details
    assert (details.finish_reason, details.generated_tokens, len(details.tokens)) == ("length", 12, 12)
    assert "".join(token.text for token in details.tokens) == expected
    # The client leaves these as they came.
    assert all(top[0]["id"] == token.id for top, token in zip(details.top_tokens, details.tokens, strict=True))
    assert [token.text for token in details.prefill] == ["The", " capital", " of", " France", " is"]
    events = list(hub.text_generation(PROMPT, max_new_tokens=12, details=True, stream=True))
    assert [event.token.id for event in events] == [token.id for token in details.tokens]
    assert events[-1].generated_text == expected
    assert events[-1].details.generated_tokens == 12
    stopped = hub.text_generation(PROMPT, max_new_tokens=12, details=True, stop=[expected[10:13]])
    assert stopped.details.finish_reason == "stop_sequence"
    with pytest.raises(ValidationError, match=r"parameters\.top_k"):
        hub.text_generation(PROMPT, top_k=-5)
