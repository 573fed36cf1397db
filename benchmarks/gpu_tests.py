"""A pytest plugin: a line of JSON for every test as soon as it is over, whatever ends the run.

PYTHONPATH=benchmarks pytest -p gpu_tests --results tests.jsonl
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--results", type=Path, help="file that a line for every test is added to")


def pytest_configure(config: Any) -> None:
    # Workers of xdist hand their reports to the process that started them.
    if config.option.results is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results(config.option.results))


class Results:
    """Writes what becomes of each test, and of each file that cannot be collected."""

    def __init__(self, out: Path):
        self._out = out

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self._add(report.nodeid, report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._add(report.nodeid or "collection", report)

    def _add(self, test: str, report: Any) -> None:
        found = {"test": test, "outcome": report.outcome}
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(report.longrepr if crash is None else crash.message).strip().splitlines()
            found["error"] = next(iter(lines), "")[:200]
        with self._out.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(found) + "\n")
