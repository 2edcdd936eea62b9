"""A plane over real Redis, real tokenizers and sim workers: what a client gets is what the oracle says, whatever breaks."""

import asyncio
import time
from zlib import crc32

import pytest

from services.router.sequencer import pack
from services.worker.sim import SimSpec, expected_tokens
from shared.errors import InvalidRequest
from shared.sampling import SamplingParams
from tests.router.plane.rig import SPEC, ask, listen, plane_of, rig, text_of

PARAMS = SamplingParams(seed=7, max_tokens=40)


async def test_streams_spell_what_the_oracle_says() -> None:
    async with rig() as made, plane_of(made) as plane:
        generations = [await plane.generator.start(ask(prompt=f"Story number {number}", sampling=PARAMS)) for number in range(8)]
        for generation, (heard,) in zip(generations, await asyncio.gather(*map(listen, generations)), strict=True):
            expected, reason = expected_tokens(SPEC, generation.prompt_token_ids, PARAMS)
            assert heard.token_ids == expected
            assert heard.text == text_of(expected)
            assert heard.end is not None
            assert (heard.end.reason, heard.end.num_tokens) == (reason, 40)
            assert heard.positions[-1] == f"{generation.rid}:40:{crc32(pack(expected)):08x}"
            assert (generation.usage.num_output_tokens, generation.usage.num_prompt_tokens) == (40, generation.num_prompt_tokens)
        async with asyncio.timeout(2):
            while made.workers[0].consumer.held:
                await asyncio.sleep(0.01)
        records = await plane.queue.read([generation.rid for generation in generations])
        assert {record.state for record in records.values() if record} == {"done"}


async def test_choices_logprobs_and_echo() -> None:
    async with rig() as made, plane_of(made) as plane:
        params = SamplingParams(seed=3, max_tokens=12, n=3, num_logprobs=2, num_prompt_logprobs=1)
        generation = await plane.generator.start(ask(sampling=params, echo=True))
        rows: list[int] = [0, 0, 0]
        heard = ["", "", ""]
        async for events in generation.events():
            assert generation.prompt_logprobs is not None
            for event in events:
                if hasattr(event, "text"):
                    assert event.logprobs is not None
                    assert len(event.logprobs.token_ids) == 3 * len(event.token_ids)
                    assert list(event.logprobs.token_ids[::3]) == event.token_ids
                    rows[event.choice] += len(event.token_ids)
                    heard[event.choice] += event.text
        assert rows == [12, 12, 12]
        for choice in range(3):
            expected, _ = expected_tokens(SPEC, generation.prompt_token_ids, params, choice)
            assert heard[choice] == "Once upon a time" + text_of(expected)
        assert generation.prompt_logprobs is not None
        assert len(generation.prompt_logprobs.token_ids) == 2 * (generation.num_prompt_tokens - 1)
        assert generation.usage.num_output_tokens == 36


async def test_a_stop_string_ends_the_choice_and_frees_the_worker() -> None:
    async with rig() as made, plane_of(made) as plane:
        open_end = SamplingParams(seed=11, max_tokens=1500)
        prompt = [100, 200, 300]
        expected, _ = expected_tokens(SPEC, prompt, open_end)
        whole = text_of(expected[:30])
        stop = whole[-6:-2]
        params = SamplingParams(seed=11, max_tokens=1500, stop=(stop,))
        generation = await plane.generator.start(ask(prompt=prompt, sampling=params))
        (heard,) = await listen(generation)
        assert heard.text == text_of(expected)[: text_of(expected).index(stop)]
        assert heard.end is not None
        assert (heard.end.reason, heard.end.stop_string) == ("stop", stop)
        assert heard.token_ids == expected[: heard.end.num_tokens]
        assert stop in text_of(heard.token_ids)
        assert stop not in text_of(heard.token_ids[:-1])
        assert generation.usage.num_output_tokens == heard.end.num_tokens < 40
        async with asyncio.timeout(1):
            while made.workers[0].engine.stats().running:
                await asyncio.sleep(0.01)


async def test_stop_strings_are_not_looked_for_before_min_tokens() -> None:
    async with rig() as made, plane_of(made) as plane:
        prompt = [100, 200, 300]
        expected, _ = expected_tokens(SPEC, prompt, SamplingParams(seed=11, max_tokens=30))
        stop = text_of(expected[4:5])
        params = SamplingParams(seed=11, max_tokens=30, min_tokens=20, stop=(stop,))
        (heard,) = await listen(await plane.generator.start(ask(prompt=prompt, sampling=params)))
        assert len(heard.token_ids) >= 20
        assert stop in heard.text


async def test_a_token_that_ends_a_choice_is_counted_and_not_shown() -> None:
    async with rig() as made, plane_of(made) as plane:
        prompt = [5, 6, 7]
        expected, _ = expected_tokens(SPEC, prompt, SamplingParams(seed=1, max_tokens=20))
        params = SamplingParams(seed=1, max_tokens=20, stop_token_ids=(expected[9],))
        (heard,) = await listen(await plane.generator.start(ask(prompt=prompt, sampling=params)))
        assert heard.end is not None
        assert (heard.end.reason, heard.end.stop_token_id, heard.end.num_tokens) == ("stop", expected[9], 10)
        assert heard.token_ids == expected[:10]
        assert heard.text == text_of(expected[:9])


async def test_who_leaves_frees_its_blocks_within_a_second() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=SamplingParams(seed=1, max_tokens=1500)))
        async for _ in generation.events():
            break
        await generation.cancel("disconnect")
        left_at = time.monotonic()
        stats = made.workers[0].engine.stats
        while stats().running or made.workers[0].consumer.held:
            assert time.monotonic() - left_at < 1
            await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            while (record := (await plane.queue.read([generation.rid]))[generation.rid]) and record.state != "cancelled":
                await asyncio.sleep(0.01)
        assert record is not None
        assert record.revivable


async def test_a_cancel_that_was_asked_for_is_final_and_ends_the_stream_with_an_error() -> None:
    async with rig() as made, plane_of(made) as plane:
        generation = await plane.generator.start(ask(sampling=SamplingParams(seed=1, max_tokens=1500)))
        listening = asyncio.ensure_future(listen(generation))
        while not generation.usage.num_output_tokens:
            await asyncio.sleep(0.01)
        assert await plane.generator.cancel(generation.rid, "t")
        with pytest.raises(InvalidRequest, match="cancelled") as caught:
            await listening
        assert caught.value.code == "request_cancelled"
        assert not await plane.generator.cancel(generation.rid, "t")
        record = (await plane.queue.read([generation.rid]))[generation.rid]
        assert record is not None
        assert (record.state, record.revivable) == ("cancelled", False)


async def test_a_slow_reader_is_paused_and_loses_nothing() -> None:
    # Not as fast as it can: the first list must not hold most of the answer already.
    spec = SimSpec(num_blocks=1024, max_model_len=8192, vocab_size=49152, step_ms=0.5)
    async with rig(spec=spec) as made, plane_of(made) as plane:
        params = SamplingParams(seed=2, max_tokens=6000)
        generation = await plane.generator.start(ask(sampling=params))
        token_ids: list[int] = []
        slow = True
        async for events in generation.events():
            token_ids += [token_id for event in events for token_id in getattr(event, "token_ids", ())]
            if slow:
                async with asyncio.timeout(10):
                    while not generation.held.paused:
                        await asyncio.sleep(0.01)
                slow = False
        assert token_ids == expected_tokens(spec, generation.prompt_token_ids, params)[0]
