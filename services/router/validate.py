"""What a request must satisfy that only the model can say: its name, ranges of sampling values, token ids, lengths.

Errors name fields as `request.names` says the door calls them. It knows nothing of JSON or queues.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from services.router.request import GenerateRequest, Wanted
from shared.errors import InvalidRequest, NotFound
from shared.pb import types_pb2
from shared.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What bounds a request: positions (prompt and output together), width of the logits, and what the model can do.

    vector_size, pooling: how long its vectors are, and which hidden states they are made of where nobody says.
    """

    max_model_len: int
    vocab_size: int
    kinds: tuple[str, ...] = ("generate",)
    vector_size: int = 0
    pooling: str = "last"


POOLINGS = {"mean": types_pb2.POOLING_MEAN, "last": types_pb2.POOLING_LAST, "cls": types_pb2.POOLING_CLS}
_CANNOT = {
    "generate": "reads texts and writes none; ask it for embeddings or scores",
    "embed": "makes no embeddings",
    "score": "scores no pairs of texts",
}


def check_model(request: GenerateRequest, names: tuple[str, ...]) -> None:
    """Raises NotFound if the request asks for a model that is not here, PermissionDenied if it is not for this caller."""
    if request.model not in names:
        shown = ", ".join(f"'{name}'" for name in names if request.identity.may_use(name))
        cure = f"; use one of {shown}" if shown else ""
        raise NotFound(f"The model '{request.model[:200]}' does not exist here{cure}.", param="model", code="model_not_found")
    request.identity.check_model(request.model)


def check_kind(request: GenerateRequest, limits: ModelLimits) -> None:
    """Raises InvalidRequest if the model cannot do what is asked, or makes no vector of that size."""
    kind = "generate" if request.wanted is None else request.wanted.kind
    if kind not in limits.kinds:
        message = f"The model '{request.model}' {_CANNOT[kind]}."
        raise InvalidRequest(message, param=_name(request, "model"), code="unsupported_by_model")
    wanted = request.wanted
    if wanted is None:
        return
    if wanted.dimensions is not None and not 1 <= wanted.dimensions <= limits.vector_size:
        raise _invalid(
            request, "dimensions", f"this model's vectors have {limits.vector_size}; ask for 1 to {limits.vector_size}"
        )
    if wanted.pooling is not None and wanted.pooling not in POOLINGS:
        raise _invalid(request, "pooling", f"must be one of {', '.join(POOLINGS)}")


def vector_of(request: GenerateRequest, num_prompt_tokens: int, limits: ModelLimits) -> types_pb2.Vector:
    """What stands in the payload of a request whose kind was checked. Raises InvalidRequest for a prompt that is too long."""
    wanted = request.wanted or Wanted()
    if num_prompt_tokens > limits.max_model_len:
        name = _name(request, "prompt")
        raise InvalidRequest(
            f"This model's maximum context length is {limits.max_model_len} tokens. However, '{name}' has "
            f"{num_prompt_tokens}. Please shorten it, or ask for it to be cut.",
            param=name,
            code="context_length_exceeded",
        )
    if wanted.kind == "score":
        return types_pb2.Vector(dimensions=1, raw=wanted.raw, num_first=wanted.num_first)
    return types_pb2.Vector(
        pooling=POOLINGS[wanted.pooling or limits.pooling], dimensions=wanted.dimensions or limits.vector_size, raw=wanted.raw
    )


def check_ids(request: GenerateRequest, token_ids: Sequence[int], limits: ModelLimits) -> None:
    """Raises InvalidRequest if the prompt holds an id the model does not have."""
    if not token_ids:
        raise _invalid(request, "prompt", "has no tokens; give at least one")
    try:
        ids = array("I", token_ids)
    except (OverflowError, TypeError):
        raise _invalid(request, "prompt", "holds what is no token id", "invalid_token_id") from None
    if (highest := max(ids)) >= limits.vocab_size:
        raise _invalid(request, "prompt", f"{highest} is no token id of this model", "invalid_token_id")


def truncated(request: GenerateRequest, token_ids: list[int], limits: ModelLimits) -> list[int]:
    """The prompt's last tokens, as many as the request keeps; all where it does not say. Raises InvalidRequest."""
    most = request.truncate_prompt_tokens
    if most is None:
        return token_ids
    if most == -1:
        most = limits.max_model_len - max(request.sampling.max_tokens or 1, request.sampling.min_tokens)
        return token_ids[-most:] if most > 0 else token_ids
    if not 1 <= most <= limits.max_model_len:
        raise _invalid(request, "truncate_prompt_tokens", f"must be -1, or 1 to {limits.max_model_len}")
    return token_ids[-most:]


def resolve(request: GenerateRequest, num_prompt_tokens: int, limits: ModelLimits, seed: int) -> SamplingParams:
    """The sampling parameters with max_tokens, and `seed` where none was given, filled in.

    Raises InvalidRequest (code context_length_exceeded) if prompt and output do not fit: nothing is ever cut silently.
    """
    params, most = request.sampling, limits.max_model_len
    room = most - num_prompt_tokens
    wanted = params.max_tokens
    if room < 1 or (wanted or 0) > room or params.min_tokens > room:
        total = num_prompt_tokens + (wanted or max(params.min_tokens, 1))
        raise InvalidRequest(
            f"This model's maximum context length is {most} tokens. However, you requested {total} tokens "
            f"({num_prompt_tokens} in the prompt, {total - num_prompt_tokens} for the completion). "
            "Please shorten the prompt or ask for a shorter completion.",
            param=_name(request, "prompt" if room < 1 or wanted is None else "max_tokens"),
            code="context_length_exceeded",
        )
    return params.resolved(seed=seed, max_tokens=room)


def _name(request: GenerateRequest, field: str) -> str:
    return request.names.get(field, field)


def _invalid(request: GenerateRequest, field: str, what: str, code: str = "invalid_value") -> InvalidRequest:
    name = _name(request, field)
    return InvalidRequest(f"Invalid '{name}': {what}.", param=name, code=code)
