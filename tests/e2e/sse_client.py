"""A client of event streams that keeps what it got, when, and the id to come back with. It knows no assertions."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Seen:
    """One answer, over as many connections as it took."""

    body: dict[str, Any]
    path: str = "/v1/completions"
    headers: dict[str, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    last_id: str = ""
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    status: int = 0
    done: bool = False
    times: list[float] = field(default_factory=list)
    num_connections: int = 0
    cuts: list[float] = field(default_factory=list)

    @property
    def rid(self) -> str:
        return self.last_id.partition(":")[0]

    @property
    def longest_gap_s(self) -> float:
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0)

    def take(self, line: str) -> None:
        """One line of the stream."""
        if line.startswith("id: "):
            self.last_id = line[4:]
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                self.error = event["error"]
                return
            self.usage = event.get("usage") or self.usage
            for choice in event["choices"]:
                self._take_choice(choice)

    def _take_choice(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
        if text:
            self.times.append(time.monotonic())
        self.texts[index] = self.texts.get(index, "") + text
        if choice.get("logprobs"):
            found = choice["logprobs"]
            rows = [entry["logprob"] for entry in found["content"]] if "content" in found else found["token_logprobs"]
            self.logprobs.setdefault(index, []).extend(rows)
        if choice["finish_reason"]:
            self.ends[index] = choice["finish_reason"]


async def read(client: httpx.AsyncClient, seen: Seen, *, most: int | None = None) -> None:
    """From where `seen` is to the end, an error, or `most` texts in all; raises what the connection does."""
    seen.num_connections += 1
    if seen.last_id:
        request = client.stream("GET", f"/v1/streams/{seen.rid}", headers={"last-event-id": seen.last_id})
    else:
        request = client.stream("POST", seen.path, json=seen.body | {"stream": True}, headers=seen.headers)
    async with request as response:
        seen.status = response.status_code
        if response.status_code != 200:
            seen.error = json.loads(await response.aread())["error"]
            return
        async for line in response.aiter_lines():
            seen.take(line)
            if most is not None and len(seen.times) >= most:
                return


async def read_through(client_of: Any, seen: Seen, *, patience_s: float = 30.0) -> None:
    """Reads until it is done, coming back whenever the connection is lost. `client_of` makes a client."""
    lost_at: float | None = None
    while not seen.done and seen.error is None:
        try:
            async with client_of() as client:
                await read(client, seen)
        except httpx.HTTPError:
            seen.cuts.append(time.monotonic())
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > patience_s:
                raise
            continue
        lost_at = None
