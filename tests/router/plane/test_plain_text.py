"""Text that is given without the tokenizer, with it, and in turns: it is always the same. It knows no network."""

import asyncio
import random
from array import array

import pytest

from services.router.choice import ChoiceText, DecodeRule
from services.router.decode import Decoder
from services.router.sequencer import Held
from services.router.tokenizer import TokenBytes
from services.tokenizer.detokenize import Detokenizer
from shared.pb import delivery_pb2, tokenizer_pb2, types_pb2

# Plain words; characters cut in two and three; a byte that begins none; a special token.
TABLE = [b" the", b"a", b"", "é".encode(), b"\xc3", b"\xa9", b"\xf0\x9f", b"\x9a", b"\x9b", b"\xff", b"<end>"]
SPECIAL = frozenset({10})


class Call:
    """A Decode stream without a network; `reads` requests until it breaks."""

    def __init__(self, made: "Tokenizers"):
        self.made = made
        self.streams = Detokenizer(TABLE, SPECIAL)
        self.replies: asyncio.Queue[tokenizer_pb2.DecodeReply] = asyncio.Queue()

    async def write(self, request: tokenizer_pb2.DecodeRequest) -> None:
        self.made.num_ids += len(request.token_ids) + sum(len(each.prior_token_ids) // 4 for each in request.open)
        self.replies.put_nowait(self.streams.step(request))

    async def read(self) -> tokenizer_pb2.DecodeReply:
        reply = await self.replies.get()
        if self.made.breaks is not None and self.made.breaks.random() < 0.2:
            raise ConnectionError("broken by the test")
        return reply

    def cancel(self) -> None:
        """Nothing to end."""


class Tokenizers:
    """One replica, which is its own stub. breaks: draws when its streams do, if they do. num_ids: how many it was sent."""

    def __init__(self, *, breaks: random.Random | None = None):
        self.breaks = breaks
        self.num_ids = 0
        self.num_garbled = 0
        self.loaded = self.is_one = True
        data, lengths = b"".join(TABLE), [len(each) for each in TABLE]
        self.vocabulary = TokenBytes(tokenizer_pb2.VocabularyReply(data=data, length=lengths, special_token_ids=SPECIAL))
        self.address, self.stub = "here", self

    def next_replica(self, failed: object = None) -> "Tokenizers":
        return self

    async def check(self, replica: object) -> None:
        """It is always well."""

    def Decode(self) -> Call:
        return Call(self)


class Owner:
    """Takes what a choice gives."""

    def __init__(self, decoder: Decoder):
        self.push = decoder.push
        self.done = asyncio.Event()

    def offer(self, choice: ChoiceText) -> None:
        if choice.over:
            self.done.set()

    def position(self) -> str:
        return ""


async def text_of(tokenizers: Tokenizers, token_ids: list[int], rule: DecodeRule, rng: random.Random) -> str:
    decoder = Decoder(tokenizers)
    running = asyncio.create_task(decoder.run())
    owner = Owner(decoder)
    log = Held("r", 1, 1, None).choices[0]
    choice = ChoiceText(log, rule, owner)
    at, events = 0, []
    while at < len(token_ids):
        count = rng.randint(1, 3)
        log.token_ids += token_ids[at : at + count]
        at += count
        choice.grew()
        for _ in range(rng.randint(0, 6)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            choice.collect(events)
    log.finish = delivery_pb2.Finish(reason=types_pb2.FINISH_REASON_LENGTH)
    choice.grew()
    await asyncio.wait_for(owner.done.wait(), 10)
    choice.collect(events)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert choice.num_given == len(token_ids)
    return "".join(event.text for event in events[:-1])


def rule(*stop: str) -> DecodeRule:
    return DecodeRule(stop, False, True, 0, frozenset(), array("I"))


def spelled(token_ids: list[int]) -> str:
    return b"".join(TABLE[each] for each in token_ids if each not in SPECIAL).decode(errors="replace")


@pytest.mark.parametrize("breaks", [False, True])
async def test_any_mix_spells_what_its_bytes_spell(breaks: bool) -> None:
    for seed in range(40 if not breaks else 8):
        rng = random.Random(seed)
        token_ids = rng.choices(range(len(TABLE)), weights=[8, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1], k=rng.randint(1, 40))
        tokenizers = Tokenizers(breaks=rng if breaks else None)
        assert await text_of(tokenizers, token_ids, rule(), rng) == spelled(token_ids), (seed, token_ids)


class Breaking(Call):
    """A stream that breaks when it is told to."""

    async def read(self) -> tokenizer_pb2.DecodeReply:
        await self.replies.get()
        raise ConnectionError("broken by the test")


@pytest.mark.parametrize("num_turns", range(-4, 5))
async def test_a_cancel_that_meets_a_break_is_not_lost(num_turns: int) -> None:
    tokenizers = Tokenizers()
    call = Breaking(tokenizers)
    tokenizers.Decode = lambda: call
    running = asyncio.create_task(Decoder(tokenizers).run())
    for _ in range(10):
        await asyncio.sleep(0)
    steps = [running.cancel, lambda: call.replies.put_nowait(tokenizer_pb2.DecodeReply())]
    for step in steps if num_turns > 0 else reversed(steps):
        step()
        for _ in range(abs(num_turns)):
            await asyncio.sleep(0)
    done, _ = await asyncio.wait([running], timeout=10)
    running.cancel()
    assert done
    assert running.cancelled()


async def test_plain_text_never_meets_the_tokenizer() -> None:
    tokenizers = Tokenizers()
    assert await text_of(tokenizers, [0, 1, 2] * 50, rule(), random.Random(1)) == " thea" * 50
    assert tokenizers.num_ids == 0


async def test_text_after_a_cut_character_is_plain_again() -> None:
    tokenizers = Tokenizers()
    token_ids = [0, 4, 5, *[1] * 200]
    assert await text_of(tokenizers, token_ids, rule(), random.Random(1)) == " theé" + "a" * 200
    assert tokenizers.num_ids < 60


async def test_stop_strings_are_the_tokenizer_s() -> None:
    tokenizers = Tokenizers()
    assert await text_of(tokenizers, [0, 1, 0], rule("xyz"), random.Random(1)) == " thea the"
    assert tokenizers.num_ids == 3
