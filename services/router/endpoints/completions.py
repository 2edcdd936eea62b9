"""POST /v1/completions: one or many prompts, each with n choices; choice.index = prompt * n + choice.

It knows nothing of tokens beyond their strings, only of OpenAI's shapes.
"""

from typing import Any

from services.router.accept import completion_requests
from services.router.answers import Choice, DeltaLogprobs, collect, describe, stream, usage_object
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.generate import GenerateRequest, Generation, TextDelta
from services.router.logprobs import CompletionLogprobs, joined, prompt_entries
from services.router.needs import Vocabulary
from services.router.schema import CompletionBody, read
from services.router.sse import COMPLETION, Answer, ChunkWriter


async def completions(exchange: Exchange, front: Front) -> None:
    """Answers one body, streamed or whole. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    body, unknown = read(await exchange.read_object(front.config.max_body_bytes), CompletionBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    requests = completion_requests(body, exchange.caller())
    include_usage = bool(body.stream_options and body.stream_options.include_usage)

    def make_logprobs(generation: Generation) -> DeltaLogprobs | None:
        return None if body.logprobs is None else _delta_logprobs(front.plane.vocabulary, requests[0], generation)

    def make_writer(answer: Answer, index: int, generation: Generation) -> ChunkWriter:
        return ChunkWriter(
            answer,
            first_choice=index * requests[0].sampling.n,
            include_usage=include_usage,
            # A position is one request's: where a body became several, there is none to resume after.
            with_ids=len(requests) == 1,
            logprobs=make_logprobs(generation),
        )

    if body.stream:
        await stream(exchange, front, requests, COMPLETION, make_writer, include_usage)
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


def _delta_logprobs(vocabulary: Vocabulary, request: GenerateRequest, generation: Generation) -> DeltaLogprobs:
    """What stands under "logprobs" for a delta. With echo a choice's first delta begins with the prompt."""
    choices: dict[int, CompletionLogprobs] = {}

    def piece(event: TextDelta) -> dict[str, list[Any]] | None:
        choice = choices.get(event.choice)
        parts = []
        if choice is None:
            choice = CompletionLogprobs(vocabulary, skip_special=request.sampling.skip_special_tokens)
            choices[event.choice] = choice
            if request.echo:
                parts.append(choice.prompt(generation.prompt_token_ids, generation.prompt_logprobs))
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
