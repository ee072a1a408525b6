"""The report is redrawn after evaluations and at the end, and never stops a run."""

import time
from pathlib import Path

from spectral_dist.outputs import redrawn
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.redrawn import RedrawnReport
from spectral_dist.training.metrics import Record


def test_it_is_drawn_after_an_evaluation_and_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    metrics, report = MetricsFile(tmp_path / "metrics.jsonl"), RedrawnReport(tmp_path, said.append)
    page = tmp_path / "report.html"
    for record in (Record(1, {"train/loss": 5.0}), Record(2, {"val/bits_per_byte": 3.0})):
        metrics.write(record)
        report.write(record)
        assert (report._thread is not None) == (record.step == 2)
    until = time.monotonic() + 60
    while not page.exists() and time.monotonic() < until:
        time.sleep(0.01)
    first = page.read_text()
    metrics.write(Record(3, {"train/loss": 4.0}))
    report.close()
    metrics.close()
    assert page.read_text() != first
    assert said == []


def test_a_report_that_cannot_be_drawn_is_said_once(tmp_path: Path, monkeypatch) -> None:
    said: list[str] = []
    (tmp_path / "metrics.jsonl").write_text("")

    def fail(folder: Path) -> None:
        raise OSError("no space")

    monkeypatch.setattr(redrawn, "write_report", fail)
    report = RedrawnReport(tmp_path, said.append)
    for _ in range(2):
        report.write(Record(1, {"val/bits_per_byte": 3.0}))
        assert report._thread is not None
        report._thread.join()
    report.close()
    assert said == ["the report could not be drawn: no space"]
