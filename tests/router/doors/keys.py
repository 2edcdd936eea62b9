"""Doors that ask for keys: a file of them, doors over it, and who is who. It knows nothing of what is asked."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.router.limiter import Limiter
from services.router.server import Doors, serve
from shared.api_keys import ApiKey, append_api_key, digest_of, new_secret
from tests.router.doors.conftest import settings
from tests.router.doors.fake_plane import FakePlane


def write_keys(file: Path, keys: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A fresh file with a key for each id; tenant is the id unless given. The secrets by id."""
    file.unlink(missing_ok=True)
    made = {}
    for key_id, fields in keys.items():
        made[key_id] = new_secret()
        digest = digest_of(made[key_id].encode()).hex()
        append_api_key(file, ApiKey(**{"id": key_id, "tenant": key_id, "sha256": digest, **fields}))
    return made


@asynccontextmanager
async def doors_with(file: Path, limiter: Limiter | None = None, **router: Any) -> AsyncIterator[tuple[Doors, FakePlane]]:
    """Open doors that read `file`."""
    plane = FakePlane(limiter)
    doors = await serve(settings(keys_file=file, **router), plane)
    try:
        yield doors, plane
    finally:
        await doors.stop(0.0)
