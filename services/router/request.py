"""What every door makes of what a client sent: one request, whatever its dialect was.

It knows nothing of HTTP, of JSON or of queues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.router.auth import Identity
from services.router.tools import ToolUse
from shared.pb import tokenizer_pb2, types_pb2
from shared.sampling import SamplingParams

DEFAULT_BAND = 5

Prompt = str | Sequence[int] | tokenizer_pb2.Chat


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a prompt shall give in place of tokens: a vector ("embed"), or what a cross-encoder says of a pair ("score").

    `pooling` ("mean", "last", "cls") and `dimensions` None: the model's own. `raw`: not brought to length 1.
    `num_first`: tokens of the first text of a pair.
    """

    kind: Literal["embed", "score"] = "embed"
    pooling: str | None = None
    dimensions: int | None = None
    raw: bool = False
    num_first: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue, or to make a vector of; a body with several prompts makes several of these.

    `prompt` is a text, token ids, or a chat to render. `echo` gives the prompt's text back before the output.
    `sampling` need not be validated; `seed` and `max_tokens` None leave them to the router.
    `truncate_prompt_tokens` keeps that many of the prompt's last tokens, -1 as many as leave room for the output; None: all.
    `add_special_tokens`: a text begins with what the model wants there. `extras` is what the answer holds besides.
    `band` is the priority class, 0 (first) to 9. `deadline_ms` counts from acceptance; 0 takes the router's default.
    `dialect` ("chat" or "completion") and `include_usage` say how a stream is answered, should it be taken up elsewhere.
    `tools` may be called by a chat; its reasoning is left out of the answer with `hide_reasoning`.
    `after` is the id of the last event the client got of a stream that it began under the same idempotency key.
    `wanted` is what a prompt gives in place of tokens; then there is nothing to sample.
    `names` maps a field to what this door calls it ({"max_tokens": "max_completion_tokens"}), for error messages.
    """

    model: str
    identity: Identity
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    echo: bool = False
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool = True
    extras: types_pb2.Extras | None = None
    band: int = DEFAULT_BAND
    deadline_ms: int = 0
    cache_salt: str = ""
    idempotency_key: str | None = None
    after: str = ""
    trace: types_pb2.TraceContext | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    dialect: str = "completion"
    include_usage: bool = False
    tools: ToolUse | None = None
    hide_reasoning: bool = False
    wanted: Wanted | None = None

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.identity.tenant
