"""GET /health, /livez, /readyz, /version, and /metrics on the admin port. It knows nothing of what makes a plane ready."""

import asyncio
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from services.router.exchange import Exchange
from services.router.front import Front
from shared.errors import Unavailable

RETRY_AFTER_S = 1.0


@cache
def own_version() -> str:
    """The installed version; run from a checkout that was never installed there is none."""
    try:
        return version("roadtrain")
    except PackageNotFoundError:
        return "not installed"


async def alive(exchange: Exchange, front: Front) -> None:
    """200 as long as this process answers at all."""
    await exchange.answer_object({"status": "ok"})


async def ready(exchange: Exchange, front: Front) -> None:
    """200 if a request sent now would be accepted, else 503 with the reason."""
    reason = front.not_ready()
    if reason is not None:
        raise Unavailable(f"Not ready: {reason}.", code="not_ready", retry_after_s=RETRY_AFTER_S)
    await exchange.answer_object({"status": "ok"})


async def show_version(exchange: Exchange, front: Front) -> None:
    """Which Roadtrain this is."""
    await exchange.answer_object({"version": own_version()})


async def metrics(exchange: Exchange, front: Front) -> None:
    """Prometheus text: calls answered and calls open, tasks and broken calls between services."""
    lines = [
        "# HELP roadtrain_router_requests_total Calls answered, by door, endpoint and status.",
        "# TYPE roadtrain_router_requests_total counter",
    ]
    for (door, endpoint, status), count in sorted(front.answered.items()):
        labels = f'door="{door}",endpoint="{endpoint}",status="{status}"'
        lines.append(f"roadtrain_router_requests_total{{{labels}}} {count}")
    lines += [
        "# HELP roadtrain_router_open_requests Calls being answered now.",
        "# TYPE roadtrain_router_open_requests gauge",
        f"roadtrain_router_open_requests {front.num_open}",
        "# HELP roadtrain_router_tasks Tasks on this process's event loop now.",
        "# TYPE roadtrain_router_tasks gauge",
        f"roadtrain_router_tasks {len(asyncio.all_tasks())}",
        "# HELP roadtrain_router_protocol_errors_total Calls between services that ended because of what was said on them.",
        "# TYPE roadtrain_router_protocol_errors_total counter",
        f"roadtrain_router_protocol_errors_total {front.plane.num_protocol_errors}",
        "# HELP roadtrain_router_refused_peers_total Calls between services that the caller's certificate was not for.",
        "# TYPE roadtrain_router_refused_peers_total counter",
        f"roadtrain_router_refused_peers_total {front.plane.num_refused_peers}",
    ]
    text = "\n".join(lines) + "\n"
    await exchange.answer(200, text.encode(), b"text/plain; version=0.0.4; charset=utf-8")
