"""The one path of every request that produces tokens: check, encode, put on the queue, and hand back what comes.

Doors import everything they need from here. It knows nothing of HTTP, gRPC doors or SSE.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace

from services.router import position as positions
from services.router.auth import Identity
from services.router.bad_words import spellings_of, texts_of
from services.router.choice import ChoiceEnd, DecodeRule, EndReason, Event, TextDelta
from services.router.generation import CancelReason, Ending, Facts, Generation, Road
from services.router.ledger import Ledger
from services.router.limiter import Limiter
from services.router.reading import formats, reading_of, sampling_of
from services.router.request import DEFAULT_BAND, GenerateRequest, Prompt
from services.router.resume import Resumer
from services.router.sequencer import Held, pack, unpack
from services.router.tokenizer import Encoded, Tokenizers
from services.router.validate import ModelLimits, check_ids, check_kind, check_model, resolve, truncated, vector_of
from services.router.workers import Workers
from shared import crash
from shared.errors import InternalError, InvalidRequest, NotFound, RoadtrainError, Unavailable
from shared.pb import tokenizer_pb2, types_pb2
from shared.prefix import block_keys
from shared.queue.client import Queue
from shared.queue.payload import digest, open_sealed, seal
from shared.queue.rid import is_rid, new_rid, rid_for_key
from shared.queue.types import NewRequest
from shared.sampling import SamplingParams, from_proto, to_proto
from shared.tasks import end_tasks

__all__ = [
    "DEFAULT_BAND",
    "CancelReason",
    "ChoiceEnd",
    "EndReason",
    "Event",
    "GenerateRequest",
    "Generation",
    "Generator",
    "Prompt",
    "TextDelta",
]


# Below the 2 s within which a client is told that nobody can serve it.
PUT_S = 1.8
BLOCK_SIZE = 16
WARM_BLOCKS = 8
KINDS = {"generate": types_pb2.KIND_GENERATE, "embed": types_pb2.KIND_EMBED, "score": types_pb2.KIND_SCORE}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked request: everything its record and its generation are made of."""

    rid: str
    payload: types_pb2.Payload
    digest: str
    params: SamplingParams
    token_ids: list[int]
    deadline_s: float


