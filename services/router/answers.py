"""From requests to answers over HTTP: starts generations, streams or collects them, ends all when one fails.

It knows nothing of how bodies are read, nor of what a chat is.
"""

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from services.router.exchange import EVENT_STREAM, Exchange
from services.router.front import Front
from services.router.generate import ChoiceEnd, GenerateRequest, Generation, TextDelta
from services.router.logprobs import rows
from services.router.needs import Starter
from services.router.parts import CallArguments, CallBegun, Done, Part, PartReader, Said
from services.router.sse import DONE, Answer, Dialect, EventStream, Writer
from shared.errors import RoadtrainError, from_exception
from shared.pb import types_pb2

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

DeltaLogprobs = Callable[[TextDelta], Any]


@dataclass(slots=True)
class Call:
    """One call of a tool."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Choice:
    """One finished choice. `logprobs` holds what the dialect makes of each delta that has any.

    calls: of tools, each its id, name and the pieces of its arguments.
    stop_reason: the stop string or stop token that ended it, as vLLM has it. token_ids: all that were given.
    """

    index: int
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    num_reasoning_tokens: int = 0
    stop_reason: str | int | None = None
    token_ids: list[int] = field(default_factory=list)
    sum_logprobs: float = 0.0

    @property
    def mean_logprob(self) -> float:
        """Per token, where log-probabilities were asked for."""
        return self.sum_logprobs / len(self.token_ids) if self.token_ids else -math.inf

    def count(self, event: TextDelta) -> None:
        """Its tokens."""
        self.token_ids += event.token_ids
        if event.logprobs is not None:
            self.sum_logprobs += sum(values[0] for _, values in rows(event.logprobs))


def describe(dialect: Dialect, generation: Generation, fingerprint: str, extras: types_pb2.Extras | None = None) -> Answer:
    """What all parts of the answer to `generation` have in common."""
    shown = "fp_" + hashlib.sha256(fingerprint.encode()).hexdigest()[:10] if fingerprint else None
    tier = "" if extras is None else extras.service_tier
    return Answer(dialect, generation.rid, generation.created, generation.model, shown, tier)


@dataclass(frozen=True, slots=True)
class Opened:
    """Accepted requests that one event stream answers, and a writer for each; `ending` closes it."""

    generations: list[Generation]
    writers: Sequence[Writer]
    include_usage: bool
    ending: bytes = DONE


async def stream(
    exchange: Exchange, front: Front, start: Callable[[], Coroutine[Any, Any, Opened]], media_type: bytes = EVENT_STREAM
) -> None:
    """Answers with an event stream. Raises RoadtrainError, also from `start`, only while nothing has been sent."""
    events = EventStream(exchange, front.config.keep_alive_s, media_type)

    async def work() -> None:
        opened = await start()
        generations, writers = opened.generations, opened.writers
        relays = [_relay(generation, writer, events) for generation, writer in zip(generations, writers, strict=True)]
        try:
            await _all_or_none(relays)
            num_reasoning_tokens = sum(writer.num_reasoning_tokens for writer in writers)
            usage = usage_object(generations, num_reasoning_tokens)
            await events.write((writers[0].usage(usage) if opened.include_usage else b"") + opened.ending, last=True)
        except Exception as exception:
            await end_all(generations)
            if not events.begun:
                raise
            await events.fail(shown(exception, exchange.request_id))
        except asyncio.CancelledError:
            await end_all(generations)
            raise

    await exchange.while_listening(work(), idle=events)


async def collect(
    exchange: Exchange,
    front: Front,
    requests: Sequence[GenerateRequest],
    make_logprobs: Callable[[Generation], DeltaLogprobs | None],
) -> tuple[list[Generation], list[Choice]]:
    """Runs the requests to their ends: the generations, and their choices in order."""

    async def work() -> tuple[list[Generation], list[Choice]]:
        generations = await start_all(front.plane.generator, requests)
        try:
            collected = await _all_or_none(
                [
                    _collect_parts(generation, request.sampling.n, make_logprobs(generation), part_reader(front, generation))
                    if generation.reading is not None
                    else _collect(generation, request.sampling.n, make_logprobs(generation))
                    for generation, request in zip(generations, requests, strict=True)
                ]
            )
        except BaseException:
            await end_all(generations)
            raise
        choices = [choice for part in collected for choice in part]
        for index, choice in enumerate(choices):
            choice.index = index
        return generations, choices

    return await exchange.while_listening(work())


def part_reader(front: Front, generation: Generation) -> PartReader:
    """What turns the generation's events into parts."""
    return PartReader(generation, front.plane.vocabulary)


