"""The tokenizer's gRPC face: translates messages, and keeps long work off the event loop. It knows no rule of tokenizing."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.tokenizer import vocab
from services.tokenizer.chat import ChatEncoder
from services.tokenizer.detokenize import Detokenizer, unpack_ids
from services.tokenizer.formats import call_format, reasoning_format
from services.tokenizer.grammar_pool import GrammarPool
from services.tokenizer.render_pool import RenderPool
from services.tokenizer.vocab import Vocabulary, pattern_of
from shared import rpc
from shared.config import Settings
from shared.errors import InvalidRequest, StartupError
from shared.mtls import read_papers
from shared.pb import tokenizer_pb2, tokenizer_pb2_grpc
from shared.sampling import grammar_of

# Below these an input costs less than half a millisecond, less than a thread's hand-over may.
INLINE_CHARS = 1000
INLINE_TOKENS = 1000


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServicer):
    """Answers for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, chats: ChatEncoder, threads: ThreadPoolExecutor, grammars: "Grammars"):
        self._vocabulary = vocabulary
        self._chats = chats
        self._threads = threads
        self._specials = pattern_of(vocabulary.secret)
        self._grammars = grammars

    async def Describe(self, request: tokenizer_pb2.DescribeRequest, context: Any) -> tokenizer_pb2.Description:  # noqa: N802
        """What model this is."""
        source = self._vocabulary.source
        return tokenizer_pb2.Description(
            vocab_size=self._vocabulary.size,
            context_len=source.context_len,
            eos_token_ids=source.eos_token_ids,
            has_chat_template=bool(source.templates),
            digest=self._vocabulary.digest,
            special_tokens=source.template_tokens,
            chat_template=source.templates.get("default", next(iter(source.templates.values()), "")),
            tool_parser=call_format(source.templates),
            reasoning_parser=reasoning_format(source.templates),
        )

    async def Encode(self, request: tokenizer_pb2.EncodeRequest, context: Any) -> tokenizer_pb2.EncodeReply:  # noqa: N802
        """Texts and chats to token ids."""
        short = sum(len(text.text) + len(text.pair) for text in request.texts) <= INLINE_CHARS
        if short and not request.HasField("chat"):
            return self._encode(request)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode, request)

    def _encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeReply:
        for text in request.texts:
            self._vocabulary.check_length(text.text, request.max_tokens)
        inputs = [self._encode_text(text) for text in request.texts]
        is_open = False
        if request.HasField("chat"):
            # A template leaves out what an assistant said, sometimes, but never what it was asked.
            asked = (message.content.strip() for message in request.chat.messages if message.role != "assistant")
            self._vocabulary.check_length("\n".join(asked), request.max_tokens)
            ids, is_open = self._chats.encode(request.chat)
            inputs.append((ids, 0))
        num_first = [number for _, number in inputs]
        return tokenizer_pb2.EncodeReply(
            token_ids=[ids.tobytes() for ids, _ in inputs],
            num_first=num_first if any(num_first) else (),
            reasoning_open=is_open,
        )

    def _encode_text(self, text: tokenizer_pb2.Text) -> "tuple[array[int], int]":
        special = text.add_special_tokens if text.HasField("add_special_tokens") else True
        written = text.text
        if text.read_special_tokens and self._specials is not None:
            written = self._specials.sub(lambda match: self._vocabulary.secret[match[0]], written)
        if not text.HasField("pair") and not text.max_tokens:
            return self._vocabulary.encode(written, add_special_tokens=special), 0
        pair = text.pair if text.HasField("pair") else None
        return self._vocabulary.encode_pair(written, pair, add_special_tokens=special, max_tokens=text.max_tokens)

    async def Detokenize(  # noqa: N802
        self, request: tokenizer_pb2.DetokenizeRequest, context: Any
    ) -> tokenizer_pb2.DetokenizeReply:
        """Ids of one text to that text, or to their tokens."""
        token_ids = unpack_ids(request.token_ids)
        if len(token_ids) <= INLINE_TOKENS:
            return self._detokenize(token_ids, request.as_tokens)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._detokenize, token_ids, request.as_tokens)

    def _detokenize(self, token_ids: "array[int]", as_tokens: bool) -> tokenizer_pb2.DetokenizeReply:
        size = self._vocabulary.size
        if token_ids and max(token_ids) >= size:
            raise InvalidRequest(f"Invalid 'tokens': ids end at {size - 1}.", param="tokens", code="invalid_token_id")
        if as_tokens:
            return tokenizer_pb2.DetokenizeReply(tokens=map(self._vocabulary.token, token_ids))
        return tokenizer_pb2.DetokenizeReply(text=self._vocabulary.decode(token_ids.tolist()))

    async def Decode(  # noqa: N802
        self, requests: AsyncIterator[tokenizer_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[tokenizer_pb2.DecodeReply]:
        """One reply per request, in order, for as long as the router keeps the call open."""
        loop = asyncio.get_running_loop()
        streams = Detokenizer(self._vocabulary.token_bytes, self._vocabulary.special_ids)
        async for request in requests:
            prior_bytes = sum(len(opening.prior_token_ids) + len(opening.echo_token_ids) for opening in request.open)
            if len(request.token_ids) + prior_bytes // 4 <= INLINE_TOKENS:
                yield streams.step(request)
            else:
                yield await loop.run_in_executor(self._threads, streams.step, request)

    async def Vocabulary(self, request: tokenizer_pb2.VocabularyRequest, context: Any) -> tokenizer_pb2.VocabularyReply:  # noqa: N802
        """Every token's bytes."""
        table = self._vocabulary.token_bytes
        return tokenizer_pb2.VocabularyReply(
            data=b"".join(table),
            length=[len(token) for token in table],
            special_token_ids=sorted(self._vocabulary.special_ids),
        )

    async def CheckGrammar(  # noqa: N802
        self, request: tokenizer_pb2.CheckGrammarRequest, context: Any
    ) -> tokenizer_pb2.CheckGrammarReply:
        """Whether a grammar can be followed."""
        grammar = grammar_of(request.grammar)
        grammar.validate()
        await asyncio.get_running_loop().run_in_executor(self._grammars.threads, self._grammars.pool.check, grammar)
        return tokenizer_pb2.CheckGrammarReply()


@dataclass(frozen=True, slots=True)
class Grammars:
    """The processes that judge grammars, and as many threads of their own that wait for them."""

    pool: GrammarPool
    threads: ThreadPoolExecutor

    @classmethod
    def of(cls, vocabulary: Vocabulary, num_processes: int) -> "Grammars":
        """For one vocabulary."""
        return cls(GrammarPool(vocabulary, num_processes), ThreadPoolExecutor(num_processes, thread_name_prefix="grammar"))

    def close(self) -> None:
        """Ends threads and processes."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.pool.close()


@dataclass(slots=True)
class TokenizerServer:
    """A running tokenizer. `address` is what was bound."""

    address: str
    _server: rpc.Server
    _pool: RenderPool
    _threads: ThreadPoolExecutor
    _grammars: Grammars

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, gives open ones `grace_s`, then ends threads and processes."""
        await self._server.set_ready(False)
        await self._server.stop(grace_s)
        self._pool.close()
        self._grammars.close()
        self._threads.shutdown(cancel_futures=True)


async def serve(settings: Settings) -> TokenizerServer:
    """Loads the model's text side and starts serving. Raises StartupError, one line, if either cannot be done."""
    if settings.model_path is None:
        raise StartupError("the tokenizer needs the model's files; name them with --model-path")
    num_threads = settings.tokenizer.num_threads
    papers = read_papers(settings.certs_dir, "tokenizer")
    vocabulary = vocab.load(Path(settings.model_path))
    pool = RenderPool(vocabulary.source.path, vocabulary.source.templates, num_threads)
    threads = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")
    grammars = Grammars.of(vocabulary, num_threads)
    servicer = TokenizerServicer(vocabulary, ChatEncoder(vocabulary, pool.render), threads, grammars)
    registration = (tokenizer_pb2_grpc.add_TokenizerServicer_to_server, servicer)
    try:
        server = await rpc.serve(settings.tokenizer.address, [registration], setting="--tokenizer.address", guard=papers)
    except BaseException:
        pool.close()
        threads.shutdown()
        raise
    return TokenizerServer(server.address, server, pool, threads, grammars)
