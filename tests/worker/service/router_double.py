"""A router for tests: the real Deliver stream over a unix socket, with a script instead of clients.

It accepts what protocol §4 lets it accept and checks the worker's side of it on the way. It knows nothing of Redis.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.pb import delivery_pb2, delivery_pb2_grpc, types_pb2
from shared.rpc import Server, serve


@dataclass
class Owed:
    """A request the double holds. `begins`: how many ids each Begin answered with. `silent`: Claimed gets no answer."""

    rid: str
    choices: list[list[int]]
    logprobs: list[list[int]]
    finishes: dict[int, delivery_pb2.Finish] = field(default_factory=dict)
    prompt_logprobs: list[types_pb2.Logprobs] = field(default_factory=list)
    fingerprint: str = ""
    epochs: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    num_frames: int = 0
    silent: bool = False
    finishes_itself: bool = True
    acks: bool = True
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: set[int] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        return all(number in self.finishes or number in self.stopped for number in range(len(self.choices)))

    def usage(self) -> types_pb2.Usage:
        return types_pb2.Usage(num_prompt_tokens=1, num_output_tokens=sum(map(len, self.choices)))


class Connection:
    """One worker's stream."""

    def __init__(self) -> None:
        self.out: asyncio.Queue[delivery_pb2.FromRouter | None] = asyncio.Queue()
        self.streams: dict[int, Owed] = {}
        self.used: set[int] = set()
        self.hello: delivery_pb2.Hello | None = None
        self.num_messages = 0


