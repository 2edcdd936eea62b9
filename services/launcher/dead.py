"""`roadtrain dead`: requests that were put aside because they ended three processes. Look at them, forgive or drop them.

Prompts are never shown. It knows the dead letters of one model's queue, and nothing of why they did what they did.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime

from services.launcher.queues import open_queue
from shared.config import Settings, load
from shared.errors import StartupError, Unavailable
from shared.queue.address import without_password
from shared.queue.client import Queue
from shared.queue.rid import is_rid

USAGE = """\
roadtrain dead ls            list the dead letters, oldest first
roadtrain dead show RID      one of them: whose, how large, when
roadtrain dead retry RID     forgive it: it runs again as soon as its client sends its key, or its rid, again
roadtrain dead drop RID      forget it, prompt and all

They need --redis-url (and --model, as the services have it)."""


def dead(arguments: Sequence[str]) -> int:
    """Runs one of the commands; its exit code. Raises StartupError."""
    words = []
    rest = list(arguments)
    while rest and not rest[0].startswith("-"):
        words.append(rest.pop(0))
    command = words[0] if words else ""
    takes_rid = command in ("show", "retry", "drop")
    if command not in COMMANDS or len(words) != 1 + takes_rid:
        print(USAGE, file=sys.stderr)
        return 2
    if takes_rid and not is_rid(words[1]):
        raise StartupError(f"{words[1]!r} is no rid; `roadtrain dead ls` lists them")
    return asyncio.run(_run(load(rest, program="roadtrain dead"), command, words[-1]))


async def _run(settings: Settings, command: str, rid: str) -> int:
    try:
        async with open_queue(settings) as (queue, _):
            await queue.load()
            return await COMMANDS[command](queue, rid)
    except Unavailable as error:
        raise StartupError(f"no Redis answers at {without_password(settings.redis_url or '')}: {error.message}") from None


async def _list(queue: Queue, _: str) -> int:
    letters = await queue.dead()
    if not letters:
        print("no dead letters")
    for rid, died_at in letters:
        print(f"{rid}  {_time(died_at)}")
    return 0


async def _show(queue: Queue, rid: str) -> int:
    times = dict(await queue.dead())
    found = await queue.look(rid)
    if found is None or rid not in times:
        return _none(rid)
    request = found.request
    print(f"rid      {rid}\ndied     {_time(times[rid])} ({found.answer.reason}, {found.crashes} crashes in a row)")
    print(f"tenant   {request.tenant}\ncost     {request.num_tokens} tokens\npayload  {len(request.payload)} bytes")
    return 0


async def _retry(queue: Queue, rid: str) -> int:
    if (await queue.pardon(rid)).verdict != "ok":
        return _none(rid)
    print(f"{rid} runs again when its client comes back for it")
    return 0


async def _drop(queue: Queue, rid: str) -> int:
    if (await queue.discard(rid)).verdict != "ok":
        return _none(rid)
    print(f"{rid} is gone")
    return 0


def _none(rid: str) -> int:
    print(f"roadtrain: {rid} is no dead letter; `roadtrain dead ls` lists them", file=sys.stderr)
    return 1


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


COMMANDS: Mapping[str, Callable[[Queue, str], Awaitable[int]]] = {"ls": _list, "show": _show, "retry": _retry, "drop": _drop}
