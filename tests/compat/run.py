"""Runs one suite in an environment of its own against a server, and reads what became of its tests.

It knows nothing of which suites there are, nor of what is written about them.
"""

import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from shared.config import child_environment
from tests.compat.suites import Expected, Suite
from tests.stack import ROOT

FOLDER = ROOT / ".compat"
HERE = ROOT / "tests" / "compat"
INSTALL_S = 300


@dataclass(frozen=True)
class Test:
    """One test of a suite. why: what it failed with. refused: fields that it sent and the server refused."""

    name: str
    outcome: str
    why: str = ""
    refused: tuple[str, ...] = ()


@dataclass
class Result:
    """What became of a suite's tests."""

    suite: Suite
    tests: list[Test]
    # Known failures that happened, each with its number.
    known: Counter[Expected] = field(default_factory=Counter)
    # Failures that nobody expects.
    unknown: list[Test] = field(default_factory=list)

    @property
    def num_passed(self) -> int:
        return sum(test.outcome == "passed" for test in self.tests)

    @property
    def stale(self) -> list[Expected]:
        """Failures that are expected and did not happen."""
        return [one for one in self.suite.expected if not self.known[one]]

    @property
    def good(self) -> bool:
        """Whether everything is as it should be."""
        return self.num_passed > 0 and not self.unknown and not self.stale


def run(suite: Suite, url: str) -> Result:
    """The suite against the server at `url`, its environment made first where there is none."""
    home = _home(suite)
    python = _environment(suite, home)
    record = home / "record.jsonl"
    record.unlink(missing_ok=True)
    where = _source(suite, home) if suite.sdist else HERE
    command = [str(python), "-m", "pytest", "-q", "--record", str(record), "--url", url, "--timeout", "120"]
    command += [word for plugin in suite.plugins for word in ("-p", plugin)]
    if not suite.sdist:
        # Not this project's own settings and fixtures.
        command += ["-c", "/dev/null", "--rootdir", str(HERE), "--confcutdir", str(HERE), "-p", "no:cacheprovider"]
    environment = {**child_environment(), "PYTHONPATH": str(HERE), "HOME": str(home), **_addresses(url)}
    command += [*suite.arguments, *suite.tests]
    with (home / "output.txt").open("wb") as out:
        try:
            subprocess.run(command, cwd=where, env=environment, stdout=out, stderr=out, timeout=suite.timeout_s)
        except subprocess.TimeoutExpired:
            line = {"test": "the whole suite", "outcome": "failed", "why": [f"did not end within {suite.timeout_s:.0f} s"]}
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return last(suite)


def last(suite: Suite) -> Result:
    """What its newest run came to; no tests if there was none."""
    return judge(suite, _read(_home(suite) / "record.jsonl"))


def _home(suite: Suite) -> Path:
    return FOLDER / re.sub(r"\W+", "-", suite.name)


def judge(suite: Suite, tests: list[Test]) -> Result:
    """Which failures are known."""
    result = Result(suite, tests)
    for test in tests:
        if test.outcome != "failed":
            continue
        for one in suite.expected:
            if re.search(one.tests, test.name) and re.search(one.says, test.why):
                result.known[one] += 1
                break
        else:
            result.unknown.append(test)
    return result


def _addresses(url: str) -> dict[str, str]:
    """Where clients look by themselves for a server and a key."""
    base = f"{url}/v1"
    return {
        "TEST_API_BASE_URL": base,
        "OPENAI_BASE_URL": base,
        "OPENAI_API_BASE": base,
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_BASE": url,
        "ANTHROPIC_API_KEY": "none",
    }


def _read(record: Path) -> list[Test]:
    if not record.exists():
        return []
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [Test(line["test"], line["outcome"], (line.get("why") or [""])[0], tuple(line.get("refused", ()))) for line in lines]


def _environment(suite: Suite, home: Path) -> Path:
    """The Python of an environment that holds the suite's packages."""
    python = home / "venv" / "bin" / "python"
    wanted = "\n".join(suite.packages)
    mark = home / "packages.txt"
    if not mark.exists() or mark.read_text() != wanted:
        home.mkdir(parents=True, exist_ok=True)
        uv = [str(Path(sys.executable).parent / "uv"), "--quiet"]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, str(home / "venv")], check=True, timeout=INSTALL_S)
        subprocess.run([*uv, "pip", "install", "--python", str(python), *suite.packages], check=True, timeout=INSTALL_S)
        mark.write_text(wanted)
    return python


def _source(suite: Suite, home: Path) -> Path:
    """The folder of the package's source archive, fetched once."""
    folder = home / f"{suite.distribution}-{suite.version}"
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        wanted = ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(home), suite.packages[0]]
        subprocess.run([*pip, *wanted], check=True, timeout=INSTALL_S)
        with tarfile.open(home / f"{folder.name}.tar.gz") as archive:
            archive.extractall(home, filter="data")
    return folder
