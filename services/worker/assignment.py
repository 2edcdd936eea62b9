"""From a claim to an assignment: opens the payload, judges it as the router did, and says what the engine shall run.

It knows nothing of connections, leases or of the engine's state.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from services.worker.engine.engine import Work
from services.worker.engine.step import Pooling, RunnerLimits
from services.worker.outbound import Outbound, unpack
from shared.errors import InvalidRequest
from shared.pb import types_pb2
from shared.queue.payload import BadPayload, open_sealed
from shared.queue.types import Claim
from shared.sampling import SamplingParams, from_proto

# Its router tells the client, and ends it here, sooner than this.
DEADLINE_MARGIN_S = 1.0
_NOTHING = SamplingParams(seed=0, max_tokens=1)
KINDS = {types_pb2.KIND_GENERATE: "generate", types_pb2.KIND_EMBED: "embed", types_pb2.KIND_SCORE: "score"}
POOLINGS = {types_pb2.POOLING_MEAN: "mean", types_pb2.POOLING_LAST: "last", types_pb2.POOLING_CLS: "cls"}


@dataclass(slots=True, eq=False)
class Assignment:
    """One claimed request. waits_since: when its router was last lost sight of, monotonic seconds; None while begun.

    ending: an end is being told to Redis; nothing else is decided about it meanwhile. expires_at: when the worker ends it
    by itself, should its router not have done so at its deadline; monotonic seconds.
    """

    claim: Claim
    outbound: Outbound
    waits_since: float | None
    ending: bool = False
    expires_at: float = math.inf

    @property
    def needs_all(self) -> bool:
        """It must run alone: not yet past the token at which its last worker died. While it is paused it harms nobody."""
        suspect = self.claim.solo and self.outbound.num_tokens <= self.claim.died_at
        return suspect and not (self.outbound.ended or self.outbound.paused)

    @property
    def rid(self) -> str:
        """Of the request."""
        return self.claim.rid


def assignment_of(claim: Claim, keys: Sequence[bytes], limits: RunnerLimits, now_s: float) -> Assignment:
    """The assignment of `claim`; one whose request is invalid here has failed already, for its router to be told.

    Raises BadPayload when the payload is not ours.
    """
    payload = open_sealed(claim.payload, claim.rid, keys)
    key = (claim.rid, claim.epoch)
    expires_at = math.inf if claim.deadline_ms_left is None else now_s + claim.deadline_ms_left / 1000 + DEADLINE_MARGIN_S
    try:
        prompt, params, pooling = _judge(payload, limits)
    except InvalidRequest as error:
        outbound = Outbound.of(Work(key, (), _NOTHING), router=claim.router, attach=claim.attach)
        outbound.fail(error)
        return Assignment(claim, outbound, now_s, expires_at=expires_at)
    except Exception as error:
        # Whatever is wrong with one request, the others here go on.
        raise BadPayload(f"The payload of request {claim.rid} cannot be judged: {type(error).__name__}.") from error
    work = Work(key, prompt, params, salt=payload.cache_salt, band=claim.band, tag=claim.tag, pooling=pooling)
    return Assignment(claim, Outbound.of(work, router=claim.router, attach=claim.attach), now_s, expires_at=expires_at)


def _judge(payload: types_pb2.Payload, limits: RunnerLimits) -> "tuple[array[int], SamplingParams, Pooling | None]":
    """Prompt and parameters of a valid payload; raises InvalidRequest."""
    if KINDS.get(payload.kind) not in limits.kinds:
        # By number: a newer release's kinds have no names here.
        raise InvalidRequest(f"This worker cannot do requests of kind {payload.kind}.", param="kind", code="unsupported_kind")
    if payload.lora:
        raise InvalidRequest(f"There is no adapter {payload.lora!r} here.", param="lora", code="model_not_found")
    if len(payload.prompt_token_ids) % 4:
        raise InvalidRequest("The prompt's token ids are cut off.", param="prompt")
    prompt = unpack(payload.prompt_token_ids)
    params, pooling, most = _NOTHING, None, limits.max_model_len
    if payload.kind == types_pb2.KIND_GENERATE:
        params, most = _params(payload.sampling, limits), most - 1
    else:
        pooling = _pooling(payload, limits, len(prompt))
    if not 1 <= len(prompt) <= most:
        raise InvalidRequest(
            f"The prompt has {len(prompt)} tokens; this worker takes 1 to {most}.",
            param="prompt",
            code="context_length_exceeded",
        )
    if max(prompt) >= limits.vocab_size:
        raise InvalidRequest(f"{max(prompt)} is no token id of this model.", param="prompt", code="invalid_token_id")
    return prompt, params, pooling


def _params(sampling: types_pb2.Sampling, limits: RunnerLimits) -> SamplingParams:
    params = from_proto(sampling)
    params.validate(vocab_size=limits.vocab_size)
    if params.seed is None or params.max_tokens is None:
        raise InvalidRequest("seed and max_tokens must be set in a payload.", param="sampling")
    return params


def _pooling(payload: types_pb2.Payload, limits: RunnerLimits, num_tokens: int) -> Pooling:
    wanted, is_score = payload.vector, payload.kind == types_pb2.KIND_SCORE
    kind = "score" if is_score else POOLINGS.get(wanted.pooling)
    most = 1 if is_score else limits.vector_size
    if kind is None or not 1 <= wanted.dimensions <= most or wanted.num_first > num_tokens:
        raise InvalidRequest("The payload asks for a vector that this worker cannot make.", param="vector", code="invalid_value")
    needs_all = limits.encodes or kind != "last"
    return Pooling(kind, wanted.dimensions, wanted.raw, wanted.num_first, needs_all)
