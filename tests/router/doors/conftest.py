"""A router's real doors on free ports in this process, over a fake plane; one set per module."""

from collections.abc import AsyncIterator

import httpx
import pytest_asyncio

from services.router.server import Doors, serve
from shared.config import RouterConfig, Settings
from tests.router.doors.fake_plane import FakePlane


def settings(**router: object) -> Settings:
    return Settings(router=RouterConfig(port=0, grpc_port=0, admin_port=0, drain_grace_s=5.0, **router))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane() -> FakePlane:
    return FakePlane()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def doors(plane: FakePlane) -> AsyncIterator[Doors]:
    opened = await serve(settings(keep_alive_s=0.2), plane)
    yield opened
    await opened.stop(0.0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(doors: Doors) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{doors.port}", timeout=10) as client:
        yield client
