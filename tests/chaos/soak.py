"""`python -m tests.chaos.soak --minutes 60 --seed N`: random faults for as long as told, then a report as JSON and Markdown.

Exits with 1 if an oracle found anything; then the services' logs are kept beside the report. The same seed draws the same
requests and the same faults; the machine's timing is not repeated. It knows nothing of what the oracles look for.
"""

import argparse
import asyncio
import json
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos import rest
from tests.chaos.trial import Trial, trial

EVERY_S, WIDTH = 3.0, 24
NOTE_EVERY_S = 60.0
SHOWN = 3


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description="Random faults, then a report.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats the requests and faults of an earlier run")
    parser.add_argument("--width", type=int, default=WIDTH, help="requests under way")
    parser.add_argument("--every", type=float, default=EVERY_S, help="mean seconds between two faults")
    parser.add_argument("--report", type=Path, default=Path("soak"), help="folder for the report")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    sys.exit(asyncio.run(_soak(arguments)))


async def _soak(arguments: argparse.Namespace) -> int:
    arguments.report.mkdir(parents=True, exist_ok=True)
    async with trial(arguments.seed, arguments.width) as running:
        notes = asyncio.create_task(_note(running))
        await running.nemesis.at_random(arguments.minutes * 60, arguments.every)
        notes.cancel()
        verdict = await running.finish()
        report = describe(running, arguments)
        (arguments.report / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.report / "report.md").write_text(markdown(report))
        if not verdict.sound:
            running.keep_logs(arguments.report / "logs")
    print(markdown(report), flush=True)
    return 0 if verdict.sound else 1


async def _note(running: Trial) -> None:
    while True:
        await asyncio.sleep(NOTE_EVERY_S)
        minutes = (time.monotonic() - running.began_at) / 60
        print(f"{minutes:.0f} min: {len(running.clients.seen)} requests, {len(running.nemesis.struck)} faults", flush=True)


def describe(running: Trial, arguments: argparse.Namespace) -> dict[str, Any]:
    """The report as plain values."""
    verdict = running.verdict
    faults = {
        kind: {
            "times": row["times"],
            "lasted_s_median": round(median(row["lasted_s"]), 2),
            "longest_silence_s_median": round(median(row["silence_s"]), 2),
            "longest_silence_s_max": round(max(row["silence_s"]), 2),
            "for_example": sorted(row["seen"])[:SHOWN],
        }
        for kind, row in sorted(running.by_fault().items())
    }
    return {
        "seed": running.seed,
        "command": f"python -m tests.chaos.soak --minutes {arguments.minutes:g} --seed {running.seed} "
        f"--width {arguments.width} --every {arguments.every:g}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - running.began_at, 1),
        "num_faults": len(running.nemesis.struck),
        "num_requests": verdict.asked,
        "num_tokens_checked": verdict.tokens,
        "outcomes": verdict.outcomes,
        "refusals": verdict.refusals,
        "came_back": verdict.came_back,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "unexpected": verdict.unexpected,
        "quiet_after_s": round(running.quiet_s, 2),
        "memory_mib": {
            name: round(rest.resident_mib(service.pid), 1) for name, service in running.cluster.services.items() if service.pid
        },
        "starts": {name: service.starts for name, service in running.cluster.services.items()},
        "findings": verdict.findings,
        "faults": faults,
        "schedule": [
            [round(struck.at - running.began_at, 2), round(struck.healed_at - struck.at, 2), struck.kind, struck.detail]
            for struck in running.nemesis.struck
        ],
    }


def markdown(report: dict[str, Any]) -> str:
    """The report to read."""
    lines = [
        f"# Soak of {report['seconds'] / 60:.1f} minutes, seed {report['seed']}, {report['date']}",
        "",
        f"`{report['command']}` (Python {report['python']})",
        "",
        f"{report['num_faults']} faults, {report['num_requests']} requests, {report['num_tokens_checked']} token ids compared. "
        f"Lost {report['lost']}, duplicated {report['duplicated']}, unexpected {report['unexpected']}, "
        f"other findings {len(report['findings'])}. {report['came_back']} clients came back on another connection. "
        f"At rest {report['quiet_after_s']} s after the last client.",
        "",
        f"Outcomes: {report['outcomes']}. Refused at first: {report['refusals']}. Starts: {report['starts']}. "
        f"Memory at the end, MiB: {report['memory_mib']}.",
        "",
        "| fault | times | lasted, median s | longest silence of a stream: median, max s | for example |",
        "|---|---|---|---|---|",
    ]
    for kind, row in report["faults"].items():
        silence = f"{row['longest_silence_s_median']}, {row['longest_silence_s_max']}"
        lines.append(f"| {kind} | {row['times']} | {row['lasted_s_median']} | {silence} | {'; '.join(row['for_example'])} |")
    lines += ["", "Silences include those of other faults that overlapped.", ""]
    lines += [f"- {finding}" for finding in report["findings"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
