"""Log lines, the same in every service.

A log line is an event with fields; a line about a request carries its rid. Prompts and outputs are never logged.
It knows nothing of what the events mean.
"""

import json
import logging
import sys
import time
from typing import Any, Literal

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure_logging(service: str, level: str = "info", log_format: Literal["text", "json"] = "text") -> None:
    """Sends every log line of this process to standard error in one shape; call once, at start."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_JsonLines(service) if log_format == "json" else _TextLines(service))
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
    # Their info lines are about connections we already log.
    for chatty in ("httpx", "httpx2", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class _TextLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():7} {self.service}: {record.getMessage()}{fields}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _JsonLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{record.created:.3f}",
            "level": record.levelname.lower(),
            "service": self.service,
            "logger": record.name,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as `extra=`."""
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
