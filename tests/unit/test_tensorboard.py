"""Metrics as TensorBoard's event files."""

import json
import struct
from pathlib import Path

import pytest

pytest.importorskip("tensorboardX")
from tensorboardX.proto.event_pb2 import Event

from spectral_dist.outputs.tensorboard import EventFiles, main


def lines(*steps: int, **values: float) -> str:
    return "".join(
        json.dumps({"step": s, "time": 1e9 + s, "train/loss": s / 8} | values) + "\n" for s in steps
    )


def events(folder: Path) -> list[tuple[int, str, float, float]]:
    """Return (step, name, value, wall time) of each scalar in the event files of a folder."""
    found = []
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length (8 bytes), its sum (4), the event, its sum (4)
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found += [
                (event.step, v.tag, v.simple_value, event.wall_time) for v in event.summary.value
            ]
            at += size + 16
    return found


def test_a_run_is_written_and_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    metrics = run / "metrics.jsonl"
    metrics.write_text(lines(1, 2) + "damaged\n" + lines(3)[:-5])
    assert main([str(run)]) == 0
    told = capsys.readouterr().out
    assert f"2 records are in {run}/tensorboard" in told
    assert f"tensorboard --logdir {tmp_path}" in told
    assert events(run / "tensorboard") == [
        (1, "train/loss", 0.125, 1e9 + 1),
        (2, "train/loss", 0.25, 1e9 + 2),
    ]
    theirs = run / "tensorboard" / "events.out.tfevents.1.another"
    theirs.write_bytes(b"")
    with EventFiles(run) as files:
        assert files.update() == 2  # written anew, not twice
        with metrics.open("a") as file:
            file.write(lines(3)[-5:] + lines(4))
        assert files.update() == 2
        assert files.update() == 0
        assert [step for step, *_ in events(run / "tensorboard")] == [1, 2, 3, 4]
        # A resumed run replaces the file by a shorter one and repeats steps.
        (tmp_path / "new").write_text(lines(1, 2, 3, **{"eval/bits": 0.5}))
        (tmp_path / "new").replace(metrics)
        assert files.update() == 3
        names = [(step, name) for step, name, *_ in events(run / "tensorboard")]
        assert names == [(s, n) for s in (1, 2, 3) for n in ("train/loss", "eval/bits")]
        metrics.unlink()
        assert files.update() == 0
    assert theirs.exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^RUN='.*': is no run folder"):
        main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "tensorboard").touch()
    with pytest.raises(ValueError, match="tensorboard"):
        main([str(tmp_path)])
