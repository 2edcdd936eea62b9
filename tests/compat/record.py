"""A plugin for pytest inside a suite's own environment: one line of JSON per test, for the program that runs the suite.

It imports nothing but the standard library and pytest. It knows nothing of suites, servers, or which failures are expected.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", help="File that gets a line of JSON per test.")
    parser.addoption("--url", help="The server, without a path.")


@pytest.fixture(scope="session")
def url(request: pytest.FixtureRequest) -> str:
    """The server, without a path."""
    return str(request.config.getoption("--url"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if call.excinfo is not None:
        error = call.excinfo.value
        report.user_properties.append(("why", f"{type(error).__name__}: {error}"[:2000]))
    return report


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--record") is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(config.getoption("--record"))))


class _Recorder:
    """Writes what became of each test: of its three phases, the first that did not pass, else the call."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        # A failure that a test itself expects (xfail) is reported as skipped.
        noted: dict[str, list[str]] = {}
        for name, value in report.user_properties:
            noted.setdefault(name, []).append(str(value))
        # A part of a test has a report of its own.
        part = getattr(report, "context", None)
        name = report.nodeid if part is None else f"{report.nodeid} {part.msg or ''}".strip()
        line = {"test": name, "outcome": report.outcome, **noted}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            with self._path.open("a") as file:
                file.write(json.dumps({"test": report.nodeid, "outcome": "failed", "why": [str(report.longrepr)[-2000:]]}) + "\n")