def usage_object(generations: Sequence[Generation], num_reasoning_tokens: int = 0) -> dict[str, Any]:
    """OpenAI's usage of all generations together."""
    usages = [generation.usage for generation in generations]
    num_prompt = sum(usage.num_prompt_tokens for usage in usages)
    num_output = sum(usage.num_output_tokens for usage in usages)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {
            "cached_tokens": sum(usage.num_cached_tokens for usage in usages),
            "audio_tokens": 0,
            "image_tokens": 0,
            "text_tokens": num_prompt,
        },
        "completion_tokens_details": {
            "reasoning_tokens": num_reasoning_tokens,
            "audio_tokens": 0,
            "text_tokens": num_output,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def shown(exception: BaseException, request_id: bytes) -> RoadtrainError:
    """The error to show for `exception`; what is a fault of ours is logged."""
    error = from_exception(exception)
    if error is not exception:
        logger.error("a request failed", exc_info=exception, extra={"request_id": request_id.decode()})
    return error


async def start_all(starter: Starter, requests: Sequence[GenerateRequest]) -> list[Generation]:
    """Starts all requests or none."""
    if len(requests) == 1:
        return [await starter.start(requests[0])]
    tasks = [asyncio.ensure_future(starter.start(request)) for request in requests]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await end_all([outcome for outcome in outcomes if not isinstance(outcome, BaseException)])
        raise


async def end_all(generations: Sequence[Generation]) -> None:
    """Nobody listens to these any more."""
    for generation in generations:
        await generation.cancel("disconnect")


async def _relay(generation: Generation, writer: Writer, events: EventStream) -> None:
    position = generation.position()
    async for happened in generation.events():
        data = writer.render(happened, position)
        position = happened[-1].position
        if data:
            await events.write(data)


async def _collect(generation: Generation, num_choices: int, logprobs: DeltaLogprobs | None) -> list[Choice]:
    choices = [Choice(index) for index in range(num_choices)]
    async for happened in generation.events():
        for event in happened:
            choice = choices[event.choice]
            if isinstance(event, ChoiceEnd):
                choice.finish_reason = event.reason
                choice.stop_reason = event.stop_reason
                continue
            choice.text.append(event.text)
            choice.count(event)
            if logprobs is not None and (piece := logprobs(event)) is not None:
                choice.logprobs.append(piece)
    return choices


async def _collect_parts(
    generation: Generation, num_choices: int, logprobs: DeltaLogprobs | None, reader: PartReader
) -> list[Choice]:
    choices = [Choice(index) for index in range(num_choices)]
    async for happened in generation.events():
        for event in happened:
            for part in reader.read(event):
                _add(choices[part.choice], part)
            if isinstance(event, TextDelta):
                choices[event.choice].count(event)
                if logprobs is not None and (piece := logprobs(event)) is not None:
                    choices[event.choice].logprobs.append(piece)
    return choices


def _add(choice: Choice, part: Part) -> None:
    match part:
        case Said(kind="content"):
            choice.text.append(part.text)
        case Said():
            choice.reasoning.append(part.text)
        case CallBegun():
            choice.calls.append(Call(part.id, part.name))
        case CallArguments():
            choice.calls[-1].arguments.append(part.text)
        case Done():
            choice.finish_reason, choice.num_reasoning_tokens = part.reason, part.num_reasoning_tokens
            choice.stop_reason = part.event.stop_reason


async def _all_or_none(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results; the first failure cancels the others and is raised."""
    if len(coroutines) == 1:
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
