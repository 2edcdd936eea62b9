"""POST /generate, /generate_stream and /, GET /info: for clients of Text Generation Inference. It knows nothing of tokens."""

import hashlib
from typing import Any

from services.router.answers import Opened, collect, start_all, stream
from services.router.dialects import completion_of, speaking
from services.router.endpoints.health import own_version
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.generate import TextDelta
from services.router.logprobs import Row, rows
from services.router.schema import convert
from services.router.tgi import NAMES, TgiGenerate, TgiParameters, TokenWriter, answer, completion_body
from shared.sampling import MAX_N, MAX_STOP_STRINGS


async def generate(exchange: Exchange, front: Front) -> None:
    """The whole answer. Raises RoadtrainError."""
    await exchange.answer_object(await _whole(exchange, front, await _read(exchange, front)))


async def generate_stream(exchange: Exchange, front: Front) -> None:
    """Token by token. Raises RoadtrainError while nothing has been sent."""
    await _stream(exchange, front, await _read(exchange, front))


async def root(exchange: Exchange, front: Front) -> None:
    """Either, as the body's `stream` says; a whole answer is one of a list here."""
    asked = await _read(exchange, front)
    if asked.stream:
        await _stream(exchange, front, asked)
    else:
        await exchange.answer_object([await _whole(exchange, front, asked)])


async def info(exchange: Exchange, front: Front) -> None:
    """What is served, and its limits."""
    model = front.plane.model
    await exchange.answer_object(
        {
            "model_id": model.names[0],
            "model_sha": hashlib.sha256(model.fingerprint.encode()).hexdigest(),
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": front.config.max_queued_requests,
            "max_best_of": MAX_N,
            "max_stop_sequences": MAX_STOP_STRINGS,
            "max_input_tokens": max(model.max_model_len - 1, 0),
            "max_total_tokens": model.max_model_len,
            "router": "roadtrain",
            "version": own_version(),
        }
    )


async def _read(exchange: Exchange, front: Front) -> TgiGenerate:
    front.admit()
    value = await exchange.read_object(front.config.max_body_bytes)
    asked, unknown = convert(value, TgiGenerate)
    known = TgiParameters.__struct_fields__
    unknown += [f"parameters.{name}" for name in value.get("parameters") or {} if name not in known]
    exchange.note_ignored(unknown, strict=front.config.strict)
    return asked


async def _whole(exchange: Exchange, front: Front, asked: TgiGenerate) -> dict[str, Any]:
    with speaking(NAMES):
        request = completion_of(completion_body(asked, front.plane.model.names[0], stream=False), exchange.caller())
        generations, drawn = await collect(exchange, front, [request], lambda _: _rows)
    ranked = sorted(drawn, key=lambda choice: choice.mean_logprob, reverse=True)
    return answer(asked, generations[0], ranked, front.plane.vocabulary)


async def _stream(exchange: Exchange, front: Front, asked: TgiGenerate) -> None:
    with speaking(NAMES):
        request = completion_of(
            completion_body(asked, front.plane.model.names[0], stream=True) | {"stream": True}, exchange.caller()
        )

        async def start() -> Opened:
            generations = await start_all(front.plane.generator, [request])
            writer = TokenWriter(asked, generations[0], front.plane.vocabulary)
            return Opened(generations, [writer], include_usage=False, ending=b"")

        await stream(exchange, front, start)


def _rows(event: TextDelta) -> list[Row] | None:
    return None if event.logprobs is None else list(rows(event.logprobs))
