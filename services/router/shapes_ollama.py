"""What Ollama's endpoints answer here. It knows nothing of how the answers come about."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from services.router.shapes import Shape, TokenLogprob


class OllamaError(Shape):
    """Every error."""

    error: str


class OllamaCalledFunction(Shape):
    """A function and its arguments."""

    name: str
    arguments: dict[str, Any]


class OllamaCalled(Shape):
    """One call of a tool."""

    id: str
    function: OllamaCalledFunction


class OllamaSaid(Shape):
    """What the assistant said."""

    role: Literal["assistant"]
    content: str
    thinking: str | UnsetType = UNSET
    tool_calls: list[OllamaCalled] | UnsetType = UNSET


class OllamaLine(Shape):
    """A piece of an answer, or the whole; the last has a reason, durations in nanoseconds, and counts of tokens."""

    model: str
    created_at: str
    done: bool
    logprobs: list[TokenLogprob] | UnsetType = UNSET
    done_reason: Literal["stop", "length", "load", "unload"] | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET


class OllamaChatLine(OllamaLine, kw_only=True):
    """Of a chat."""

    message: OllamaSaid


class OllamaGenerateLine(OllamaLine, kw_only=True):
    """Of a prompt."""

    response: str
    thinking: str | UnsetType = UNSET


class OllamaEmbedded(Shape):
    """A vector for each input."""

    model: str
    embeddings: list[list[float]]
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET


class OllamaDetails(Shape):
    """What only the model's files say is left empty."""

    parent_model: str
    format: str
    family: str
    families: list[str] | None
    parameter_size: str
    quantization_level: str


class OllamaModel(Shape):
    """A name of the model; its size on disk is not known to the router: 0."""

    name: str
    model: str
    size: int
    digest: str
    details: OllamaDetails
    modified_at: str | UnsetType = UNSET
    expires_at: str | UnsetType = UNSET
    context_length: int | UnsetType = UNSET


class OllamaModels(Shape):
    """All of them."""

    models: list[OllamaModel]


class OllamaShown(Shape):
    """What is known of a model."""

    modelfile: str
    parameters: str
    template: str
    details: OllamaDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str
