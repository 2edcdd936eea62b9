"""Every kind of request, streamed and whole, chat and completion, moved from worker to worker by kill -9: the same answer.

What is right is what the same request gave undisturbed, a moment before. With the sim runner, and (full) with the real model.
"""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests import stack
from tests.e2e.sse_client import Seen, read

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.1, "top_p": 0.9, "top_k": 40},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    "logit_bias": {"logit_bias": {"253": 3.5, "28": -100}},
    "min_tokens": {"min_tokens": 60},
    "stop": {},
    "logprobs": {"logprobs": 2},
    "n": {"n": 3, "logprobs": 1},
}


@dataclass
class Kind:
    """How the system runs, and how long its answers are."""

    flags: tuple[str, ...]
    num_tokens: int


RUNNERS = {
    "sim": Kind(("--runner", "sim", "--worker.sim-step-ms", "15"), 400),
    "model": Kind(("--worker.num-threads", "1", "--max-model-len", "1024"), 120),
}


@dataclass
class Answer:
    """What a client was told, of all choices."""

    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[float]] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)


@dataclass
class Running:
    """A system, and how long the answers are that it is asked for."""

    system: stack.Stack
    num_tokens: int


@pytest.fixture(scope="module", params=["sim", pytest.param("model", marks=pytest.mark.full)])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers."""
    kind = RUNNERS[request.param]
    system = stack.start(tmp_path_factory.mktemp("matrix"), "--num-workers", "2", *kind.flags)
    yield Running(system, kind.num_tokens)
    assert system.stop() == 0, system.log.read_text()[-3000:]


def body_of(name: str, dialect: str, num_tokens: int) -> tuple[str, dict[str, Any]]:
    index = list(KINDS).index(name)
    body = {"model": "default", "max_tokens": num_tokens, "seed": index, "ignore_eos": True, "temperature": 0.8} | KINDS[name]
    if dialect == "completion":
        return "/v1/completions", body | {"prompt": f"Once upon a time, for the {index + 2}nd time,"}
    if "logprobs" in body:
        body |= {"top_logprobs": body["logprobs"], "logprobs": True}
    return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": f"Tell me story number {index}."}]}


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any], *, streamed: bool, seen: Seen | None = None) -> Answer:
    seen = seen or Seen(body, path)
    if streamed:
        seen.body = body | {"stream_options": {"include_usage": True}}
        await read(client, seen)
        assert (seen.error, seen.done) == (None, True)
    else:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        whole = response.json()
        seen.usage = whole["usage"]
        for choice in whole["choices"]:
            seen._take_choice({"delta": choice["message"], **choice} if "message" in choice else choice)
    assert seen.usage is not None
    counted = {name: seen.usage[name] for name in ("prompt_tokens", "completion_tokens")}
    return Answer(seen.texts, seen.ends, seen.logprobs, counted)


async def until_restarted(system: stack.Stack, name: str, before: int) -> None:
    """It runs again and has claimed something."""
    num_ready = system.log.read_text().count("worker is ready")
    async with asyncio.timeout(60):
        while system.children().get(name) in (None, before) or system.log.read_text().count("worker is ready") <= num_ready:
            await asyncio.sleep(0.05)


async def test_each_kind_gives_what_it_gives_undisturbed(running: Running) -> None:
    rows = [(name, dialect, streamed) for name in KINDS for dialect in ("completion", "chat") for streamed in (True, False)]
    async with httpx.AsyncClient(base_url=running.system.url, timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        bodies = {(name, dialect): body_of(name, dialect, running.num_tokens) for name, dialect, _ in rows}
        asked = [ask(client, *body, streamed=False) for body in bodies.values()]
        undisturbed = dict(zip(bodies, await asyncio.gather(*asked), strict=True))
        for (name, dialect), (path, body) in bodies.items():
            if name == "stop":
                # Something its own answer says three quarters of the way: what comes before is the answer then.
                text = undisturbed[name, dialect].texts[0]
                at = 3 * len(text) // 4
                body["stop"] = [text[at : at + 8]]
                undisturbed[name, dialect] = await ask(client, path, body, streamed=False)
                assert undisturbed[name, dialect].ends == {0: "stop"}
        watched = [Seen(bodies[name, dialect][1], bodies[name, dialect][0]) for name, dialect, _ in rows]
        asking = [
            asyncio.create_task(ask(client, *bodies[name, dialect], streamed=streamed, seen=seen))
            for (name, dialect, streamed), seen in zip(rows, watched, strict=True)
        ]
        for worker in ("worker-0", "worker-1"):
            streams = [seen for seen, (_, _, streamed) in zip(watched, rows, strict=True) if streamed]
            before = [len(seen.times) for seen in streams]
            async with asyncio.timeout(120):
                while any(len(seen.times) < num + 10 and not seen.done for seen, num in zip(streams, before, strict=True)):
                    await asyncio.sleep(0.02)
            pid = running.system.children()[worker]
            restarted = asyncio.create_task(until_restarted(running.system, worker, pid))
            await asyncio.sleep(0)
            assert worker != "worker-0" or not any(seen.done for seen in streams), "some were over before"
            os.kill(pid, signal.SIGKILL)
            await restarted
        answers = await asyncio.gather(*asking)
    # Where starting a worker again takes long, all may be over before the second one is killed.
    claimed = re.findall(r"claimed rid=(\w+)", running.system.log.read_text())
    assert len(claimed) > len(set(claimed)), "nothing was moved"
    for row, answer in zip(rows, answers, strict=True):
        assert answer == undisturbed[row[:2]], row
