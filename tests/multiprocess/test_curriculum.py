"""A curriculum of all kinds of data: Parquet files, packed JSON lines, texts in a store; a BPE.

Trained by two processes, killed in its second phase, ended by one: the same sequences as without.
"""

import json
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import s3fs
import yaml

from spectral_dist.data.tokenizer_training import train_bpe
from spectral_dist.data.tokens import prepare
from spectral_dist.settings import DatasetConfig
from tests.end_to_end.conftest import WORDS
from tests.multiprocess.local import Local, Own, Run, local_runs, losses
from tests.multiprocess.test_processes import TELL_ROWS, rows

STEPS, SECOND = 20, 8  # steps in all, and of the first phase
PARQUET_FILES = 50

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with local_runs(tmp_path) as local:
        yield local


def random_text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"{draw.choice(WORDS)}{draw.randint(0, 9999)}" for _ in range(words))


def write_data(folder: Path, s3: str) -> None:
    """Write three datasets, of which each has several files, a tokenizer, and the settings."""
    (folder / "turkish" / "2024").mkdir(parents=True)
    for number in range(PARQUET_FILES):
        texts = [random_text(number * 10 + i, 40) for i in range(3)]
        pyarrow.parquet.write_table(
            pa.table({"id": range(3), "content": texts}),
            folder / "turkish" / "2024" / f"{number:02}.parquet",
        )
    (folder / "code").mkdir()
    for number in range(3):
        records = "".join(
            json.dumps({"text": random_text(1000 + number * 100 + i, 30)}) + "\n" for i in range(60)
        )
        path = folder / "code" / f"{number}.jsonl.zst"
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(records.encode())
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    for number in range(2):
        texts = [random_text(5000 + number * 100 + i, 60) for i in range(60)]
        with store.open(f"{s3}/english/{number}.txt", "wb") as file:
            file.write("\n<|endoftext|>\n".join(texts).encode())
    (sample,) = prepare(
        [DatasetConfig(paths=(str(folder / "turkish"),), text_field="content")],
        validation_fraction=0.1,
        min_tokens=1,
        report=lambda line: None,
    )
    bpe = train_bpe([sample], [1.0], 300, 10**6, lambda line: None)
    bpe.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer": "tokenizer.json",
        "data_cache": str(folder / "cache"),
        "datasets": [
            {"name": "turkish", "paths": ["turkish"], "text_field": "content"},
            {"name": "code", "paths": ["code/*.jsonl.zst"]},
            {"name": "english", "paths": [f"{s3}/english"]},
        ],
        "phases": [
            {"tokens": SECOND * 8 * 32 - 1, "weights": {"turkish": 0.8, "code": 0.2}},
            {
                **{"steps": STEPS - SECOND, "ramp": 4, "lr_factor": 0.5},
                "weights": {"turkish": 0.3, "code": 0.3, "english": 0.4},
            },
        ],
    }
    (folder / "curriculum.yaml").write_text(yaml.safe_dump(settings))


def train(local: Local, name: str, processes: int, *, kill_at: int = 0) -> Run:
    """Train, in one or two processes, to the end or until a step."""
    run = local.start(
        *("--config", "curriculum.yaml", "--mesh", f"{processes}x1x1", "--run_name", name),
        *("--batch_size", "8", "--save_every", "3"),
        processes=processes,
        own={i: Own(TELL_ROWS) for i in range(processes)},
        data=(),
    )
    if kill_at:
        run.wait_for(f" {kill_at}/{STEPS} ")
        run.send(signal.SIGKILL, *range(processes))
        run.wait_until_gone()
    else:
        assert run.wait() == [0] * processes, run.told()
    return run


def test_killed_in_its_second_phase_and_ended_by_one_process(local: Local, s3: str) -> None:
    write_data(local.folder, s3)
    whole = train(local, "whole", 2)
    seen = rows(whole)
    assert seen.keys() == {(step, place) for step in range(STEPS) for place in range(8)}
    # No sequence twice: no dataset is short, and each phase goes on where the last one stopped.
    assert len(set(seen.values())) == len(seen)
    assert "passes over each dataset by step 20: turkish " in whole.ranks[0].out
    killed = train(local, "parts", 2, kill_at=SECOND + 4)
    assert all(seen[place] == crc for place, crc in rows(killed).items())
    ended = train(local, "parts", 1)
    (resumed,) = re.findall(r"resumed from step (\d+) ", ended.ranks[0].out)
    assert SECOND < int(resumed) <= SECOND + 4
    later = rows(ended)
    assert later == {place: crc for place, crc in seen.items() if place[0] >= int(resumed)}
    assert "some sequences may come twice" not in ended.ranks[0].out
    folders = [local.run_folder(name) for name in ("parts", "whole")]
    parts, wholes = ([*losses(folder).values()] for folder in folders)
    assert len(parts) == STEPS
    np.testing.assert_allclose(parts, wholes, rtol=1e-4)
