"""What a request must satisfy that only the model can say: its name, ranges of sampling values, token ids, lengths.

Errors name fields as `request.names` says the door calls them. It knows nothing of JSON, protobuf or queues.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.router.request import GenerateRequest
from shared.errors import InvalidRequest, NotFound
from shared.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What bounds a request: positions (prompt and output together), and width of the logits."""

    max_model_len: int
    vocab_size: int


def check_model(request: GenerateRequest, names: tuple[str, ...]) -> None:
    """Raises NotFound if the request asks for a model that is not here, PermissionDenied if it is not for this caller."""
    if request.model not in names:
        shown = ", ".join(f"'{name}'" for name in names if request.identity.may_use(name))
        cure = f"; use one of {shown}" if shown else ""
        raise NotFound(f"The model '{request.model[:200]}' does not exist here{cure}.", param="model", code="model_not_found")
    request.identity.check_model(request.model)


def check_ids(request: GenerateRequest, token_ids: Sequence[int], limits: ModelLimits) -> None:
    """Raises InvalidRequest if the prompt holds an id the model does not have."""
    if not token_ids:
        raise _invalid(request, "prompt", "has no tokens; give at least one")
    if min(token_ids) < 0 or max(token_ids) >= limits.vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < limits.vocab_size)
        raise _invalid(request, "prompt", f"{wrong} is no token id of this model", "invalid_token_id")


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
