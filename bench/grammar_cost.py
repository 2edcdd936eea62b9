"""What following a grammar costs: CPU seconds of the whole server per 1,000 tokens, with and without, run in turns.

`roadtrain bench grammar_cost` starts `roadtrain serve` itself. Every completion has the same number of tokens: the grammars
cannot end before that, and the others go on past the end of the text. It knows nothing of what grammars are made of.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx

from bench.system import cpu_by_service, free_port, running
from bench.workload import words

NUM_TOKENS = 128
PROMPT_WORDS = 48

# Structure and text in turns, as in what is asked for in earnest; never complete within NUM_TOKENS.
RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["friend", "colleague", "stranger"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "schema": {"structured_outputs": {"json": {"type": "array", "items": RECORD, "minItems": 50}}},
    "free": {"ignore_eos": True},
}


async def _run(client: httpx.AsyncClient, fields: dict[str, Any], num_clients: int, num_each: int, seed: int) -> int:
    """Tokens that num_clients got, each for num_each requests in a row."""

    async def one(number: int) -> int:
        rng, total = random.Random(1000 * seed + number), 0
        for _ in range(num_each):
            body = {"model": "default", "prompt": words(rng, PROMPT_WORDS), "max_tokens": NUM_TOKENS, "seed": number, **fields}
            answer = await client.post("/v1/completions", json=body | {"temperature": 0.8})
            answer.raise_for_status()
            total += answer.json()["usage"]["completion_tokens"]
        return total

    totals = await asyncio.gather(*(one(number) for number in range(num_clients)))
    if sum(totals) != num_clients * num_each * NUM_TOKENS:
        raise RuntimeError(f"{sum(totals)} tokens came, not {num_clients * num_each * NUM_TOKENS}")
    return sum(totals)


async def measure(url: str, pid: int, num_clients: int, num_each: int, num_runs: int) -> dict[str, list[float]]:
    """CPU seconds per 1,000 tokens of each run, by kind; the kinds take turns at being first."""
    found: dict[str, list[float]] = {name: [] for name in GRAMMARS}
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        for fields in GRAMMARS.values():
            await _run(client, fields, num_clients, 1, 999)
        for number in range(num_runs):
            order = list(GRAMMARS.items())
            for name, fields in order if number % 2 else order[::-1]:
                before = sum(cpu_by_service(pid).values())
                num_tokens = await _run(client, fields, num_clients, num_each, number)
                found[name].append((sum(cpu_by_service(pid).values()) - before) / num_tokens * 1000)
            print(json.dumps({"run": number, **{name: round(values[-1], 3) for name, values in found.items()}}), flush=True)
    return found


def main() -> None:
    """The command."""
    made = argparse.ArgumentParser(prog="roadtrain bench grammar_cost", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--clients", type=int, default=8, help="at a time (default %(default)s)")
    made.add_argument("--requests", type=int, default=2, help="of each client in a run (default %(default)s)")
    made.add_argument("--runs", type=int, default=10, help="of each kind, in turns (default %(default)s)")
    args = made.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "services.launcher", "serve", "--port", str(port), "--log-level", "warning"]
        with running(command, f"http://127.0.0.1:{port + 2}/readyz", Path(folder) / "log") as pid:
            found = asyncio.run(measure(f"http://127.0.0.1:{port}", pid, args.clients, args.requests, args.runs))
    schema, free = (statistics.median(found[name]) for name in ("schema", "free"))
    ratios = statistics.median(a / b for a, b in zip(found["schema"], found["free"], strict=True))
    print(f"medians, CPU s per 1,000 tokens: schema {schema:.3f}, free {free:.3f}: {100 * (schema / free - 1):+.1f} %")
    print(f"median of the ratios of neighbours: {100 * (ratios - 1):+.1f} %")


if __name__ == "__main__":
    main()