class RouterDouble(delivery_pb2_grpc.DeliveryServicer):
    """Listens on a unix socket. Faults (assertions of the protocol) are gathered in `faults`."""

    def __init__(self, folder: Path, router_id: str = "r0"):
        self.router_id = router_id
        self.address = f"unix:{folder}/{router_id}.sock"
        self.held: dict[str, Owed] = {}
        self.connections: list[Connection] = []
        self.faults: list[str] = []
        self.num_unknown = 0
        self._server: Server | None = None

    async def start(self) -> None:
        self._server = await serve(self.address, [(delivery_pb2_grpc.add_DeliveryServicer_to_server, self)])

    async def stop(self) -> None:
        if self._server is not None:
            await self.break_streams()
            await self._server.stop(0)
            self._server = None

    async def break_streams(self) -> None:
        for connection in self.connections:
            connection.out.put_nowait(None)
        self.connections = []

    def owe(self, rid: str, num_choices: int = 1, **flags: Any) -> Owed:
        owed = Owed(rid, [[] for _ in range(num_choices)], [[] for _ in range(num_choices)], **flags)
        self.held[rid] = owed
        return owed

    def say(self, owed: Owed, field_name: str, **values: Any) -> None:
        """Tells the owner of `owed` something, on its newest stream."""
        for connection in reversed(self.connections):
            numbers = [number for number, other in connection.streams.items() if other is owed]
            if numbers:
                message = delivery_pb2.FromRouter()
                if field_name in ("unknown", "cancel", "pause", "resume"):
                    getattr(message, field_name).append(numbers[-1])
                elif field_name == "acks":
                    message.acks.stream.append(numbers[-1])
                    message.acks.choice.append(values["choice"])
                    message.acks.num_tokens.append(values["num_tokens"])
                else:
                    getattr(message, field_name).add(stream=numbers[-1], **values)
                connection.out.put_nowait(message)
                return
        raise AssertionError(f"nobody has claimed {owed.rid}")

    async def Deliver(
        self, messages: AsyncIterator[delivery_pb2.FromWorker], context: Any
    ) -> AsyncIterator[delivery_pb2.FromRouter]:
        connection = Connection()
        self.connections.append(connection)
        reading = asyncio.create_task(self._read(connection, messages))
        reading.add_done_callback(lambda _: connection.out.put_nowait(None))
        try:
            while (message := await connection.out.get()) is not None:
                yield message
        finally:
            reading.cancel()

    async def _read(self, connection: Connection, messages: AsyncIterator[delivery_pb2.FromWorker]) -> None:
        async for message in messages:
            connection.num_messages += 1
            if connection.hello is None:
                if not message.HasField("hello"):
                    self.faults.append("no hello first")
                connection.hello = message.hello
            out = delivery_pb2.FromRouter()
            for claimed in message.claimed:
                self._claimed(connection, claimed, out)
            for row in message.prompt_logprobs:
                connection.streams[row.stream].prompt_logprobs.append(row.logprobs)
            self._frames(connection, message, out)
            for finish in message.finishes:
                self._finish(connection, finish, out)
            if out.ByteSize():
                connection.out.put_nowait(out)

    def _claimed(self, connection: Connection, claimed: delivery_pb2.Claimed, out: delivery_pb2.FromRouter) -> None:
        if claimed.stream in connection.used:
            self.faults.append(f"stream {claimed.stream} used twice")
        connection.used.add(claimed.stream)
        owed = self.held.get(claimed.rid)
        if owed is None:
            self.num_unknown += 1
            out.unknown.append(claimed.stream)
            return
        connection.streams[claimed.stream] = owed
        owed.epochs.append(claimed.epoch)
        owed.changed.set()
        if not owed.silent:
            self.begin(connection, claimed.stream, owed, out)

    def begin(self, connection: Connection, stream: int, owed: Owed, out: delivery_pb2.FromRouter) -> None:
        begin = out.begin.add(stream=stream, fingerprint=owed.fingerprint)
        for number, ids in enumerate(owed.choices):
            finished = number in owed.finishes or number in owed.stopped
            if ids or finished:
                begin.accepted.add(choice=number, token_ids=array("I", ids).tobytes(), finished=finished)
        owed.begins.append(sum(map(len, owed.choices)))
        if owed.whole:
            out.finished.add(stream=stream, usage=owed.usage())

    def _frames(self, connection: Connection, message: delivery_pb2.FromWorker, out: delivery_pb2.FromRouter) -> None:
        frames, at = message.frames, 0
        rows = {(row.stream, row.choice, row.idx): row.logprobs for row in message.logprobs}
        for stream, choice, idx, count in zip(frames.stream, frames.choice, frames.idx, frames.count, strict=True):
            ids = frames.token_ids[at : at + count]
            at += count
            owed = connection.streams[stream]
            owed.num_frames += 1
            log = owed.choices[choice]
            if not owed.begins:
                self.faults.append("a frame before Begin")
            if idx > len(log):
                out.resend.add(stream=stream, choice=choice, idx=len(log))
            elif idx == len(log) and choice not in owed.finishes and choice not in owed.stopped:
                log.extend(ids)
                if (stream, choice, idx) in rows:
                    columns = rows[stream, choice, idx]
                    owed.logprobs[choice] += columns.token_ids[:: columns.width]
            if owed.acks:
                out.acks.stream.append(stream)
                out.acks.choice.append(choice)
                out.acks.num_tokens.append(len(log))
            owed.changed.set()
        if at != len(frames.token_ids):
            self.faults.append("columns differ in length")

    def _finish(self, connection: Connection, finish: delivery_pb2.Finish, out: delivery_pb2.FromRouter) -> None:
        owed = connection.streams[finish.stream]
        if finish.num_tokens > len(owed.choices[finish.choice]):
            out.resend.add(stream=finish.stream, choice=finish.choice, idx=len(owed.choices[finish.choice]))
            return
        owed.finishes.setdefault(finish.choice, finish)
        if owed.whole and owed.finishes_itself:
            out.finished.add(stream=finish.stream, usage=owed.usage())
        owed.changed.set()


async def until(condition: Any, owed: Owed | None = None, timeout_s: float = 10.0) -> None:
    """Waits until condition() holds; looks at every change of `owed`, else every few milliseconds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            if owed is None:
                await asyncio.sleep(0.005)
            else:
                owed.changed.clear()
                if not condition():
                    await owed.changed.wait()
