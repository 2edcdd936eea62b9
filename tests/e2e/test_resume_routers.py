"""A router dies with its clients' connections: they come back to another one and get the rest, token for token."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis

from services.worker.sim import SimSpec, expected_tokens
from shared.pb import router_pb2, router_pb2_grpc, types_pb2
from shared.sampling import SamplingParams
from tests import stack
from tests.e2e.sse_client import Seen, read, read_through
from tests.router.plane.rig import text_of

SPEC = SimSpec(vocab_size=49152)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Stack]:
    """Two routers behind one port, one worker, slow enough to be met in the middle."""
    flags = ("--num-routers", "2", "--runner", "sim", "--worker.sim-step-ms", "15", "--router.max-queued-requests", "40")
    running = stack.start(tmp_path_factory.mktemp("resume"), *flags, "--max-num-seqs", "48")
    yield running
    assert running.stop() == 0, running.log.read_text()[-3000:]


def client_of(system: stack.Stack) -> httpx.AsyncClient:
    """A connection of its own each time, so that the kernel chooses the router anew."""
    return httpx.AsyncClient(base_url=system.url, timeout=60, verify=False)


def body_of(index: int, num_tokens: int = 120, **fields: Any) -> dict[str, Any]:
    prompt = [(index * 977 + at * 31) % 40_000 + 2 for at in range(12 + index)]
    wanted = {"model": "default", "prompt": prompt, "max_tokens": num_tokens, "seed": index, "ignore_eos": True}
    return wanted | fields


def check(body: dict[str, Any], texts: dict[int, str]) -> None:
    params = SamplingParams(seed=body["seed"], n=body.get("n", 1), max_tokens=body["max_tokens"])
    for choice in range(params.n):
        assert texts[choice] == text_of(expected_tokens(SPEC, body["prompt"], params, choice)[0])


async def until_running(streams: list[Seen], num_texts: int) -> None:
    # Half of them: where cores are busy the first are over before the last begin.
    async with asyncio.timeout(30):
        while sum(len(seen.times) >= num_texts for seen in streams) < len(streams) / 2:
            await asyncio.sleep(0.02)


async def until_two_routers(system: stack.Stack, before: dict[str, int]) -> None:
    async with asyncio.timeout(20):
        while len(system.sockets("deliver")) < 2 or system.children().get("router-1", 0) in (0, before["router-1"]):
            await asyncio.sleep(0.05)


async def test_a_router_killed_under_streams_and_whole_answers(system: stack.Stack) -> None:
    kinds: list[dict[str, Any]] = [{}, {"n": 2}, {"stop": ["qqqq"]}, {"logprobs": 1}]
    options = {"stream_options": {"include_usage": True}}
    streams = [Seen(body_of(index) | kinds[index % 4] | options) for index in range(24)]
    before = system.children()
    answers: dict[int, Any] = {}

    async def whole(index: int) -> None:
        while index not in answers:
            try:
                async with client_of(system) as client:
                    response = await client.post("/v1/completions", json=body_of(index), headers={"idempotency-key": f"w{index}"})
                    answers[index] = response.json()
            except httpx.HTTPError:
                continue

    reading = [asyncio.create_task(read_through(lambda: client_of(system), seen)) for seen in streams]
    reading += [asyncio.create_task(whole(index)) for index in range(100, 108)]
    await until_running(streams, 20)
    os.kill(before["router-1"], signal.SIGKILL)
    await asyncio.gather(*reading)
    for seen in streams:
        assert seen.error is None, seen.error
        check(seen.body, seen.texts)
        assert seen.usage is not None
        assert seen.usage["completion_tokens"] == seen.body["max_tokens"] * seen.body.get("n", 1)
        assert len(seen.logprobs.get(0, [])) == (120 if "logprobs" in seen.body else 0)
    for index, answer in answers.items():
        check(body_of(index), {0: answer["choices"][0]["text"]})
    cut = [seen for seen in streams if seen.cuts]
    assert cut, "no stream was at the router that died"
    print(f"{len(cut)} of {len(streams)} cut, longest gap {max(seen.longest_gap_s for seen in streams):.2f} s")
    await until_two_routers(system, before)


async def test_a_stream_is_read_again_from_anywhere_after_its_end(system: stack.Stack) -> None:
    """Both routers: the one that has it in its archive, and the one that follows it there."""
    seen = Seen(body_of(200, 40, n=2, stream_options={"include_usage": True}))
    async with client_of(system) as client:
        await read(client, seen)
    check(seen.body, seen.texts)
    for _ in range(8):
        again = Seen(seen.body)
        again.last_id = seen.last_id
        async with client_of(system) as client:
            await read(client, again)
        assert again.done
        assert not any(again.texts.values()), "what was given came again"
        async with client_of(system) as client:
            response = await client.get(f"/v1/streams/{seen.rid}")
        replay = Seen(seen.body)
        for line in response.text.splitlines():
            replay.take(line)
        check(seen.body, replay.texts)
        assert replay.usage == seen.usage


CHAT = "/v1/chat/completions"


def chat_of(index: int, num_tokens: int, **fields: Any) -> dict[str, Any]:
    wanted = {name: value for name, value in body_of(index, num_tokens, **fields).items() if name != "prompt"}
    return wanted | {"messages": [{"role": "user", "content": f"story {index}"}]}


def whole_of(response: httpx.Response) -> str:
    """The text of an answer that was not streamed."""
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


async def test_chats_and_stop_strings_come_back_to_another_router(system: stack.Stack) -> None:
    """What is right is what the same request gives undisturbed; its stop string stands three quarters of the way."""
    paths = [(CHAT, chat_of(index, 160)) if index % 2 else ("/v1/completions", body_of(index, 160)) for index in range(220, 228)]
    wanted = []
    async with client_of(system) as client:
        for path, body in paths:
            text = whole_of(await client.post(path, json=body))
            body["stop"] = [text[3 * len(text) // 4 :][:8]]
            wanted.append(text[: text.index(body["stop"][0])])
    streams = [Seen(body, path) for path, body in paths]
    before = system.children()
    reading = [asyncio.create_task(read_through(lambda: client_of(system), seen)) for seen in streams]
    await until_running(streams, 20)
    os.kill(before["router-1"], signal.SIGKILL)
    await asyncio.gather(*reading)
    for seen, text in zip(streams, wanted, strict=True):
        assert (seen.error, seen.texts, seen.ends) == (None, {0: text}, {0: "stop"})
    assert any(seen.cuts for seen in streams), "no stream was at the router that died"
    await until_two_routers(system, before)


async def test_the_rest_after_any_event_by_header_or_query(system: stack.Stack) -> None:
    """In the middle of a chat, while it runs and after its end, at either router."""
    async with client_of(system) as client:
        text = whole_of(await client.post(CHAT, json=chat_of(240, 80)))
        seen = Seen(chat_of(240, 80), CHAT)
        await read(client, seen, most=10)
        rid, after, first = seen.rid, seen.last_id, seen.texts[0]
    for _ in range(4):
        for query, headers in (("", {"last-event-id": after}), (f"?starting_after={after}", {})):
            rest = Seen({})
            async with client_of(system) as client:
                response = await client.get(f"/v1/streams/{rid}{query}", headers=headers)
            for line in response.text.splitlines():
                rest.take(line)
            assert (rest.error, rest.done) == (None, True)
            assert first + rest.texts[0] == text


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_the_same_key_with_the_last_event_id_goes_on_behind_it(system: stack.Stack, path: str) -> None:
    body = chat_of(250, 90, n=2) if path == CHAT else body_of(250, 90, n=2)
    headers = {"idempotency-key": f"again {path}"}
    seen = Seen(body, path, headers)
    async with client_of(system) as client:
        await read(client, seen, most=12)
    for _ in range(4):
        rest = Seen(body, path, headers | {"last-event-id": seen.last_id})
        async with client_of(system) as client:
            await read(client, rest)
            other = await client.post(path, json=body | {"stream": True, "max_tokens": 5}, headers=rest.headers)
        assert (rest.error, rest.done, rest.rid) == (None, True, seen.rid)
        assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
        whole = Seen(body, path, headers)
        async with client_of(system) as client:
            await read(client, whole)
        for choice in range(2):
            assert seen.texts[choice] + rest.texts[choice] == whole.texts[choice]
    wrong = {"idempotency-key": "another key", "last-event-id": seen.last_id}
    async with client_of(system) as client:
        response = await client.post(path, json=body | {"stream": True}, headers=wrong)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_event_id")


async def test_a_key_goes_on_where_everything_forgot_it(system: stack.Stack) -> None:
    """Neither a router nor Redis knows the request any more: it is made again, and the client gets what it has not got."""
    body = chat_of(260, 60, temperature=0)
    seen = Seen(body, CHAT, {"idempotency-key": "forgotten"})
    async with client_of(system) as client:
        await read(client, seen, most=10)
    before = system.children()
    for name in ("router-0", "router-1"):
        os.kill(before[name], signal.SIGKILL)
    (socket,) = system.folder.glob("roadtrain-*/redis.sock")
    async with Redis(unix_socket_path=str(socket)) as redis:
        await redis.flushall()
    rest = Seen(body, CHAT, seen.headers | {"last-event-id": seen.last_id})
    async with asyncio.timeout(40):
        while not rest.done:
            try:
                async with client_of(system) as client:
                    await read(client, rest)
            except httpx.HTTPError:
                await asyncio.sleep(0.2)
            if rest.error is not None and rest.status == 503:
                rest.error = None
                await asyncio.sleep(0.2)
            assert rest.error is None, rest.error
    async with client_of(system) as client:
        text = whole_of(await client.post(CHAT, json=body))
    assert seen.texts[0] + rest.texts[0] == text
    async with asyncio.timeout(20):
        while len(system.sockets("deliver")) < 2 or any(
            system.children().get(name) in (None, before[name]) for name in before if "router" in name
        ):
            await asyncio.sleep(0.05)


async def test_what_cannot_be_taken_up_is_said_plainly(system: stack.Stack) -> None:
    seen = Seen(body_of(201, 20))
    async with client_of(system) as client:
        await read(client, seen)
        nowhere = await client.get(f"/v1/streams/00{'ab' * 16}")
        assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "stream_not_found")
        assert (await client.get("/v1/streams/not-a-rid")).json()["error"]["code"] == "stream_not_found"
        wrong = await client.get(f"/v1/streams/{seen.rid}?starting_after=nonsense")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_event_id")
        # The right count with another hash: what would follow is not the continuation of what the client has.
        other = await client.get(f"/v1/streams/{seen.rid}", headers={"last-event-id": f"{seen.rid}:10:deadbeef"})
        assert "resume_mismatch" in other.text
        assert "[DONE]" not in other.text


async def test_a_key_is_one_generation_for_all_who_ask(system: stack.Stack) -> None:
    headers = {"idempotency-key": "the same"}
    streams = [Seen(body_of(300, 80), headers=headers) for _ in range(6)]

    async def one(seen: Seen) -> None:
        async with client_of(system) as client:
            await read(client, seen)

    await asyncio.gather(*(one(seen) for seen in streams))
    assert len({seen.rid for seen in streams}) == 1
    for seen in streams:
        assert seen.error is None, seen.error
        check(seen.body, seen.texts)
    async with client_of(system) as client:
        other = await client.post("/v1/completions", json=body_of(301, 80), headers=headers)
        whole = await client.post("/v1/completions", json=body_of(300, 80), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
    check(body_of(300, 80), {0: whole.json()["choices"][0]["text"]})


async def test_grpc_resumes_the_same_way(system: stack.Stack) -> None:
    body = body_of(400, 60)
    packed = b"".join(token.to_bytes(4, "little") for token in body["prompt"])
    sampling = types_pb2.Sampling(seed=400, max_tokens=60, ignore_eos=True)
    request = router_pb2.CompleteRequest(model="default", token_ids=packed, options=router_pb2.Options(sampling=sampling))
    got: list[int] = []
    rid = position = ""
    async with grpc.aio.insecure_channel(system.grpc_address) as channel:
        call = router_pb2_grpc.RouterStub(channel).Complete(request, timeout=60)
        async for event in call:
            rid, position = event.begun.rid or rid, event.position
            got += event.delta.token_ids
            if len(got) >= 20:
                break
        call.cancel()
    async with grpc.aio.insecure_channel(system.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        resume = router_pb2.ResumeRequest(rid=rid, position=position)
        events = [event async for event in router_pb2_grpc.RouterStub(channel).Resume(resume, timeout=60)]
    for event in events:
        got += event.delta.token_ids
    assert got == expected_tokens(SPEC, body["prompt"], SamplingParams(seed=400, max_tokens=60))[0]
    assert events[-1].usage.num_output_tokens == 60


async def test_overload_is_refused_soon_and_what_was_accepted_is_served(system: stack.Stack) -> None:
    """48 seats and 40 places to wait: the rest is refused at once, and told when to come again."""
    refused: list[httpx.Response] = []
    streams = [Seen(body_of(index, 60)) for index in range(500, 600)]

    async def one(seen: Seen) -> None:
        async with client_of(system) as client:
            await read(client, seen)

    reading = [asyncio.create_task(one(seen)) for seen in streams]
    async with asyncio.timeout(20):
        while sum(seen.status == 503 for seen in streams) < 3:
            await asyncio.sleep(0.01)
    async with client_of(system) as client:
        # All at once: one by one they might each find a place that has just become free.
        posts = (client.post("/v1/completions", json=body_of(900 + index, 5)) for index in range(60))
        refused += [response for response in await asyncio.gather(*posts) if response.status_code == 503]
    await asyncio.gather(*reading)
    assert refused
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert all(response.headers["x-should-retry"] == "true" for response in refused)
    print(f"refused in {min(response.elapsed.total_seconds() for response in refused) * 1000:.1f} ms")
    for seen in streams:
        assert seen.status in (200, 503)
        if seen.status == 200:
            check(seen.body, seen.texts)


async def test_deadlines_hold_in_the_queue_and_while_decoding(system: stack.Stack) -> None:
    async with client_of(system) as client:
        headers = {"x-roadtrain-deadline-ms": "400"}
        response = await client.post("/v1/completions", json=body_of(700, 4000), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert response.elapsed.total_seconds() < 1.5
