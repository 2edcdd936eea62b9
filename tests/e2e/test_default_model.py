"""What a new user does first: ask the default model a question, over every door."""

import json
import shutil
import subprocess
from collections.abc import Iterator

import grpc
import openai
import pytest

from shared.pb import router_pb2, router_pb2_grpc, tokenizer_pb2, types_pb2
from tests.stack import ROOT, Stack, roadtrain

QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def api(smollm2: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_curl(smollm2: Stack) -> None:
    body = json.dumps({"model": "default", "messages": MESSAGES, "temperature": 0, "max_tokens": 32})
    command = ["curl", "-sS", f"{smollm2.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_openai_streamed_and_not_are_one_answer(api: openai.OpenAI) -> None:
    whole = api.chat.completions.create(model="default", messages=MESSAGES, temperature=0, max_tokens=32)
    chunks = list(
        api.chat.completions.create(
            model="default", messages=MESSAGES, temperature=0, max_tokens=32, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_grpc(smollm2: Stack) -> None:
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content=QUESTION)])
    options = router_pb2.Options(sampling=types_pb2.Sampling(temperature=0, max_tokens=32))
    with grpc.insecure_channel(smollm2.grpc_address) as channel:
        router = router_pb2_grpc.RouterStub(channel)
        events = list(router.Chat(router_pb2.ChatRequest(model="default", chat=chat, options=options), timeout=60))
        models = [model.id for model in router.ListModels(router_pb2.ListModelsRequest(), timeout=10).models]
    assert "Paris" in "".join(event.delta.text for event in events)
    assert events[0].WhichOneof("event") == "begun"
    assert events[-1].WhichOneof("event") == "usage"
    assert events[-2].finished.reason == types_pb2.FINISH_REASON_STOP
    assert models[0] == "SmolLM2-135M-Instruct"


def test_every_name_is_the_one_model(api: openai.OpenAI) -> None:
    ids = [model.id for model in api.models.list()]
    assert ids[0] == "SmolLM2-135M-Instruct"
    for name in (ids[0], "default"):
        api.completions.create(model=name, prompt="Paris is", max_tokens=1)
    with_slash = api.models.retrieve(ids[0])
    assert with_slash.id == ids[0]


def test_chat_command(smollm2: Stack) -> None:
    command = roadtrain("chat", smollm2.url)
    done = subprocess.run(command, input=QUESTION + "\n/bye\n", text=True, capture_output=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout or "France" in done.stdout


def test_a_prompt_too_long_is_refused_with_the_numbers(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.completions.create(model="default", prompt=[5] * 9000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert "9000" in caught.value.message
    assert "8192" in caught.value.message
