"""The HTTP applications: which path is answered by what, and the one layer that everything passes.

That layer, in order: headers within bounds, a caller (before routing, and on the raw path, so that no other spelling of
a path gets around it), its rate limits, then the endpoint; every error becomes OpenAI's object here. It knows nothing of
what endpoints do.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from services.router.answers import shown
from services.router.auth import PUBLIC_PATHS
from services.router.endpoints import (
    batches,
    chat,
    completions,
    description,
    embeddings,
    files,
    health,
    messages,
    models,
    ollama,
    responses,
    scores,
    streams,
    tgi,
    tokenize,
)
from services.router.errors_http import style_of
from services.router.exchange import Exchange
from services.router.front import Front, going_away
from services.router.parse import ClientGone
from shared.errors import MethodNotAllowed, NotFound

EXCHANGE = "roadtrain.exchange"

logger = logging.getLogger(__name__)

Handle = Callable[[Exchange, Front], Awaitable[None]]
Methods = Mapping[str, Handle]

# To serve another endpoint: write its module, add its row. GET serves HEAD as well.
ENDPOINTS: Mapping[str, Methods] = {
    "/v1/chat/completions": {"POST": chat.chat},
    "/v1/completions": {"POST": completions.completions},
    "/v1/embeddings": {"POST": embeddings.embeddings},
    "/v1/score": {"POST": scores.score},
    "/v1/rerank": {"POST": scores.rerank},
    "/v2/rerank": {"POST": scores.rerank},
    "/v1/messages": {"POST": messages.messages},
    "/v1/messages/count_tokens": {"POST": messages.count_tokens},
    "/v1/streams/{rid}": {"GET": streams.take_up},
    "/v1/files": {"POST": files.create, "GET": files.list_files},
    "/v1/files/{file_id}": {"GET": files.one_file, "DELETE": files.delete},
    "/v1/files/{file_id}/content": {"GET": files.content},
    "/v1/batches": {"POST": batches.create, "GET": batches.list_batches},
    "/v1/batches/{batch_id}": {"GET": batches.one_batch},
    "/v1/batches/{batch_id}/cancel": {"POST": batches.cancel},
    "/v1/responses": {"POST": responses.create},
    "/v1/responses/input_tokens": {"POST": responses.count_tokens},
    "/v1/responses/{response_id}": {"GET": responses.retrieve, "DELETE": responses.delete},
    "/v1/responses/{response_id}/cancel": {"POST": responses.cancel},
    "/v1/responses/{response_id}/input_items": {"GET": responses.input_items},
    "/v1/models": {"GET": models.list_models},
    "/v1/models/{name:path}": {"GET": models.one_model},
    "/tokenize": {"POST": tokenize.tokenize},
    "/detokenize": {"POST": tokenize.detokenize},
    "/tokenizer_info": {"GET": tokenize.tokenizer_info},
    "/api/chat": {"POST": ollama.chat},
    "/api/generate": {"POST": ollama.generate},
    "/api/embed": {"POST": ollama.embed},
    "/api/tags": {"GET": ollama.tags},
    "/api/show": {"POST": ollama.show},
    "/api/ps": {"GET": ollama.running},
    "/api/version": {"GET": ollama.version},
    "/": {"POST": tgi.root},
    "/generate": {"POST": tgi.generate},
    "/generate_stream": {"POST": tgi.generate_stream},
    "/info": {"GET": tgi.info},
    "/openapi.json": {"GET": description.openapi},
    "/health": {"GET": health.ready},
    "/livez": {"GET": health.alive},
    "/readyz": {"GET": health.ready},
    "/version": {"GET": health.show_version},
}
# What a line of a batch may ask.
BATCHED: Mapping[str, Handle] = {path: ENDPOINTS[path]["POST"] for path in batches.PATHS if path in ENDPOINTS}
ADMIN_ENDPOINTS: Mapping[str, Methods] = {
    "/health": {"GET": health.ready},
    "/livez": {"GET": health.alive},
    "/readyz": {"GET": health.ready},
    "/version": {"GET": health.show_version},
    "/metrics": {"GET": health.metrics},
}


def http_app(front: Front) -> ASGIApp:
    """What the public port serves."""
    return _Layer(front, ENDPOINTS, public=PUBLIC_PATHS, door="http")


def admin_app(front: Front) -> ASGIApp:
    """What the admin port serves, to whoever can reach it."""
    return _Layer(front, ADMIN_ENDPOINTS, public=None, door="admin")


class _Endpoint:
    """One path as raw ASGI: nothing stands between a chunk and the socket."""

    def __init__(self, path: str, methods: Methods, front: Front) -> None:
        self.path = path
        self._methods = {**methods, "HEAD": methods["GET"]} if "GET" in methods else methods
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        exchange.endpoint = self.path
        handle = self._methods.get(scope["method"])
        if handle is None:
            allowed = ", ".join(self._methods)
            exchange.extra_headers.append((b"allow", allowed.encode()))
            raise MethodNotAllowed(f"This path takes {allowed} only.")
        await handle(exchange, self._front)


async def _unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope["path"][:200]
    raise NotFound(f"Unknown URL: {scope['method']} {path}. OpenAI's paths begin with /v1/.", code="unknown_url")


class _Layer:
    """`public`: raw paths that need no caller; None: none does."""

    def __init__(self, front: Front, endpoints: Mapping[str, Methods], *, public: frozenset[bytes] | None, door: str) -> None:
        routes = [Route(path, _Endpoint(path, methods, front)) for path, methods in endpoints.items()]
        self._router = Router(routes, redirect_slashes=False, default=_unknown_path)
        self._front = front
        self._public = public
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        exchange.style = style_of(scope["path"])
        scope[EXCHANGE] = exchange
        self._front.num_open += 1
        try:
            await self._answer(exchange, scope, receive, send)
        except ClientGone:
            # 499 as nginx has it: seen in metrics only.
            exchange.answered = 499
        except asyncio.CancelledError:
            # Nothing but the end of a drain's grace cancels an answer.
            await exchange.fail(going_away())
        except Exception as exception:
            error = shown(exception, exchange.request_id)
            if exchange.answered:
                raise
            await exchange.answer_error(error)
        finally:
            self._front.num_open -= 1
            self._front.answered[self._door, exchange.endpoint, str(exchange.answered)] += 1

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        fault = exchange.header_fault()
        if fault is not None:
            await exchange.answer(431, fault.encode(), b"text/plain", [(b"connection", b"close")])
            return
        exchange.check_host()
        if self._public is not None and scope["raw_path"] not in self._public:
            keys = self._front.keys
            exchange.identity = keys.authenticate(exchange.values(b"authorization"), exchange.values(b"x-api-key"))
            if exchange.identity.is_limited:
                await self._limit(exchange, scope["method"])
        await self._router(scope, receive, send)

    async def _limit(self, exchange: Exchange, method: str) -> None:
        """Before the body is read: too much is refused cheaply. What only asks for facts takes nothing from the limits."""
        limiter, identity = self._front.plane.limiter, exchange.identity
        exchange.standing = partial(limiter.headers, identity)
        await (limiter.look(identity) if method in ("GET", "HEAD") else limiter.enter(identity))
