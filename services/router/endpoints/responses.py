"""/v1/responses: chats as items, kept and gone on with if wanted. It knows nothing of templates or tokens."""

import dataclasses
from typing import Any
from urllib.parse import parse_qs

import msgspec

from services.router.accept import chat_request
from services.router.answers import end_all, shown
from services.router.endpoints.files import listed, page_of
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.generate import GenerateRequest, Generation
from services.router.responses.background import KIND as BACKGROUND
from services.router.responses.background import Background, writer_of
from services.router.responses.body import ResponsesBody, chat_of, own_items, read_body, renamed
from services.router.responses.kept import Kept, Responses
from services.router.responses.output import ResponseWriter
from services.router.responses.shown import begun_again, head_of, item_shown
from services.router.sse import EventStream
from shared.errors import InvalidRequest, NotFound

MAX_PAGE = 100
_NAMES = {"prompt": "input", "max_tokens": "max_output_tokens", "num_logprobs": "top_logprobs", "band": "priority"}


async def create(exchange: Exchange, front: Front) -> None:
    """Answers one response: streamed, whole, or as soon as it stands in the queue. Raises RoadtrainError."""
    body, items, request = await _read(exchange, front)
    asked = _Asked(exchange, front, body, items, request)
    if body.background:
        await asked.in_background()
    elif body.stream:
        await asked.streamed()
    else:
        await exchange.answer_object(await exchange.while_listening(asked.whole()))


async def count_tokens(exchange: Exchange, front: Front) -> None:
    """How many tokens the model would read for that response. Raises RoadtrainError."""
    _, _, request = await _read(exchange, front)
    num_tokens = await front.plane.generator.num_prompt_tokens(request)
    await exchange.answer_object({"object": "response.input_tokens", "input_tokens": num_tokens})


async def _read(exchange: Exchange, front: Front) -> tuple[ResponsesBody, list[dict[str, Any]], GenerateRequest]:
    """The body, its conversation from the beginning, and the chat that they make."""
    front.admit()
    body, unknown = read_body(await exchange.read_object(front.config.max_body_bytes))
    exchange.note_ignored(unknown, strict=front.config.strict)
    items = await _before(exchange, front, body) + own_items(body)
    try:
        request = chat_request(chat_of(body, items), exchange.caller())
    except InvalidRequest as error:
        raise renamed(error) from None
    return body, items, dataclasses.replace(request, names=_NAMES)


class _Asked:
    """One POST: a conversation, the chat it makes, and the three ways to answer it."""

    def __init__(
        self, exchange: Exchange, front: Front, body: ResponsesBody, items: list[dict[str, Any]], request: GenerateRequest
    ) -> None:
        self._exchange = exchange
        self._front = front
        self._body = body
        self._items = items
        self._request = request
        self._responses = Responses(front.plane.store)

    async def whole(self) -> dict[str, Any]:
        """The response when it has ended."""
        generation, writer = await self._start()
        try:
            async for happened in generation.events():
                writer.render(happened)
            await self._keep(writer.response)
        except BaseException:
            await end_all([generation])
            raise
        return writer.response

    async def streamed(self) -> None:
        """Events as they come."""
        events = EventStream(self._exchange, self._front.config.keep_alive_s)

        async def work() -> None:
            generation, writer = await self._start()
            await tell(events, self._exchange, generation, writer, self._keep)

        await self._exchange.while_listening(work(), idle=events)

    async def in_background(self) -> None:
        """The response as it begins; with `stream`, its events, which the client may leave and come back to."""
        exchange, front = self._exchange, self._front
        generation = await front.plane.generator.start(self._request)
        kept = self._kept(head_of(self._body, generation, "queued"))
        try:
            await self._responses.put(exchange.tenant, kept)
            await Background(front).begin(exchange.tenant, kept, generation)
        except BaseException:
            await end_all([generation])
            raise
        if self._body.stream:
            await tell_again(exchange, front, kept, -1)
        else:
            await exchange.answer_object(kept.response)

    async def _start(self) -> tuple[Generation, ResponseWriter]:
        generation = await self._front.plane.generator.start(self._request)
        head = head_of(self._body, generation, "in_progress")
        return generation, writer_of(self._front, head, generation)

    def _kept(self, response: dict[str, Any]) -> Kept:
        items = [item_shown(item, response["id"], index) for index, item in enumerate(self._items)]
        return Kept(response=response, items=items, num_own=len(own_items(self._body)))

    async def _keep(self, response: dict[str, Any]) -> None:
        if self._body.store is not False:
            await self._responses.put(self._exchange.tenant, self._kept(response))


