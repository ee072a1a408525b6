"""Where the tests' time goes: processor-seconds and programs started, by file.

Wall time says little beside other work and across several processes. The seconds of a program that
a test starts are counted once the test has waited for it. tests/conftest.py registers the plugin.
"""

import resource
import sys
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from tests.warm import WarmProcess

_PROPERTY = "processor_time"
_SHOWN = 10


class ProcessorTime:
    """Notes in each report what its part of a test has used; shows the dearest files at the end."""

    def __init__(self) -> None:
        """Begin to count."""
        self._starts = 0
        self._before = self._used()
        self._by_file = {name: Counter[str]() for name in ("seconds", "forks", "starts")}
        sys.addaudithook(self._see)

    def _see(self, event: str, _: Any) -> None:
        self._starts += event == "subprocess.Popen"

    def _used(self) -> tuple[float, int, int]:
        """Return processor-seconds, programs forked and programs started, of this process."""
        who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        used = sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, who))
        return used + WarmProcess.all_cpu_seconds, WarmProcess.count, self._starts

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report, now = (yield), self._used()
        used = [after - before for after, before in zip(now, self._before, strict=True)]
        report.user_properties.append((_PROPERTY, used))
        self._before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        used: Any = dict(report.user_properties).get(_PROPERTY, (0, 0, 0))
        for counter, more in zip(self._by_file.values(), used, strict=True):
            counter[file] += more

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        seconds, forks, starts = self._by_file.values()
        if len(seconds) < 2:
            return
        totals = f"{seconds.total():.0f} s, {forks.total()} forks, {starts.total()} other starts"
        terminalreporter.section(f"processor time: {totals}")
        for file, used in seconds.most_common(_SHOWN):
            terminalreporter.line(
                f"{used:7.1f} s {forks[file]:4d} forks {starts[file]:4d} starts  {file}"
            )
