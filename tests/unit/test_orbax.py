"""Orbax says nothing of its own: neither its log lines nor the tracebacks of late writes."""

import logging
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spectral_dist.training.orbax import say_nothing


def test_its_log_lines_are_dropped_and_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    say_nothing()
    log = logging.getLogger("absl")
    with caplog.at_level(logging.INFO, "absl"):
        for path, text in (("/lib/orbax/save.py", "theirs"), ("/lib/jax/run.py", "other")):
            log.handle(logging.LogRecord("absl", logging.WARNING, path, 1, text, None, None))
    assert [record.getMessage() for record in caplog.records] == ["other"]


def test_late_writes_leave_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    say_nothing.__wrapped__()
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    other = SimpleNamespace(exc_value=RuntimeError("anything else"))
    for one in (late, other):
        sys.unraisablehook(cast(Any, one))
    assert heard == [other]
