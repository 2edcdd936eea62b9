"""/v1/responses through openai's own client: turns, streams, what is kept, and what goes on when routers and workers die."""

import asyncio
import os
import signal

import openai
import pytest
from openai.types.responses import Response

from tests.stack import Stack

QUESTION = "What is the capital of France?"


@pytest.fixture
async def client(smollm2: Stack):
    async with openai.AsyncOpenAI(base_url=f"{smollm2.url}/v1", api_key="none") as client:
        yield client


@pytest.fixture
async def many(two_by_two: Stack):
    async with openai.AsyncOpenAI(base_url=f"{two_by_two.url}/v1", api_key="none", max_retries=10) as client:
        yield client


async def ended(client: openai.AsyncOpenAI, response_id: str) -> Response:
    async with asyncio.timeout(90):
        while (response := await client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
            await asyncio.sleep(0.1)
    return response


async def test_a_conversation_is_kept_and_gone_on_with(client):
    asked = {"model": "default", "temperature": 0, "max_output_tokens": 120}
    first = await client.responses.create(input=QUESTION, **asked)
    assert first.status == "completed"
    assert "Paris" in first.output_text
    assert (await client.responses.retrieve(first.id)).output_text == first.output_text
    second = await client.responses.create(input="And of Italy?", previous_response_id=first.id, **asked)
    said = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Italy?"},
    ]
    chat = await client.chat.completions.create(model="default", messages=said, temperature=0, max_tokens=120)
    assert second.output_text == chat.choices[0].message.content
    assert second.usage.input_tokens == chat.usage.prompt_tokens
    items = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
    assert [item.role for item in items] == ["user", "assistant", "user"]
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="There is no response"):
        await client.responses.create(input="?", previous_response_id=first.id, **asked)


async def test_instructions_are_a_system_message(client):
    response = await client.responses.create(
        model="default", input=QUESTION, instructions="Answer in French.", temperature=0, max_output_tokens=20
    )
    said = [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": QUESTION}]
    chat = await client.chat.completions.create(model="default", messages=said, temperature=0, max_tokens=20)
    assert response.output_text == chat.choices[0].message.content


async def test_what_is_not_stored_cannot_be_fetched(client):
    response = await client.responses.create(model="default", input=QUESTION, store=False, max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)


async def test_events_tell_the_whole_response_in_order(client):
    kinds, numbers, text = [], [], ""
    async with client.responses.stream(model="default", input=QUESTION, temperature=0, max_output_tokens=40) as stream:
        async for event in stream:
            kinds.append(event.type)
            numbers.append(event.sequence_number)
            text += event.delta if event.type == "response.output_text.delta" else ""
        final = await stream.get_final_response()
    assert numbers == list(range(len(numbers)))
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    ends = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds[-4:] == [f"response.{name}" for name in ends]
    assert text == final.output_text
    assert final.usage.output_tokens == kinds.count("response.output_text.delta") + 1, "each token but the last shows itself"
    assert (await client.responses.retrieve(final.id)).output_text == text


async def test_logprobs_stand_with_the_text(client):
    response = await client.responses.create(
        model="default", input=QUESTION, max_output_tokens=5, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    entries = response.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == response.output_text
    assert all(len(entry.top_logprobs) == 2 for entry in entries)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "message", "role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"temperature": 9}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**7}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "poem"}}}, "text.format"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True, "store": False}, "background"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
async def test_bad_input_is_named(client, body, param):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.post("/responses", body={"model": "default", "input": "x"} | body, cast_to=object)
    assert (refused.value.param or "").startswith(param)


async def test_in_the_background_it_ends_by_itself(many):
    asked = {"model": "default", "input": "go", "max_output_tokens": 50, "extra_body": {"seed": 7}}
    response = await many.responses.create(**asked, background=True)
    assert response.status == "queued"
    done = await ended(many, response.id)
    assert done.output_text == (await many.responses.create(**asked)).output_text != ""


async def test_in_the_background_it_outlives_its_router_and_its_worker(two_by_two: Stack, many):
    asked = {"model": "default", "input": "go", "max_output_tokens": 1500, "extra_body": {"seed": 8}}
    expected = (await many.responses.create(**asked)).output_text
    begun = [await many.responses.create(**asked, background=True) for _ in range(6)]
    for name in ("router-0", "router-1", "worker-0"):
        os.kill(two_by_two.children()[name], signal.SIGKILL)
        async with asyncio.timeout(60):
            while name not in two_by_two.children():
                await asyncio.sleep(0.1)
    for response in begun:
        done = await ended(many, response.id)
        assert done.output_text == expected
        assert done.usage.output_tokens == 1500


async def test_a_stream_is_told_again_after_the_last_event_seen(two_by_two: Stack, many):
    asked = {"model": "default", "input": "go", "max_output_tokens": 400, "extra_body": {"seed": 9}}
    expected = (await many.responses.create(**asked)).output_text
    seen = []
    stream = await many.responses.create(**asked, background=True, stream=True)
    async for event in stream:
        seen.append(event)
        if len(seen) == 60:
            break
    await stream.close()
    response_id = seen[0].response.id
    os.kill(two_by_two.children()["router-0"], signal.SIGKILL)
    os.kill(two_by_two.children()["router-1"], signal.SIGKILL)
    async for event in await many.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number):
        seen.append(event)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].type == "response.incomplete"
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == seen[-1].response.output_text == expected


async def test_in_the_background_it_can_be_cancelled(many):
    response = await many.responses.create(model="default", input="go", max_output_tokens=4000, background=True)
    assert (await many.responses.cancel(response.id)).status == "cancelled"
    assert (await many.responses.cancel(response.id)).status == "cancelled"
    await asyncio.sleep(0.5)
    assert (await many.responses.retrieve(response.id)).status == "cancelled"
    kept = await many.responses.create(model="default", input="go", max_output_tokens=2)
    with pytest.raises(openai.BadRequestError, match="background"):
        await many.responses.cancel(kept.id)
