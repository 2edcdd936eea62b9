"""Grammars judged in a process that may die: good ones pass, hostile ones are refused in time, and nobody else notices."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from services.tokenizer import vocab
from services.tokenizer.grammar_pool import MAX_VERDICT_BYTES, GrammarPool, Verdicts
from services.tokenizer.server import serve
from shared.config import Settings, TokenizerConfig
from shared.errors import InvalidRequest
from shared.grammars import Grammar
from shared.pb import tokenizer_pb2 as pb
from shared.pb import tokenizer_pb2_grpc, types_pb2
from shared.rpc import ERROR_CODE_KEY, connect
from tests.hostile_grammars import HOSTILE, REFUSED
from tests.tokenizer.trained import byte_level, sentencepiece_bpe, write_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("model"), byte_level())


@pytest.fixture(scope="module")
def pool(model: Path) -> Iterator[GrammarPool]:
    made = GrammarPool(vocab.load(model), 1)
    yield made
    made.close()


def schema(**fields: object) -> Grammar:
    return Grammar("json_schema", json.dumps(fields))


GOOD = [
    schema(type="object"),
    schema(enum=["x", 1, None]),
    schema(type="string", format="date-time"),
    schema(type="string", pattern="^[a-z]{3}$"),
    Grammar("regex", r"\d{3}-\d{4}"),
    Grammar("lark", 'start: "a" | "b" start'),
]


def test_good_ones_pass(pool: GrammarPool) -> None:
    for grammar in GOOD:
        pool.check(grammar)


@pytest.mark.parametrize("grammar", REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_grammar_is_refused_with_its_fault(pool: GrammarPool, grammar: Grammar) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pool.check(grammar)
    assert caught.value.code in ("invalid_json_schema", "invalid_regex", "invalid_grammar")
    assert len(caught.value.message) < 400
    assert "/home" not in caught.value.message
    assert "0x" not in caught.value.message


@pytest.mark.parametrize("grammar", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_ones_are_refused_or_harmless_within_time(pool: GrammarPool, grammar: Grammar) -> None:
    began_at = time.monotonic()
    with contextlib.suppress(InvalidRequest):
        pool.check(grammar)
    # The process's own limit is one second of processor time; what a loaded machine adds is not judged here.
    assert time.monotonic() - began_at < 10
    pool.check(GOOD[0])


def test_at_least_one_of_them_kills_its_process_and_the_verdict_is_remembered(pool: GrammarPool) -> None:
    pool.check(GOOD[4])
    (before,) = pool._running
    deadly = Grammar("regex", "[^b]*" * 10_001)
    for _ in range(3):
        with pytest.raises(InvalidRequest) as caught:
            pool.check(deadly)
        assert caught.value.code == "schema_too_complex"
    assert before not in pool._running
    # Known now: no process was started for the second and the third.
    assert not pool._running
    pool.check(schema(type="integer"))


def test_sentencepiece_vocabularies_too(tmp_path: Path) -> None:
    pool = GrammarPool(vocab.load(write_hf(tmp_path / "model", sentencepiece_bpe())), 1)
    try:
        for grammar in GOOD:
            pool.check(grammar)
    finally:
        pool.close()


def test_verdicts_are_bounded_in_bytes() -> None:
    verdicts = Verdicts()
    for number in range(40_000):
        verdicts.put(number.to_bytes(32, "little"), "x" * 200 if number % 2 else None)
        assert verdicts.num_bytes <= MAX_VERDICT_BYTES
    assert verdicts.get((39_999).to_bytes(32, "little")) == (True, "x" * 200)
    assert verdicts.get((0).to_bytes(32, "little")) == (False, None)


def memory_of(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(600)])])
def test_unique_schemas_take_no_more_and_more_memory(model: Path, count: int) -> None:
    pool = GrammarPool(vocab.load(model), 1)
    try:

        def ask(number: int) -> None:
            keys = {f"key{number}-{at}": {"type": "string", "maxLength": 5 + at} for at in range(8)}
            pool.check(schema(type="object", properties=keys, required=list(keys)))

        for number in range(count // 3):
            ask(number)
        (process,) = pool._running
        before = memory_of(process._process.pid)
        for number in range(count // 3, count):
            ask(number)
        assert pool._running == {process}
        assert memory_of(process._process.pid) - before < 8 * 2**20
    finally:
        pool.close()


@pytest.fixture
async def stub(model: Path, tmp_path: Path) -> AsyncIterator[tokenizer_pb2_grpc.TokenizerStub]:
    server = await serve(Settings(model_path=model, tokenizer=TokenizerConfig(address=f"unix:{tmp_path}/t.sock")))
    async with connect(server.address) as channel:
        yield tokenizer_pb2_grpc.TokenizerStub(channel)
    await server.stop(0)


def request_of(kind: int, source: str) -> pb.CheckGrammarRequest:
    return pb.CheckGrammarRequest(grammar=types_pb2.Grammar(kind=kind, source=source))  # type: ignore[arg-type]


async def test_over_the_wire_while_others_are_served(stub: tokenizer_pb2_grpc.TokenizerStub) -> None:
    await stub.CheckGrammar(request_of(2, "[a-z]+"))
    deadly = [asyncio.ensure_future(stub.CheckGrammar(request_of(2, f"[^{letter}]*" * 9000))) for letter in "abcd"]
    num_answered = 0
    while not all(check.done() for check in deadly):
        await stub.Encode(pb.EncodeRequest(texts=[pb.Text(text="hello world")]), timeout=5)
        num_answered += 1
    assert num_answered > 20
    for result in await asyncio.gather(*deadly, return_exceptions=True):
        assert isinstance(result, grpc.aio.AioRpcError)
        assert result.code() == grpc.StatusCode.INVALID_ARGUMENT
        metadata = {str(key): value for key, value in result.trailing_metadata() or ()}
        assert metadata[ERROR_CODE_KEY] == "schema_too_complex"
    await stub.CheckGrammar(request_of(3, 'start: "x"'))


@pytest.mark.parametrize(("kind", "source"), [(0, "x"), (9, "x"), (1, "{"), (2, "x" * 70_000), (1, '{"$ref": "http://x"}')])
async def test_the_wire_is_judged_like_any_door(stub: tokenizer_pb2_grpc.TokenizerStub, kind: int, source: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CheckGrammar(request_of(kind, source))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
