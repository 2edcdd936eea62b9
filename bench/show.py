"""Tables and plots of loads on servers. It knows nothing of how they were measured."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.measures import Spread, Summary, ratios

COLUMNS = (
    f"{'':28}{'req':>6}{'out tok/s':>11}{'all tok/s':>11}{'TTFT p50':>10}{'p99':>9}{'TPOT p50':>10}{'p90':>8}{'p99':>8}"
    f"{'ITL p99':>9}{'E2EL mean':>11}{'client':>8}"
)


def row(name: str, summary: Summary) -> str:
    """One load on one server; latencies in ms, the client's share in percent of a core."""
    ttft, tpot = summary.ttft, summary.tpot
    line = (
        f"{name[:28]:28}{summary.num_requests:6}{summary.output_tok_s:11.1f}{summary.total_tok_s:11.1f}{ttft.p50:10.1f}"
        f"{ttft.p99:9.1f}{tpot.p50:10.2f}{tpot.p90:8.2f}{tpot.p99:8.2f}{summary.itl.p99:9.1f}{summary.e2el.mean:11.1f}"
        f"{100 * summary.client_cpu:7.0f}%"
    )
    if summary.goodput is not None:
        line += f"   goodput {summary.goodput:.2f} req/s"
    if summary.intruder_ttft is not None:
        line += f"   intruder TTFT p50 {summary.intruder_ttft.p50:.0f} p99 {summary.intruder_ttft.p99:.0f}"
    if summary.num_errors:
        line += f"   {summary.num_errors} ERRORS, first: {summary.first_error}"
    return line


def median_round(rounds: Sequence[Summary]) -> Summary:
    """The round whose output rate is the (lower) median."""
    return sorted(rounds, key=lambda each: each.output_tok_s)[(len(rounds) - 1) // 2]


def ratio_lines(ours: Sequence[Summary], theirs: Sequence[Summary], name: str) -> list[str]:
    """How many times better than `name`, with the spread over rounds."""
    return [
        f"    {what:14} {median:7.2f} x {name}   ({least:.2f} to {most:.2f} over {len(ours)} rounds)"
        for what, (median, least, most) in ratios(ours, theirs).items()
    ]


def intruder_ratio(without: Sequence[Summary], with_it: Sequence[Summary]) -> tuple[float, float, float]:
    """p99 TPOT with the intruder over without, round by round: median, least, most."""
    values = [b.tpot.p99 / a.tpot.p99 if a.tpot.p99 else 0.0 for a, b in zip(without, with_it, strict=True)]
    return statistics.median(values), min(values), max(values)


def plot(file: Path, results: Mapping[str, Mapping[str, Sequence[Summary]]], title: str) -> bool:
    """Bars per load and server: output rate, TTFT, TPOT, medians with the rounds' range; False without matplotlib.

    results: load -> server -> rounds.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    loads = list(results)
    servers = list(dict.fromkeys(server for by_server in results.values() for server in by_server))
    figure, axes = pyplot.subplots(1, 3, figsize=(4.6 + 2.4 * len(loads), 4.2), layout="constrained")
    panels = (
        ("output tokens/s", lambda each: each.output_tok_s),
        ("TTFT p50, ms", lambda each: each.ttft.p50),
        ("TPOT p50, ms", lambda each: each.tpot.p50),
    )
    for axis, (label, value) in zip(axes, panels, strict=True):
        for index, server in enumerate(servers):
            _bars(axis, [[value(each) for each in results[load].get(server, ())] for load in loads], index, len(servers), server)
        axis.set_xticks(range(len(loads)), loads)
        axis.set_title(label)
        axis.margins(y=0.15)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.suptitle("\n".join(textwrap.wrap(title, 110)), fontsize=8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(servers), frameon=False)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return True


def _bars(axis: Any, values: Sequence[Sequence[float]], index: int, num_servers: int, label: str) -> None:
    width = 0.8 / num_servers
    places = [at + (index - (num_servers - 1) / 2) * width for at in range(len(values))]
    middles = [statistics.median(each) if each else 0.0 for each in values]
    low = [middle - min(each, default=middle) for middle, each in zip(middles, values, strict=True)]
    high = [max(each, default=middle) - middle for middle, each in zip(middles, values, strict=True)]
    bars = axis.bar(places, middles, 0.92 * width, yerr=(low, high), capsize=3, label=label, error_kw={"alpha": 0.5})
    axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)


def latency(name: str, spread: Spread) -> str:
    """All percentiles of one latency, ms."""
    return f"    {name:6} mean {spread.mean:9.2f}   p50 {spread.p50:9.2f}   p90 {spread.p90:9.2f}   p99 {spread.p99:9.2f}"
