"""Vectors through a whole plane: each input once and in order, whatever happens to workers, streams and routers meanwhile."""

import asyncio
import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from services.router.accept import Caller
from services.router.auth import Identity
from services.router.generate import ChoiceEnd, Generation
from services.router.plane import Plane
from services.router.request import Wanted
from services.router.vectors import Input, VectorRequest, Vectors, make_vectors, numbers, score
from services.worker.engine.step import Pooling
from services.worker.sim import VECTOR_SIZE, expected_vector
from shared.errors import DeadlineExceeded, InvalidRequest, NotFound
from shared.pb import types_pb2
from shared.queue.payload import open_sealed
from tests.router.plane.rig import SPEC, Rig, SimWorker, ask, plane_of, rig, vocabulary
from tests.router.plane.test_plane_faults import cut_stream

SLOW = replace(SPEC, step_ms=20.0, prefill_tokens_per_s=4000.0)
DEADLINE_S = 60.0


def caller(**changes: object) -> Caller:
    whole = {"identity": Identity("t"), "idempotency_key": None, "deadline_ms": 0, "trace": types_pb2.TraceContext()}
    return Caller(**{**whole, **changes})  # type: ignore[arg-type]


def asked(inputs: Sequence[Input], wanted: Wanted | None = None, *, by: Caller | None = None) -> VectorRequest:
    paths = [f"input[{index}]" for index in range(len(inputs))]
    return VectorRequest("default", by or caller(), inputs, paths, wanted or Wanted())


def prompts(count: int, length: int = 40) -> list[list[int]]:
    return [[(index * 977 + at * 31) % 40_000 + 2 for at in range(length + index % 7)] for index in range(count)]


def expected(prompt: Sequence[int], kind: str = "last", dimensions: int = VECTOR_SIZE) -> bytes:
    return expected_vector(prompt, Pooling(kind, dimensions))


# redis-py loses a connection whose release a cancel meets, and Python tells when it finds it: here, not in a later test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def found_at_once() -> Iterator[None]:
    yield
    gc.collect()


async def until_at_rest(made: Rig, plane: Plane) -> None:
    """Nothing is owed, and no worker holds or computes anything, or keeps a block."""
    async with asyncio.timeout(10):
        while plane.ledger.owed or not all(is_at_rest(worker) for worker in made.workers):
            await asyncio.sleep(0.01)


def is_at_rest(worker: SimWorker) -> bool:
    stats = worker.engine.stats()
    return not worker.consumer.held and (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.num_blocks)


async def test_texts_and_ids_in_order_with_all_that_can_be_wanted() -> None:
    async with rig() as made, plane_of(made) as plane:
        text = "Once upon a time"
        ids = list(vocabulary().encode(text, add_special_tokens=True))
        inputs: list[Input] = [text, *prompts(200)]
        got = await make_vectors(plane, asked(inputs), DEADLINE_S)
        assert got.values == [expected(prompt) for prompt in (ids, *prompts(200))]
        assert got.num_prompt_tokens == len(ids) + sum(map(len, prompts(200)))
        short = await make_vectors(plane, asked([text], Wanted("embed", "mean", 3, raw=True)), DEADLINE_S)
        assert short.values == [expected_vector(ids, Pooling("mean", 3, raw=True))]
        await until_at_rest(made, plane)
        records = await plane.queue.read(list(plane.ledger._tombstones))
        assert len(records) == 202
        assert {record.state for record in records.values() if record is not None} <= {"done", "running"}


async def test_what_is_wrong_is_said_of_the_input_that_is() -> None:
    async with rig() as made, plane_of(made) as plane:
        good, most = [5, 6], SPEC.max_model_len
        for bad, code in (([7] * (most + 1), "context_length_exceeded"), ([SPEC.vocab_size], "invalid_token_id")):
            with pytest.raises(InvalidRequest) as caught:
                await make_vectors(plane, asked([good, bad, good]), DEADLINE_S)
            assert (caught.value.param, caught.value.code) == ("input[1]", code)
        cut = await make_vectors(plane, replace(asked([[7] * (most + 1)]), truncate=-1), DEADLINE_S)
        assert cut.values == [expected([7] * most)]
        shorter = await make_vectors(plane, replace(asked(["Once upon a time", [7, 8, 9]]), truncate=2), DEADLINE_S)
        ids = list(vocabulary().encode("Once upon a time", add_special_tokens=True))
        assert shorter.values == [expected(ids[:2]), expected([7, 8])]
        for wanted in (Wanted(dimensions=VECTOR_SIZE + 1), Wanted(dimensions=0), Wanted("score"), Wanted(pooling="max")):
            with pytest.raises(InvalidRequest):
                await make_vectors(plane, asked([good], wanted), DEADLINE_S)
        for truncate in (0, -2, most + 1):
            with pytest.raises(InvalidRequest, match="truncate_prompt_tokens"):
                await make_vectors(plane, replace(asked([good]), truncate=truncate), DEADLINE_S)
        with pytest.raises(InvalidRequest, match="together"):
            await make_vectors(plane, asked([[7] * most] * 200), DEADLINE_S)
        with pytest.raises(NotFound):
            await make_vectors(plane, replace(asked([good]), model="other"), DEADLINE_S)
        assert not plane.ledger.owed


async def test_scores_are_cosines_where_no_model_judges_pairs() -> None:
    async with rig() as made, plane_of(made) as plane:
        texts = ["Once upon a time", "there was a king", "Once upon a time"]
        pairs: list[Input] = [(texts[0], text) for text in texts]
        scores, cost = await score(plane, asked(pairs), DEADLINE_S)
        vectors = [numbers(expected(list(vocabulary().encode(text, add_special_tokens=True)))) for text in texts]
        cosines = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors]
        assert scores == pytest.approx(cosines, abs=1e-6)
        assert scores[0] == pytest.approx(1.0, abs=1e-6)
        # Each text was made a vector of once.
        assert cost.num_prompt_tokens == sum(len(vocabulary().encode(text, add_special_tokens=True)) for text in texts[:2])


