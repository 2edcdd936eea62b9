"""A uvicorn server that answers every request with the same events, without any logic: what the road is held against.

Run as python -m bench.bare PORT FILE COUNT: FILE holds one event, sent COUNT times per request. After each the
other streams have their turn, as tokens come in turn: so every event is a write of its own, never many in one.
It knows nothing of Roadtrain.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import uvicorn


def app(event: bytes, count: int) -> Any:
    """The ASGI application."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    chunk = {"type": "http.response.body", "body": event, "more_body": True}
    end = {"type": "http.response.body", "body": b"data: [DONE]\n\n"}

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send(start)
        if scope["method"] == "POST":
            while (await receive()).get("more_body"):
                pass
            for _ in range(count):
                await send(chunk)
                await asyncio.sleep(0)
        await send(end)

    return answer


def serve() -> None:
    """Serves until told to end."""
    port, file, count = sys.argv[1:4]
    loop = {"http": "httptools", "loop": "uvloop", "log_level": "warning", "access_log": False}
    uvicorn.run(app(Path(file).read_bytes(), int(count)), host="127.0.0.1", port=int(port), lifespan="off", backlog=2048, **loop)


if __name__ == "__main__":
    serve()
