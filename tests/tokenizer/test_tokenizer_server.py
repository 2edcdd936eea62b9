"""The tokenizer over a real gRPC server on a unix socket, with the real SmolLM2 vocabulary, and as a process."""

import signal
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from services.launcher.pull import find_or_fetch
from services.tokenizer.server import serve
from shared.config import Settings, TokenizerConfig
from shared.errors import StartupError
from shared.pb import tokenizer_pb2 as pb
from shared.pb import tokenizer_pb2_grpc
from shared.rpc import ERROR_PARAM_KEY, connect
from tests.tokenizer.trained import byte_level, write_hf


def settings_for(model: Path, socket: Path) -> Settings:
    return Settings(model_path=model, tokenizer=TokenizerConfig(address=f"unix:{socket}"))


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[tokenizer_pb2_grpc.TokenizerStub]:
    server = await serve(settings_for(write_hf(tmp_path / "model", byte_level()), tmp_path / "t.sock"))
    async with connect(server.address) as channel:
        yield tokenizer_pb2_grpc.TokenizerStub(channel)
    await server.stop(0)


def unpacked(data: bytes) -> list[int]:
    ids = array("I")
    ids.frombytes(data)
    return ids.tolist()


def user(content: str) -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role="user", content=content)])


async def test_smollm2_end_to_end(tmp_path: Path) -> None:
    server = await serve(settings_for(find_or_fetch("smollm2"), tmp_path / "t.sock"))
    async with connect(server.address) as channel:
        stub = tokenizer_pb2_grpc.TokenizerStub(channel)
        facts = await stub.Describe(pb.DescribeRequest())
        assert (facts.vocab_size, facts.context_len, facts.has_chat_template) == (49152, 8192, True)
        assert facts.eos_token_ids[0] == 2
        assert len(facts.digest) == 32
        question = user("What is the capital of France?")
        reply = await stub.Encode(pb.EncodeRequest(texts=[pb.Text(text="Hello world")], chat=question))
        assert unpacked(reply.token_ids[0]) == [19556, 905]
        chat = unpacked(reply.token_ids[1])
        assert chat[:3] == [1, 9690, 198]
        vocabulary = await stub.Vocabulary(pb.VocabularyRequest())
        assert len(vocabulary.length) == 49152
        assert sum(vocabulary.length) == len(vocabulary.data)
        assert {0, 1, 2} <= set(vocabulary.special_token_ids)
        call = stub.Decode()
        await call.write(pb.DecodeRequest(open=[pb.OpenDecode(stream=1)], stream=[1], count=[len(chat)], token_ids=chat))
        decoded = await call.read()
        assert decoded.text[0].endswith("user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    await server.stop(0)


async def test_encode(small: tokenizer_pb2_grpc.TokenizerStub) -> None:
    long = "the quick brown fox " * 5000
    texts = [pb.Text(text=""), pb.Text(text="a</s>", add_special_tokens=False), pb.Text(text=long)]
    reply = await small.Encode(pb.EncodeRequest(texts=texts))
    ids = [unpacked(data) for data in reply.token_ids]
    assert ids[0] == [1]
    assert 2 not in ids[1]
    assert ids[2][0] == 1
    assert len(ids[2]) > 10_000
    short = unpacked((await small.Encode(pb.EncodeRequest(texts=[pb.Text(text=long[:200])]))).token_ids[0])
    assert ids[2][: len(short) - 3] == short[:-3]


async def test_bad_chat_is_an_invalid_argument(small: tokenizer_pb2_grpc.TokenizerStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await small.Encode(pb.EncodeRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="king", content="x")])))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata() or ())[ERROR_PARAM_KEY] == "messages[0].role"
    assert (await small.Encode(pb.EncodeRequest(chat=user("x")))).token_ids


async def test_decode_answers_each_request_in_order(small: tokenizer_pb2_grpc.TokenizerStub) -> None:
    text = "The quick brown fox; 日本語 😀. " * 100
    ids = unpacked((await small.Encode(pb.EncodeRequest(texts=[pb.Text(text=text, add_special_tokens=False)]))).token_ids[0])
    assert len(ids) > 1000
    prior = len(ids) - 50
    call = small.Decode()
    opening = pb.OpenDecode(stream=5, stop=["fox;"], echo_token_ids=array("I", ids[:3]).tobytes())
    await call.write(pb.DecodeRequest(open=[opening]))
    await call.write(pb.DecodeRequest(open=[pb.OpenDecode(stream=9, prior_token_ids=array("I", ids[:prior]).tobytes())]))
    for token_id in ids[prior:]:
        await call.write(pb.DecodeRequest(stream=[9], count=[1], token_ids=[token_id]))
    await call.write(pb.DecodeRequest(flush=[9, 5], close=[9]))
    replies = [await call.read() for _ in range(53)]
    assert (
        "".join(part for reply in replies[1:] for number, part in zip(reply.stream, reply.text, strict=True) if number == 9)
        == text
    )
    assert text.startswith(replies[0].text[0])
    assert replies[-1].num_tokens[0] == len(ids)
    await call.write(pb.DecodeRequest(stream=[5], count=[len(ids)], token_ids=ids))
    reply = await call.read()
    assert reply.text == ["The quick brown "]
    assert (reply.stopped[0].stream, reply.stopped[0].stop_index) == (5, 0)


async def test_broken_columns_end_the_call(small: tokenizer_pb2_grpc.TokenizerStub) -> None:
    call = small.Decode()
    await call.write(pb.DecodeRequest(stream=[1], count=[5]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_start_up_errors(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"tokenizer\.json: no such file"):
        await serve(settings_for(tmp_path, tmp_path / "t.sock"))
    with pytest.raises(StartupError, match="--model-path"):
        await serve(Settings())
    model = write_hf(tmp_path / "model", byte_level())
    with pytest.raises(StartupError, match=r"cannot listen on .*--tokenizer\.address"):
        await serve(settings_for(model, tmp_path / "no" / "folder" / "t.sock"))


def start_process(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "services.tokenizer", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_process_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    model = write_hf(tmp_path / "model", byte_level())
    address = f"unix:{tmp_path / 't.sock'}"
    with start_process("--model-path", str(model), "--tokenizer.address", address) as process:
        assert process.stderr is not None
        assert "ready" in process.stderr.readline()
        with grpc.insecure_channel(address) as channel:
            described = tokenizer_pb2_grpc.TokenizerStub(channel).Describe(pb.DescribeRequest(), timeout=10)
            assert described.context_len == 2048
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_process_ends_with_one_line_for_a_broken_model(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\3\0\0\0")
    with start_process("--model-path", str(tmp_path / "bad.gguf")) as process:
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr.count("\n") == 1
    assert "bad.gguf: broken GGUF file: it ends within the counts: it is truncated" in stderr
