"""A plane whose surroundings break: Redis, tokenizers, streams, workers. What was accepted goes on; the rest is refused soon."""

import asyncio
import time

import pytest

from services.router.auth import Identity
from services.router.generate import Generation
from services.router.plane import open_plane
from services.worker.sim import SimSpec, expected_tokens
from shared.errors import DeadlineExceeded, InvalidRequest, NotFound, RoadtrainError, Unavailable
from shared.sampling import SamplingParams
from tests.router.plane.rig import SPEC, Heard, SimWorker, ask, listen, plane_of, rig, take, text_of

LONG = SamplingParams(seed=5, max_tokens=300)


async def first_tokens(generation: Generation, heard: list[Heard], num_tokens: int) -> None:
    """Leaves the generation's own iterator running in the background: `heard` fills until its end."""
    while len(heard[0].token_ids) < num_tokens:
        await asyncio.sleep(0.005)


def follow(generation: Generation) -> tuple[list[Heard], asyncio.Task[None]]:
    heard = [Heard()]

    async def fill() -> None:
        async for events in generation.events():
            for event in events:
                take(heard, event)

    return heard, asyncio.create_task(fill())


def check(generation: Generation, heard: list[Heard], spec: SimSpec = SPEC) -> None:
    expected, _ = expected_tokens(spec, generation.prompt_token_ids, LONG)
    assert heard[0].token_ids == expected
    assert heard[0].text == text_of(expected)
    assert heard[0].end is not None


async def test_a_broken_stream_is_dialled_again_and_goes_on() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=LONG))
        heard, following = follow(generation)
        await first_tokens(generation, heard, 20)
        first = generation.held.bound
        assert first is not None
        cut_stream()
        while generation.held.bound is first:
            await asyncio.sleep(0.005)
        again = generation.held.bound
        assert again is not None
        # The same assignment: nothing was computed again.
        assert again.same_author(first)
        assert again.link is not first.link
        await following
        check(generation, heard)


def cut_stream() -> None:
    """The only worker loses its Deliver call, as after a reset."""
    (call,) = [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "Link._read"]
    call.cancel()


async def test_a_dead_worker_s_requests_go_on_at_another_token_for_token() -> None:
    async with rig(num_workers=1) as made, plane_of(made) as plane:
        generations = [await plane.generator.start(ask(prompt=[9, number + 1], sampling=LONG)) for number in range(3)]
        followed = [follow(generation) for generation in generations]
        for generation, (heard, _) in zip(generations, followed, strict=True):
            await first_tokens(generation, heard, 5)
        await made.workers.pop().kill()
        await SimWorker.start(made, "w1", SPEC)
        async with asyncio.timeout(10):
            await asyncio.gather(*(task for _, task in followed))
        for generation, (heard, _) in zip(generations, followed, strict=True):
            check(generation, heard)


async def test_running_streams_do_not_notice_redis_and_new_ones_are_refused_soon() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=LONG))
        heard, following = follow(generation)
        await first_tokens(generation, heard, 5)
        made.redis.stop()
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await plane.generator.start(ask(sampling=LONG))
        assert time.monotonic() - began < 2
        assert caught.value.retry_after_s
        await following
        check(generation, heard)


async def test_no_worker_and_no_tokenizer_are_said_at_once() -> None:
    async with rig(num_workers=0) as made:
        plane = await open_plane(made.settings())
        try:
            assert any("worker" in reason for reason in plane.ready())
            with pytest.raises(Unavailable) as caught:
                await plane.generator.start(ask())
            assert (caught.value.code, caught.value.retry_after_s) == ("no_worker", 2.0)
            await SimWorker.start(made, "w0", SPEC)
            async with asyncio.timeout(3):
                while plane.not_ready():
                    await asyncio.sleep(0.01)
            await made.tokenizers.pop().stop(0)
            with pytest.raises(Unavailable, match="tokenizer"):
                await plane.generator.start(ask())
            assert not plane.ledger.owed
        finally:
            await plane.close()


