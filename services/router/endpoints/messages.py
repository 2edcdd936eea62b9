"""POST /v1/messages and /v1/messages/count_tokens, in Anthropic's shapes. It knows nothing of templates or tokens."""

from services.router.answers import end_all, part_reader, shown
from services.router.anthropic.body import read_count_body, read_message_body, request_of
from services.router.anthropic.writer import MessageWriter
from services.router.exchange import Exchange
from services.router.front import Front
from services.router.generate import GenerateRequest
from services.router.sse import EventStream


async def messages(exchange: Exchange, front: Front) -> None:
    """Answers one message, streamed or whole. Raises RoadtrainError while nothing has been sent."""
    front.admit()
    body, unknown = read_message_body(await exchange.read_object(front.config.max_body_bytes))
    exchange.note_ignored(unknown, strict=front.config.strict)
    exchange.extra_headers.append((b"request-id", exchange.request_id))
    request = request_of(body, exchange.caller())
    if body.stream:
        await _stream(exchange, front, request)
    else:
        await exchange.answer_object(await exchange.while_listening(_whole(front, request)))


async def count_tokens(exchange: Exchange, front: Front) -> None:
    """How many tokens the prompt of a message would be."""
    front.admit()
    body, unknown = read_count_body(await exchange.read_object(front.config.max_body_bytes))
    exchange.note_ignored(unknown, strict=front.config.strict)
    num_tokens = await front.plane.generator.num_prompt_tokens(request_of(body, exchange.caller()))
    await exchange.answer_object({"input_tokens": num_tokens})


async def _whole(front: Front, request: GenerateRequest) -> dict[str, object]:
    generation = await front.plane.generator.start(request)
    try:
        writer = MessageWriter(generation, part_reader(front, generation))
        async for happened in generation.events():
            writer.render(happened)
    except BaseException:
        await end_all([generation])
        raise
    return writer.message()


async def _stream(exchange: Exchange, front: Front, request: GenerateRequest) -> None:
    events = EventStream(exchange, front.config.keep_alive_s)

    async def work() -> None:
        generation = await front.plane.generator.start(request)
        writer = MessageWriter(generation, part_reader(front, generation))
        try:
            async for happened in generation.events():
                # Only now is it known what the prefix cache had.
                begin = b"" if events.begun else writer.begin()
                data = begin + writer.render(happened)
                if data:
                    await events.write(data)
            await events.write(writer.end(), last=True)
        except Exception as exception:
            await end_all([generation])
            if not events.begun:
                raise
            await events.fail(shown(exception, exchange.request_id))
        except BaseException:
            await end_all([generation])
            raise

    await exchange.while_listening(work(), idle=events)
