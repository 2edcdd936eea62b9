"""/v1/batches: a file of requests, answered when there is room. It knows nothing of how they are run."""

import secrets
import time
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from services.router.batch.record import ENDED, Batch, Batches
from services.router.batch.runner import enqueue
from services.router.endpoints.files import listed, page_of
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.schema import Metadata, convert
from shared.errors import InvalidRequest

# What a line may ask; runner.py is given the endpoints behind these paths.
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
WINDOW_S = {"24h": 24 * 3600}
MAX_PAGE = 100


class BatchBody(msgspec.Struct, kw_only=True):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: Annotated[str, Meta(max_length=64)]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


async def create(exchange: Exchange, front: Front) -> None:
    """Queues a batch."""
    front.admit()
    body, unknown = convert(await exchange.read_object(front.config.max_body_bytes), BatchBody)
    exchange.note_ignored(unknown, strict=front.config.strict)
    if body.endpoint not in front.batch_paths:
        raise InvalidRequest(f"Invalid 'endpoint': must be one of {', '.join(front.batch_paths)}.", param="endpoint")
    await front.files.get(exchange.tenant, body.input_file_id)
    now = int(time.time())
    batch = Batch(
        id=f"batch_{secrets.token_hex(16)}",
        tenant=exchange.tenant,
        key_id=exchange.identity.key_id,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        status="validating",
        created_at=now,
        expires_at=now + WINDOW_S[body.completion_window],
        metadata=body.metadata,
    )
    await enqueue(front, batch)
    await exchange.answer_object(_shown(batch))


async def list_batches(exchange: Exchange, front: Front) -> None:
    """A page of the tenant's batches, newest first."""
    limit, after = page_of(exchange, most=MAX_PAGE)
    found = await Batches(front.plane.store).newest(exchange.tenant, limit=limit + 1, after=after)
    await exchange.answer_object(listed([_shown(batch) for batch in found], limit))


async def one_batch(exchange: Exchange, front: Front) -> None:
    """How a batch stands. Raises NotFound."""
    batch = await Batches(front.plane.store).get(exchange.tenant, exchange.path_params["batch_id"])
    await exchange.answer_object(_shown(batch))


async def cancel(exchange: Exchange, front: Front) -> None:
    """Ends a batch with the answers it has. Raises NotFound, InvalidRequest for one that has ended."""
    batches = Batches(front.plane.store)
    batch = await batches.change(exchange.tenant, exchange.path_params["batch_id"], _cancelling)
    await exchange.answer_object(_shown(batch))


def _cancelling(batch: Batch) -> Batch:
    if batch.status in ENDED:
        raise InvalidRequest(f"The batch cannot be cancelled: it is {batch.status}.", code="batch_ended")
    return batch if batch.status in ("cancelling", "finalizing") else batch.now("cancelling")


def _shown(batch: Batch) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(batch)
    for name in ("tenant", "key_id", "total", "completed", "failed", "faults"):
        del shown[name]
    faults = [msgspec.to_builtins(fault) for fault in batch.faults]
    return shown | {
        "object": "batch",
        "errors": {"object": "list", "data": faults} if faults else None,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
    }
