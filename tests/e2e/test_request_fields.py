"""Fields whose meaning only a real model, tokenizer and worker can keep: on SmolLM2, through every service."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.stack import Stack

PROMPT = "The capital of France is"


@pytest.fixture
def http(smollm2: Stack) -> httpx.Client:
    with httpx.Client(base_url=smollm2.url, timeout=60) as client:
        yield client


def complete(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/completions", json={"model": "default", "temperature": 0, "max_tokens": 4, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids_of(http: httpx.Client, text: str, **fields: Any) -> list[int]:
    return http.post("/tokenize", json={"prompt": text, **fields}).json()["tokens"]


def test_texts_and_tokens_there_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "Größe 日本 🎉", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] > 1000
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "Größe 日本 🎉"}
    info = http.get("/tokenizer_info").json()
    # As lm-eval's remote tokenizer does it: the end's id, and a chat rendered by the client itself.
    (eos,) = ids_of(http, info["eos_token"], add_special_tokens=False)
    assert http.post("/detokenize", json={"tokens": [eos]}).json()["prompt"] == info["eos_token"]
    assert "<|im_start|>" in info["chat_template"]
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "<|im_end|>"}]}).json()["tokens"]
    rendered = http.post("/detokenize", json={"tokens": chat}).json()["prompt"]
    # What the user wrote stayed text: read again as a prompt it becomes one token less or more.
    assert rendered.endswith("<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n")
    assert len(chat) > len(ids_of(http, rendered))
    assert http.post("/detokenize", json={"tokens": [10**6]}).json()["error"]["code"] == "invalid_token_id"


def test_a_prompt_alone_is_given_back_with_its_log_probabilities(http: httpx.Client) -> None:
    whole = complete(http, prompt=PROMPT, echo=True, logprobs=1, max_tokens=0)
    (choice,) = whole["choices"]
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert whole["usage"]["completion_tokens"] == 0
    with_output = complete(http, prompt=PROMPT, echo=True, logprobs=1, max_tokens=1)["choices"][0]
    for name, entries in choice["logprobs"].items():
        assert entries == with_output["logprobs"][name][:-1], name
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["top_logprobs"][0] is None
    events = http.post(
        "/v1/completions",
        json={"model": "default", "prompt": [PROMPT, "Paris"], "echo": True, "max_tokens": 0, "stream": True, "n": 2},
    ).text
    texts = dict.fromkeys(range(4), "")
    for line in events.splitlines():
        if line.startswith("data: {"):
            for piece in json.loads(line[6:])["choices"]:
                texts[piece["index"]] += piece["text"]
    assert texts == {0: PROMPT, 1: PROMPT, 2: "Paris", 3: "Paris"}


def test_the_best_of_many(http: httpx.Client) -> None:
    fields: dict[str, Any] = {"prompt": PROMPT, "temperature": 1.5, "seed": 11, "max_tokens": 8}
    drawn = complete(http, **fields, n=6, logprobs=0)["choices"]

    def mean(choice: dict[str, Any]) -> float:
        found = choice["logprobs"]["token_logprobs"]
        return sum(found) / len(found)

    expected = [choice["text"] for choice in sorted(drawn, key=mean, reverse=True)[:2]]
    best = complete(http, **fields, n=2, best_of=6)
    assert [choice["text"] for choice in best["choices"]] == expected
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["choices"][0]["logprobs"] is None
    assert best["usage"]["completion_tokens"] == sum(len(choice["logprobs"]["tokens"]) for choice in drawn)


def test_a_prompt_is_cut_only_where_it_is_asked_for(http: httpx.Client) -> None:
    ids = ids_of(http, PROMPT)
    cut = complete(http, prompt=PROMPT, truncate_prompt_tokens=3, return_token_ids=True)
    assert cut["choices"][0]["prompt_token_ids"] == ids[-3:]
    assert cut["choices"][0]["text"] == complete(http, prompt=ids[-3:])["choices"][0]["text"]
    long = ids * 3000
    most = http.post("/tokenize", json={"prompt": "x"}).json()["max_model_len"]
    refused = http.post("/v1/completions", json={"model": "default", "prompt": long})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    refused = http.post("/v1/completions", json={"model": "default", "prompt": "x", "truncate_prompt_tokens": most + 1})
    assert refused.json()["error"]["param"] == "truncate_prompt_tokens"


def test_token_ids_are_those_of_the_text(http: httpx.Client) -> None:
    choice = complete(http, prompt=PROMPT, return_token_ids=True, logprobs=1, return_tokens_as_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == ids_of(http, PROMPT)
    assert http.post("/detokenize", json={"tokens": choice["token_ids"]}).json()["prompt"] == choice["text"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in choice["token_ids"]]
    body = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 5}
    whole = http.post("/v1/chat/completions", json=body | {"return_token_ids": True}).json()
    assert whole["prompt_token_ids"] == http.post("/tokenize", json={"messages": body["messages"]}).json()["tokens"]
    streamed = http.post("/v1/chat/completions", json=body | {"return_token_ids": True, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    ids = [token_id for chunk in chunks for token_id in chunk["choices"][0].get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    assert [chunk["prompt_token_ids"] for chunk in chunks if "prompt_token_ids" in chunk] == [whole["prompt_token_ids"]]


def test_what_stopped_it_is_said(http: httpx.Client) -> None:
    free = complete(http, prompt=PROMPT, max_tokens=12, return_token_ids=True)["choices"][0]
    assert (free["finish_reason"], free["stop_reason"]) == ("length", None)
    third = free["token_ids"][2]
    by_id = complete(http, prompt=PROMPT, max_tokens=12, stop_token_ids=[third])["choices"][0]
    assert (by_id["finish_reason"], by_id["stop_reason"]) == ("stop", third)
    by_text = complete(http, prompt=PROMPT, max_tokens=12, stop=free["text"][8:12])["choices"][0]
    assert by_text["stop_reason"] == free["text"][8:12]


def test_usage_goes_along_where_it_is_asked_for(smollm2: Stack) -> None:
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none") as client:
        stream = client.completions.create(
            model="default",
            prompt=PROMPT,
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": True},
            extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True}},
        )
        chunks = list(stream)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert all("obfuscation" in chunk.model_extra for chunk in chunks[:-1])
