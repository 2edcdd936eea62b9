"""The whole road with a worker that computes nothing, against a bare uvicorn loop that sends the same bytes.

Redis, tokenizer, router, worker and the clients share this machine. Two loads: many streams as fast as they go, in
tokens per second (by usage: events may hold several); and thousands of streams at a fixed pace, for errors and for gaps.
It knows nothing of how the road is built.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from bench.measures import percentile
from bench.system import cpu_by_service, free_port, running, sim_command
from bench.wire import Raw, Target, exchange, read, request_bytes
from shared.process import raise_file_limit

PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Speed:
    """Streams as fast as they go. cores: CPU seconds per second, by process."""

    tokens_s: float
    events_s: float
    bytes_per_event: float
    num_errors: int
    first_error: str
    cores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Pace:
    """Streams at a fixed pace; gaps between events of a stream, in ms, from when all streams ran until the first ended."""

    num_streams: int
    nominal_ms: float
    num_errors: int
    first_error: str
    gap_p50_ms: float
    gap_p99_ms: float
    gap_max_ms: float
    num_gaps: int
    cores: dict[str, float]


async def _all(target: Target, num_streams: int, num_tokens: int, ramp_s: float) -> list[Raw]:
    """num_streams requests, begun evenly over ramp_s."""

    async def one(index: int) -> Raw:
        await asyncio.sleep(ramp_s * index / num_streams)
        prompt = [(index * 7919 + i * 31) % 40_000 + 100 for i in range(PROMPT_TOKENS)]
        return await exchange(target, request_bytes(target, prompt, num_tokens))

    return list(await asyncio.gather(*(one(index) for index in range(num_streams))))


def _cores(before: dict[str, float], after: dict[str, float], seconds: float) -> dict[str, float]:
    return {name: round((cpu - before.get(name, 0.0)) / seconds, 2) for name, cpu in sorted(after.items())}


def _cost(pid: int) -> dict[str, float]:
    return cpu_by_service(pid) | {"client": time.process_time()}


async def road_speed(target: Target, pid: int, num_streams: int, num_tokens: int) -> tuple[Speed, bytes]:
    """The road's speed, and one of its events of one token, for the bare loop to send."""
    await _all(target, 8, 16, 0.0)
    sample = await _all(target, 1, 8, 0.0)
    event = next(piece for piece in b"".join(data for _, data in sample[0].parts).split(b"\r\n") if piece.startswith(b"id:"))
    before, started_at = _cost(pid), time.perf_counter()
    raws = await _all(target, num_streams, num_tokens, 0.0)
    seconds = time.perf_counter() - started_at
    cores = _cores(before, _cost(pid), seconds)
    answers = [read(raw) for raw in raws]
    errors = [
        answer.error or f"{answer.num_output} tokens" for answer in answers if answer.error or answer.num_output != num_tokens
    ]
    num_events = sum(b.count(b"data: ") for raw in raws for _, b in raw.parts)
    speed = Speed(
        tokens_s=sum(answer.num_output for answer in answers) / seconds,
        events_s=num_events / seconds,
        bytes_per_event=sum(len(b) for raw in raws for _, b in raw.parts) / max(1, num_events),
        num_errors=len(errors),
        first_error=errors[0] if errors else "",
        cores=cores,
    )
    return speed, event


async def bare_speed(target: Target, pid: int, num_streams: int, num_events: int) -> Speed:
    """The bare loop's speed."""
    await _all(target, 8, 1, 0.0)
    before, started_at = _cost(pid), time.perf_counter()
    raws = await _all(target, num_streams, 1, 0.0)
    seconds = time.perf_counter() - started_at
    cores = _cores(before, _cost(pid), seconds)
    num_bytes = sum(len(b) for raw in raws for _, b in raw.parts)
    got = sum(b.count(b"data: ") for raw in raws for _, b in raw.parts) - num_streams
    failures = [raw.failure for raw in raws if raw.failure]
    first = failures[0] if failures else ""
    return Speed(got / seconds, got / seconds, num_bytes / max(1, got), len(failures), first, cores)


async def road_pace(target: Target, pid: int, num_streams: int, num_tokens: int, step_ms: float, ramp_s: float) -> Pace:
    """Gaps between the events of many paced streams."""
    before, started_at = _cost(pid), time.perf_counter()
    raws = await _all(target, num_streams, num_tokens, ramp_s)
    cores = _cores(before, _cost(pid), time.perf_counter() - started_at)
    answers = [read(raw) for raw in raws]
    errors = [answer.error or "short" for answer in answers if answer.error or answer.num_output != num_tokens]
    good = [answer for answer in answers if answer.token_at]
    start = max((answer.token_at[0] for answer in good), default=0.0)
    end = min((answer.token_at[-1] for answer in good), default=0.0)
    gaps = [
        1000 * (b - a)
        for answer in good
        for a, b in zip(answer.token_at, answer.token_at[1:], strict=False)
        if start <= a and b <= end
    ]
    return Pace(
        num_streams,
        step_ms,
        len(errors),
        errors[0] if errors else "",
        percentile(gaps, 0.5),
        percentile(gaps, 0.99),
        max(gaps, default=0.0),
        len(gaps),
        cores,
    )


def _target(port: int) -> Target:
    return Target("", f"http://127.0.0.1:{port}", "default")


