"""POST /v1/score and /v1/rerank: how well texts fit each other, in the shapes of vLLM, Cohere and Jina.

It knows nothing of how scores come about.
"""

import time
import uuid
from typing import Any

from services.router.exchange import Exchange
from services.router.front import Front
from services.router.prompts import check_text
from services.router.request import DEFAULT_BAND, Wanted
from services.router.schema import convert
from services.router.schema_vectors import RerankBody, ScoreBody, VectorBody
from services.router.vectors import MAX_INPUTS, VectorRequest, Vectors
from services.router.vectors import score as score_pairs
from shared.errors import InvalidRequest


async def score(exchange: Exchange, front: Front) -> None:
    """Answers one body. Raises RoadtrainError."""
    front.admit()
    body, unknown = convert(await exchange.read_object(front.config.max_body_bytes), ScoreBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    pairs, paths = _pairs(body)
    scores, made = await _scores(exchange, front, body, pairs, paths, "text_2")
    head = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": front.plane.model.names[0]}
    data = [{"index": index, "object": "score", "score": one} for index, one in enumerate(scores)]
    await exchange.answer_object({**head, "data": data, "usage": _usage(made)})


async def rerank(exchange: Exchange, front: Front) -> None:
    """Answers one body: the documents that fit best first. Raises RoadtrainError."""
    front.admit()
    body, unknown = convert(await exchange.read_object(front.config.max_body_bytes), RerankBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    check_text(body.query, "query")
    if body.top_n is not None and body.top_n < 0:
        raise InvalidRequest("Invalid 'top_n': must be at least 0.", param="top_n", code="integer_below_min_value")
    texts = [_document(document, f"documents[{index}]") for index, document in enumerate(body.documents)]
    if not texts:
        raise InvalidRequest("Invalid 'documents': must not be empty.", param="documents", code="empty_array")
    paths = [f"documents[{index}]" for index in range(len(texts))]
    scores, made = await _scores(exchange, front, body, [(body.query, text) for text in texts], paths, "documents")
    order = sorted(range(len(texts)), key=lambda index: (-scores[index], index))[: body.top_n or None]
    results: list[dict[str, Any]] = []
    for index in order:
        document = {} if body.return_documents is False else {"document": {"text": texts[index]}}
        results.append({"index": index, **document, "relevance_score": scores[index]})
    head = {"id": f"rerank-{uuid.uuid4().hex}", "model": front.plane.model.names[0]}
    await exchange.answer_object({**head, "usage": _usage(made), "results": results})


async def _scores(
    exchange: Exchange, front: Front, body: VectorBody, pairs: list[tuple[str, str]], paths: list[str], many: str
) -> tuple[list[float], Vectors]:
    if len(pairs) > MAX_INPUTS:
        raise InvalidRequest(f"Invalid '{many}': at most {MAX_INPUTS} of them.", param=many, code="array_above_max_length")
    per_document = body.max_tokens_per_doc if isinstance(body, RerankBody) else None
    request = VectorRequest(
        model=body.model,
        caller=exchange.caller(),
        inputs=pairs,
        paths=paths,
        wanted=Wanted("embed"),
        truncate=body.truncate_prompt_tokens if per_document is None else per_document,
        band=DEFAULT_BAND if body.priority is None else body.priority,
        names={
            "band": "priority",
            "inputs": many,
            "truncate": "truncate_prompt_tokens" if per_document is None else "max_tokens_per_doc",
        },
    )
    return await exchange.while_listening(score_pairs(front.plane, request, front.config.default_deadline_s))


def _pairs(body: ScoreBody) -> tuple[list[tuple[str, str]], list[str]]:
    """What belongs together, and what each pair is called. Raises InvalidRequest."""
    sides: list[list[str]] = []
    for name, given in (("text_1", body.text_1), ("text_2", body.text_2)):
        side = [given] if isinstance(given, str) else given
        if not side:
            raise InvalidRequest(f"Invalid '{name}': must not be empty.", param=name, code="empty_array")
        for index, text in enumerate(side):
            check_text(text, name if isinstance(given, str) else f"{name}[{index}]")
        sides.append(side)
    first, second = sides
    if len(first) not in (1, len(second)):
        message = f"Invalid 'text_1': {len(first)} texts; must be one, or as many as the {len(second)} of 'text_2'."
        raise InvalidRequest(message, param="text_1", code="invalid_value")
    if len(first) == 1:
        first = first * len(second)
    paths = ["text_2"] if isinstance(body.text_2, str) else [f"text_2[{index}]" for index in range(len(second))]
    return list(zip(first, second, strict=True)), paths


def _document(document: str | dict[str, Any], path: str) -> str:
    text = document if isinstance(document, str) else document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"Invalid type for '{path}.text': expected string.", param=f"{path}.text", code="invalid_type")
    check_text(text, path)
    return text


def _usage(made: Vectors) -> dict[str, int]:
    return {"prompt_tokens": made.num_prompt_tokens, "total_tokens": made.num_prompt_tokens}
