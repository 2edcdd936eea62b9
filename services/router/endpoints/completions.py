"""POST /v1/completions: one or many prompts, each with n choices; choice.index = prompt * n + choice.

It knows nothing of tokens beyond their strings, only of OpenAI's shapes.
"""

from typing import Any

from services.router.accept import completion_requests
from services.router.answers import Choice, DeltaLogprobs, Opened, collect, describe, start_all, stream, usage_object
from services.router.best_of import best
from services.router.exchange import Exchange
from services.router.extra_chunks import with_extras
from services.router.front import Front
from services.router.generate import Generation, TextDelta
from services.router.logprobs import CompletionLogprobs, joined, prompt_entries
from services.router.needs import Vocabulary
from services.router.request import GenerateRequest
from services.router.schema import CompletionBody, read
from services.router.sse import COMPLETION, ChunkWriter


async def completions(exchange: Exchange, front: Front) -> None:
    """Answers one body, streamed or whole. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    body, unknown = read(await exchange.read_object(front.config.max_body_bytes), CompletionBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    exchange.go_by(body.request_id)
    requests = completion_requests(body, exchange.caller())
    if body.stream:
        await _streamed(exchange, front, body, requests)
    else:
        await exchange.answer_object(await _whole(exchange, front, body, requests))


async def _streamed(exchange: Exchange, front: Front, body: CompletionBody, requests: list[GenerateRequest]) -> None:
    include_usage, extras = requests[0].include_usage, requests[0].extras

    async def start() -> Opened:
        generations = await start_all(front.plane.generator, requests)
        answer = describe(COMPLETION, generations[0], front.plane.model.fingerprint, extras)
        writers = []
        for index, generation in enumerate(generations):
            writer = ChunkWriter(
                answer,
                first_choice=index * requests[0].sampling.n,
                include_usage=include_usage,
                # A position is one request's: where a body became several, there is none to resume after.
                with_ids=len(requests) == 1,
                logprobs=_logprobs_of(front, generation, body, requests[0]),
                begun=generation.resumed,
            )
            writers.append(with_extras(writer, generation, extras, in_choice=True))
        return Opened(generations, writers, include_usage)

    await stream(exchange, front, start)


async def _whole(exchange: Exchange, front: Front, body: CompletionBody, requests: list[GenerateRequest]) -> dict[str, Any]:
    generations, drawn = await collect(
        exchange, front, requests, lambda generation: _logprobs_of(front, generation, body, requests[0])
    )
    num_given = body.n or 1
    choices = best(drawn, requests[0].sampling.n, num_given)
    shown = [_choice(choice) for choice in choices]
    for at, choice in enumerate(shown):
        generation = generations[at // num_given]
        if body.return_token_ids:
            choice["token_ids"] = choices[at].token_ids
            choice["prompt_token_ids"] = list(generation.prompt_token_ids)
        if body.prompt_logprobs is not None:
            found = generation.prompt_logprobs
            choice["prompt_logprobs"] = None if found is None else prompt_entries(front.plane.vocabulary, found)
    answer = describe(COMPLETION, generations[0], front.plane.model.fingerprint, requests[0].extras)
    return answer.head(COMPLETION.object) | {"choices": shown, "usage": usage_object(generations)}


def _logprobs_of(front: Front, generation: Generation, body: CompletionBody, request: GenerateRequest) -> DeltaLogprobs | None:
    if body.logprobs is None:
        return None
    as_ids = request.extras is not None and request.extras.tokens_as_ids
    return delta_logprobs(front.plane.vocabulary, generation, echo=request.echo, as_ids=as_ids)


def delta_logprobs(vocabulary: Vocabulary, generation: Generation, *, echo: bool, as_ids: bool = False) -> DeltaLogprobs:
    """What stands under "logprobs" for a delta. With echo a choice's first delta begins with the prompt.

    Of a stream that was taken up, what the client has is counted and not given.
    """
    choices: dict[int, CompletionLogprobs] = {}

    def piece(event: TextDelta) -> dict[str, list[Any]] | None:
        choice = choices.get(event.choice)
        parts = []
        if choice is None:
            choice = CompletionLogprobs(vocabulary, skip_special=generation.skips_special, as_ids=as_ids)
            choices[event.choice] = choice
            begun = generation.begun_logprobs(event.choice)
            if echo:
                prompt = choice.prompt(generation.prompt_token_ids, generation.prompt_logprobs)
                parts += [] if generation.is_resumed else [prompt]
            if begun is not None:
                choice.output(begun)
        if event.logprobs is not None and event.token_ids:
            parts.append(choice.output(event.logprobs))
        return joined(parts)

    return piece


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": "".join(choice.text),
        "logprobs": joined(choice.logprobs),
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
    }
