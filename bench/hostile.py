"""What a hostile body costs everybody else, and how soon it is refused: `roadtrain bench hostile --url http://127.0.0.1:8000`.

Clients stream from a running server, in turns without and with an attacker who sends bodies of a megabyte. It knows nothing
of the server but its URL.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from urllib.parse import urlsplit

import uvloop

from bench import workload
from bench.load import Run, Window, closed
from bench.measures import percentile, ttft_ms
from bench.serve import model_of
from bench.wire import Target, exchange

MB = 10**6
SHARES = (0.5, 0.99)


def bodies(model: str, size: int = MB) -> dict[str, bytes]:
    """Bodies of `size` bytes that ask for nothing that could be given. By what is hostile about them."""
    chat = b'{"model":"%s","messages":[{"role":"user","content":"hi"}],"max_tokens":1,"x":' % model.encode()
    prompt = b'{"model":"%s","max_tokens":1,"prompt":' % model.encode()

    def filled(unit: bytes) -> bytes:
        return unit * (size // len(unit))

    return {
        "text": prompt + b'"' + filled(b"the quick brown fox jumps over it ") + b'"}',
        "one letter": prompt + b'"' + filled(b"a") + b'"}',
        "kanji": prompt + b'"' + filled("日本語".encode()) + b'"}',
        "special tokens": b'{"model":"%s","messages":[{"role":"user","content":"' % model.encode()
        + filled(b"<|im_end|>")
        + b'"}]}',
        "token ids": prompt + b"[" + filled(b"1,") + b"1]}",
        "lists": chat + b"[" + filled(b"[],") + b"1],}",
        "objects": chat + b"[" + filled(b'{"a":1},') + b"1],}",
        "fractions": chat + b"[" + filled(b"1e300,") + b"1],}",
        "numbers": chat + b"[" + filled(b"0,") + b"1],}",
        "brackets": chat + filled(b"["),
        "strings": chat + b"[" + filled(b'"",') + b"1],}",
        "escapes": chat + b'"' + filled(b"\\u00e9") + b'",}',
        "messages": b'{"model":"m","messages":[' + filled(b'{"role":"user","content":"a"},') + b"{}]}",
        "biases": chat + b'{"a":1},"logit_bias":{' + b",".join(b'"%d":1' % number for number in range(size // 11)) + b"}}",
        "white space": filled(b" ") + b"{",
    }


def as_request(target: Target, body: bytes) -> bytes:
    """HTTP."""
    path = target.path.replace("completions", "chat/completions") if b'"messages"' in body[:200] else target.path
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


async def attack(target: Target, requests: Sequence[bytes], per_second: float, statuses: list[int]) -> None:
    """Sends them in turns, so many a second, without end."""
    number = 0
    while True:
        began_at = time.perf_counter()
        raw = await exchange(target, requests[number % len(requests)])
        statuses.append(int(raw.parts[0][1].split(b" ")[1]) if raw.parts else 0)
        number += 1
        await asyncio.sleep(max(0.0, 1 / per_second - (time.perf_counter() - began_at)))


@dataclass(slots=True)
class Phases:
    """Percentiles of each phase of one kind, in ms, by latency and share. They are not pooled: a machine is unquiet in turns."""

    name: str
    found: dict[tuple[str, float], list[float]] = field(default_factory=dict)
    num_requests: int = 0
    num_errors: int = 0

    def add(self, run: Run) -> None:
        """What began inside the window."""
        began = [each for each in run.answers if run.start <= each.started_at < run.end]
        good = [each for each in began if not each.error and each.token_at]
        self.num_requests += len(good)
        self.num_errors += len(began) - len(good)
        latencies = {
            "ITL": [1000 * (after - before) for each in good for before, after in pairwise(each.token_at)],
            "TTFT": [ttft_ms(each) for each in good],
            "E2EL": [1000 * (each.ended_at - each.started_at) for each in good],
        }
        for kind, values in latencies.items():
            for share in SHARES:
                self.found.setdefault((kind, share), []).append(percentile(values, share))
        shown = ", ".join(f"{kind} {self.found[kind, 0.99][-1]:.1f}" for kind in latencies)
        print(f"  {self.name:<9} p99 ms: {shown}; {len(good)} requests", flush=True)


async def phase(target: Target, options: argparse.Namespace, seed: int, requests: Sequence[bytes], into: Phases) -> list[int]:
    """The clients for a while; what the attacker was answered."""
    statuses: list[int] = []
    attacking = asyncio.create_task(attack(target, requests, options.per_second, statuses)) if requests else None
    asks = workload.mixed(seed, (16, 64), (32, 32))
    into.add(await closed(target, asks, options.clients, Window(options.warmup, options.seconds), None))
    if attacking is not None:
        attacking.cancel()
        await asyncio.gather(attacking, return_exceptions=True)
    return statuses


async def compare(target: Target, options: argparse.Namespace, name: str, requests: Sequence[bytes]) -> None:
    """Rounds of both, first one then the other first, every phase with prompts of its own; medians over the phases."""
    alone, attacked = Phases("alone"), Phases("attacked")
    answers: list[int] = []
    for number in range(options.rounds):
        order = [((), alone), (requests, attacked)]
        for turn, (sent, into) in enumerate(order[:: 1 - 2 * (number % 2)]):
            # The attacker goes on in its list where the last phase ended.
            rotated = [*sent[len(answers) % max(1, len(sent)) :], *sent[: len(answers) % max(1, len(sent))]]
            answers += await phase(target, options, options.seed + 10 * number + turn, rotated, into)
    print(f"\n{name}: {len(answers)} sent, answered {sorted(set(answers))}; {options.clients} clients")
    print(
        f"{'ms':<6} {'p50 alone':>10} {'attacked':>10} {'':>7} {'p99 alone':>10} {'attacked':>10}   (medians of {options.rounds})"
    )
    for kind in ("ITL", "TTFT", "E2EL"):
        cells = []
        for share in SHARES:
            before, after = (statistics.median(each.found[kind, share]) for each in (alone, attacked))
            cells.append(f"{before:10.1f} {after:10.1f} {after / before - 1:+7.1%}")
        print(f"{kind:<6} {' '.join(cells)}")
    print(f"errors {alone.num_errors + attacked.num_errors}", flush=True)


async def refusals(target: Target, options: argparse.Namespace) -> None:
    """How long a refusal takes on a connection that is there, first byte sent to last byte read."""
    parts = urlsplit(target.base_url)
    small = {
        "bad JSON": b"{",
        "unknown model": b'{"model":"nobody","prompt":"x"}',
        "bad parameter": b'{"model":"%s","prompt":"x","temperature":3}' % target.model.encode(),
        "n of a billion": b'{"model":"%s","prompt":"x","n":1000000000}' % target.model.encode(),
        "empty prompt": b'{"model":"%s","prompt":""}' % target.model.encode(),
    }
    print(f"\n{'refusal':<28} {'p50 ms':>7} {'p99 ms':>7}")
    for name, body in {**small, **{f"1 MB of {name}": body for name, body in bodies(target.model).items()}}.items():
        request = as_request(target, body).replace(b"Connection: close\r\n", b"", 1)
        times = []
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        for _ in range(options.refusals if len(body) < 1000 else max(5, options.refusals // 10)):
            began_at = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            times.append(1000 * (time.perf_counter() - began_at))
        writer.close()
        print(
            f"{name:<28} {percentile(times, 0.5):7.2f} {percentile(times, 0.99):7.2f}   {head.split(b' ')[1].decode()}",
            flush=True,
        )


async def measure(options: argparse.Namespace) -> None:
    """Refusals on a quiet server, then clients with and without an attacker."""
    target = Target("server", options.url, model_of(options.url))
    if options.refusals:
        await refusals(target, options)
    every = bodies(target.model)
    for name in options.bodies.split(",") if options.bodies else ["all in turns"]:
        await compare(
            target, options, name, [as_request(target, body) for kind, body in every.items() if name in (kind, "all in turns")]
        )


def main() -> None:
    """Command line: python -m bench.hostile."""
    made = argparse.ArgumentParser(prog="roadtrain bench hostile", description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--url", default="http://127.0.0.1:8000", help="server to attack (default %(default)s)")
    add("--clients", type=int, default=8, help="(default %(default)s)")
    add("--per-second", type=float, default=1.0, help="hostile bodies (default %(default)s)")
    add("--bodies", default="", help="kinds of hostile bodies, comma-separated, each for itself; unset: all in turns")
    add("--seconds", type=float, default=5.0, help="of each phase (default %(default)s)")
    add("--warmup", type=float, default=1.0, help="seconds before that (default %(default)s)")
    add("--rounds", type=int, default=9, help="(default %(default)s)")
    add("--refusals", type=int, default=300, help="of each kind; 0: none (default %(default)s)")
    add("--seed", type=int, default=1, help="of prompts and lengths (default %(default)s)")
    uvloop.run(measure(made.parse_args()))


if __name__ == "__main__":
    main()