class Generator:
    """Starts requests of one router. `keys` sign payloads, the first one also derives rids from idempotency keys.

    `parsers`: of calls and of reasoning, where the operator names them.
    """

    def __init__(
        self,
        road: Road,
        ledger: Ledger,
        resumer: Resumer,
        queue: Queue,
        tokenizers: Tokenizers,
        workers: Workers,
        limiter: Limiter,
        *,
        router_id: str,
        keys: Sequence[bytes],
        names: tuple[str, ...],
        default_deadline_s: float,
        parsers: tuple[str | None, str | None] = (None, None),
    ):
        self._road = road
        self._ledger = ledger
        self._resumer = resumer
        self._queue = queue
        self._tokenizers = tokenizers
        self._workers = workers
        self._limiter = limiter
        self._router_id = router_id
        self._keys = keys
        self._names = names
        self._default_deadline_s = default_deadline_s
        self._parsers = parsers

    async def start(self, request: GenerateRequest) -> Generation:
        """Accept one request: validate, render and encode, check lengths, put on the queue.

        Raises InvalidRequest (`param` named as the door calls it; code "context_length_exceeded" with the numbers),
        NotFound (code "model_not_found"), Unavailable (no worker, no Redis, no tokenizer, overloaded; within 2 s, with
        `retry_after_s`) or RateLimited. Nothing is left behind when it raises or is cancelled. With `after` only the rest is
        given, whoever has it or makes it again.
        """
        limits = self.check(request)
        description = await self._tokenizers.describe()
        # What is to be cut may be too long.
        most = 0 if request.truncate_prompt_tokens is not None else limits.max_model_len
        token_ids, reading, request = await self._texts(request, description, most)
        prepared = self._prepare(request, truncated(request, token_ids, limits), reading, limits)
        new = self._new_request(request, prepared)
        after = _position(request.after, prepared.rid, prepared.params.n)
        async with self._limiter.charged(request.identity, new.rid, new.num_tokens, prepared.deadline_s) as settles:
            generation = self._generation(new, prepared.payload, prepared.deadline_s, description.eos_token_ids, after)
            crash.point("router.accepted")
            await self._settle(generation, self._resumer.put(generation, new))
            settles(generation)
        return generation

    def check(self, request: GenerateRequest) -> ModelLimits:
        """What bounds the request; raises for what is wrong with it whatever its prompt holds, as `start` does."""
        check_model(request, self._names)
        limits = self._workers.limits()
        check_kind(request, limits)
        request.sampling.validate(vocab_size=limits.vocab_size, names=request.names)
        return limits

    async def encode(self, texts: Sequence[tokenizer_pb2.Text], max_tokens: int) -> list[Encoded]:
        """Token ids of each text. Raises Unavailable, or InvalidRequest if one is sure to have more than max_tokens (0: any)."""
        return await self._tokenizers.encode_all(tokenizer_pb2.EncodeRequest(texts=texts, max_tokens=max_tokens))

    async def num_prompt_tokens(self, request: GenerateRequest) -> int:
        """How long the request's prompt would be. Raises InvalidRequest, NotFound, Unavailable."""
        check_model(request, self._names)
        token_ids, _ = await self._encode(request, await self._tokenizers.describe(), 0)
        return len(token_ids)

    async def resume(self, rid: str, after: str, identity: Identity) -> tuple[Generation, types_pb2.Shape]:
        """Take up a tenant's stream after the event whose id is `after`, or from the beginning; and how it was answered.

        Raises NotFound for a rid the tenant does not have or that is too old, InvalidRequest for an id that is none of
        this stream's, RateLimited as for a new one unless it is still under way, and the error that the request ended with.
        """
        request = replace(await self._resumer.asked(rid, identity.tenant), weight=identity.weight)
        payload = open_sealed(request.payload, rid, self._keys)
        if payload.kind != types_pb2.KIND_GENERATE:
            raise InvalidRequest("This request has no stream to take up: send it again with its idempotency key.", param="rid")
        position = _position(after, rid, payload.sampling.n or 1)
        description = await self._tokenizers.describe()
        deadline_s = request.deadline_ms / 1000 if request.deadline_ms else self._default_deadline_s
        async with self._limiter.charged(identity, rid, request.num_tokens, deadline_s) as settles:
            generation = self._generation(request, payload, deadline_s, description.eos_token_ids, position)
            await self._settle(generation, self._resumer.attach(generation, request))
            settles(generation)
        return generation, payload.shape

    def _generation(
        self,
        request: NewRequest,
        payload: types_pb2.Payload,
        deadline_s: float,
        eos_token_ids: Sequence[int],
        after: positions.Position | None = None,
    ) -> Generation:
        params = from_proto(payload.sampling)
        prompt = unpack(payload.prompt_token_ids)
        sent, size = after.counts if after else (), payload.vector.dimensions
        held = Held(request.rid, 0, params.n, params.num_logprobs, sent, size)
        rule = _decode_rule(params, prompt if payload.shape.echo else (), eos_token_ids, echo_given=after is not None)
        if payload.shape.extras.prompt_only:
            rule = replace(rule, prompt_only=True)
        wants = params.num_prompt_logprobs is not None
        reading = payload.shape.reading if payload.shape.HasField("reading") else None
        facts = Facts(self._names[0], request.tenant, payload.shape.created, prompt, rule, deadline_s, wants, after, reading)
        return Generation(held, facts, self._road)

    async def _settle(self, generation: Generation, attaching: Coroutine[None, None, None]) -> None:
        """Waits until the request is accepted; nothing is left of the generation when that fails."""
        try:
            async with asyncio.timeout(PUT_S):
                await attaching
        except TimeoutError:
            error = Unavailable("The queue does not answer; try again.", code="queue_unavailable", retry_after_s=2.0)
            self._abandon(generation, error)
            raise error from None
        except RoadtrainError as error:
            self._abandon(generation, error)
            raise
        except asyncio.CancelledError:
            generation.end(InternalError("The client left before the request was accepted."), Ending.DISCONNECT)
            raise

    async def cancel(self, rid: str, tenant: str) -> bool:
        """End a tenant's own request, wherever it runs; True if this call ended it, False if it had ended before.

        Raises NotFound for a rid the tenant does not have, Unavailable if the queue does not answer.
        """
        nowhere = NotFound(f"There is no request {rid[:64]}.")
        if not is_rid(rid):
            raise nowhere
        entry = self._ledger.owed.get(rid)
        if entry is not None and entry.generation.tenant == tenant:
            return await entry.generation.cancel("client")
        record = (await self._queue.read([rid]))[rid]
        if record is None or record.tenant != tenant:
            raise nowhere
        if record.state in ("done", "dead") or (record.state == "cancelled" and not record.revivable):
            return False
        answer = await self._queue.cancel(rid, tenant=tenant, router_id=self._router_id, attach=0, why="client")
        return answer.verdict == "ok"

    async def _texts(
        self, request: GenerateRequest, description: tokenizer_pb2.Description, max_tokens: int
    ) -> tuple[list[int], types_pb2.Reading | None, GenerateRequest]:
        """What only the tokenizer can say: the prompt's ids, how output is read, whether the grammar is one, bad words' ids."""
        token_ids, reading = await self._encode(request, description, max_tokens)
        sampling = request.sampling if reading is None else sampling_of(request.sampling, reading, request.tools)
        request = replace(request, sampling=sampling)
        if sampling.is_constrained:
            checking = asyncio.create_task(self._check(request))
            try:
                bad_word_ids = await self._spell(sampling.bad_words)
                await checking
            finally:
                await end_tasks([checking])
            request = replace(request, sampling=replace(sampling, bad_word_ids=bad_word_ids))
        return token_ids, reading, request

    async def _check(self, request: GenerateRequest) -> None:
        if (asked := to_proto(request.sampling)).HasField("grammar"):
            try:
                await self._tokenizers.check_grammar(asked.grammar)
            except InvalidRequest as error:
                name = request.names.get("grammar", "grammar")
                message = error.message.replace("'grammar'", f"'{name}'", 1)
                raise InvalidRequest(message, param=name, code=error.code) from None

    async def _spell(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        if not words:
            return ()
        return spellings_of(await self._tokenizers.encode(tokenizer_pb2.EncodeRequest(texts=texts_of(words))))

    async def _encode(
        self, request: GenerateRequest, description: tokenizer_pb2.Description, max_tokens: int
    ) -> tuple[list[int], types_pb2.Reading | None]:
        prompt = request.prompt
        asked = tokenizer_pb2.EncodeRequest(max_tokens=max_tokens)
        if isinstance(prompt, str):
            asked.texts.add(text=prompt, add_special_tokens=request.add_special_tokens)
        elif isinstance(prompt, tokenizer_pb2.Chat):
            asked.chat.CopyFrom(prompt)
        else:
            return list(prompt), None
        try:
            token_ids, is_open = await self._tokenizers.encode_prompt(asked)
        except InvalidRequest as error:
            if error.param == "prompt":
                error.param = request.names.get("prompt", "prompt")
            raise
        if isinstance(prompt, str):
            return token_ids, None
        spoken = formats(description, tool_parser=self._parsers[0], reasoning_parser=self._parsers[1])
        return token_ids, reading_of(spoken, request.tools, reasoning_open=is_open, hide_reasoning=request.hide_reasoning)

    def _prepare(
        self, request: GenerateRequest, token_ids: list[int], reading: types_pb2.Reading | None, limits: ModelLimits
    ) -> Prepared:
        key = request.idempotency_key
        num_shards = self._queue.num_shards
        rid = new_rid(num_shards) if key is None else rid_for_key(self._keys[0], request.tenant, key, num_shards)
        # A repeated key must mean the same tokens even where its record was lost, so its seed comes from the rid.
        seed = secrets.randbits(63) if key is None else int(rid[-16:], 16) >> 1
        payload = types_pb2.Payload(
            kind=KINDS[request.wanted.kind if request.wanted is not None else "generate"],
            prompt_token_ids=pack(token_ids),
            cache_salt=_salt(request.tenant, request.cache_salt),
            shape=types_pb2.Shape(
                echo=request.echo,
                include_usage=request.include_usage,
                dialect=request.dialect,
                reading=reading,
                extras=request.extras,
            ),
        )
        # Lengths first: looking at the ids of a prompt that can never fit would hold up everybody else.
        params = request.sampling
        if request.wanted is not None:
            payload.vector.CopyFrom(vector_of(request, len(token_ids), limits))
            asked = digest(payload)
        else:
            params = resolve(request, len(token_ids), limits, seed)
            payload.sampling.CopyFrom(to_proto(request.sampling))
            # What was asked, before a seed is drawn that nobody gave.
            asked = digest(payload)
            payload.sampling.CopyFrom(to_proto(params))
        payload.shape.created = int(time.time())
        check_ids(request, token_ids, limits)
        if request.trace is not None:
            payload.trace.CopyFrom(request.trace)
        deadline_s = request.deadline_ms / 1000 or self._default_deadline_s
        return Prepared(rid, payload, asked, params, token_ids, deadline_s)

    def _new_request(self, request: GenerateRequest, prepared: Prepared) -> NewRequest:
        token_ids, params, payload = prepared.token_ids, prepared.params, prepared.payload
        num_new = params.max_tokens or 0
        if request.sampling.max_tokens is None:
            num_new = min(512, num_new)
        warm = block_keys(payload.cache_salt, token_ids[: WARM_BLOCKS * BLOCK_SIZE], BLOCK_SIZE)
        return NewRequest(
            rid=prepared.rid,
            router_id=self._router_id,
            tenant=request.tenant,
            payload=seal(payload, prepared.rid, self._keys),
            digest=prepared.digest,
            num_tokens=len(token_ids) + num_new * params.n,
            band=request.band,
            deadline_ms=int(prepared.deadline_s * 1000),
            warm_key=warm[-1] if len(warm) == WARM_BLOCKS else None,
            weight=request.identity.weight,
        )

    def _abandon(self, generation: Generation, error: RoadtrainError) -> None:
        """Whether a put that got no answer was done is not known: it is cancelled. One that was refused was not."""
        generation.end(error, Ending.DISCONNECT if error.code == "queue_unavailable" else Ending.RELEASED)


def _position(after: str, rid: str, num_choices: int) -> positions.Position | None:
    """Where the client is that got the event `after`; None for the beginning. Raises InvalidRequest if it is none of rid's."""
    if not after:
        return None
    position = positions.read(after, rid)
    if len(position.counts) != num_choices:
        raise InvalidRequest("This event id has another number of choices.", param="last-event-id", code="invalid_event_id")
    return position


def _salt(tenant: str, cache_salt: str) -> bytes:
    """Keeps one caller's cached prefixes from every other's; the length makes (tenant, salt) unambiguous."""
    name = tenant.encode()
    return hashlib.sha256(b"roadtrain.salt\0" + len(name).to_bytes(4, "little") + name + cache_salt.encode()).digest()


def _decode_rule(params: SamplingParams, echo: Sequence[int], eos_token_ids: Sequence[int], *, echo_given: bool) -> DecodeRule:
    """How the output becomes text. The token that ends a choice is shown only where a stop string would be, too."""
    ending = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
    return DecodeRule(
        stop=params.stop,
        include_stop=params.include_stop_str_in_output,
        skip_special=params.skip_special_tokens,
        min_tokens=params.min_tokens,
        hidden_token_ids=frozenset() if params.include_stop_str_in_output else frozenset(ending),
        echo_token_ids=echo,
        echo_given=echo_given,
        stop_token_ids=frozenset(params.stop_token_ids),
    )