async def test_text_goes_on_from_another_tokenizer() -> None:
    async with rig(num_tokenizers=2) as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=LONG, echo=True))
        heard, following = follow(generation)
        await first_tokens(generation, heard, 20)
        await made.tokenizers[0].stop(0)
        await following
        expected, _ = expected_tokens(SPEC, generation.prompt_token_ids, LONG)
        assert heard[0].text == "Once upon a time" + text_of(expected)
        assert heard[0].token_ids == expected
        # New ones are encoded there, too.
        await listen(await plane.generator.start(ask(sampling=SamplingParams(max_tokens=3))))


async def test_a_deadline_ends_a_running_request_and_a_waiting_one() -> None:
    async with rig() as made, plane_of(made) as plane:
        running = await plane.generator.start(ask(sampling=SamplingParams(max_tokens=1900), deadline_ms=300))
        with pytest.raises(DeadlineExceeded):
            await listen(running)
        await made.workers.pop().kill()
        waiting = await plane.generator.start(ask(deadline_ms=200))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await listen(waiting)
        assert time.monotonic() - began < 1


async def test_a_forgotten_request_is_put_back_and_its_stream_goes_on() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=LONG))
        heard, following = follow(generation)
        await first_tokens(generation, heard, 5)
        await made.workers[0].redis.flushall()
        await plane.ledger.reconcile()
        record = (await plane.queue.read([generation.rid]))[generation.rid]
        assert record is not None
        assert (record.state, record.owner) == ("running", "w0:boot0")
        await following
        check(generation, heard)


async def test_the_same_key_is_the_same_request_and_all_its_clients_have_it() -> None:
    async with rig() as made, plane_of(made) as plane:
        open_seed = SamplingParams(max_tokens=60)
        first = await plane.generator.start(ask(sampling=open_seed, idempotency_key="k"))
        heard, following = follow(first)
        await first_tokens(first, heard, 5)
        second = await plane.generator.start(ask(sampling=open_seed, idempotency_key="k"))
        assert second.rid == first.rid
        (again,) = await listen(second)
        await following
        assert len(again.token_ids) == 60
        assert (again.token_ids, again.text, again.end) == (heard[0].token_ids, heard[0].text, heard[0].end)
        assert plane.generator._resumer.local(first.rid, "t")
        (late,) = await listen(await plane.generator.start(ask(sampling=open_seed, idempotency_key="k")))
        assert (late.token_ids, late.text) == (again.token_ids, again.text)
        with pytest.raises(InvalidRequest) as caught:
            await plane.generator.start(ask(prompt="Another", sampling=open_seed, idempotency_key="k"))
        assert caught.value.code == "idempotency_key_reused"


async def test_a_key_used_at_another_router_follows_the_stream_there() -> None:
    async with rig() as made, plane_of(made, "r0") as near, plane_of(made, "r1") as far:
        request = ask(sampling=SamplingParams(max_tokens=800), idempotency_key="k")
        first = await near.generator.start(request)
        heard, following = follow(first)
        await first_tokens(first, heard, 5)
        second = await far.generator.start(request)
        moved, following_there = follow(second)
        await asyncio.gather(following, following_there)
        assert len(moved[0].token_ids) == 800
        assert (moved[0].token_ids, moved[0].text) == (heard[0].token_ids, heard[0].text)
        record = (await far.queue.read([second.rid]))[second.rid]
        assert record is not None
        assert record.router == "r0"


async def test_the_first_client_may_go_while_another_follows_and_the_last_one_ends_it() -> None:
    async with rig() as made, plane_of(made, "r0") as near, plane_of(made, "r1") as far:
        request = ask(sampling=SamplingParams(max_tokens=1500), idempotency_key="k")
        first = await near.generator.start(request)
        heard, following = follow(first)
        await first_tokens(first, heard, 5)
        second = await far.generator.start(request)
        there, following_there = follow(second)
        await first_tokens(second, there, 5)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await first.cancel("disconnect")
        seen = len(there[0].token_ids)
        await first_tokens(second, there, seen + 50)
        following_there.cancel()
        await asyncio.gather(following_there, return_exceptions=True)
        async with asyncio.timeout(2):
            while near.ledger.owed or made.workers[0].consumer.held:
                await asyncio.sleep(0.01)


