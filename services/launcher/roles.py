"""Runs one service in this process: what `roadtrain router`, `tokenizer` and `worker` do, and what `serve` starts as children.

It knows which settings each service cannot do without, and nothing of what the services do.
"""

import importlib
import logging
import os
import signal
import sys
import threading

from services.launcher.exposure import check_exposure
from services.launcher.pull import find_or_fetch
from services.launcher.supervise import fail_if_missing
from shared.config import Settings
from shared.errors import StartupError
from shared.logs import configure_logging
from shared.marks import Marks
from shared.process import begin, raise_file_limit

logger = logging.getLogger(__name__)


def run_role(role: str, settings: Settings, *, child: bool) -> None:
    """Runs `role` until it is told to end. A child also ends when standard input, a pipe from its parent, closes."""
    begin()
    configure_logging(role, settings.log_level, settings.log_format)
    raise_file_limit()
    if child:
        threading.Thread(target=_end_with_parent, daemon=True, name="lifeline").start()
    check_exposure(settings, role)
    if role != "router":
        settings = with_model_path(settings, sim=settings.worker.runner == "sim" and role == "worker")
    if role != "tokenizer":
        fail_if_missing(f"the {role}", settings.redis_url, "redis-url")
        fail_if_missing(f"the {role}", settings.secret_file, "secret-file")
    marks = Marks(sys.stdin.fileno() if child else None)
    service = importlib.import_module(f"services.{role}.__main__")
    marks("imports")
    service.run(settings, marks)


def with_model_path(settings: Settings, *, sim: bool = False) -> Settings:
    """`settings` with the model found or fetched; sim needs no files."""
    if settings.model_path is not None:
        if not settings.model_path.exists():
            raise StartupError(f"no model at {settings.model_path} (setting model_path)")
        return settings
    return settings if sim else settings.model_copy(update={"model_path": find_or_fetch(settings.model)})


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    logger.warning("the parent is gone; ending")
    os.kill(os.getpid(), signal.SIGTERM)