def measure_speed(folder: Path, num_streams: int, num_tokens: int) -> tuple[Speed, Speed]:
    """The road and the bare loop, one after the other."""
    port = free_port()
    flags = ("--max-num-seqs", str(num_streams), "--max-step-tokens", "4096", "--worker.sim-step-ms", "0")
    flags += ("--worker.sim-step-ms-per-seq", "0", "--worker.sim-num-blocks", str(num_streams * (num_tokens + 64) // 16))
    command = sim_command(port, *flags, "--worker.sim-prefill-tokens-per-s", "1e9")
    with running(command, f"http://127.0.0.1:{port + 2}/readyz", folder / "road.log") as pid:
        road, event = uvloop.run(road_speed(_target(port), pid, num_streams, num_tokens))
    file, port = folder / "event", free_port()
    file.write_bytes(event)
    command = ["-m", "bench.bare", str(port), str(file), str(num_tokens)]
    with running(command, f"http://127.0.0.1:{port}/", folder / "bare.log") as pid:
        bare = uvloop.run(bare_speed(_target(port), pid, num_streams, num_tokens))
    return road, bare


def measure_pace(folder: Path, num_streams: int, step_ms: float, seconds: float) -> Pace:
    """The road at a fixed pace: a step takes step_ms however many take part in it."""
    port, ramp_s = free_port(), num_streams / 200
    num_tokens = int((seconds + ramp_s) * 1000 / step_ms)
    flags = ("--max-num-seqs", str(num_streams), "--max-step-tokens", "8192", "--worker.sim-step-ms", str(step_ms))
    flags += ("--worker.sim-step-ms-per-seq", "0", "--worker.sim-num-blocks", str(num_streams * (num_tokens + 64) // 16))
    command = sim_command(port, *flags, "--worker.sim-prefill-tokens-per-s", "1e9")
    with running(command, f"http://127.0.0.1:{port + 2}/readyz", folder / "pace.log") as pid:
        return uvloop.run(road_pace(_target(port), pid, num_streams, num_tokens, step_ms, ramp_s))


def _print_speed(name: str, speed: Speed) -> None:
    cores = " ".join(f"{service} {share:.2f}" for service, share in speed.cores.items())
    print(
        f"  {name:9}{speed.tokens_s:10.0f} tokens/s {speed.events_s:10.0f} events/s {speed.bytes_per_event:6.0f} B/event"
        f"  {speed.num_errors} errors {speed.first_error}  cores: {cores}",
        flush=True,
    )


def _print_pace(pace: Pace) -> None:
    print(f"\n{pace.num_streams} streams at {1000 / pace.nominal_ms:g} tokens/s each")
    print(
        f"  gap between tokens p50 {pace.gap_p50_ms:.1f} p99 {pace.gap_p99_ms:.1f} max {pace.gap_max_ms:.1f} ms over"
        f" {pace.num_gaps} gaps (nominal {pace.nominal_ms:g}: p99 {pace.gap_p99_ms / pace.nominal_ms:.2f} x)"
        f"   {pace.num_errors} errors {pace.first_error}"
    )
    print("  cores: " + " ".join(f"{service} {share:.2f}" for service, share in pace.cores.items()))


def _speed_rounds(folder: Path, options: argparse.Namespace) -> list[tuple[Speed, Speed]]:
    print(f"{options.streams} streams of {options.tokens} tokens, as fast as they go, client included")
    rounds = []
    for _ in range(options.rounds):
        rounds.append(measure_speed(folder, options.streams, options.tokens))
        for name, speed in zip(("road", "bare"), rounds[-1], strict=True):
            _print_speed(name, speed)
    values = [road.tokens_s / bare.tokens_s for road, bare in rounds]
    print(f"  ratio {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f} over {len(values)} rounds)")
    return rounds


def _numbers(rounds: Sequence[tuple[Speed, Speed]], pace: Pace | None) -> dict[str, object]:
    speeds = [{"road": asdict(road), "bare": asdict(bare)} for road, bare in rounds]
    return {"speed": speeds, "pace": None if pace is None else asdict(pace)}


def main() -> None:
    """Command line: python -m bench.plane."""
    parser = argparse.ArgumentParser(prog="roadtrain bench plane", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--streams", type=int, default=256, help="as fast as they go; 0: leave out (default %(default)s)")
    add("--tokens", type=int, default=1000, help="of each of these (default %(default)s)")
    add("--rounds", type=int, default=3, help="of road and bare loop in turns (default %(default)s)")
    add("--paced", type=int, default=2000, help="streams at a fixed pace; 0: leave out (default %(default)s)")
    add("--step-ms", type=float, default=100.0, help="that pace (default %(default)s)")
    add("--seconds", type=float, default=15.0, help="how long all of them run together (default %(default)s)")
    add("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    num_files = raise_file_limit()
    if options.paced + 100 > num_files:
        sys.exit(f"{options.paced} streams need more than the {num_files} open files this system allows: raise ulimit -n")
    with tempfile.TemporaryDirectory(prefix="roadtrain-bench-") as name:
        rounds = _speed_rounds(Path(name), options) if options.streams else []
        pace = None
        if options.paced:
            pace = measure_pace(Path(name), options.paced, options.step_ms, options.seconds)
            _print_pace(pace)
    if options.json:
        options.json.write_text(json.dumps(_numbers(rounds, pace), indent=1))
    if any(road.num_errors + bare.num_errors for road, bare in rounds) or (pace is not None and pace.num_errors):
        sys.exit("some streams failed")


if __name__ == "__main__":
    main()