async def test_whoever_follows_goes_on_when_the_owner_is_gone() -> None:
    async with rig() as made, plane_of(made, "r1") as far:
        async with plane_of(made, "r0") as near:
            request = ask(sampling=SamplingParams(max_tokens=700, seed=3), idempotency_key="k")
            first = await near.generator.start(request)
            heard, following = follow(first)
            await first_tokens(first, heard, 5)
            second = await far.generator.start(request)
            there, following_there = follow(second)
            await first_tokens(second, there, 5)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        async with asyncio.timeout(10):
            await following_there
        expected, _ = expected_tokens(SPEC, second.prompt_token_ids, SamplingParams(seed=3, max_tokens=700))
        assert there[0].token_ids == expected
        assert there[0].text == text_of(expected)


async def test_another_tenant_s_stream_is_like_one_that_never_was() -> None:
    async with rig() as made, plane_of(made, "r0") as near, plane_of(made, "r1") as far:
        generation = await near.generator.start(ask(sampling=LONG))
        heard, following = follow(generation)
        await first_tokens(generation, heard, 5)
        said = set()
        for plane in (near, far):
            for rid, tenant in ((generation.rid, "other"), ("00" + "ef" * 16, "t"), ("..", "t")):
                with pytest.raises(NotFound) as caught:
                    await plane.generator.resume(rid, "", Identity(tenant))
                said.add((caught.value.message, caught.value.code))
        assert len(said) == 1
        assert near.resumer.local(generation.rid, "other") is None
        position = heard[0].positions[-1]
        num_given = int(position.split(":")[1])
        rest, shape = await far.generator.resume(generation.rid, position, Identity("t"))
        events = [event async for batch in rest.events() for event in batch]
        await following
        check(generation, heard)
        assert [token for event in events for token in getattr(event, "token_ids", ())] == heard[0].token_ids[num_given:]
        assert shape.dialect == "completion"


async def test_a_request_its_worker_fails_on_ends_with_the_worker_s_error() -> None:
    async with rig() as made, plane_of(made) as plane:
        # The worker's own judgement is the same as the router's, so it must be shown another prompt than was checked.
        long = SimSpec(num_blocks=1024, max_model_len=4096, vocab_size=49152)
        plane.workers._facts = [{**plane.workers._facts[0], "max_model_len": long.max_model_len}]
        generation = await plane.generator.start(ask(prompt=[1] * 3000, sampling=SamplingParams(max_tokens=5)))
        with pytest.raises(InvalidRequest, match="3000") as caught:
            await listen(generation)
        assert caught.value.code == "context_length_exceeded"
        async with asyncio.timeout(2):
            while made.workers[0].consumer.held:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt-9"}, "model", "model_not_found"),
        ({"sampling": SamplingParams(temperature=3.0)}, "temperature", "decimal_above_max_value"),
        ({"sampling": SamplingParams(max_tokens=2048)}, "max_tokens", "context_length_exceeded"),
        ({"prompt": [1] * 2048}, "prompt", "context_length_exceeded"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [49152]}, "prompt", "invalid_token_id"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_name(fields: dict[str, object], param: str, code: str) -> None:
    async with rig() as made, plane_of(made) as plane:
        with pytest.raises(RoadtrainError) as caught:
            await plane.generator.start(ask(**fields))
        assert (caught.value.param, caught.value.code) == (param, code)
        assert isinstance(caught.value, InvalidRequest | NotFound)
        if code == "context_length_exceeded":
            assert "2048" in caught.value.message
        assert not plane.ledger.owed
        assert not plane.sequencer.held
