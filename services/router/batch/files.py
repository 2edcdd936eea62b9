"""Files that tenants sent or that batches made: content on disk, what is known of each in Redis, both for thirty days.

A file is found by its own tenant alone. Routers that are to run each other's batches share the folder. It knows nothing of
what stands in a file, nor of HTTP.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.router.store import Store
from shared.errors import InternalError, NotFound, TooLarge

KEEP_S = 30 * 24 * 3600
KIND = "file"

# Of one tenant, those that batches are writing included.
MAX_FILES = 10_000

_SOME_ID = "file-" + "0" * 32
_FILE_ID = re.compile(r"file-[0-9a-f]{32}")

logger = logging.getLogger(__name__)


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's file object, but for its constant members. Times are seconds since 1970."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str


class Files:
    """All files of one installation. Every method that asks Redis raises Unavailable when it does not answer."""

    def __init__(self, store: Store, folder: Path):
        self._store = store
        self._folder = folder

    def path(self, tenant: str, file_id: str) -> Path:
        """Where the content of a file is, or would be. Raises NotFound for what cannot be an id."""
        if not _FILE_ID.fullmatch(file_id):
            raise _nowhere(file_id)
        return self._folder / hashlib.sha256(tenant.encode()).hexdigest()[:32] / file_id

    def new_path(self, tenant: str) -> Path:
        """Where to write a new file; its name is the new id. Raises InternalError if the folder cannot be made."""
        path = self.path(tenant, f"file-{secrets.token_hex(16)}")
        with disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    async def check_room(self, tenant: str, max_bytes: int) -> None:
        """Raises TooLarge if the tenant's files hold max_bytes already, or are too many."""
        num_files, num_bytes = await asyncio.to_thread(_held, self.path(tenant, _SOME_ID).parent)
        if num_files >= MAX_FILES or num_bytes >= max_bytes:
            raise TooLarge("Your files take all the room there is for them; delete some.", code="storage_full")

    async def add(self, tenant: str, path: Path, *, num_bytes: int, filename: str, purpose: str) -> FileRecord:
        """Makes what was written at `path`, from new_path, one of the tenant's files."""
        now = int(time.time())
        record = FileRecord(
            id=path.name,
            bytes=num_bytes,
            created_at=now,
            expires_at=now + KEEP_S,
            filename=filename,
            purpose=purpose,
        )
        await self._store.write(tenant, KIND, record.id, msgspec.json.encode(record), version=0, ttl_s=KEEP_S)
        return record

    async def get(self, tenant: str, file_id: str) -> FileRecord:
        """What is known of a file. Raises NotFound."""
        self.path(tenant, file_id)
        stored = await self._store.read(tenant, KIND, file_id)
        if stored is None:
            raise _nowhere(file_id)
        return msgspec.json.decode(stored.value, type=FileRecord)

    async def newest(self, tenant: str, *, limit: int, after: str | None) -> list[FileRecord]:
        """A page of the tenant's files, newest first."""
        page = await self._store.newest(tenant, KIND, limit=limit, after=after)
        return [msgspec.json.decode(stored.value, type=FileRecord) for stored in page]

    async def delete(self, tenant: str, file_id: str) -> None:
        """Forgets a file and its content. Raises NotFound."""
        path = self.path(tenant, file_id)
        if not await self._store.delete(tenant, KIND, file_id):
            raise _nowhere(file_id)
        with disk_errors():
            path.unlink(missing_ok=True)

    async def sweep(self) -> None:
        """Removes content that is older than any record."""
        await asyncio.to_thread(self._remove_before, time.time() - KEEP_S)

    def _remove_before(self, oldest: float) -> None:
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What goes wrong with the folder is ours; the log says it, the client learns that it was."""
    try:
        yield
    except OSError as error:
        logger.error("the files' folder: %s", os.strerror(error.errno or 0))
        raise InternalError("The server cannot store files now; its log says why.", code="storage_error") from error


def _held(folder: Path) -> tuple[int, int]:
    sizes = []
    for path in folder.glob("*"):
        with contextlib.suppress(OSError):
            sizes.append(path.stat().st_size)
    return len(sizes), sum(sizes)


def _nowhere(file_id: str) -> NotFound:
    return NotFound(f"There is no file '{file_id[:64]}'.", param="file_id")
