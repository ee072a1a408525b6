"""What is told while many files are tokenized, and by how many processes."""

from pathlib import Path

import numpy as np
import pytest

from spectral_dist.command_line import FAULT, Ending
from spectral_dist.data import build_all as module
from spectral_dist.data.build_all import build_all
from spectral_dist.data.sources import Source


def write(folder: Path, count: int) -> list[Source]:
    for number in range(count):
        (folder / f"{number:02}.txt").write_text(f"metin {number}\n" * 50, encoding="utf-8")
    return [Source(folder / f"{number:02}.txt") for number in range(count)]


def test_progress_is_told_at_most_every_two_seconds(tmp_path: Path) -> None:
    (source,) = write(tmp_path, 1)
    now, lines = [0.0], []
    progress = module._Progress([source], "bytes", lines.append, lambda: now[0])
    progress.begin(source)
    for now[0] in np.arange(0, 10, 0.1):
        progress(source, source.path.stat().st_size // 2)
    assert len(lines) == 4
    assert "00.txt: 50% of 400 bytes, 0 MB/s" in lines[0]


def test_of_many_files_the_sum_is_told(tmp_path: Path) -> None:
    sources = write(tmp_path, 9)
    now, lines = [0.0], []
    progress = module._Progress(sources, "bytes", lines.append, lambda: now[0])
    for source in sources[:3]:
        progress.begin(source)
        now[0] += 5.0
        progress(source, 400)
    assert [line.split(",")[0] for line in lines] == [
        "9 files: 11% of 3",
        "9 files: 22% of 3",
        "9 files: 33% of 3",
    ]
    assert "s left" in lines[2]
    lines.clear()
    built = build_all(dict.fromkeys(sources, ""), "bytes", 1, lines.append)
    assert list(built) == sources
    assert len(lines) == 1
    assert lines[0].startswith("9 files: 3,600 bytes in ")
    assert lines[0].endswith("9 documents")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_tokens_do_not_depend_on_the_number_of_processes(
    tmp_path: Path, processes: int
) -> None:
    sources = write(tmp_path, 3)
    lines: list[str] = []
    built = build_all(dict.fromkeys(sources, "why"), "bytes", processes, lines.append)
    assert {s: m.tokens for s, m in built.items()} == dict.fromkeys(sources, 401)
    assert [s.path.with_suffix(".bin").read_bytes() for s in sources] == [
        s.path.read_bytes() + b"\0" for s in sources
    ]
    assert sum("building" in line and line.endswith("again: why") for line in lines) == 3
    assert sum("1 documents -> " in line for line in lines) == 3


def test_a_bad_file_is_named_by_a_worker_too(tmp_path: Path) -> None:
    sources = write(tmp_path, 2)
    sources[1].path.write_bytes(bytes(1000))
    for processes in (1, 2):
        with pytest.raises(ValueError, match=r"^data_paths: .*01\.txt: does not look like text"):
            build_all(dict.fromkeys(sources, ""), "bytes", processes, lambda line: None)


def test_batches_are_of_like_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """of_like_sizes: one for each worker, or more where there is much."""
    sources = write(tmp_path, 20)
    sources[3].path.write_text("x" * 5000)
    for count in (1, 2, 3):
        batches = module._batches(sources, count)
        assert sorted(s.path for b in batches for s in b) == [s.path for s in sources]
        assert len(batches) == count
        sizes = [sum(s.path.stat().st_size for s in batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 5000
    assert len(module._batches(sources[:2], 8)) == 2
    monkeypatch.setattr(module, "_BATCH_BYTES", 1000)
    assert len(module._batches(sources, 2)) == (19 * 400 + 5000 + 10 * 50) // 1000


def test_a_fault_in_a_worker_is_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"error": "data_paths: s3://b/x.txt: no answer", "code": FAULT}
    monkeypatch.setattr(module, "_run_workers", lambda sources, *_: [(sources[0], event)])
    with pytest.raises(Ending, match=r"^data_paths: s3://b/x\.txt: no answer$") as caught:
        build_all(dict.fromkeys(write(tmp_path, 2), ""), "bytes", 2, lambda line: None)
    assert caught.value.code == FAULT
