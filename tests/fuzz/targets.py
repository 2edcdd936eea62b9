"""What fuzzers drive: functions of bytes that meet input from outside, each with the errors it may end with.

A target returns, or raises what it found: any exception but the one that tells a caller or an operator what is wrong.
It knows nothing of who makes the bytes.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from services.router import position
from services.router.accept import Caller, chat_request, completion_requests, proto_request
from services.router.auth import Identity
from services.router.batch.lines import body_of, check
from services.router.batch.upload import read_form
from services.router.delivery import _link
from services.router.parse import parse_object
from services.router.parsers import REASONING, TOOLS
from services.router.parsers.pieces import Parser, Piece
from services.router.schema import ChatBody, CompletionBody, read
from services.router.sequencer import Held, ProtocolError, Sequencer
from services.tokenizer.detokenize import Detokenizer, TextStream
from services.worker.assignment import assignment_of
from services.worker.engine.step import RunnerLimits
from services.worker.models import spec_of
from services.worker.weights import open_checkpoint
from shared.errors import InvalidRequest, RoadtrainError, StartupError
from shared.gguf import read_gguf
from shared.pb import delivery_pb2, router_pb2, tokenizer_pb2, types_pb2
from shared.queue.payload import BadPayload, seal
from shared.queue.rid import is_rid
from shared.queue.types import Claim
from shared.vocabulary.gguf_source import read_gguf_source
from shared.vocabulary.hf_source import read_hf_source
from tests.fuzz import seeds
from tests.router.plane.rig import vocabulary
from tests.security.test_text import chats

CALLER = Caller(Identity("t"), None, 0, types_pb2.TraceContext())
LIMITS = RunnerLimits(64, 512, 49152, (2,), "f")
RID = "00" + "ab" * 16
KEY = b"k" * 64


@dataclass(frozen=True)
class Target:
    """run: takes bytes. seeds: bytes that are nearly right."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def json_body(data: bytes) -> None:
    """As both endpoints read a body, up to what needs the model."""
    with contextlib.suppress(InvalidRequest):
        value = parse_object(data)
        with contextlib.suppress(InvalidRequest):
            body, _ = read(value, ChatBody)
            chat_request(body, CALLER).sampling.validate(vocab_size=49152)
        other, _ = read(value, CompletionBody)
        for request in completion_requests(other, CALLER):
            request.sampling.validate(vocab_size=49152)


def message_of(kind: type[Message], data: bytes) -> Any:
    """The message, or nothing that was sent if it is none."""
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        return kind()
    return message


def door_message(data: bytes) -> None:
    """As the gRPC door reads a request."""
    for kind in (router_pb2.ChatRequest, router_pb2.CompleteRequest):
        with contextlib.suppress(InvalidRequest):
            proto_request(message_of(kind, data), CALLER).sampling.validate(vocab_size=49152)


def payload(data: bytes) -> None:
    """As a worker judges what it claims: signed by us, and signed by nobody."""
    for sealed in (data, seal(message_of(types_pb2.Payload, data), RID, [KEY])):
        claim = Claim(RID, 1, "r", 1, sealed, None, 5, 0.0, "t", 1, 0, 0, False)
        with contextlib.suppress(BadPayload):
            accepted = assignment_of(claim, [KEY], LIMITS, 0.0)
            if accepted.outbound.failure is None:
                accepted.outbound.work.params.validate(vocab_size=LIMITS.vocab_size)


def delivery(data: bytes) -> None:
    """As a router reads what workers send: a message that introduces them, then the rest."""
    message = message_of(delivery_pb2.FromWorker, data)
    sequencer = Sequencer()
    sequencer.hold(Held(RID, 2, 2, 1))
    hello = delivery_pb2.Hello(version=1, worker_id="w", boot_id="b", fingerprint="f")
    with contextlib.suppress(InvalidRequest):
        _link(message, lambda: None)  # type: ignore[arg-type]
    link = _link(delivery_pb2.FromWorker(hello=hello), seeds.Wake())  # type: ignore[arg-type]
    with contextlib.suppress(ProtocolError):
        first = delivery_pb2.FromWorker(hello=hello, claimed=[delivery_pb2.Claimed(stream=1, rid=RID, epoch=1)])
        sequencer.receive(link, first)
        sequencer.receive(link, message)
        link.take()
    sequencer.close(link)


