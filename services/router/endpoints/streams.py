"""GET /v1/streams/{rid}: the rest of a stream whose connection was lost, from any router, in the shape it began with.

Where to go on is the header Last-Event-ID or the query's starting_after: the id of the last event that arrived. It knows
nothing of who makes the tokens now.
"""

from urllib.parse import parse_qs

from services.router.answers import Opened, describe, stream
from services.router.endpoints.chat import chat_writer
from services.router.endpoints.completions import delta_logprobs
from services.router.exchange import Exchange
from services.router.extra_chunks import with_extras
from services.router.front import Front
from services.router.generate import Generation
from services.router.sse import COMPLETION, ChunkWriter, Writer
from shared.errors import InvalidRequest
from shared.pb import types_pb2


async def take_up(exchange: Exchange, front: Front) -> None:
    """Answers with an event stream. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    after = _after(exchange)
    exchange.caller()

    async def start() -> Opened:
        generation, shape = await front.plane.generator.resume(exchange.path_params["rid"], after, exchange.identity)
        return Opened([generation], [_writer(front, generation, shape)], shape.include_usage)

    await stream(exchange, front, start)


def _after(exchange: Exchange) -> str:
    header = exchange.headers.get(b"last-event-id", b"").decode("latin-1")
    query = parse_qs(exchange.scope["query_string"].decode("latin-1")).get("starting_after", [""])
    if len(query) > 1 or (header and query[0] and header != query[0]):
        raise InvalidRequest(
            "'starting_after' is given twice, or differs from Last-Event-ID; give one of them.",
            param="starting_after",
            code="invalid_value",
        )
    return header or query[0]


def _writer(front: Front, generation: Generation, shape: types_pb2.Shape) -> Writer:
    extras = shape.extras if shape.HasField("extras") else None
    if shape.dialect == "chat":
        return chat_writer(front, generation, extras, include_usage=shape.include_usage)
    logprobs = None
    if generation.has_logprobs:
        as_ids = extras is not None and extras.tokens_as_ids
        logprobs = delta_logprobs(front.plane.vocabulary, generation, echo=shape.echo, as_ids=as_ids)
    answer = describe(COMPLETION, generation, front.plane.model.fingerprint, extras)
    writer = ChunkWriter(answer, include_usage=shape.include_usage, logprobs=logprobs, begun=generation.resumed)
    return with_extras(writer, generation, extras, in_choice=True)
