"""Runs the tokenizer until it is told to end. It knows only how to start and how to stop."""

import asyncio
import logging
import signal
import sys

import uvloop

from services.tokenizer.server import serve
from shared.config import Settings, load
from shared.errors import StartupError
from shared.logs import configure_logging
from shared.marks import Marks
from shared.process import settle

GRACE_S = 5.0

logger = logging.getLogger(__name__)


def run(settings: Settings, marks: Marks | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then ends open calls within GRACE_S. Raises StartupError."""
    uvloop.run(_run(settings, marks or Marks()))


async def _run(settings: Settings, marks: Marks) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    server = await serve(settings)
    settle()
    marks.ready()
    logger.info("tokenizer is ready", extra={"address": server.address})
    await told.wait()
    await server.stop(GRACE_S)


def main() -> None:
    """The process's entry: settings from flags and environment."""
    try:
        settings = load(sys.argv[1:], program="roadtrain tokenizer")
        configure_logging("tokenizer", settings.log_level, settings.log_format)
        run(settings)
    except StartupError as error:
        raise SystemExit(f"roadtrain tokenizer: {error}") from None


if __name__ == "__main__":
    main()
