"""A plane that generates without tokenizer, queue or worker, so that tests can drive every shape a door must give.

What it does is asked for in the prompt: "slow" stays silent until cancelled, "refuse" is refused at the start,
"break" fails after its first text, "break at once" before it, "crash" raises what is no RoadtrainError,
"hold" gives its first text and waits. Everything else answers "Hello", " wörld" and "!", or where a vector is wanted
(3, 4), cut and brought to length 1; texts have as many tokens as words.
It knows nothing of what the doors make of it.
"""

import asyncio
import math
import struct
from collections.abc import AsyncIterator, Sequence

from services.router.auth import Identity
from services.router.generate import ChoiceEnd, Event, GenerateRequest, TextDelta
from services.router.limiter import Limiter
from services.router.needs import ServedModel
from services.router.request import Wanted
from services.router.store import Store
from services.router.tokenizer import Encoded
from services.router.validate import ModelLimits, check_kind, check_model
from shared.errors import InternalError, InvalidRequest, NotFound, Unavailable
from shared.pb import tokenizer_pb2, types_pb2
from shared.queue.connection import connect

VOCABULARY = (b"Hello", b" w\xc3", b"\xb6rld", b"!", b"<eos>", b"The", b" prompt")
NAMES = ("tiny", "org/alias", "default")
MAX_LEN = 100
TEXT = ("Hello", " wörld", "!")
IDS = ([0], [1, 2], [3])


class FakeVocabulary:
    special = frozenset({4})

    def bytes_of(self, token_id: int) -> bytes:
        return VOCABULARY[token_id] if token_id < len(VOCABULARY) else b""


def columns(ids: Sequence[int], num_top: int) -> types_pb2.Logprobs:
    """Rows of the token itself and `num_top` others, falling from -0.5."""
    columns = types_pb2.Logprobs(width=1 + num_top)
    for token_id in ids:
        columns.token_ids.extend([token_id, *range(num_top)])
        columns.logprobs.extend([-0.5, *(-0.5 - at for at in range(num_top))])
    return columns


def fake_vector(wanted: Wanted) -> bytes:
    if wanted.kind == "score":
        return struct.pack("<f", 1 / wanted.num_first)
    kept = (3.0, 4.0)[: wanted.dimensions]
    length = 1.0 if wanted.raw else math.hypot(*kept)
    return struct.pack(f"<{len(kept)}f", *(each / length for each in kept))


class FakeTexts:
    """Words are tokens: each has its letters' number in the vocabulary, or 7."""

    async def describe(self) -> tokenizer_pb2.Description:
        special = {"eos_token": "<eos>", "unk_token": "<unk>", "odd_token": "<odd>"}
        return tokenizer_pb2.Description(vocab_size=7, special_tokens=special, chat_template="{{ messages }}")

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> list[list[int]]:
        self.asked = request
        texts = [text.text for text in request.texts] or [message.content for message in request.chat.messages]
        words = [word.encode() for word in " ".join(texts).split()]
        return [[VOCABULARY.index(word) if word in VOCABULARY else 7 for word in words]]

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return b"".join(VOCABULARY[token_id] for token_id in token_ids).decode()

    async def tokens(self, token_ids: Sequence[int]) -> list[str]:
        return [f"t{token_id}" for token_id in token_ids]


