"""POST /v1/embeddings: a vector of each input, as numbers or as base64 of float32 little-endian, which openai-python asks for.

It knows nothing of how vectors are made.
"""

import asyncio
import base64
from collections.abc import Sequence

import msgspec

from services.router.accept import Caller
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.prompts import prompts_of
from services.router.request import DEFAULT_BAND, Wanted
from services.router.schema import convert
from services.router.schema_vectors import EmbeddingBody
from services.router.vectors import MAX_INPUTS, VectorRequest, make_vectors, numbers

# Vectors are written in so many turns of the event loop, which others want, too.
NUMBERS_AT_ONCE = 2048


async def embeddings(exchange: Exchange, front: Front) -> None:
    """Answers one body. Raises RoadtrainError."""
    front.admit()
    body, unknown = convert(await exchange.read_object(front.config.max_body_bytes), EmbeddingBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    request = embedding_request(body, exchange.caller())
    made = await exchange.while_listening(make_vectors(front.plane, request, front.config.default_deadline_s))
    usage = {"prompt_tokens": made.num_prompt_tokens, "total_tokens": made.num_prompt_tokens}
    head = {"object": "list", "model": front.plane.model.names[0], "usage": usage, "data": []}
    data = await _data(made.values, as_base64=body.encoding_format == "base64")
    await exchange.answer(200, msgspec.json.encode(head).removesuffix(b"]}") + data + b"]}")


def embedding_request(body: EmbeddingBody, caller: Caller) -> VectorRequest:
    """What the body asks for. Raises InvalidRequest."""
    inputs = prompts_of(body.input, "input", MAX_INPUTS)
    is_one = isinstance(body.input, str) or isinstance(body.input[0], int)
    return VectorRequest(
        model=body.model,
        caller=caller,
        inputs=inputs,
        paths=["input"] if is_one else [f"input[{index}]" for index in range(len(inputs))],
        wanted=Wanted("embed", body.pooling, body.dimensions, raw=body.normalize is False),
        truncate=body.truncate_prompt_tokens,
        add_special_tokens=body.add_special_tokens is not False,
        band=next(band for band in (caller.band, body.priority, DEFAULT_BAND) if band is not None),
        cache_salt=body.cache_salt or "",
        names={"band": "priority"},
    )


async def _data(vectors: Sequence[bytes], *, as_base64: bool) -> bytes:
    """The members of "data"."""
    parts, num_left = [], NUMBERS_AT_ONCE
    for index, vector in enumerate(vectors):
        value = base64.b64encode(vector).decode() if as_base64 else numbers(vector).tolist()
        parts.append(msgspec.json.encode({"object": "embedding", "index": index, "embedding": value}))
        num_left -= len(vector) // 4
        if num_left <= 0:
            num_left = NUMBERS_AT_ONCE
            await asyncio.sleep(0)
    return b",".join(parts)
