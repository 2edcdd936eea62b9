"""Loads any OpenAI server and says how it did: `roadtrain bench serve --url http://127.0.0.1:8000`.

With --vs URL two servers get the same requests in turns (A B A B ...), for ratios that a busy machine cannot skew.
Greedy, ignore_eos; tokens are counted by the server's usage. It knows nothing of either server but its URL.
"""

import argparse
import json
import random
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import workload
from bench.load import Window, closed, open_loop
from bench.measures import Summary, summarize
from bench.memory import held_by
from bench.show import COLUMNS, intruder_ratio, latency, median_round, plot, ratio_lines, row
from bench.wire import Target
from bench.workload import Ask

# One word of a workload is about a token; the longest chat must fit where 2,048 tokens do.
CHAT_TOKENS = 1900


@dataclass(frozen=True, slots=True)
class Load:
    """One row of the table. clients: of a closed loop, 0 for an open one."""

    name: str
    clients: int
    rate: float = 0.0


def _bounds(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _limits(text: str) -> dict[str, float]:
    limits = {name: float(value) for name, _, value in (part.partition(":") for part in text.split(","))}
    if not limits.keys() <= {"ttft", "tpot", "e2el"}:
        raise argparse.ArgumentTypeError("limits are ttft, tpot and e2el, for example ttft:500,tpot:50")
    return limits


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="roadtrain bench serve", description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--url", default="http://127.0.0.1:8000", help="server to load (default %(default)s)")
    add("--vs", action="append", default=[], metavar="URL", help="compare with this server, in turns; may be repeated")
    add("--names", default="", help="names to print, comma-separated: the server's, then those of --vs")
    add("--clients", default="1,8,32", help="closed loops of so many clients, comma-separated (default %(default)s)")
    add("--rate", type=float, help="open loop instead: requests per second at Poisson times")
    add("--prompt-words", type=_bounds, default=(16, 256), metavar="LOW-HIGH", help="(default 16-256)")
    add("--new-tokens", type=_bounds, default=(16, 128), metavar="LOW-HIGH", help="(default 16-128)")
    add("--shared-prefix", type=int, default=0, metavar="WORDS", help="begin every prompt of a round with the same so many words")
    add("--chats", action="store_true", help="lengths as in ShareGPT conversations instead")
    add("--intruder", type=int, default=0, metavar="WORDS", help="measure each load also while unique prompts of so many words")
    add("--seconds", type=float, default=30.0, help="of each load on each server, per round (default %(default)s)")
    add("--warmup", type=float, default=5.0, help="seconds before that (default %(default)s)")
    add("--rounds", type=int, default=1, help="(default %(default)s)")
    add("--limits", type=_limits, metavar="ttft:MS,tpot:MS", help="count requests that keep these, for goodput")
    add("--seed", type=int, help="of lengths and words; unset: another one each time, so that no cache knows the prompts")
    add("--json", type=Path, help="also write all numbers here")
    add("--plot", type=Path, help="also draw them here (PNG; needs matplotlib)")
    return made


def model_of(url: str) -> str:
    """What the server calls its model."""
    base = url.rstrip("/").removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/v1/models", timeout=10) as reply:
        return str(json.load(reply)["data"][0]["id"])


def targets(options: argparse.Namespace) -> list[Target]:
    """The servers, ours first."""
    urls = [options.url, *options.vs]
    names = [name for name in options.names.split(",") if name]
    names += [f"{'B' if index else 'A'} {url}" for index, url in enumerate(urls)][len(names) :]
    return [Target(name, url, model_of(url)) for name, url in zip(names, urls, strict=True)]


def asks(options: argparse.Namespace, seed: int) -> Iterator[Ask]:
    """The requests of one load and round."""
    if options.chats:
        return workload.chats(seed, CHAT_TOKENS)
    return workload.mixed(seed, options.prompt_words, options.new_tokens, options.shared_prefix)


async def measure(target: Target, load: Load, options: argparse.Namespace, seed: int, *, intruder: bool = False) -> Summary:
    """One load on one server, once."""
    window = Window(options.warmup, options.seconds)
    if load.clients:
        long_prompts = workload.long_prompts(seed + 1, options.intruder) if intruder else None
        run = await closed(target, asks(options, seed), load.clients, window, long_prompts)
    else:
        run = await open_loop(target, asks(options, seed), load.rate, seed, window)
    return summarize(run.answers, run.start, run.end, limits=options.limits, client_cpu=run.client_cpu, intruders=run.intruders)


async def measure_all(
    servers: Sequence[Target], loads: Sequence[Load], options: argparse.Namespace
) -> dict[str, dict[str, list[Summary]]]:
    """Load -> server -> rounds. With an intruder each server also has a row "+ intruder"."""
    results: dict[str, dict[str, list[Summary]]] = {}
    for load in loads:
        by_server = results.setdefault(load.name, {})
        print(f"\n{load.name}\n{COLUMNS}")
        for number in range(options.rounds):
            seed = options.seed + 1000 * number + 17 * load.clients
            for target in servers:
                for intruder in (False, True) if options.intruder else (False,):
                    summary = await measure(target, load, options, seed + 7 * intruder, intruder=intruder)
                    name = target.name + (" + intruder" if intruder else "")
                    by_server.setdefault(name, []).append(summary)
                    print(row(name, summary), flush=True)
        _conclude(by_server, servers, options)
    return results


def _conclude(by_server: Mapping[str, Sequence[Summary]], servers: Sequence[Target], options: argparse.Namespace) -> None:
    for name, rounds in by_server.items():
        middle = median_round(rounds)
        print(f"  {name}")
        for label, spread in (("TTFT", middle.ttft), ("TPOT", middle.tpot), ("ITL", middle.itl), ("E2EL", middle.e2el)):
            print(latency(label, spread))
    for other in servers[1:]:
        print("\n".join(ratio_lines(by_server[servers[0].name], by_server[other.name], other.name)))
    for target in servers:
        held = held_by(target.base_url)
        if held is not None:
            print(f"    {target.name}: {held.total:.0f} MiB held by {len(held.processes)} processes (PSS)")
    if options.intruder:
        for target in servers:
            median, least, most = intruder_ratio(by_server[target.name], by_server[f"{target.name} + intruder"])
            print(f"    {target.name}: p99 TPOT with the intruder {median:.2f} x without ({least:.2f} to {most:.2f})")


def main() -> None:
    """Command line: python -m bench.serve."""
    options = parser().parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1, 10**6)
    servers = targets(options)
    loads = [Load(f"{count} client{'s' * (count > 1)}", count) for count in map(int, options.clients.split(","))]
    if options.rate:
        loads = [Load(f"{options.rate:g} requests/s", 0, options.rate)]
    print(f"seed {options.seed}; " + ", ".join(f"{each.name} ({each.base_url}, {each.model})" for each in servers))
    results = uvloop.run(measure_all(servers, loads, options))
    if options.json:
        numbers = {
            load: {name: [each.numbers() for each in rounds] for name, rounds in by.items()} for load, by in results.items()
        }
        options.json.write_text(json.dumps({"seed": options.seed, "command": sys.argv, "loads": numbers}, indent=1))
    if options.plot and not plot(options.plot, results, " ".join(sys.argv)):
        print("no plot: matplotlib is not installed (it is in the extra 'dev')", file=sys.stderr)
    if any(each.num_errors for by_server in results.values() for rounds in by_server.values() for each in rounds):
        sys.exit("some requests failed")


if __name__ == "__main__":
    main()
