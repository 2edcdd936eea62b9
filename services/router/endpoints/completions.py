"""POST /v1/completions: one or many prompts, each with n choices; choice.index = prompt * n + choice.

It knows nothing of tokens beyond their strings, only of OpenAI's shapes.
"""

from typing import Any

from services.router.accept import completion_requests
from services.router.answers import Choice, DeltaLogprobs, Opened, collect, describe, start_all, stream, usage_object
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.generate import Generation, TextDelta
from services.router.logprobs import CompletionLogprobs, joined, prompt_entries
from services.router.needs import Vocabulary
from services.router.schema import CompletionBody, read
from services.router.sse import COMPLETION, ChunkWriter


async def completions(exchange: Exchange, front: Front) -> None:
    """Answers one body, streamed or whole. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    body, unknown = read(await exchange.read_object(front.config.max_body_bytes), CompletionBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    requests = completion_requests(body, exchange.caller())
    include_usage = bool(body.stream_options and body.stream_options.include_usage)

    def make_logprobs(generation: Generation) -> DeltaLogprobs | None:
        return None if body.logprobs is None else delta_logprobs(front.plane.vocabulary, generation, echo=bool(body.echo))

    async def start() -> Opened:
        generations = await start_all(front.plane.generator, requests)
        answer = describe(COMPLETION, generations[0], front.plane.model.fingerprint)
        writers = [
            ChunkWriter(
                answer,
                first_choice=index * requests[0].sampling.n,
                include_usage=include_usage,
                # A position is one request's: where a body became several, there is none to resume after.
                with_ids=len(requests) == 1,
                logprobs=make_logprobs(generation),
                begun=generation.resumed,
            )
            for index, generation in enumerate(generations)
        ]
        return Opened(generations, writers, include_usage)

    if body.stream:
        await stream(exchange, front, start)
        return
    generations, choices = await collect(exchange, front, requests, make_logprobs)
    answer = describe(COMPLETION, generations[0], front.plane.model.fingerprint)
    whole = answer.head(COMPLETION.object) | {
        "choices": [_choice(choice) for choice in choices],
        "usage": usage_object(generations),
    }
    if body.prompt_logprobs is not None:
        _add_prompt_logprobs(whole["choices"], generations, front.plane.vocabulary)
    await exchange.answer_object(whole)


def delta_logprobs(vocabulary: Vocabulary, generation: Generation, *, echo: bool) -> DeltaLogprobs:
    """What stands under "logprobs" for a delta. With echo a choice's first delta begins with the prompt.

    Of a stream that was taken up, what the client has is counted and not given.
    """
    choices: dict[int, CompletionLogprobs] = {}

    def piece(event: TextDelta) -> dict[str, list[Any]] | None:
        choice = choices.get(event.choice)
        parts = []
        if choice is None:
            choice = CompletionLogprobs(vocabulary, skip_special=generation.skips_special)
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
    }


def _add_prompt_logprobs(choices: list[dict[str, Any]], generations: list[Generation], vocabulary: Vocabulary) -> None:
    """vLLM's member of each choice; the same for all choices of a prompt."""
    per_prompt = len(choices) // len(generations)
    for index, generation in enumerate(generations):
        found = generation.prompt_logprobs
        entries = None if found is None else prompt_entries(vocabulary, found)
        for choice in choices[index * per_prompt : (index + 1) * per_prompt]:
            choice["prompt_logprobs"] = entries
