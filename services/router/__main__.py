"""The router process: opens the plane and the doors, and on SIGTERM ends them in order.

Then it is not ready, takes no new work, gives open streams `drain_grace_s` to finish, and exits with 0.
It knows nothing of what is served.
"""

import asyncio
import logging
import signal

import uvloop

from services.router.needs import Plane
from services.router.plane import open_plane
from services.router.server import serve
from shared.config import Settings
from shared.marks import Marks
from shared.process import settle

logger = logging.getLogger(__name__)


def run(settings: Settings, marks: Marks | None = None) -> None:
    """Serves until SIGTERM or SIGINT. Raises StartupError."""
    uvloop.run(_until_told(settings, marks or Marks()))


async def _until_told(settings: Settings, marks: Marks) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    opening = asyncio.ensure_future(open_plane(settings))
    told = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((opening, told), return_when=asyncio.FIRST_COMPLETED)
    if not opening.done():
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        return
    plane = opening.result()
    try:
        await _serve(settings, plane, stopping, marks)
    finally:
        told.cancel()
        await plane.close()


async def _serve(settings: Settings, plane: Plane, stopping: asyncio.Event, marks: Marks) -> None:
    doors = await serve(settings, plane)
    logger.info("listening", extra={"http": doors.port, "grpc": doors.grpc_port, "admin": doors.admin_port})
    settle()
    marks.ready()
    await stopping.wait()
    logger.info("draining", extra={"open": doors.front.num_open})
    await doors.stop(settings.router.drain_grace_s)
