"""What answers about embeddings and scores look like. It knows nothing of how they are made."""

from typing import Literal

from msgspec import UNSET, UnsetType

from services.router.shapes import Shape


class VectorUsage(Shape):
    """What it cost."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Shape):
    """One input's vector, as numbers or as base64 of float32 little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(Shape):
    """A vector for each input."""

    object: Literal["list"]
    model: str
    usage: VectorUsage
    data: list[Embedding]


class Score(Shape):
    """How well one pair fits."""

    index: int
    object: Literal["score"]
    score: float


class Scores(Shape):
    """A score for each pair."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Score]
    usage: VectorUsage


class RankedDocument(Shape):
    """Its text."""

    text: str


class Ranked(Shape):
    """One document, by its place among those sent."""

    index: int
    relevance_score: float
    document: RankedDocument | UnsetType = UNSET


class Ranking(Shape):
    """Documents, those that fit best first."""

    id: str
    model: str
    usage: VectorUsage
    results: list[Ranked]
