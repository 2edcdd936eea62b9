"""/v1/files: what a batch reads and writes. It knows nothing of what stands in a file."""

from typing import Any
from urllib.parse import parse_qs

from services.router.batch.files import FileRecord
from services.router.batch.upload import remove
from services.router.exchange import Exchange
from services.router.front import Front
from shared.errors import InvalidRequest

PURPOSES = ("batch",)
MAX_PAGE = 1000
ROOM = 20  # largest files that one tenant may keep
DEFAULT_PAGE = 20


async def create(exchange: Exchange, front: Front) -> None:
    """Takes a file of the form field `file`, for the purpose that `purpose` says."""
    front.admit()
    files = front.files
    await files.check_room(exchange.tenant, ROOM * front.config.max_file_bytes)
    path = files.new_path(exchange.tenant)
    form = await exchange.read_form(path, int(front.config.max_file_bytes))
    try:
        if form.filename is None:
            raise InvalidRequest("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        purpose = form.fields.pop("purpose", None)
        if purpose not in PURPOSES:
            raise InvalidRequest("Invalid 'purpose': files are for batches here; say 'batch'.", param="purpose")
        exchange.note_ignored(sorted(form.fields), strict=front.config.strict)
        record = await files.add(exchange.tenant, path, num_bytes=form.num_bytes, filename=form.filename, purpose=purpose)
    except BaseException:
        remove(path)
        raise
    await exchange.answer_object(_shown(record))


async def list_files(exchange: Exchange, front: Front) -> None:
    """A page of the tenant's files, newest first."""
    limit, after = page_of(exchange, most=MAX_PAGE)
    found = await front.files.newest(exchange.tenant, limit=limit + 1, after=after)
    await exchange.answer_object(listed([_shown(record) for record in found], limit))


async def one_file(exchange: Exchange, front: Front) -> None:
    """What is known of a file. Raises NotFound."""
    await exchange.answer_object(_shown(await front.files.get(exchange.tenant, exchange.path_params["file_id"])))


async def delete(exchange: Exchange, front: Front) -> None:
    """Forgets a file. Raises NotFound."""
    file_id = exchange.path_params["file_id"]
    await front.files.delete(exchange.tenant, file_id)
    await exchange.answer_object({"id": file_id, "object": "file", "deleted": True})


async def content(exchange: Exchange, front: Front) -> None:
    """The file itself. Raises NotFound."""
    record = await front.files.get(exchange.tenant, exchange.path_params["file_id"])
    await exchange.answer_file(front.files.path(exchange.tenant, record.id))


def page_of(exchange: Exchange, *, most: int) -> tuple[int, str | None]:
    """What the query says of `limit` and `after`. Raises InvalidRequest."""
    query = parse_qs(exchange.scope["query_string"].decode("latin-1"))
    text = query.get("limit", [str(DEFAULT_PAGE)])[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= most):
        raise InvalidRequest(f"Invalid 'limit': 1 to {most}.", param="limit")
    return int(text), query.get("after", [None])[0]


def listed(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's list of the first `limit` of `found`; one more says that there are more."""
    page = found[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > limit,
    }


def _shown(record: FileRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }
