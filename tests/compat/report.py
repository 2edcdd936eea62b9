"""What is said of results: lines for the terminal, and the tables of docs/compatibility.md.

It knows nothing of how suites are run.
"""

import re
from collections import Counter

from tests.compat.run import Result
from tests.stack import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- written by make compat -->", "<!-- end -->"


def shown(result: Result) -> str:
    """For a terminal: one line, and one more for each thing that is not as it should be."""
    known = sum(result.known.values())
    lines = [
        f"{'ok ' if result.good else 'BAD'} {result.suite.name}: {result.num_passed} passed, {known} failed as expected, "
        f"{len(result.unknown)} failed"
    ]
    lines += [f"    failed: {test.name}\n        {test.why[:300]}" for test in result.unknown]
    lines += [f"    expected to fail, and did not: {one.tests} ({one.reason})" for one in result.stale]
    return "\n".join(lines)


def write(results: list[Result]) -> None:
    """Replaces the tables of the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{after}")


def tables(results: list[Result]) -> str:
    """All suites, and what failed in each and why."""
    rows = ["| suite | version | passed | failed | refused fields |", "|---|---|---|---|---|"]
    for result in results:
        version = f"{result.suite.distribution} {result.suite.version}"
        rows.append(f"| {result.suite.name} | {version} | {result.num_passed} | {_failed(result)} | {_refused(result)} |")
    rows += ["", "| suite | failed | why |", "|---|---|---|"]
    for result in results:
        name = result.suite.name
        rows += [f"| {name} | {number}: `{_cell(one.tests)}` | {one.reason} |" for one, number in result.known.items()]
        rows += [f"| {name} | `{_cell(test.name)}` | **not expected**: {_cell(test.why[:200])} |" for test in result.unknown]
    return "\n".join(rows)


def _failed(result: Result) -> str:
    known, unknown = sum(result.known.values()), len(result.unknown)
    return f"{known} as expected" + (f", **{unknown} not**" if unknown else "") if known or unknown else "0"


def _refused(result: Result) -> str:
    counts = Counter(name for test in result.tests for name in test.refused)
    return ", ".join(f"{_cell(name)} {number}" for name, number in sorted(counts.items()))


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
