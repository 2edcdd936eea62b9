"""`python -m tests.chaos.soak --minutes 60 --seed N`: random faults for as long as told, then a report as JSON and Markdown.

Exits with 1 if an oracle found anything; then the services' logs are kept beside the report. The same seed draws the same
requests and the same faults; the machine's timing is not repeated. It knows nothing of what the oracles look for.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.chaos import rest
from tests.chaos.trial import Trial, trial

EVERY_S, WIDTH = 3.0, 24
NOTE_EVERY_S = 60.0
SHOWN, LONGEST = 3, 10


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
        memory = [_memory(running)]
        notes = asyncio.create_task(_note(running, memory))
        await running.nemesis.at_random(arguments.minutes * 60, arguments.every)
        notes.cancel()
        verdict = await running.finish()
        memory.append(_memory(running))
        report = describe(running, arguments, memory)
        (arguments.report / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.report / "report.md").write_text(markdown(report))
        if not verdict.sound:
            running.keep_logs(arguments.report / "logs")
    print(markdown(report), flush=True)
    return 0 if verdict.sound else 1


def _memory(running: Trial) -> dict[str, float]:
    """MiB that each process holds now, and this one."""
    pids = {name: service.pid for name, service in running.cluster.services.items()} | {"clients and cables": os.getpid()}
    return {name: round(rest.resident_mib(pid), 1) for name, pid in pids.items() if pid}


async def _note(running: Trial, memory: list[dict[str, float]]) -> None:
    while True:
        await asyncio.sleep(NOTE_EVERY_S)
        memory.append(_memory(running))
        verdict, minutes = running.verdict, (time.monotonic() - running.began_at) / 60
        wrong = f"{len(verdict.findings)} findings, {len(verdict.suspended)} quarantined"
        told = f"{verdict.asked} requests, {len(running.nemesis.struck)} faults, {wrong}; MiB {memory[-1]}"
        print(f"{minutes:.0f} min: {told}", flush=True)


def _longest(running: Trial) -> list[dict[str, Any]]:
    """The longest silences of streams, and the faults that overlapped each."""
    found = []
    for start, end, number in sorted(running.verdict.gaps, key=lambda gap: gap[0] - gap[1])[:LONGEST]:
        during = sorted({each.kind for each in running.nemesis.struck if each.at < end and each.healed_at > start})
        at_s = round(start - running.began_at, 1)
        found.append({"seconds": round(end - start, 2), "at_s": at_s, "request": number, "during": during})
    return found


def describe(running: Trial, arguments: argparse.Namespace, memory: list[dict[str, float]]) -> dict[str, Any]:
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
        "num_faults": sum(not struck.missed for struck in running.nemesis.struck),
        "num_faults_missed": sum(struck.missed for struck in running.nemesis.struck),
        "num_requests": verdict.asked,
        "num_tokens_checked": verdict.tokens,
        "outcomes": verdict.outcomes,
        "refusals": verdict.refusals,
        "came_back": verdict.came_back,
        "acknowledged": verdict.acknowledged,
        "ok": verdict.ok,
        "recovered": verdict.recovered,
        "quarantined_by_the_schedule": verdict.quarantined_by_the_schedule,
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "unexpected": verdict.unexpected,
        "quiet_after_s": round(running.quiet_s, 2),
        "memory_mib": {
            name: {"first": memory[0][name], "most": max(each.get(name, 0) for each in memory), "at_rest": mib}
            for name, mib in memory[-1].items()
        },
        "held_before": {name: asdict(held) for name, held in running.held_before.items()},
        "held_at_rest": {name: asdict(held) for name, held in running.held_at_rest.items()},
        "longest_silences": _longest(running),
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
        f"{report['num_faults']} faults ({report['num_faults_missed']} more could not be done), {report['num_tokens_checked']} "
        f"token ids compared. {report['came_back']} clients came back on another connection. "
        f"Findings: {len(report['findings'])}. At rest {report['quiet_after_s']} s after the last client.",
        "",
        "| attempts | acknowledged | ok | recovered | lost | duplicated | unexpected | quarantined by the schedule |",
        "|---|---|---|---|---|---|---|---|",
        f"| {report['num_requests']} | {report['acknowledged']} | {report['ok']} | {report['recovered']} | {report['lost']} "
        f"| {report['duplicated']} | {report['unexpected']} | {report['quarantined_by_the_schedule']} |",
        "",
        f"Outcomes: {report['outcomes']}. Refused at first: {report['refusals']}.",
        "",
        *_at_rest(report),
        "",
        "| fault | times | lasted, median s | longest silence of a stream: median, max s | for example |",
        "|---|---|---|---|---|",
    ]
    for kind, row in report["faults"].items():
        silence = f"{row['longest_silence_s_median']}, {row['longest_silence_s_max']}"
        lines.append(f"| {kind} | {row['times']} | {row['lasted_s_median']} | {silence} | {'; '.join(row['for_example'])} |")
    lines += ["", "Silences include those of other faults that overlapped. The longest:", ""]
    for gap in report["longest_silences"]:
        during = ", ".join(gap["during"]) or "no fault"
        lines.append(f"- {gap['seconds']} s, {gap['at_s']} s after the start, request {gap['request']}: {during}")
    lines += ["", *(["Findings:", ""] if report["findings"] else [])]
    lines += [f"- {finding}" for finding in report["findings"]]
    return "\n".join(lines).rstrip() + "\n"


def _at_rest(report: dict[str, Any]) -> list[str]:
    """What each process held when it was first ready and at rest afterwards."""
    lines = [
        "| process | starts | memory, MiB: first, most, at rest | descriptors | of them sockets | tasks |",
        "|---|---|---|---|---|---|",
    ]
    for name, mib in report["memory_mib"].items():
        memory = f"{mib['first']}, {mib['most']}, {mib['at_rest']}"
        before, now = report["held_before"].get(name), report["held_at_rest"].get(name)
        if before is None or now is None:
            lines.append(f"| {name} | | {memory} | | | |")
            continue
        held = " | ".join(f"{before[what]}, {now[what]}" for what in ("files", "sockets", "tasks"))
        lines.append(f"| {name} | {report['starts'][name]} | {memory} | {held} |")
    return lines


if __name__ == "__main__":
    main()
