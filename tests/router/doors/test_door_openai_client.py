"""openai-python, unchanged, against the doors: streams, whole answers, and every error as the class it expects."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from services.router.server import Doors
from tests.router.doors.fake_plane import FakePlane

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sdk(doors: Doors) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{doors.port}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


async def test_chat(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in answer.choices] == ["Hello wörld!"] * 2
    assert answer.choices[1].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    assert answer.usage.prompt_tokens_details.cached_tokens == 1


async def test_chat_streamed(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(
        model="default", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello wörld!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.total_tokens == 7
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_the_stream_helper_gathers_the_same(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello wörld!"


async def test_completions(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.completions.create(model="tiny", prompt=["a", "b"], logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["The promptHello wörld!"] * 2
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    stream = await sdk.completions.create(model="tiny", prompt=[1, 2], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello wörld!"


async def test_errors_are_the_classes_the_sdk_has(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="nobody", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        await sdk.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.InternalServerError) as busy:
        await sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "refuse"}])
    assert busy.value.status_code == 503
    stream = await sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "break"}], stream=True)
    with pytest.raises(openai.APIError, match="broken on the way"):
        _ = [chunk async for chunk in stream]


async def test_closing_a_stream_ends_its_request(sdk: openai.AsyncOpenAI, plane: FakePlane) -> None:
    stream = await sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hold"}], stream=True)
    await anext(aiter(stream))
    await stream.close()
    await plane.generations[-1].over.wait()
    assert plane.generations[-1].cancelled == ["disconnect"]


async def test_models(sdk: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in sdk.models.list()] == ["tiny", "org/alias", "default"]
    model = await sdk.models.retrieve("org/alias")
    assert (model.id, model.created, model.owned_by) == ("org/alias", 1_600_000_000, "roadtrain")
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("org/nobody")
