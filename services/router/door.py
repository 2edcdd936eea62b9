"""The public gRPC door (protos/router.proto): the same requests, checks, errors and cancellation as over HTTP.

Errors are raised; shared/rpc.py turns them into a status with code and param in the trailing metadata.
It knows nothing of HTTP, nor of what happens to a request.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from services.router.accept import Caller, proto_request
from services.router.door_events import event_message, part_message
from services.router.front import Front
from services.router.generate import Generation
from services.router.guard import caller
from services.router.parts import PartReader
from services.router.vectors import make_vectors, proto_vectors
from shared.errors import InvalidRequest, RoadtrainError, mapped
from shared.pb import router_pb2, router_pb2_grpc, types_pb2
from shared.telemetry import context_from_headers

Context = grpc.aio.ServicerContext[Any, Any]

Start = Callable[[], Awaitable[Generation]]


class GrpcDoor(router_pb2_grpc.RouterServicer):
    """Serves protos/router.proto."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def Chat(self, request: router_pb2.ChatRequest, context: Context) -> AsyncIterator[router_pb2.Event]:  # noqa: N802
        """See protos/router.proto."""
        async for event in self._counted("Chat", self._starting(request, context), context):
            yield event

    async def Complete(  # noqa: N802
        self, request: router_pb2.CompleteRequest, context: Context
    ) -> AsyncIterator[router_pb2.Event]:
        """See protos/router.proto."""
        async for event in self._counted("Complete", self._starting(request, context), context):
            yield event

    async def Embed(self, request: router_pb2.EmbedRequest, context: Context) -> router_pb2.EmbedReply:  # noqa: N802
        """See protos/router.proto."""
        front = self._front
        with self._counting("Embed", context):
            await self._enter()
            wanted = proto_vectors(request, _caller(request.options, context))
            made = await make_vectors(front.plane, wanted, front.config.default_deadline_s)
        usage = types_pb2.Usage(num_prompt_tokens=made.num_prompt_tokens, num_cached_tokens=made.num_cached_tokens)
        return router_pb2.EmbedReply(model=front.plane.model.names[0], vectors=made.values, usage=usage)

    async def Resume(  # noqa: N802
        self, request: router_pb2.ResumeRequest, context: Context
    ) -> AsyncIterator[router_pb2.Event]:
        """See protos/router.proto."""
        identity = caller()

        async def start() -> Generation:
            generation, _ = await self._front.plane.generator.resume(request.rid, request.position, identity)
            return generation

        async for event in self._counted("Resume", start, context):
            yield event

    async def Cancel(self, request: router_pb2.CancelRequest, context: Context) -> router_pb2.CancelReply:  # noqa: N802
        """See protos/router.proto."""
        tenant = caller().tenant
        if not request.rid:
            raise InvalidRequest("Missing required parameter: 'rid'.", param="rid", code="missing_required_parameter")
        return router_pb2.CancelReply(cancelled=await self._front.plane.generator.cancel(request.rid, tenant))

    async def ListModels(  # noqa: N802
        self, request: router_pb2.ListModelsRequest, context: Context
    ) -> router_pb2.ListModelsReply:
        """See protos/router.proto."""
        model = self._front.plane.model
        names = [name for name in model.names if caller().may_use(name)]
        return router_pb2.ListModelsReply(
            models=[router_pb2.Model(id=name, created=model.created, max_model_len=model.max_model_len) for name in names]
        )

    def _starting(self, request: router_pb2.ChatRequest | router_pb2.CompleteRequest, context: Context) -> Start:
        async def start() -> Generation:
            return await self._front.plane.generator.start(proto_request(request, _caller(request.options, context)))

        return start

    async def _counted(self, method: str, start: Start, context: Context) -> AsyncIterator[router_pb2.Event]:
        """The answer's events."""
        with self._counting(method, context):
            await self._enter()
            async for event in self._answer(await start()):
                yield event

    async def _enter(self) -> None:
        """One more call that asks for work. Raises Unavailable, RateLimited."""
        self._front.admit()
        identity = caller()
        if identity.is_limited:
            await self._front.plane.limiter.enter(identity)

    @contextmanager
    def _counting(self, method: str, context: Context) -> Iterator[None]:
        """The call is counted by how it ended, and how its caller's limits stand then is in the trailing metadata."""
        status, identity = grpc.StatusCode.CANCELLED, caller()
        self._front.num_open += 1
        try:
            yield
            status = grpc.StatusCode.OK
        except RoadtrainError as error:
            status = grpc.StatusCode[mapped(error).grpc_status]
            raise
        except Exception:
            status = grpc.StatusCode.INTERNAL
            raise
        finally:
            if identity.is_limited:
                context.set_trailing_metadata(tuple(self._front.plane.limiter.headers(identity)))
            self._front.num_open -= 1
            self._front.answered["grpc", method, status.name] += 1

    async def _answer(self, generation: Generation) -> AsyncIterator[router_pb2.Event]:
        try:
            position = generation.position()
            reader = None if generation.reading is None else PartReader(generation, self._front.plane.vocabulary)
            begun = not generation.waits_for_prompt
            if begun:
                yield _begun(generation, position)
            async for happened in generation.events():
                if not begun:
                    # Only now are the prompt's log-probabilities known.
                    yield _begun(generation, position)
                    begun = True
                for event in happened:
                    yield event_message(event) if reader is None else part_message(event, reader.read(event))
                position = happened[-1].position
            yield router_pb2.Event(position=position, usage=generation.usage)
        except BaseException:
            # The client left (the call's task is cancelled or its iterator closed), or the request failed.
            await generation.cancel("disconnect")
            raise


def _metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _caller(options: router_pb2.Options, context: Context) -> Caller:
    """Who asks; the call's own deadline counts as well as the message's, whichever is sooner."""
    metadata = _metadata(context)
    deadlines_ms = [options.deadline_ms] if options.deadline_ms else []
    left_s = context.time_remaining()
    if left_s is not None:
        deadlines_ms.append(max(1, int(left_s * 1000)))
    return Caller(
        identity=caller(),
        idempotency_key=options.idempotency_key or None,
        deadline_ms=min(deadlines_ms, default=0),
        trace=context_from_headers(metadata),
    )


def _begun(generation: Generation, position: str) -> router_pb2.Event:
    begun = router_pb2.Begun(
        rid=generation.rid,
        model=generation.model,
        created=generation.created,
        num_prompt_tokens=generation.num_prompt_tokens,
        prompt_logprobs=generation.prompt_logprobs,
    )
    return router_pb2.Event(position=position, begun=begun)
