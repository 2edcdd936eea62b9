"""What bodies ask for beyond OpenAI's plain answer: more choices drawn than given, vLLM's members, padding, continuous usage.

It knows nothing of how answers are written.
"""

from services.router.schema import Body, CompletionBody, StreamOptions
from shared.errors import InvalidRequest
from shared.pb import types_pb2

# What every service tier comes to here.
SERVICE_TIER = "default"


def check_best_of(body: CompletionBody) -> int:
    """How many choices to draw of each prompt. Raises InvalidRequest."""
    num_given = 1 if body.n is None else body.n
    if body.best_of is None or num_given < 1:
        return num_given
    if body.best_of < num_given:
        raise InvalidRequest("Invalid 'best_of': must be at least 'n'.", param="best_of", code="invalid_value")
    if body.stream and body.best_of > num_given:
        raise InvalidRequest(
            "'best_of' above 'n' cannot be streamed: which are the best is known at the end.",
            param="best_of",
            code="invalid_value",
        )
    return body.best_of


def extras_of(body: Body) -> types_pb2.Extras | None:
    """What the answer holds besides; None for nothing."""
    options = body.stream_options or StreamOptions()
    extras = types_pb2.Extras(
        token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        continuous_usage=bool(options.include_usage and options.continuous_usage_stats),
        obfuscation=bool(options.include_obfuscation),
        service_tier=SERVICE_TIER if body.service_tier else "",
        prompt_only=isinstance(body, CompletionBody) and bool(body.echo) and body.max_tokens == 0,
    )
    return extras if extras.ByteSize() else None
