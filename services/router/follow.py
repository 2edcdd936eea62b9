"""One request's tokens for more than one reader: what its owner has and gets, as messages, here or over Follow.

A follower fills its own logs from the messages and makes text of them as the owner does; so a follower can become the
owner at any time. It knows nothing of Redis, of text or of connections.
"""

import asyncio
from collections.abc import AsyncGenerator

from services.router.sequencer import ChoiceLog, Held, pack, unpack
from shared.errors import RoadtrainError, as_object
from shared.pb import delivery_pb2, types_pb2

MESSAGE_TOKENS = 4096


class Source:
    """What a router holds of one request, for followers; outlives the client that it was held for.

    over: nothing more will come. error: why, if not because all was given.
    """

    def __init__(self, held: Held):
        self.held = held
        self.logs = list(held.choices)
        self.prompt_logprobs: types_pb2.Logprobs | None = None
        self.num_cached_tokens = 0
        self.fingerprint = ""
        self.error: RoadtrainError | None = None
        self.over = False
        self.watchers: set[asyncio.Event] = set()

    def tell(self) -> None:
        """Something changed."""
        for watcher in self.watchers:
            watcher.set()

    def close(self, error: RoadtrainError | None) -> None:
        """What is there now is all."""
        held = self.held
        self.prompt_logprobs, self.fingerprint = held.prompt_logprobs, held.fingerprint
        self.num_cached_tokens = held.num_cached_tokens
        self.over, self.error = True, error
        self.tell()

    @property
    def num_bytes(self) -> int:
        """About how much memory its answer takes."""
        rows = sum(len(log.logprobs.token_ids) for log in self.logs if log.logprobs is not None)
        vectors = sum(len(log.finish.vector) for log in self.logs if log.finish is not None)
        return 2048 + vectors + 40 * sum(len(log.token_ids) for log in self.logs) + 64 * rows


async def watch(source: Source) -> AsyncGenerator[delivery_pb2.Followed, None]:
    """Everything from the beginning, then what comes, until all choices have ended, or the source has.

    A source that ended without a verdict (its request is another's now) just stops.
    """
    wake = asyncio.Event()
    source.watchers.add(wake)
    ended: set[int] = set()
    told = [0] * len(source.logs)
    prompt_told = False
    try:
        yield delivery_pb2.Followed(fingerprint=source.held.fingerprint or source.fingerprint)
        while True:
            wake.clear()
            prompt_logprobs = source.prompt_logprobs or source.held.prompt_logprobs
            if prompt_logprobs is not None and not prompt_told:
                prompt_told = True
                yield delivery_pb2.Followed(prompt_logprobs=prompt_logprobs)
            for log in source.logs:
                for message in _news(source, log, told, ended):
                    yield message
            if source.error is not None:
                fields = {name: value or "" for name, value in as_object(source.error).items()}
                yield delivery_pb2.Followed(error=types_pb2.Error(**fields))
            if source.over or len(ended) == len(source.logs):
                return
            await wake.wait()
    finally:
        source.watchers.discard(wake)


def _news(source: Source, log: ChoiceLog, told: list[int], ended: set[int]) -> list[delivery_pb2.Followed]:
    """What was not told of one choice yet."""
    messages = []
    choice = log.index
    while told[choice] < len(log.token_ids):
        start, end = told[choice], min(len(log.token_ids), told[choice] + MESSAGE_TOKENS)
        message = delivery_pb2.Followed(
            choice=choice,
            idx=start,
            token_ids=pack(log.token_ids[start:end]),
            logprobs=None if log.logprobs is None else log.logprobs.rows(start, end),
            fingerprint=source.held.fingerprint or source.fingerprint,
        )
        messages.append(message)
        told[choice] = end
    finish = log.finish
    failed = finish is not None and finish.reason not in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH)
    if log.ended and choice not in ended and not failed:
        ended.add(choice)
        last = delivery_pb2.Followed(choice=choice, idx=len(log.token_ids), reason=types_pb2.FINISH_REASON_STOP)
        last.num_cached_tokens = source.held.num_cached_tokens or source.num_cached_tokens
        if finish is not None and not log.stopped:
            last.reason, last.vector = finish.reason, finish.vector
            if finish.HasField("stop_token_id"):
                last.stop_token_id = finish.stop_token_id
        messages.append(last)
    return messages


def take(held: Held, message: delivery_pb2.Followed, ended: set[int]) -> bool:
    """Adds a message to a follower's logs; False if there is a gap, so that it must be followed anew."""
    held.fingerprint = message.fingerprint or held.fingerprint
    held.num_cached_tokens = max(held.num_cached_tokens, message.num_cached_tokens)
    if message.HasField("prompt_logprobs"):
        held.prompt_logprobs = message.prompt_logprobs
    if message.choice >= len(held.choices):
        return False
    log = held.choices[message.choice]
    if not log.ended:
        token_ids = unpack(message.token_ids)
        have = len(log.token_ids) - message.idx
        if have < 0:
            return False
        if token_ids[have:]:
            log.token_ids += token_ids[have:]
            if log.logprobs is not None:
                log.logprobs.token_ids.extend(message.logprobs.token_ids[have * log.logprobs.width :])
                log.logprobs.logprobs.extend(message.logprobs.logprobs[have * log.logprobs.width :])
        if message.reason:
            if len(message.vector) != 4 * held.vector_size:
                raise ValueError("a vector that was not asked for, or none")
            log.finish = delivery_pb2.Finish(choice=message.choice, num_tokens=len(log.token_ids), reason=message.reason)
            log.finish.vector = message.vector
            if message.HasField("stop_token_id"):
                log.finish.stop_token_id = message.stop_token_id
        if log.sink is not None and (token_ids[have:] or message.reason):
            log.sink.grew()
    if message.reason:
        ended.add(message.choice)
    return True
