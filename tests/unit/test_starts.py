"""What is on record of each start, and when starts without progress come to an end."""

from pathlib import Path

import pytest

from spectral_dist.command_line import FAULT, STOPPED, USER_ERROR, Ending
from spectral_dist.flags import load_config
from spectral_dist.outputs.starts import STARTS, failed_in_a_row, read_starts, started

CONFIG = load_config(["--data_paths", "a.txt", "--run_name", "x"])


def start(folder: Path, first: int, error: BaseException | None = None, last: int = 9) -> None:
    with started(CONFIG, folder, first, {"environment": {"commit": "abc"}}, lambda: last, print):
        if error is not None:
            raise error


def fail(folder: Path, first: int, error: BaseException) -> None:
    with pytest.raises(type(error)):
        start(folder, first, error)


def test_a_start_and_its_end_are_on_record(tmp_path: Path) -> None:
    start(tmp_path, 0)
    fail(tmp_path, 9, Ending("text", USER_ERROR))
    with (tmp_path / STARTS).open("a") as file:
        file.write('{"first_step": 9, "envi')  # killed while it was written
    one, two = read_starts(tmp_path / STARTS)
    assert (one["first_step"], one["environment"], one["end"]["code"]) == (0, {"commit": "abc"}, 0)
    assert (two["first_step"], two["end"]["step"], two["end"]["code"]) == (9, 9, 2)
    assert two["end"]["message"].endswith("text")
    assert one["time"] > 1_700_000_000


def test_three_faults_from_one_step_stop_the_fourth_start_and_no_fifth(tmp_path: Path) -> None:
    for _ in range(3):
        fail(tmp_path, 100, RuntimeError("NCCL"))
    with pytest.raises(ValueError, match=r"max_failed_starts=3: the last 3 starts of run_name='x'"):
        start(tmp_path, 100)
    start(tmp_path, 100)  # somebody has looked
    assert len(read_starts(tmp_path / STARTS)) == 5


def test_progress_a_stop_and_a_users_error_begin_the_count_anew(tmp_path: Path) -> None:
    fault, killed = {"first_step": 5, "end": {"code": FAULT}}, {"first_step": 5}
    assert failed_in_a_row([fault, killed, fault], 5) == 3
    assert failed_in_a_row([fault, killed, fault], 6) == 0  # there is a newer checkpoint
    for code in (0, 2, STOPPED, 130):
        assert failed_in_a_row([fault, killed, {"first_step": 5, "end": {"code": code}}], 5) == 0
    for _ in range(4):
        fail(tmp_path, 7, Ending("stopped", STOPPED))
    start(tmp_path, 7)


def test_any_number_is_allowed_where_that_is_asked_for(tmp_path: Path) -> None:
    config = load_config(["--data_paths", "a.txt", "--max_failed_starts", "0"])
    for _ in range(9):
        with (
            pytest.raises(RuntimeError),
            started(config, tmp_path, 0, {}, lambda: 0, print),
        ):
            raise RuntimeError


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path / "gone", 0)
    assert "starts.jsonl cannot be written: No such file" in capsys.readouterr().out
