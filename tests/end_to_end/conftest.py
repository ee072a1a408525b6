"""What the end-to-end tests share: tiny texts, a tiny model, and the real program to run on them.

The programs are processes of their own, forked from one that has loaded JAX (tests/warm.py), and
compiled steps are shared through the cache that tests/conftest.py sets up.
"""

import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import finish
from tests.warm import start_warm

ROOT = Path(__file__).parents[2]
_FLAGS = """--hidden_dim 32 --head_dim 16 --num_kv_heads 2 --num_layers 3 --layer_pattern spectral
    --num_poles 4 --seq_len 32 --window 8 --chunk_size 8 --compute_dtype float32 --batch_size 4
    --validation_fraction 0.1 --eval_windows 8 --extrapolation_windows 8 --eval_lengths 1
    --log_every 1 --wandb_mode disabled"""
SMALL = _FLAGS.split()
WORDS = [
    "ağaç",
    "bir",
    "içinde",
    "kuş",
    "şimdi",
    "one",
    "two",
    "three",
    "for",
    "return",
    "1",
    "22",
    "333",
]


def write_text(path: Path, documents: int, words: int) -> Path:
    """Write a text of documents of equally many words, always the same for the same arguments."""
    draw = random.Random(f"{documents} {words}")
    texts = [" ".join(draw.choices(WORDS, k=words)) for _ in range(documents)]
    path.write_text("\n<|endoftext|>\n".join(texts) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Program:
    """The program, run in one folder on a number of devices."""

    folder: Path

    def command(self, *flags: str) -> list[str]:
        data = ("--data_paths", "short.txt,long.txt")
        own = () if any(f.startswith(("--data_paths", "--data-paths")) for f in flags) else data
        return [sys.executable, "-m", "spectral_dist.train", *SMALL, *own, *flags]

    def start(self, *flags: str, devices: int = 1) -> "subprocess.Popen[str]":
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            # Unoptimised code: compilation is most of the tests' time (15 s of CPU -> 6 s a run).
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
            " --xla_backend_optimization_level=0",
        }
        return start_warm(
            self.command(*flags),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags: str, devices: int = 1) -> "subprocess.CompletedProcess[str]":
        process = self.start(*flags, devices=devices)
        out, err = finish(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def run_folder(self, name: str) -> Path:
        return self.folder / "checkpoints" / name


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_text(folder / "short.txt", documents=200, words=25)
    write_text(folder / "long.txt", documents=30, words=150)
    return folder


@pytest.fixture
def program(tmp_path: Path, texts: Path) -> Program:
    for text in texts.glob("*.txt"):
        shutil.copy(text, tmp_path)
    return Program(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Program:
    """A run of 6 steps called `base`, saved at 2, 4 and 6. To be copied, never changed."""
    folder = tmp_path_factory.mktemp("trained")
    for text in texts.glob("*.txt"):
        shutil.copy(text, folder)
    base = Program(folder)
    done = base.run("--run_name", "base", "--steps", "6", "--save_every", "2", "--keep", "3")
    assert done.returncode == 0, done.stderr
    return base


@pytest.fixture
def copied(trained: Program, tmp_path: Path) -> Program:
    """A copy of the trained run, with its texts, to be changed at will."""
    shutil.copytree(trained.folder, tmp_path / "copy", symlinks=True)
    return Program(tmp_path / "copy")