async def tell(events: EventStream, exchange: Exchange, generation: Generation, writer: ResponseWriter, keep: Any = None) -> None:
    """Sends the whole stream of a response. keep(response) is awaited before its last event."""
    try:
        begun = writer.begin()
        if begun:
            await events.write(begun)
        async for happened in generation.events():
            data = writer.render(happened)
            if data:
                await events.write(data)
        if keep is not None:
            await keep(writer.response)
        await events.write(writer.end(), last=True)
    except Exception as exception:
        await end_all([generation])
        if not events.begun:
            raise
        await events.write(writer.fail(shown(exception, exchange.request_id)), last=True)
    except BaseException:
        await end_all([generation])
        raise


async def tell_again(exchange: Exchange, front: Front, kept: Kept, after: int) -> None:
    """The events of a response after the one with that number, from the beginning of its tokens, whoever has them."""
    events = EventStream(exchange, front.config.keep_alive_s)

    async def work() -> None:
        generation, _ = await front.plane.generator.resume(kept.rid, "", exchange.identity)
        await tell(events, exchange, generation, writer_of(front, begun_again(kept), generation, after=after))

    await exchange.while_listening(work(), idle=events)


async def retrieve(exchange: Exchange, front: Front) -> None:
    """A response that is kept; with `stream=true` its events after `starting_after`. Raises NotFound."""
    kept, _ = await _responses(front).get(exchange.tenant, exchange.path_params["response_id"])
    query = parse_qs(exchange.scope["query_string"].decode("latin-1"))
    if query.get("stream", ["false"])[0] not in ("true", "1"):
        await exchange.answer_object(kept.response)
        return
    text = query.get("starting_after", ["-1"])[0]
    if not (text == "-1" or (text.isascii() and text.isdigit() and len(text) <= 9)):
        raise InvalidRequest("Invalid 'starting_after': the sequence_number of an event.", param="starting_after")
    await tell_again(exchange, front, kept, int(text))


async def delete(exchange: Exchange, front: Front) -> None:
    """Forgets a response, and ends it if it is still being made. Raises NotFound."""
    kept, _ = await _responses(front).get(exchange.tenant, exchange.path_params["response_id"])
    if not kept.ended:
        await front.plane.generator.cancel(kept.rid, exchange.tenant)
    await _responses(front).delete(exchange.tenant, kept.response["id"])
    await exchange.answer_object({"id": kept.response["id"], "object": "response", "deleted": True})


async def cancel(exchange: Exchange, front: Front) -> None:
    """Ends a response in the background; one that has ended stays what it is. Raises NotFound, InvalidRequest."""
    responses = _responses(front)
    while True:
        kept, version = await responses.get(exchange.tenant, exchange.path_params["response_id"])
        if not kept.response["background"]:
            raise InvalidRequest("Only responses in the background can be cancelled.", param="response_id", code="not_background")
        if kept.ended:
            break
        cancelled = msgspec.structs.replace(kept, response=kept.response | {"status": "cancelled"})
        if await responses.put(exchange.tenant, cancelled, version=version):
            await front.plane.generator.cancel(kept.rid, exchange.tenant)
            await front.errands[BACKGROUND].done(kept.response["id"])
            kept = cancelled
            break
    await exchange.answer_object(kept.response)


async def input_items(exchange: Exchange, front: Front) -> None:
    """What was asked, the newest item first unless `order=asc`. Raises NotFound."""
    limit, after = page_of(exchange, most=MAX_PAGE)
    kept, _ = await _responses(front).get(exchange.tenant, exchange.path_params["response_id"])
    query = parse_qs(exchange.scope["query_string"].decode("latin-1"))
    items = kept.items if query.get("order", ["desc"])[0] == "asc" else kept.items[::-1]
    if after is not None:
        at = next((index for index, item in enumerate(items) if item.get("id") == after), len(items))
        items = items[at + 1 :]
    await exchange.answer_object(listed(items[: limit + 1], limit))


async def _before(exchange: Exchange, front: Front, body: ResponsesBody) -> list[dict[str, Any]]:
    """The conversation that `previous_response_id` names, all it said included."""
    if body.previous_response_id is None:
        return []
    try:
        kept, _ = await _responses(front).get(exchange.tenant, body.previous_response_id)
    except NotFound as error:
        # A field of the body is wrong, not the address: OpenAI's status and words.
        raise InvalidRequest(error.message, param="previous_response_id", code="previous_response_not_found") from None
    if not kept.ended:
        raise InvalidRequest(
            "The previous response has not ended yet; wait for it.", param="previous_response_id", code="response_not_ended"
        )
    output: list[dict[str, Any]] = kept.response["output"]
    return kept.items + output


def _responses(front: Front) -> Responses:
    return Responses(front.plane.store)
