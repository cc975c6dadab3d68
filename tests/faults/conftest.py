"""Every fault comes from one seed, and what was tried and survived becomes the table of docs/reliability.md."""

import fcntl
import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from tests.faults.machine import KILLS, SEED
from tests.shared import ROOT

REPORT = Path(__file__).parents[2] / "docs/reliability.md"
MARK = "<!-- what follows is written by `make faults` -->\n"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Of this test, whatever ran before it."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture(autouse=True)
def _beside_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that measures a time has the machine to itself."""
    with (Path(os.environ[ROOT]) / "machine").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[str, int, str], None]:
    """Note for the table what was done, how often, and what was seen."""

    def note(what: str, times: int, seen: str) -> None:
        record_property("tried", [what, str(times), seen])

    return note


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: no other test runs meanwhile")
    config.pluginmanager.register(Table(config), "faults")


class Table:
    def __init__(self, config: pytest.Config) -> None:
        self.rows: dict[str, list[str]] = {}
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
        noted = [value for key, value in report.user_properties if key == "tried"]
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.rows[report.nodeid] = [name, "0", reason.removeprefix("Skipped: "), "not tried here", ""]
        elif report.failed:
            self.rows[report.nodeid] = [name, "", f"`{report.nodeid}`", "**FAILED**", ""]
        elif report.when == "call":
            for what, times, seen in noted:
                self.rows[f"{report.nodeid} {what}"] = [what, times, seen, "survived", f"{report.duration:.0f} s"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if hasattr(self.config, "workerinput") or not self.rows:
            return
        head = ["tried", "times", "seen", "", "took"]
        lines = [head, ["---"] * len(head), *(row for _, row in sorted(self.rows.items()))]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        terminalreporter.write_line(table)
        if "FAULTS_REPORT" in os.environ:
            text, mark, _ = REPORT.read_text().partition(MARK)
            assert mark
            REPORT.write_text(f"{text}{mark}\n{made()}\n\n{table}\n")


def made() -> str:
    """By whom, in a sentence."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"Made on {datetime.now(UTC):%Y-%m-%d} at commit {git} with `FAULTS_SEED={SEED}` and `FAULTS_KILLS={KILLS}`: "
        f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, Linux {platform.release()}, Python "
        f"{platform.python_version()}."
    )
