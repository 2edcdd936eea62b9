"""Embeddings and scores, for every door: inputs to token ids, a request of the queue for each, vectors in order.

A cross-encoder is asked for scores; of any other model a score is the cosine of two embeddings. Errors name an input as
the client called it. It knows nothing of HTTP, JSON or gRPC.
"""

import asyncio
import itertools
import math
import operator
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.router.accept import Caller, check_request
from services.router.generate import DEFAULT_BAND, ChoiceEnd, GenerateRequest
from services.router.needs import Plane, Starter
from services.router.prompts import check_text, unpack
from services.router.request import Wanted
from services.router.tokenizer import Encoded
from services.router.validate import POOLINGS, ModelLimits, check_ids, vector_of
from shared.errors import InvalidRequest
from shared.pb import router_pb2, tokenizer_pb2, types_pb2
from shared.rpc import MAX_MESSAGE_BYTES

MAX_INPUTS = 2048
MAX_TOTAL_TOKENS = 300_000
# Requests of one body that are on the queue at once: enough for full steps, few enough that others' limits are not met.
AT_ONCE = 64
TEXTS_AT_ONCE = 128
COSINES_AT_ONCE = 32
MODELS_MOST = -1
# Of a message, for what is no vector.
MESSAGE_MARGIN_BYTES = 2**20

_POOLINGS: Mapping[types_pb2.Pooling, str] = {value: name for name, value in POOLINGS.items()}

Input = str | Sequence[int] | tuple[str, str]
"""A text, token ids, or a pair of texts."""


@dataclass(frozen=True, slots=True)
class VectorRequest:
    """What to make vectors of. paths: what the door calls each input; names: what it calls other fields.

    truncate: cut inputs at so many tokens, MODELS_MOST: at as many as the model takes; None: refuse what is too long.
    max_bytes: what the answer's vectors may take, if the door has a limit.
    """

    model: str
    caller: Caller
    inputs: Sequence[Input]
    paths: Sequence[str]
    wanted: Wanted = field(default_factory=Wanted)
    truncate: int | None = None
    add_special_tokens: bool = True
    band: int = DEFAULT_BAND
    cache_salt: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector per input, float32 little-endian, and what they cost."""

    values: list[bytes]
    num_prompt_tokens: int
    num_cached_tokens: int


async def make_vectors(plane: Plane, request: VectorRequest, default_deadline_s: float) -> Vectors:
    """Every input's vector, or none: the first failure ends the others and is raised, as Generator.start and events raise.

    All of it has the caller's deadline, default_deadline_s if there is none. Nothing is left behind when it is cancelled.
    """
    deadline = time.monotonic() + (request.caller.deadline_ms / 1000 or default_deadline_s)
    base = _base(request)
    limits = plane.generator.check(base)
    num_bytes = 4 * (request.wanted.dimensions or limits.vector_size) * len(request.inputs)
    if request.max_bytes is not None and num_bytes > request.max_bytes:
        name = request.names.get("inputs", "input")
        message = (
            f"Invalid '{name}': their vectors take {num_bytes} bytes, and an answer {request.max_bytes}; send fewer at once."
        )
        raise InvalidRequest(message, param=name, code="array_above_max_length")
    requests = await _encoded(plane.generator, request, base, limits)
    made: list[tuple[bytes, int]] = [(b"", 0)] * len(requests)
    turns = iter(enumerate(requests))

    async def work() -> None:
        for index, one in turns:
            left_ms = max(1, int((deadline - time.monotonic()) * 1000))
            made[index] = await _one(plane.generator, replace(one, deadline_ms=left_ms))

    tasks = [asyncio.create_task(work()) for _ in range(min(AT_ONCE, len(requests)))]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return Vectors([vector for vector, _ in made], _num_tokens(requests), sum(cached for _, cached in made))


async def score(plane: Plane, request: VectorRequest, default_deadline_s: float) -> tuple[list[float], Vectors]:
    """How well the two texts of each pair fit, 0 to 1 by a cross-encoder, -1 to 1 by embeddings; and what it cost."""
    if "score" in plane.model.kinds:
        made = await make_vectors(plane, replace(request, wanted=Wanted("score")), default_deadline_s)
        return [numbers(value)[0] for value in made.values], made
    pairs = [each for each in request.inputs if isinstance(each, tuple)]
    paths: dict[str, str] = {}
    for pair, path in zip(pairs, request.paths, strict=True):
        for text in pair:
            paths.setdefault(text, path)
    made = await make_vectors(plane, replace(request, inputs=list(paths), paths=list(paths.values())), default_deadline_s)
    vectors = dict(zip(paths, map(numbers, made.values), strict=True))
    scores = []
    for index, (first, second) in enumerate(pairs):
        if index % COSINES_AT_ONCE == COSINES_AT_ONCE - 1:
            await asyncio.sleep(0)
        scores.append(math.fsum(map(operator.mul, vectors[first], vectors[second])))
    return scores, made


def proto_vectors(message: router_pb2.EmbedRequest, caller: Caller) -> VectorRequest:
    """What a gRPC message asks for. Raises InvalidRequest."""
    if not 1 <= len(message.inputs) <= MAX_INPUTS:
        code = "empty_array" if not message.inputs else "array_above_max_length"
        raise InvalidRequest(f"Invalid 'inputs': 1 to {MAX_INPUTS} of them.", param="inputs", code=code)
    inputs: list[Input] = []
    paths = [f"inputs[{index}]" for index in range(len(message.inputs))]
    for each, path in zip(message.inputs, paths, strict=True):
        if each.WhichOneof("input") == "token_ids":
            inputs.append(unpack(each.token_ids, path))
        else:
            check_text(each.text, path)
            inputs.append(each.text)
    options = message.options
    if message.pooling not in (*_POOLINGS, types_pb2.POOLING_UNSPECIFIED):
        raise InvalidRequest("Invalid 'pooling'.", param="pooling", code="invalid_value")
    dimensions = message.dimensions if message.HasField("dimensions") else None
    return VectorRequest(
        model=message.model,
        caller=caller,
        inputs=inputs,
        paths=paths,
        wanted=Wanted("embed", _POOLINGS.get(message.pooling), dimensions, message.raw),
        truncate=message.truncate_tokens if message.HasField("truncate_tokens") else None,
        band=options.band if options.HasField("band") else DEFAULT_BAND,
        cache_salt=options.cache_salt,
        names={"inputs": "inputs", "truncate": "truncate_tokens"},
        max_bytes=MAX_MESSAGE_BYTES - MESSAGE_MARGIN_BYTES,
    )


def numbers(vector: bytes) -> "array[float]":
    """The numbers of one vector."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _base(request: VectorRequest) -> GenerateRequest:
    """What the requests of all inputs have in common, checked as far as it goes."""
    base = GenerateRequest(
        model=request.model,
        identity=request.caller.identity,
        prompt=(),
        wanted=request.wanted,
        band=request.band if request.caller.band is None else request.caller.band,
        cache_salt=request.cache_salt,
        idempotency_key=request.caller.idempotency_key,
        trace=request.caller.trace,
        names=request.names,
        dialect="",
    )
    check_request(base)
    return base