async def test_a_dead_worker_s_vectors_are_made_by_another_and_have_the_same_bits() -> None:
    async with rig(spec=SLOW) as made, plane_of(made) as plane:
        inputs = prompts(3, length=1500)
        making = asyncio.create_task(make_vectors(plane, asked(inputs), DEADLINE_S))
        async with asyncio.timeout(10):
            while len(made.workers[0].consumer.held) < len(inputs):
                await asyncio.sleep(0.005)
        await made.workers.pop().kill()
        await SimWorker.start(made, "late", SLOW)
        async with asyncio.timeout(40):
            got = await making
        assert got.values == [expected(prompt) for prompt in inputs]


async def test_a_broken_stream_brings_the_vector_again_and_computes_nothing_again() -> None:
    async with rig(spec=SLOW) as made, plane_of(made) as plane:
        inputs = prompts(120)
        making = asyncio.create_task(make_vectors(plane, asked(inputs), DEADLINE_S))
        for _ in range(3):
            async with asyncio.timeout(10):
                while not made.workers[0].consumer.held or not streams():
                    await asyncio.sleep(0.005)
            cut_stream()
            await asyncio.sleep(0.1)
        async with asyncio.timeout(40):
            got = await making
        assert got.values == [expected(prompt) for prompt in inputs]
        assert made.workers[0].engine.stats().computed_tokens == sum(map(len, inputs))


def streams() -> list[object]:
    return [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "Link._read"]


async def vector_of(generation: Generation) -> bytes:
    ends = [event async for events in generation.events() for event in events if isinstance(event, ChoiceEnd)]
    assert len(ends) == 1
    return ends[0].vector


async def test_a_key_means_one_vector_on_every_router_while_it_is_made_and_after() -> None:
    async with rig(spec=SLOW) as made, plane_of(made, "r0") as first, plane_of(made, "r1") as second:
        prompt = prompts(1, length=1500)[0]
        request = ask(prompt=prompt, wanted=Wanted(), idempotency_key="k", dialect="")
        one = await first.generator.start(request)
        other = await second.generator.start(request)  # follows the first one's router
        assert other.rid == one.rid
        both = await asyncio.gather(vector_of(one), vector_of(other))
        assert both == [expected(prompt)] * 2
        # Kept by its router, and to be had from another through it.
        assert await vector_of(await first.generator.start(request)) == expected(prompt)
        assert await vector_of(await second.generator.start(request)) == expected(prompt)
        assert made.workers[0].engine.stats().computed_tokens == len(prompt)
        with pytest.raises(InvalidRequest) as caught:
            await first.generator.start(replace(request, wanted=Wanted(dimensions=8)))
        assert caught.value.code == "idempotency_key_reused"
        with pytest.raises(InvalidRequest, match="no stream"):
            await first.generator.resume(one.rid, "", Identity("t"))


async def test_a_router_is_gone_and_another_gives_the_vector_to_the_client_that_comes_back() -> None:
    async with rig(spec=SLOW) as made, plane_of(made, "r1") as second:
        prompt = prompts(1, length=1500)[0]
        request = ask(prompt=prompt, wanted=Wanted(), idempotency_key="k", dialect="")
        async with plane_of(made, "r0") as first:
            await first.generator.start(request)
            async with asyncio.timeout(10):
                while not made.workers[0].consumer.held:
                    await asyncio.sleep(0.005)
            # As if it were killed: nobody is told anything.
            first.ledger.retire = lambda generation, ending: None  # type: ignore[method-assign]
        async with asyncio.timeout(20):
            assert await vector_of(await second.generator.start(request)) == expected(prompt)


async def test_a_deadline_is_for_all_inputs_together() -> None:
    async with rig(spec=replace(SLOW, step_ms=100.0)) as made, plane_of(made) as plane:
        with pytest.raises(DeadlineExceeded):
            await make_vectors(plane, asked(prompts(2000), by=caller(deadline_ms=400)), DEADLINE_S)
        await until_at_rest(made, plane)


async def test_a_client_that_leaves_frees_everything() -> None:
    async with rig(spec=SLOW) as made, plane_of(made) as plane:
        making = asyncio.create_task(make_vectors(plane, asked(prompts(300)), DEADLINE_S))
        async with asyncio.timeout(10):
            while not made.workers[0].consumer.held:
                await asyncio.sleep(0.005)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await until_at_rest(made, plane)


async def test_cached_prefixes_are_a_tenant_s_own() -> None:
    async with rig() as made, plane_of(made) as plane:

        async def cached(by: Caller, kind: str = "last") -> int:
            got: Vectors = await make_vectors(plane, asked(prompts(1), Wanted(pooling=kind), by=by), DEADLINE_S)
            return got.num_cached_tokens

        assert await cached(caller()) == 0
        assert await cached(caller()) == 32
        assert await cached(caller(), "mean") == 0
        assert await cached(caller(identity=Identity("other"))) == 0


async def test_the_payload_says_all_that_a_vector_depends_on() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(prompt=[5, 6, 7], wanted=Wanted(dimensions=16), dialect=""))
        payload = open_sealed(plane.ledger.owed[generation.rid].request.payload, generation.rid, made.keys)
        assert payload.kind == types_pb2.KIND_EMBED
        assert payload.vector == types_pb2.Vector(pooling=types_pb2.POOLING_LAST, dimensions=16)
        assert not payload.HasField("sampling")
        assert await vector_of(generation) == expected([5, 6, 7], "last", 16)
