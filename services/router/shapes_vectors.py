"""What answers about vectors and scores look like: OpenAI's, vLLM's, Cohere's shapes. It knows nothing of how they are made."""

from typing import Literal

from services.router.shapes import Shape


class VectorUsage(Shape):
    """What it cost."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Shape):
    """One vector: numbers, or float32 little-endian in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Shape):
    """A vector per input, in order."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: VectorUsage


class Score(Shape):
    """How well a pair fits."""

    index: int
    object: Literal["score"]
    score: float


class Scores(Shape):
    """A score per pair, in order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: VectorUsage


class RankedDocument(Shape):
    """A document as it was given."""

    text: str


class Ranked(Shape):
    """Where a document stood among those given, and how well it fits."""

    index: int
    relevance_score: float
    document: RankedDocument | None = None


class Ranking(Shape):
    """The documents that fit best, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: VectorUsage


class InputTokens(Shape):
    """How many tokens a response's prompt is."""

    object: Literal["response.input_tokens"]
    input_tokens: int