async def _encoded(starter: Starter, request: VectorRequest, base: GenerateRequest, limits: ModelLimits) -> list[GenerateRequest]:
    """A checked request for each input. Raises InvalidRequest naming the one that is wrong."""
    cut = _cut(request, limits)
    most = 0 if cut else limits.max_model_len
    encoded = [await _ids(starter, request, start, cut, most) for start in range(0, len(request.inputs), TEXTS_AT_ONCE)]
    key, requests = request.caller.idempotency_key, []
    for index, each in enumerate(itertools.chain.from_iterable(encoded)):
        one = replace(
            base,
            prompt=each.token_ids,
            wanted=replace(request.wanted, num_first=each.num_first),
            idempotency_key=key if key is None or len(request.inputs) == 1 else f"{key}/{index}",
            names={**request.names, "prompt": request.paths[index]},
        )
        # Lengths first, as for prompts (generate.py).
        vector_of(one, len(each.token_ids), limits)
        check_ids(one, each.token_ids, limits)
        requests.append(one)
    if (total := _num_tokens(requests)) > MAX_TOTAL_TOKENS:
        name = request.names.get("inputs", "input")
        raise InvalidRequest(
            f"Invalid '{name}': {total} tokens together; at most {MAX_TOTAL_TOKENS}.", param=name, code="max_tokens_per_request"
        )
    return requests


async def _ids(starter: Starter, request: VectorRequest, start: int, cut: int, most: int) -> list[Encoded]:
    """Token ids of TEXTS_AT_ONCE inputs from `start` on, cut to so many, or refused if sure to be more than `most` (0: no)."""
    inputs = request.inputs[start : start + TEXTS_AT_ONCE]
    texts, paths = [], []
    for each, path in zip(inputs, request.paths[start:], strict=False):
        if isinstance(each, str | tuple):
            text, pair = (each, None) if isinstance(each, str) else each
            text_of = tokenizer_pb2.Text(text=text, pair=pair, max_tokens=cut, add_special_tokens=request.add_special_tokens)
            texts.append(text_of)
            paths.append(path)
    try:
        found = iter(await starter.encode(texts, most) if texts else ())
    except InvalidRequest as error:
        await _blame(starter, texts, paths, most)
        raise error
    return [next(found) if isinstance(each, str | tuple) else Encoded(list(each)[: cut or None], 0) for each in inputs]


async def _blame(starter: Starter, texts: Sequence[tokenizer_pb2.Text], paths: Sequence[str], most: int) -> None:
    """Raises the error that the first of these texts has by itself, under the name of its input."""
    for text, path in zip(texts, paths, strict=True):
        try:
            await starter.encode([text], most)
        except InvalidRequest as error:
            error.param = path
            raise


def _cut(request: VectorRequest, limits: ModelLimits) -> int:
    """How many tokens inputs are cut at; 0: they are not."""
    if request.truncate is None:
        return 0
    most = limits.max_model_len
    if request.truncate != MODELS_MOST and not 1 <= request.truncate <= most:
        name = request.names.get("truncate", "truncate_prompt_tokens")
        message = f"Invalid '{name}': must be 1 to {most}, or {MODELS_MOST} for the most this model takes."
        raise InvalidRequest(message, param=name, code="invalid_value")
    return most if request.truncate == MODELS_MOST else request.truncate


def _num_tokens(requests: Sequence[GenerateRequest]) -> int:
    return sum(len(one.prompt) for one in requests if isinstance(one.prompt, list))


async def _one(starter: Starter, request: GenerateRequest) -> tuple[bytes, int]:
    """One input's vector, and how many of its tokens were in the prefix cache."""
    generation = await starter.start(request)
    vector = b""
    try:
        async for happened in generation.events():
            for event in happened:
                if isinstance(event, ChoiceEnd):
                    vector = event.vector
    except BaseException:
        await generation.cancel("disconnect")
        raise
    return vector, generation.usage.num_cached_tokens
