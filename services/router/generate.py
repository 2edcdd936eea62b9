"""The one path of every request that produces tokens: check, encode, put on the queue, and hand back what comes.

Doors import everything they need from here. It knows nothing of HTTP, gRPC doors or SSE.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.choice import ChoiceEnd, DecodeRule, EndReason, Event, TextDelta
from services.router.generation import CancelReason, Ending, Facts, Generation, Road
from services.router.ledger import Ledger, Owed
from services.router.request import DEFAULT_BAND, GenerateRequest, Prompt
from services.router.sequencer import Held, pack
from services.router.tokenizer import Tokenizers
from services.router.validate import ModelLimits, check_ids, check_model, resolve
from services.router.workers import Workers
from shared.errors import InternalError, InvalidRequest, NotFound, RoadtrainError, Unavailable
from shared.pb import tokenizer_pb2, types_pb2
from shared.prefix import block_keys
from shared.queue.client import Queue
from shared.queue.payload import digest, seal
from shared.queue.rid import is_rid, new_rid, rid_for_key
from shared.queue.types import Answer, NewRequest
from shared.sampling import SamplingParams, to_proto

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
# At once; first come, first served. The pool of Redis connections is not: in a rush it lets a request starve.
MAX_PUTS = 8
BLOCK_SIZE = 16
WARM_BLOCKS = 8


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
    """Starts requests of one router. `keys` sign payloads, the first one also derives rids from idempotency keys."""

    def __init__(
        self,
        road: Road,
        ledger: Ledger,
        queue: Queue,
        tokenizers: Tokenizers,
        workers: Workers,
        *,
        router_id: str,
        keys: Sequence[bytes],
        names: tuple[str, ...],
        default_deadline_s: float,
    ):
        self._putting = asyncio.Semaphore(MAX_PUTS)
        self._road = road
        self._ledger = ledger
        self._queue = queue
        self._tokenizers = tokenizers
        self._workers = workers
        self._router_id = router_id
        self._keys = keys
        self._names = names
        self._default_deadline_s = default_deadline_s

    async def start(self, request: GenerateRequest) -> Generation:
        """Accept one request: validate, render and encode, check lengths, put on the queue.

        Raises InvalidRequest (`param` named as the door calls it; code "context_length_exceeded" with the numbers),
        NotFound (code "model_not_found"), Unavailable (no worker, no Redis, no tokenizer, overloaded; within 2 s, with
        `retry_after_s`) or RateLimited. Nothing is left behind when it raises or is cancelled.
        """
        check_model(request, self._names)
        limits = self._workers.limits()
        request.sampling.validate(vocab_size=limits.vocab_size, names=request.names)
        description = await self._tokenizers.describe()
        token_ids = await self._encode(request)
        prepared = self._prepare(request, token_ids, limits)
        rule = _decode_rule(request, prepared, description.eos_token_ids)
        params = prepared.params
        held = Held(prepared.rid, 0, params.n, params.num_logprobs)
        wants = params.num_prompt_logprobs is not None
        facts = Facts(self._names[0], request.tenant, int(time.time()), token_ids, rule, prepared.deadline_s, wants)
        generation = Generation(held, facts, self._road)
        try:
            await self._put(generation, self._new_request(request, prepared))
        except RoadtrainError as error:
            self._abandon(generation, error)
            raise
        except asyncio.CancelledError:
            generation.end(InternalError("The client left before the request was accepted."), Ending.DISCONNECT)
            raise
        return generation

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

    async def _encode(self, request: GenerateRequest) -> list[int]:
        prompt = request.prompt
        if isinstance(prompt, str):
            (token_ids,) = await self._tokenizers.encode(tokenizer_pb2.EncodeRequest(texts=[tokenizer_pb2.Text(text=prompt)]))
            return token_ids
        if isinstance(prompt, tokenizer_pb2.Chat):
            (token_ids,) = await self._tokenizers.encode(tokenizer_pb2.EncodeRequest(chat=prompt))
            return token_ids
        return list(prompt)

    def _prepare(self, request: GenerateRequest, token_ids: list[int], limits: ModelLimits) -> Prepared:
        check_ids(request, token_ids, limits)
        key = request.idempotency_key
        rid = new_rid() if key is None else rid_for_key(self._keys[0], request.tenant, key)
        # A repeated key must mean the same tokens even where its record was lost, so its seed comes from the rid.
        seed = secrets.randbits(63) if key is None else int(rid[-16:], 16) >> 1
        params = resolve(request, len(token_ids), limits, seed)
        payload = types_pb2.Payload(
            kind=types_pb2.KIND_GENERATE,
            prompt_token_ids=pack(token_ids),
            sampling=to_proto(request.sampling),
            cache_salt=_salt(request.tenant, request.cache_salt),
        )
        # What was asked, before a seed is drawn that nobody gave.
        asked = digest(payload)
        payload.sampling.CopyFrom(to_proto(params))
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
        )

    async def _put(self, generation: Generation, new: NewRequest) -> None:
        """Holds the request, then puts it: its worker may claim it before the answer is here."""
        earlier = self._ledger.owed.get(new.rid)
        if earlier is not None and earlier.request.digest != new.digest:
            raise InvalidRequest("This idempotency key was used for a different request.", code="idempotency_key_reused")
        entry = Owed(generation, new, time.monotonic() + new.deadline_ms / 1000 if new.deadline_ms else float("inf"))
        self._ledger.add(entry)
        try:
            async with asyncio.timeout(PUT_S), self._putting:
                answer = await self._queue.put(new)
                if answer.verdict == "exists":
                    answer = await self._adopt(new)
        except TimeoutError:
            raise Unavailable("The queue does not answer; try again.", code="queue_unavailable", retry_after_s=2.0) from None
        self._ledger.adopted(entry, answer)

    async def _adopt(self, new: NewRequest) -> Answer:
        """The same key again: its client is here now."""
        return await self._queue.adopt(new.rid, tenant=new.tenant, router_id=self._router_id, request=new)

    def _abandon(self, generation: Generation, error: RoadtrainError) -> None:
        """Whether a put that got no answer was done is not known: it is cancelled. One that was refused was not."""
        generation.end(error, Ending.DISCONNECT if error.code == "queue_unavailable" else Ending.RELEASED)


def _salt(tenant: str, cache_salt: str) -> bytes:
    """Keeps one caller's cached prefixes from every other's; the length makes (tenant, salt) unambiguous."""
    name = tenant.encode()
    return hashlib.sha256(b"roadtrain.salt\0" + len(name).to_bytes(4, "little") + name + cache_salt.encode()).digest()


def _decode_rule(request: GenerateRequest, prepared: Prepared, eos_token_ids: Sequence[int]) -> DecodeRule:
    """How the output becomes text. The token that ends a choice is shown only where a stop string would be, too."""
    params = prepared.params
    ending = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
    return DecodeRule(
        stop=params.stop,
        include_stop=params.include_stop_str_in_output,
        skip_special=params.skip_special_tokens,
        min_tokens=params.min_tokens,
        hidden_token_ids=frozenset() if params.include_stop_str_in_output else frozenset(ending),
        echo_token_ids=prepared.token_ids if request.echo else (),
    )