def encode(data: bytes) -> None:
    """As a tokenizer reads what routers send."""
    message = message_of(tokenizer_pb2.EncodeRequest, data)
    known = vocabulary()
    for text in message.texts:
        known.encode(text.text[:3000], add_special_tokens=text.add_special_tokens)
    if message.HasField("chat"):
        with contextlib.suppress(InvalidRequest):
            chats(known).encode(message.chat)


def decode(data: bytes) -> None:
    """The columns of a Decode call."""
    known = vocabulary()
    streams = Detokenizer(known.token_bytes, known.special_ids)
    with contextlib.suppress(InvalidRequest):
        streams.step(tokenizer_pb2.DecodeRequest(open=[tokenizer_pb2.OpenDecode(stream=1, stop=["ab"])]))
        streams.step(message_of(tokenizer_pb2.DecodeRequest, data))


def text(data: bytes) -> None:
    """Whatever is written stays text: no special token comes of it, and nothing is lost; nor in a chat."""
    known = vocabulary()
    written = data.decode("utf-8", "replace")[:2000]
    ids = known.encode(written, add_special_tokens=False)
    special = {known.token_bytes.index(spelling.encode()) for spelling in known.secret}
    if special & set(ids):
        raise AssertionError("a text spelled a special token")
    if b"\xef\xbf\xbd" not in data and {bytes([byte]) for byte in written.encode()} <= set(known.token_bytes):
        spelled = b"".join(known.token_bytes[token_id] for token_id in ids)
        if spelled != written.encode():
            raise AssertionError("a text did not come back")
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content=written)])
    plain = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="x")])
    encoder = chats(known)
    if [each for each in encoder.encode(chat)[0] if each in special] != [
        each for each in encoder.encode(plain)[0] if each in special
    ]:
        raise AssertionError("a chat spelled a special token")