class FakeGeneration:
    def __init__(self, request: GenerateRequest, number: int) -> None:
        self.request = request
        self.rid = f"00fake{number}"
        self.model = NAMES[0]
        self.created = 1_700_000_000
        self.prompt_token_ids = list(request.prompt) if isinstance(request.prompt, list | tuple) else [5, 6]
        self.num_prompt_tokens = len(self.prompt_token_ids)
        self.cancelled: list[str] = []
        self.over = asyncio.Event()
        self.go_on = asyncio.Event()
        self.counts = [0] * request.sampling.n
        top = request.sampling.num_prompt_logprobs
        self.waits_for_prompt = top is not None
        self.skips_special = request.sampling.skip_special_tokens
        self.is_resumed = False
        self.reading: types_pb2.Reading | None = None
        self.has_logprobs = request.sampling.num_logprobs is not None
        self.resumed: frozenset[int] = frozenset()
        self.prompt_logprobs = None if top is None else columns(self.prompt_token_ids[1:], top)

    @property
    def usage(self) -> types_pb2.Usage:
        return types_pb2.Usage(num_prompt_tokens=self.num_prompt_tokens, num_cached_tokens=1, num_output_tokens=sum(self.counts))

    def begun_logprobs(self, choice: int) -> None:
        return None

    def begun_token_ids(self, choice: int) -> list[int]:
        return []

    def position(self) -> str:
        return f"{self.rid}:{'.'.join(map(str, self.counts))}:00000000"

    async def cancel(self, why: str) -> bool:
        self.cancelled.append(why)
        self.over.set()
        return True

    async def events(self) -> AsyncIterator[list[Event]]:
        wish = str(self.request.prompt)
        if "slow" in wish:
            await self.over.wait()
            raise InvalidRequest("The request was cancelled.", code="request_cancelled")
        if "break at once" in wish:
            raise InternalError("broken before the first text")
        if self.request.wanted is not None:
            yield [ChoiceEnd(0, "stop", 0, None, None, self.position(), fake_vector(self.request.wanted))]
            return
        if self.request.echo:
            yield [self.delta(choice, "The prompt", []) for choice in range(len(self.counts))]
        for step, (text, ids) in enumerate(zip(TEXT, IDS, strict=True)):
            yield [self.delta(choice, text, ids) for choice in range(len(self.counts))]
            if step == 0:
                await self.after_first(wish)
        ends: list[Event] = []
        for choice in range(len(self.counts)):
            self.counts[choice] += 1
            ends.append(ChoiceEnd(choice, "stop", self.counts[choice], None, 4, self.position()))
        yield ends

    async def after_first(self, wish: str) -> None:
        if "break" in wish:
            raise InternalError("broken on the way")
        if "crash" in wish:
            raise ZeroDivisionError("a secret")
        if "hold" in wish:
            await self.go_on.wait()

    def delta(self, choice: int, text: str, ids: list[int]) -> TextDelta:
        top = self.request.sampling.num_logprobs
        self.counts[choice] += len(ids)
        logprobs = None if top is None or not ids else columns(ids, top)
        return TextDelta(choice, text, ids, self.counts[choice], logprobs, self.position())


class FakePlane:
    """Plane and generator in one; `generations` are all that were started."""

    def __init__(self, limiter: Limiter | None = None) -> None:
        self.generations: list[FakeGeneration] = []
        self.resumed_after = ""
        self.started = asyncio.Event()
        self.generator = self
        self.vocabulary = FakeVocabulary()
        self.texts = FakeTexts()
        self.model = ServedModel(NAMES, 1_600_000_000, MAX_LEN, "fingerprint", ("generate", "embed"))
        self.why_not_ready: str | None = None
        self.num_protocol_errors = 0
        self.num_refused_peers = 0
        # Only keys with limits are asked about; tests of those bring a real one.
        self.limiter = limiter
        self._nowhere = connect("unix:///nonexistent/redis.sock")
        self.store = Store(self._nowhere)

    def not_ready(self) -> str | None:
        return self.why_not_ready

    async def close(self) -> None:
        await self._nowhere.aclose()

    def check(self, request: GenerateRequest) -> ModelLimits:
        check_model(request, NAMES)
        limits = ModelLimits(MAX_LEN, 1000, self.model.kinds, 2, "mean")
        check_kind(request, limits)
        return limits

    async def encode(self, texts: Sequence[tokenizer_pb2.Text], max_tokens: int) -> list[Encoded]:
        encoded = []
        for text in texts:
            first, second = text.text.split(), text.pair.split()
            ids = [min(len(word), 999) for word in first + second]
            encoded.append(Encoded(ids[: text.max_tokens or None], len(first) if text.HasField("pair") else 0))
        return encoded

    async def start(self, request: GenerateRequest) -> FakeGeneration:
        self.check(request)
        request.sampling.validate(vocab_size=1000, names=request.names)
        if "refuse" in str(request.prompt):
            raise Unavailable("No room; try again.", retry_after_s=1.5)
        generation = FakeGeneration(request, len(self.generations))
        self.generations.append(generation)
        self.started.set()
        return generation

    async def num_prompt_tokens(self, request: GenerateRequest) -> int:
        check_model(request, NAMES)
        return len(FakeGeneration(request, 0).prompt_token_ids)

    async def resume(self, rid: str, after: str, identity: Identity) -> tuple[FakeGeneration, types_pb2.Shape]:
        for generation in self.generations:
            if generation.rid == rid and identity.tenant == generation.request.tenant:
                self.resumed_after = after
                shape = types_pb2.Shape(dialect=generation.request.dialect, include_usage=generation.request.include_usage)
                return FakeGeneration(generation.request, int(rid[6:])), shape
        raise NotFound("There is no such stream.", code="stream_not_found")

    async def cancel(self, rid: str, tenant: str) -> bool:
        for generation in self.generations:
            if generation.rid == rid:
                return await generation.cancel("client")
        raise NotFound("No such request.", code="request_not_found")
