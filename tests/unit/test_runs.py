"""The list of runs: their state, figures and size, without JAX."""

import json
from pathlib import Path

import pytest

from spectral_dist.file_lock import FileLock
from spectral_dist.runs import main
from spectral_dist.training.metrics import Record
from tests.unit.test_report import run_folder

RECORDS = [
    Record(10, {"perf/tokens_per_second": 1234.0, "val/bits_per_byte": 2.5}),
    Record(20, {"val/bits_per_byte": 2.75}),
]
STARTS = [
    {"time": 0, "first_step": 0},
    {"time": 9, "step": 20, "code": 75, "message": "SIGTERM"},
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    settings = "data_paths: a.txt\nsteps: 30\n"
    done = run_folder(tmp_path / "done", RECORDS, settings)
    (done / "starts.jsonl").write_text("\n".join(map(json.dumps, STARTS)))
    run_folder(tmp_path / "odd\x1b[31m", [], "no: setting\n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text(settings)
    return tmp_path


def test_each_run_has_a_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = FileLock(runs / "begun" / ".lock")
    assert lock.take()
    assert main(["--checkpoint_dir", str(runs)]) == 0
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("|")] for line in out.splitlines()]
    rows = {row[1]: row[2:] for row in cells if len(row) > 3}
    assert rows["done"][:3] == ["stopped at step 20: SIGTERM", "20", "30"]
    assert rows["done"][3:6] == ["2.5000", "2.7500", "1,234"]
    assert rows["begun"][:3] == ["trains", "0", "30"]
    assert "nothing" not in rows
    assert "\x1b[31m" not in out
    lock.release()
    main(["--checkpoint_dir", str(runs), "--json"])
    found = {run["name"]: run for run in json.loads(capsys.readouterr().out)}
    assert found["done"]["best"] == 2.5
    assert found["begun"]["state"] == "no start on record"


def test_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--checkpoint_dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no run in {tmp_path}\n"
    with pytest.raises(ValueError, match="is no folder"):
        main(["--checkpoint_dir", str(tmp_path / "absent")])
