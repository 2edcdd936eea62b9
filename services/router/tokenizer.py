"""Client of the tokenizer's unary calls: texts and chats to ids, facts about the model's text, every token's bytes.

Replicas are alike: a call that one does not answer, or not soon, goes to the next. It knows nothing of what the ids mean.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import grpc

from services.router.sequencer import pack, unpack
from shared import rpc
from shared.errors import InternalError, InvalidRequest, RoadtrainError, TooLarge, Unavailable
from shared.mtls import Peer
from shared.pb import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2

# A call on a small input is answered in milliseconds; a large one gets time by its size.
TRY_S = 2.0
TRY_S_PER_MB = 2.0
# After so long (and as much again as its size allows) a call is made to another replica, too: one may be frozen.
HEDGE_S = 0.25
# Of a grammar: its process is killed after 2 s, and may have to be started before.
CHECK_S = 6.0
ANOTHER = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})

logger = logging.getLogger(__name__)
Reply = TypeVar("Reply")


class TokenBytes:
    """Every token's bytes; `special` are the ids that stand for no text. Plain ones are ASCII text wherever they stand."""

    def __init__(self, reply: tokenizer_pb2.VocabularyReply):
        self._data = reply.data
        self._offsets = (0, *accumulate(reply.length))
        self.special = frozenset(reply.special_token_ids)
        whole = (self.bytes_of(token_id) for token_id in range(len(self._offsets) - 1))
        self._plain = [data.decode() if data.isascii() else None for data in whole]
        for token_id in self.special:
            self._plain[token_id] = None

    def plain_text(self, token_ids: Sequence[int]) -> str | None:
        """Their text if every one of them is plain."""
        texts = [self._plain[token_id] if token_id < len(self._plain) else None for token_id in token_ids]
        return None if None in texts else "".join(texts)  # type: ignore[arg-type]

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes a token adds to the text; empty for an id beyond the vocabulary, which a padded model can produce."""
        if not 0 <= token_id < len(self._offsets) - 1:
            return b""
        return self._data[self._offsets[token_id] : self._offsets[token_id + 1]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input as token ids; num_first: those of the first text of a pair, 0 where there is one text."""

    token_ids: list[int]
    num_first: int


class Replica:
    """One tokenizer process."""

    def __init__(self, address: str, peer: Peer | None):
        self.address = address
        self.checked = False
        self._channel = rpc.connect(address, peer)
        self.stub = tokenizer_pb2_grpc.TokenizerStub(self._channel)

    async def close(self) -> None:
        """Ends its connection."""
        await self._channel.close()