def detokenise(data: bytes) -> None:
    """The text of tokens is one, however they arrive."""
    table = [b"a", b"ab", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x9a\x9b", b"", b"\xff", b" "]
    stops = [part for part in data[-9:].decode("latin-1").split("a") if part][:4]
    ids = [byte % len(table) for byte in data[:200]]

    def fed(size: int) -> tuple[str, Any]:
        stream = TextStream(table, stops=stops)
        given = "".join(stream.feed(ids[at : at + size]) for at in range(0, len(ids), size)) + stream.flush()
        return given, stream.ended

    if len({fed(size) for size in (1, 2, 7, 1000)}) != 1:
        raise AssertionError("the text depends on how its tokens came")


def gguf(data: bytes) -> None:
    """Header, tokenizer and table of weights of a .gguf file."""
    with tempfile.NamedTemporaryFile(suffix=".gguf", dir=seeds.scratch()) as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        with contextlib.suppress(StartupError):
            read_gguf_source(read_gguf(path))
        with contextlib.suppress(StartupError):
            checkpoint = open_checkpoint(path)
            spec_of(checkpoint)
            for entry in list(checkpoint.entries.values())[:4]:
                entry.read()


def safetensors(data: bytes) -> None:
    """Header and tensors of model.safetensors."""
    with tempfile.TemporaryDirectory(dir=seeds.scratch()) as name:
        folder = Path(name)
        (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        (folder / "model.safetensors").write_bytes(data)
        with contextlib.suppress(StartupError):
            for entry in list(open_checkpoint(folder).entries.values())[:4]:
                entry.read()


def _folder(file: str, read_folder: Callable[[Path], object], data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=seeds.scratch()) as name:
        folder = Path(name)
        (folder / "model.safetensors").write_bytes(seeds.safetensors_seeds()[0])
        (folder / "tokenizer.json").write_text("{}")
        (folder / file).write_bytes(data)
        with contextlib.suppress(StartupError):
            read_folder(folder)


def parsers(data: bytes) -> None:
    """What a model says becomes the same pieces, however it comes."""
    said = data.decode("utf-8", "replace")[:600]
    reading = types_pb2.Reading(
        reasoning_open=len(data) % 2 == 1, tools=[types_pb2.ToolShape(name="f"), types_pb2.ToolShape(name="g")]
    )
    for name, make in (*REASONING.items(), *((name, each.parser) for name, each in TOOLS.items())):
        if len({_pieces(make(reading), said, size) for size in (1, 3, 10_000)}) != 1:
            raise AssertionError(f"what {name} reads depends on how it came")


def _pieces(parser: Parser, said: str, size: int) -> tuple[Piece, ...]:
    """All that it makes of a text in chunks of this size, neighbours of one kind put together."""
    given = [piece for at in range(0, len(said), size) for piece in parser.feed(said[at : at + size])] + parser.finish()
    joined: list[Piece] = []
    for kind, text in given:
        if joined and joined[-1][0] == kind and kind != "call":
            joined[-1] = (kind, joined[-1][1] + text)
        elif text or kind == "call":
            joined.append((kind, text))
    return tuple(joined)


def form(data: bytes) -> None:
    """A multipart form, its boundary first, in pieces."""
    boundary, _, body = data.partition(b"\n")
    pieces = [body[at : at + 50] for at in range(0, len(body), 50)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0) if pieces else b"", "more_body": bool(pieces)}

    with tempfile.TemporaryDirectory(dir=seeds.scratch()) as name, contextlib.suppress(RoadtrainError):
        asyncio.run(read_form(receive, b"multipart/form-data; boundary=" + boundary, Path(name) / "form", 3000))


def batch_lines(data: bytes) -> None:
    """A batch's input."""
    with tempfile.NamedTemporaryFile(dir=seeds.scratch()) as file:
        file.write(data)
        file.flush()
        lines, faults = check(Path(file.name), "/v1/completions", 2000)
        if not lines and not faults:
            raise AssertionError("no line, and nothing wrong with that")
        for line in lines:
            body_of(Path(file.name), line)


def event_id(data: bytes) -> None:
    """Ids of events and of requests, as clients send them back."""
    written = data.decode("utf-8", "replace")
    is_rid(written)
    with contextlib.suppress(InvalidRequest):
        found = position.read(written, written[:34])
        if not 1 <= len(found.counts) <= 128:
            raise AssertionError("a position of no choices")


@cache
def targets() -> Mapping[str, Target]:
    """By name."""
    return {
        "json": Target(json_body, seeds.json_seeds),
        "door": Target(door_message, seeds.door_seeds),
        "payload": Target(payload, seeds.payload_seeds),
        "delivery": Target(delivery, seeds.delivery_seeds),
        "encode": Target(encode, seeds.encode_seeds),
        "decode": Target(decode, seeds.decode_seeds),
        "text": Target(text, seeds.text_seeds),
        "detokenise": Target(detokenise, seeds.text_seeds),
        "gguf": Target(gguf, seeds.gguf_seeds),
        "safetensors": Target(safetensors, seeds.safetensors_seeds),
        "config": Target(partial(_folder, "config.json", lambda folder: spec_of(open_checkpoint(folder))), seeds.config_seeds),
        "tokenizer": Target(partial(_folder, "tokenizer_config.json", read_hf_source), seeds.config_seeds),
        "parsers": Target(parsers, seeds.said_seeds),
        "form": Target(form, seeds.form_seeds),
        "batch_lines": Target(batch_lines, seeds.batch_seeds),
        "event_id": Target(event_id, lambda: [f"{RID}:1.2:0123abcd".encode()]),
    }
