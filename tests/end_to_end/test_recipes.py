"""The recipe that cleans Turkish text, on documents that it must keep or drop."""

import gzip
import json
import random
import unicodedata
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="the extra `prepare`")

from recipes.clean_turkish import main
from spectral_dist.data.tokens import prepare
from spectral_dist.settings.datasets import DatasetConfig

pytestmark = pytest.mark.slow

WORDS = (
    *("kitap", "okul", "deniz", "yolcu", "masa", "güneş", "ağaç", "çocuk"),
    *("şehir", "ırmak", "gemi", "bulut", "sabah", "akşam", "haber"),
)


def text(seed: int, count: int = 400) -> str:
    """Return a text of its own, in which stop words stand."""
    draw = random.Random(seed)
    return " ".join(
        f"{draw.choice(WORDS)}{draw.randint(0, 10**6)}{draw.choice([' ve', ' bir', ' için', ''])}"
        for _ in range(count)
    )


def names(folder: Path) -> list[str]:
    """Return the first word of every document in a folder, sorted."""
    found = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line)["text"].split()[0] for line in file]
    return sorted(found)


def test_what_is_kept_and_what_is_dropped(tmp_path: Path) -> None:
    good = {f"iyi{n}": text(n) for n in range(6)}
    near = {"yakın": good["iyi3"] + " sonunda birkaç kelime daha"}
    quality = {"short": "üç beş kelime ve bir", "english": text(9).replace("ve", "x")}
    quality["english"] = " ".join(w for w in quality["english"].split() if w not in ("bir", "için"))
    repeated = {"tekrar": "\n".join(["aynı satır ve bir daha aynı satır için"] * 60)}
    every = good | near | quality | repeated
    records = [f"{name} {body}" for name, body in every.items()]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in records[:5]))
    # Plain text, packed, with letters in two parts.
    plain = unicodedata.normalize("NFD", "\n<|endoftext|>\n".join(records[5:]))
    (raw / "b.txt.gz").write_bytes(gzip.compress(plain.encode()))
    out = tmp_path / "out"
    flags = [str(raw / "*"), str(out), "--tasks", "8"]
    assert main(flags) == 0
    kept = names(out / "documents")
    # Of two that are near one stays.
    assert kept in (sorted(good), sorted([*(good.keys() - {"iyi3"}), "yakın"]))
    assert len(names(out / "dropped" / "near_duplicates")) == 1
    assert names(out / "dropped" / "quality") == sorted(quality)
    assert names(out / "dropped" / "repetition") == ["tekrar"]
    # What is done is not done again; and other workers write the same.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl.gz")}
    assert main(flags) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl.gz")} == before
    again = tmp_path / "again"
    assert main([str(raw / "*"), str(again), "--tasks", "2", "--workers", "2"]) == 0
    assert names(again / "documents") == kept
    # Our readers take it as it is, composed.
    (file,) = prepare(
        [DatasetConfig(paths=(str(out / "documents"),))], validation_fraction=0, min_tokens=1
    )
    whole = bytes(file.tokens[:]).decode()
    assert file.documents == len(good)
    assert unicodedata.is_normalized("NFC", whole)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*flags: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(flag) for flag in flags])
        assert caught.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text('{"text": "bir"}\n')
    assert "tasks, workers: must be positive" in refused(path, out, "--tasks", 0)
    assert "not from here" in refused(path, tmp_path)
    assert "has no field 'body'; it has text" in refused(path, out, "--text_field", "body")
    path.write_text('{"text": "bir, iki"}\n')
    assert "the work of other files or tasks" in refused(path, out)


def test_no_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "*.jsonl"), str(tmp_path / "out")])
    assert caught.value.code == 2
    assert "no file matches" in capsys.readouterr().err