class Tokenizers:
    """All replicas of the model's tokenizer. The first one that answers says what the model is; others must agree."""

    def __init__(self, addresses: Sequence[str], peer: Peer | None = None):
        self._replicas = [Replica(address, peer) for address in addresses]
        self._first = 0
        self._description: tokenizer_pb2.Description | None = None
        self._vocabulary: TokenBytes | None = None
        # Replies that were none.
        self.num_garbled = 0

    async def close(self) -> None:
        """Ends all connections."""
        for replica in self._replicas:
            await replica.close()

    @property
    def is_one(self) -> bool:
        """There is no other replica."""
        return len(self._replicas) == 1

    def next_replica(self, failed: Replica | None = None) -> Replica:
        """The replica to use now; never `failed` while there is another."""
        if failed is not None and self._replicas[self._first] is failed:
            self._first = (self._first + 1) % len(self._replicas)
            failed.checked = False
        return self._replicas[self._first]

    async def describe(self) -> tokenizer_pb2.Description:
        """Facts about the model's text side. Raises Unavailable if no replica answers."""
        return await self._any(self.check)

    async def check(self, replica: Replica) -> tokenizer_pb2.Description:
        """What the replica says of itself, asked once per connection. Raises Unavailable if it contradicts the others."""
        if not replica.checked or self._description is None:
            asked = replica.stub.Describe(tokenizer_pb2.DescribeRequest(), timeout=TRY_S)
            description: tokenizer_pb2.Description = rpc.whole(await asked)
            if self._description is None:
                self._description = description
            if description.digest != self._description.digest:
                logger.error("a tokenizer serves another vocabulary; it is not used", extra={"address": replica.address})
                raise Unavailable("The tokenizers do not agree with each other; try again.", retry_after_s=1.0)
            replica.checked = True
        return self._description

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> list[list[int]]:
        """Token ids of each text. Raises Unavailable."""
        return [each.token_ids for each in await self.encode_all(request)]

    async def encode_all(self, request: tokenizer_pb2.EncodeRequest) -> list[Encoded]:
        """The same, and how many are of the first text of a pair. Raises InvalidRequest for what is sure to be too long."""
        reply = await self._encode(request)
        num_first = reply.num_first or [0] * len(reply.token_ids)
        return [Encoded(unpack(packed), number) for packed, number in zip(reply.token_ids, num_first, strict=True)]

    async def encode_prompt(self, request: tokenizer_pb2.EncodeRequest) -> tuple[list[int], bool]:
        """Ids of its one text or chat, and whether they end within reasoning.

        Raises InvalidRequest if a chat cannot be rendered, or the prompt is sure to be longer than asked for; or Unavailable.
        """
        reply = await self._encode(request)
        return unpack(reply.token_ids[0]), reply.reasoning_open

    async def _encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeReply:
        for_size_s = TRY_S_PER_MB * request.ByteSize() / 1e6
        return await self._any(
            lambda replica: replica.stub.Encode(request, timeout=TRY_S + for_size_s), hedge_s=HEDGE_S + for_size_s
        )

    async def check_grammar(self, grammar: types_pb2.Grammar) -> None:
        """Raises InvalidRequest, code and all, for a grammar that cannot be followed, or Unavailable."""
        request = tokenizer_pb2.CheckGrammarRequest(grammar=grammar)
        # A slow one is not asked of another replica, too: it is as slow there.
        await self._any(lambda replica: replica.stub.CheckGrammar(request, timeout=CHECK_S), hedge_s=CHECK_S / 2)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text that these ids are, special tokens spelled out. Raises InvalidRequest for what is no id, or Unavailable."""
        return (await self._detokenize(token_ids, as_tokens=False)).text

    async def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it. Raises as detokenize does."""
        return list((await self._detokenize(token_ids, as_tokens=True)).tokens)

    async def _detokenize(self, token_ids: Sequence[int], *, as_tokens: bool) -> tokenizer_pb2.DetokenizeReply:
        request = tokenizer_pb2.DetokenizeRequest(token_ids=pack(token_ids), as_tokens=as_tokens)
        for_size_s = TRY_S_PER_MB * request.ByteSize() / 1e6
        return await self._any(
            lambda replica: replica.stub.Detokenize(request, timeout=TRY_S + for_size_s), hedge_s=HEDGE_S + for_size_s
        )

    async def load_vocabulary(self) -> None:
        """Fetches every token's bytes, once. Raises Unavailable if no replica answers."""
        if self._vocabulary is None:
            request = tokenizer_pb2.VocabularyRequest()
            reply = await self._any(lambda replica: replica.stub.Vocabulary(request, timeout=5 * TRY_S), hedge_s=TRY_S)
            self._vocabulary = TokenBytes(reply)

    @property
    def loaded(self) -> bool:
        """Whether the vocabulary was fetched."""
        return self._vocabulary is not None

    @property
    def vocabulary(self) -> TokenBytes:
        """Every token's bytes. Raises Unavailable before they were fetched."""
        if self._vocabulary is None:
            raise Unavailable("No tokenizer has answered yet; try again.", code="tokenizer_unavailable", retry_after_s=1.0)
        return self._vocabulary

    async def _any(self, call: Callable[[Replica], Awaitable[Reply]], hedge_s: float = HEDGE_S) -> Reply:
        """The first answer. A replica that fails is followed by the next; one that is silent for hedge_s is joined by it."""
        asked: set[asyncio.Task[Reply]] = set()
        replica: Replica | None = None
        num_left = len(self._replicas)
        try:
            while num_left or asked:
                if num_left:
                    num_left -= 1
                    replica = self.next_replica(replica)
                    asked.add(asyncio.create_task(self._ask(replica, call)))
                done, asked = await asyncio.wait(
                    asked, timeout=hedge_s if num_left else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    if (error := task.exception()) is None:
                        return task.result()
                    if isinstance(error, grpc.aio.AioRpcError) and error.code() not in ANOTHER:
                        raise as_error(error) from error
                    if not isinstance(error, grpc.aio.AioRpcError | Unavailable | rpc.Garbled):
                        raise error
                    if isinstance(error, rpc.Garbled):
                        self.num_garbled += 1
        finally:
            for task in asked:
                task.cancel()
        raise Unavailable("No tokenizer answers; try again.", code="tokenizer_unavailable", retry_after_s=1.0)

    async def _ask(self, replica: Replica, call: Callable[[Replica], Awaitable[Reply]]) -> Reply:
        await self.check(replica)
        return rpc.whole(await call(replica))


def as_error(error: grpc.aio.AioRpcError) -> RoadtrainError:
    """What a tokenizer refused, as shared/rpc.py's abort sent it."""
    metadata = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    code, param = metadata.get(rpc.ERROR_CODE_KEY), metadata.get(rpc.ERROR_PARAM_KEY)
    message = error.details() or "The tokenizer refused this input."
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest(message, code=code, param=param)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return TooLarge(message, code=code, param=param)
        case _:
            logger.error("a tokenizer failed", extra={"status": error.code().name, "details": error.details()})
            return InternalError("The input could not be turned into tokens; it has been logged.")


async def backoff(attempt: int) -> None:
    """Waits longer after each failed attempt: 50 ms, doubling up to 1 s."""
    await asyncio.sleep(min(0.05 * 2**attempt, 1.0))
