"""POST /v1/chat/completions. It knows nothing of templates or tokens, only of OpenAI's shapes."""

from typing import Any

from services.router.accept import chat_request
from services.router.answers import (
    Choice,
    DeltaLogprobs,
    Opened,
    collect,
    describe,
    part_reader,
    start_all,
    stream,
    usage_object,
)
from services.router.exchange import Exchange
from services.router.extra_chunks import with_extras
from services.router.front import Front
from services.router.generate import Generation, TextDelta
from services.router.logprobs import chat_content, prompt_entries
from services.router.needs import Vocabulary
from services.router.part_chunks import PartWriter
from services.router.schema import ChatBody, read
from services.router.sse import CHAT, Answer, ChunkWriter, Writer
from shared.pb import types_pb2


async def chat(exchange: Exchange, front: Front) -> None:
    """Answers one chat, streamed or whole. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    body, unknown = read(await exchange.read_object(front.config.max_body_bytes), ChatBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    exchange.go_by(body.request_id)
    request = chat_request(body, exchange.caller())
    extras = request.extras
    logprobs = delta_logprobs(front.plane.vocabulary, extras) if body.logprobs else None
    if not body.stream:
        generations, choices = await collect(exchange, front, [request], lambda _: logprobs)
        answer = describe(CHAT, generations[0], front.plane.model.fingerprint, extras)
        whole = _whole(answer, generations[0], choices)
        prompt_logprobs = generations[0].prompt_logprobs
        if prompt_logprobs is not None:
            whole["prompt_logprobs"] = prompt_entries(front.plane.vocabulary, prompt_logprobs)
        if body.return_token_ids:
            whole["prompt_token_ids"] = list(generations[0].prompt_token_ids)
            for shown, choice in zip(whole["choices"], choices, strict=True):
                shown["token_ids"] = choice.token_ids
        await exchange.answer_object(whole)
        return
    include_usage = bool(body.stream_options and body.stream_options.include_usage)

    async def start() -> Opened:
        generations = await start_all(front.plane.generator, [request])
        writer = chat_writer(front, generations[0], extras, include_usage=include_usage)
        return Opened(generations, [writer], include_usage)

    await stream(exchange, front, start)


def chat_writer(front: Front, generation: Generation, extras: types_pb2.Extras | None, *, include_usage: bool) -> Writer:
    """Renders a chat's stream, also one that was begun elsewhere."""
    answer = describe(CHAT, generation, front.plane.model.fingerprint, extras)
    logprobs = delta_logprobs(front.plane.vocabulary, extras) if generation.has_logprobs else None
    begun = generation.resumed
    if generation.reading is None:
        writer = ChunkWriter(answer, include_usage=include_usage, logprobs=logprobs, begun=begun)
    else:
        reader = part_reader(front, generation)
        writer = PartWriter(answer, reader, include_usage=include_usage, logprobs=logprobs, begun=begun)
    return with_extras(writer, generation, extras, in_choice=False)


def delta_logprobs(vocabulary: Vocabulary, extras: types_pb2.Extras | None) -> DeltaLogprobs:
    """What stands under "logprobs" for a delta."""
    as_ids = extras is not None and extras.tokens_as_ids

    def content(event: TextDelta) -> dict[str, Any] | None:
        if event.logprobs is None or not event.token_ids:
            return None
        return {"content": chat_content(vocabulary, event.logprobs, as_ids=as_ids), "refusal": None}

    return content


def _whole(answer: Answer, generation: Generation, choices: list[Choice]) -> dict[str, Any]:
    return answer.head("chat.completion") | {
        "choices": [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": _joined(choice.logprobs) if choice.logprobs else None,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            for choice in choices
        ],
        "usage": usage_object([generation], sum(choice.num_reasoning_tokens for choice in choices)),
    }


def _message(choice: Choice) -> dict[str, Any]:
    text = "".join(choice.text)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = message["reasoning"] = "".join(choice.reasoning)
    if choice.calls:
        message["content"] = text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.arguments)}}
            for call in choice.calls
        ]
    return message


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    return {"content": [entry for piece in pieces for entry in piece["content"]], "refusal": None}
