"""Clients that write down what they see, and come back when the router they talked to is gone.

A connection that breaks is taken up again at any router: where the stream left off if the router knows how, else from the
beginning under the same idempotency key. A refusal (503, 429) is obeyed and tried again. They judge nothing.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import grpc
import httpx

from shared.pb import router_pb2, router_pb2_grpc, types_pb2
from shared.rpc import ERROR_CODE_KEY, RETRY_AFTER_KEY, connect
from shared.sampling import to_proto
from tests.chaos.cluster import Cluster
from tests.chaos.history import Ask, Attempt, Seen

PATIENCE_S = 90.0
SILENCE_S = 20.0
SLOW_REST_S = 0.05
MAX_WAIT_S = 1.0
REASONS = {types_pb2.FINISH_REASON_STOP: "stop", types_pb2.FINISH_REASON_LENGTH: "length"}


class Refused(Exception):
    """The router said not now."""

    def __init__(self, code: str, retry_after_s: float | None):
        super().__init__(code)
        self.code = code
        self.retry_after_s = retry_after_s


class Broken(Exception):
    """The connection ended; nobody said why."""


class Failed(Exception):
    """The router ended an accepted request with an error."""


class Unresumable(Exception):
    """This router cannot take the stream up; it may be sent again."""


class Left(Exception):
    """The client hung up."""


class Clients:
    """All clients of one run; they share channels and connections as one application would."""

    def __init__(self, cluster: Cluster, seed: int):
        self.seen: list[Seen] = []
        self._cluster = cluster
        self._rng = random.Random(seed ^ 0x5EED)
        self._channels = {name: connect(cluster.grpc_address(name)) for name in cluster.names("router")}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(SILENCE_S, connect=2.0), limits=limits)

    async def close(self) -> None:
        """Ends all connections."""
        await self._http.aclose()
        for channel in self._channels.values():
            await channel.close()

    async def ask(self, ask: Ask) -> Seen:
        """Sees one request through to an outcome."""
        seen = Seen(ask, time.monotonic())
        self.seen.append(seen)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._persist(seen)
        except TimeoutError:
            seen.outcome = "given up"
            seen.error = seen.attempts[-1].broke if seen.attempts else "never accepted"
        except Left:
            seen.outcome = "left"
        except Failed as error:
            wanted = ask.manner == "cancel" and "request_cancelled" in str(error)
            seen.outcome, seen.error = ("cancelled", "") if wanted else ("failed", str(error))
        else:
            seen.outcome = "done"
        seen.ended_at = time.monotonic()
        return seen

    async def _persist(self, seen: Seen) -> None:
        routers = self._cluster.names("router")
        resumable = True
        while True:
            last = seen.attempts[-1] if seen.attempts else None
            resume = last is not None and resumable and bool(last.positions)
            start = last.positions[-1][1] if resume and last is not None else (0,) * seen.ask.params.n
            attempt = Attempt(self._rng.choice(routers), start)
            began = f"{time.strftime('%H:%M:%S')} {attempt.router}"
            try:
                run = self._grpc if seen.ask.door == "grpc" else self._over_http
                await run(seen, attempt, last.positions[-1] if resume and last is not None else None)
                return
            except Refused as refusal:
                seen.refusals.append(refusal.code)
                seen.unannounced += refusal.retry_after_s is None
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * min(refusal.retry_after_s or 0.1, MAX_WAIT_S))
            except Unresumable:
                resumable = False
            except asyncio.CancelledError:
                seen.unheard += [] if attempt.positions else [f"{began}, given up"]
                raise
            except Broken as error:
                attempt.broke = str(error)
                if not attempt.positions:
                    seen.unheard.append(f"{began} {error}")
                resumable = True
                await asyncio.sleep(self._rng.uniform(0.02, 0.2))

    async def _next(self, events: AsyncIterator[Any]) -> Any:
        try:
            return await asyncio.wait_for(anext(events, None), SILENCE_S)
        except TimeoutError:
            raise Broken(f"silent for {SILENCE_S} s") from None

    async def _pace(self, seen: Seen, attempt: Attempt, num_tokens: int, cancel: Awaitable[None] | None = None) -> None:
        """What this kind of client does after an event, having `num_tokens` by now."""
        ask = seen.ask
        seen.heard(time.monotonic())
        if ask.manner == "slow":
            await asyncio.sleep(SLOW_REST_S)
        elif ask.manner == "leave" and num_tokens >= ask.after:
            raise Left
        elif ask.manner == "cancel" and num_tokens >= ask.after and not attempt.asked_to_end:
            attempt.asked_to_end = True
            await self._cancel(attempt)

    async def _cancel(self, attempt: Attempt) -> None:
        """Asks any router for the end; one that cannot now leaves the request to run out."""
        router = self._rng.choice(list(self._channels))
        try:
            await router_pb2_grpc.RouterStub(self._channels[router]).Cancel(
                router_pb2.CancelRequest(rid=attempt.rid), timeout=SILENCE_S
            )
        except grpc.aio.AioRpcError:
            return

    # gRPC.

    async def _grpc(self, seen: Seen, attempt: Attempt, after: tuple[str, tuple[int, ...], str] | None) -> None:
        stub = router_pb2_grpc.RouterStub(self._channels[attempt.router])
        ask = seen.ask
        if after is not None:
            call = stub.Resume(router_pb2.ResumeRequest(rid=after[0], position=_position(after)))
        else:
            options = router_pb2.Options(sampling=to_proto(ask.params), idempotency_key=ask.key)
            prompt = b"".join(token.to_bytes(4, "little") for token in ask.prompt)
            call = stub.Complete(router_pb2.CompleteRequest(model="default", token_ids=prompt, options=options))
        counts = list(attempt.start)
        try:
            events = call.__aiter__()
            while (event := await self._next(events)) is not None:
                if not attempt.rid:
                    seen.attempts.append(attempt)
                attempt.rid, attempt_counts, digest = _parse_position(event.position)
                attempt.positions.append((attempt.rid, attempt_counts, digest))
                _note(event, attempt, counts)
                await self._pace(seen, attempt, sum(counts))
            if attempt.usage is None:
                raise Failed("the stream ended without usage")
        except grpc.aio.AioRpcError as error:
            _raise_grpc(error, attempt, resuming=after is not None)
        finally:
            call.cancel()

    # HTTP.

    async def _over_http(self, seen: Seen, attempt: Attempt, after: tuple[str, tuple[int, ...], str] | None) -> None:
        url, ask = self._cluster.url(attempt.router), seen.ask
        if after is not None:
            headers = {"Last-Event-ID": _position(after)}
            request = self._http.build_request("GET", f"{url}/v1/streams/{after[0]}", headers=headers)
        else:
            body = {
                "model": "default",
                "prompt": list(ask.prompt),
                "max_tokens": ask.params.max_tokens,
                "seed": ask.params.seed,
                "n": ask.params.n,
                "stop_token_ids": list(ask.params.stop_token_ids),
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            request = self._http.build_request("POST", f"{url}/v1/completions", json=body, headers={"Idempotency-Key": ask.key})
        try:
            response = await self._http.send(request, stream=True)
            try:
                await self._read_sse(seen, attempt, response, resuming=after is not None)
            finally:
                await response.aclose()
        except (httpx.TransportError, OSError) as error:
            raise Broken(repr(error)) from None

    async def _read_sse(self, seen: Seen, attempt: Attempt, response: httpx.Response, *, resuming: bool) -> None:
        if response.status_code != 200:
            _raise_http(response, await response.aread(), resuming=resuming)
        counts = attempt.start
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                attempt.rid, counts, digest = _parse_position(line[4:])
                if not attempt.positions:
                    seen.attempts.append(attempt)
                attempt.positions.append((attempt.rid, counts, digest))
            elif line == "data: [DONE]":
                if attempt.usage is None:
                    raise Failed("[DONE] without usage")
                return
            elif line.startswith("data: "):
                _note_chunk(json.loads(line[6:]), attempt)
                await self._pace(seen, attempt, sum(counts))
        raise Broken("the stream ended without [DONE]")


def _note(event: router_pb2.Event, attempt: Attempt, counts: list[int]) -> None:
    match event.WhichOneof("event"):
        case "delta":
            attempt.tokens.setdefault(event.delta.choice, []).extend(event.delta.token_ids)
            counts[event.delta.choice] += len(event.delta.token_ids)
            text = attempt.text.get(event.delta.choice, "")
            attempt.text[event.delta.choice] = text + event.delta.text
        case "finished":
            attempt.ends[event.finished.choice] = REASONS.get(event.finished.reason, "?")
        case "usage":
            attempt.usage = (event.usage.num_prompt_tokens, event.usage.num_output_tokens)


def _note_chunk(chunk: dict[str, Any], attempt: Attempt) -> None:
    if "error" in chunk:
        if chunk["error"].get("code") == "draining":
            raise Broken("draining")
        raise Failed(f"{chunk['error'].get('code')}: {chunk['error'].get('message')}")
    for choice in chunk["choices"]:
        attempt.text[choice["index"]] = attempt.text.get(choice["index"], "") + choice["text"]
        if choice["finish_reason"] is not None:
            attempt.ends[choice["index"]] = choice["finish_reason"]
    if chunk.get("usage"):
        attempt.usage = (chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"])


def _raise_grpc(error: grpc.aio.AioRpcError, attempt: Attempt, *, resuming: bool) -> None:
    """A status with our code in its trailer is what the router said; without, nobody said anything."""
    trailing = dict(error.trailing_metadata() or ())
    code, wait = trailing.get(ERROR_CODE_KEY), trailing.get(RETRY_AFTER_KEY)
    text = f"{error.code().name} {code}: {error.details()}"
    if resuming and not attempt.positions and error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND):
        raise Unresumable from None
    if code is None:
        raise Broken(text) from None
    if not attempt.positions and error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
        raise Refused(str(code), float(wait) if wait else None) from None
    raise Failed(text) from None


def _raise_http(response: httpx.Response, body: bytes, *, resuming: bool) -> None:
    error = json.loads(body).get("error", {}) if body.startswith(b"{") else {}
    if resuming and response.status_code in (404, 405):
        raise Unresumable
    if response.status_code in (429, 503):
        wait = response.headers.get("retry-after")
        raise Refused(str(error.get("code")), float(wait) if wait else None)
    raise Failed(f"{response.status_code} {error.get('code')}: {error.get('message')}")


def _position(position: tuple[str, tuple[int, ...], str]) -> str:
    return f"{position[0]}:{'.'.join(map(str, position[1]))}:{position[2]}"


def _parse_position(text: str) -> tuple[str, tuple[int, ...], str]:
    rid, counts, digest = text.split(":")
    return rid, tuple(int(count) for count in counts.split(".")), digest
