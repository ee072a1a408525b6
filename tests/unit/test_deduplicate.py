"""Exact deduplication, against documents compared by hand, and its command."""

import errno
from pathlib import Path

import numpy as np
import pytest

from spectral_dist.data import deduplicate as module
from spectral_dist.data import statistics
from spectral_dist.data.deduplicate import Deduplicated, deduplicate
from spectral_dist.data.manifest import read_manifest
from spectral_dist.data.shards import Tokens
from spectral_dist.data.tokens import TokenFile, prepare
from spectral_dist.prepare import main
from spectral_dist.settings.datasets import DatasetConfig


def dataset(name: str, *documents: str, shards: int = 1, end: bool = True) -> TokenFile:
    text = b"\0".join(d.encode() for d in documents) + (b"\0" if end else b"")
    parts = np.array_split(np.frombuffer(text, np.uint8), shards)
    return TokenFile(name, Path(f"{name}.bin"), Tokens(parts), len(documents), "", len(text))


def read(binary: Path) -> list[str]:
    read_manifest(binary)  # whole, and of this tokenizer
    return [piece.decode() for piece in binary.read_bytes().removesuffix(b"\0").split(b"\0")]


def test_white_space_around_a_document_makes_no_other(tmp_path: Path) -> None:
    lines = dataset("a", "bir\n", "bir iki\n", "\n \n", "\tiki \n")
    records = dataset("b", "bir", "bir  iki", "iki", "")
    (first, second) = deduplicate([lines, records], [], tmp_path / "out")
    assert read(tmp_path / "out" / "a.bin") == ["bir\n", "bir iki\n", "\tiki \n"]
    assert read(tmp_path / "out" / "b.bin") == ["bir  iki"]  # inside it counts
    assert (first.empty, second.empty, second.repeated) == (1, 1, 2)


@pytest.mark.parametrize("block", [1, 5, 1 << 24])
@pytest.mark.parametrize("end", [True, False])
def test_the_first_of_each_document_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, end: bool
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    monkeypatch.setattr(statistics, "_BLOCK", block)
    first = dataset("a", "bir", "iki", "bir", "", "üç", "gizli", "bi", "iki", shards=3)
    second = dataset("b", "üç", "dört", "", "dört", "gizli", "beş", end=end)
    hidden = dataset("v", "gizli", "", "gizli", "altı")
    out = tmp_path / "out"
    found = deduplicate([first, second], [hidden], out)
    assert read(out / "a.bin") == ["bir", "iki", "üç", "bi"]
    assert read(out / "b.bin") == ["dört", "beş"]
    assert found == [
        Deduplicated("a", out / "a.bin", 8, len(first.tokens), 4, 16, 2, 1, 1),
        Deduplicated("b", out / "b.bin", 6, len(second.tokens), 2, 11, 2, 1, 1),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert len(list(out.iterdir())) == 4


def test_as_many_documents_as_a_set_of_them_holds(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 3000, 9000).tolist()
    deduplicate([dataset("n", *map(str, numbers), shards=7)], [], tmp_path / "out")
    assert read(tmp_path / "out" / "n.bin") == list(map(str, dict.fromkeys(numbers)))


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    with pytest.raises(ValueError, match=f"deduplicate={mine}: is there already"):
        deduplicate([dataset("a", "bir")], [], mine)
    with pytest.raises(ValueError, match="nothing would be left of b"):
        deduplicate([dataset("a", "bir"), dataset("b", "bir", "")], [], out)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_manifest", full)
    with pytest.raises(ValueError, match=f"deduplicate={out}: No space left on device"):
        deduplicate([dataset("a", "bir")], [], out)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("bir")
    flags = ["--data_paths", str(tmp_path / "a.txt"), "--deduplicate", str(tmp_path)]
    with pytest.raises(ValueError, match="is there already"):
        main(flags)
    with pytest.raises(ValueError, match=r"^shard: builds tokens alone"):
        main([*flags, "--shard", "0/2"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_command_and_a_run_that_reads_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, out = "\n<|endoftext|>\n", tmp_path / "out"
    (tmp_path / "a.txt").write_text(mark.join(["bir", "iki", "bir", "test"]))
    (tmp_path / "b.jsonl").write_text('{"text": "iki"}\n{"text": "son\\n"}\n')
    (tmp_path / "v.txt").write_text("test")
    config = tmp_path / "c.yaml"
    config.write_text(
        "datasets:\n"
        f"  - {{name: a, paths: ['{tmp_path}/a.txt'], weight: 3}}\n"
        f"  - {{name: b, paths: ['{tmp_path}/b.jsonl'], weight: 1}}\n"
        "validation:\n"
        f"  - {{name: v, paths: ['{tmp_path}/v.txt']}}\n"
    )
    assert main(["--config", str(config), "--deduplicate", str(out)]) == 0
    told = capsys.readouterr().out
    assert "a: 2 of 4 documents" in told
    assert "1 like an earlier one, 1 in held-out text, 0 empty" in told
    assert f"  - {{name: b, paths: ['{out}/b.bin'], weight: 1.0}}" in told
    (again,) = prepare(
        [DatasetConfig(paths=(str(out / "b.bin"),))], validation_fraction=0, min_tokens=1
    )
    assert bytes(again.tokens[:]) == b"son\n\0"
