"""The bodies of requests for embeddings and scores as types. Fields: OpenAI's, vLLM's, and Cohere's and Jina's for rerank.

As in schema.py types are strict and null means a field's default. It knows nothing of what happens to a request.
"""

from typing import Any, Literal

import msgspec

from services.router.schema import Label, Metadata


class VectorBody(msgspec.Struct, kw_only=True):
    """What all of them take. truncate_prompt_tokens: cut inputs at so many tokens, -1: at as many as the model takes."""

    model: str
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    # Accepted, checked and without effect.
    user: Label | None = None
    metadata: Metadata | None = None


class EmbeddingBody(VectorBody, kw_only=True):
    """POST /v1/embeddings. pooling: which hidden states, the model's own choice if unset; normalize false: any length."""

    input: str | list[str | int | list[int]]
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] | None = None
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    pooling: Literal["mean", "last", "cls"] | None = None
    normalize: bool | None = None


class ScoreBody(VectorBody, kw_only=True):
    """POST /v1/score. One text_1 for all of text_2, or as many as there are of those."""

    text_1: str | list[str]
    text_2: str | list[str]


class RerankBody(VectorBody, kw_only=True):
    """POST /v1/rerank. A document is a text, or an object with one; top_n 0 or unset: all; max_tokens_per_doc as Cohere's."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None
    return_documents: bool | None = None
    max_tokens_per_doc: int | None = None
