"""`spectral-dist bench recall`: what mixers find again in a text, by how far back it stands.

Three tasks, made without a file: copy a run of letters, tell a key that was named in filler, and
answer queries about several pairs. Each mixer is trained on all three at one length L, and asked at
distances from L / 4 to 16 L. Exact answers count. Stops and goes on, as the bake-off does. Read
`TASKS`, then `main`.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.box
from rich.console import Console
from rich.table import Table

from benchmarks.quality import VARIANTS, numbers
from spectral_dist.atomic_file import write_text
from spectral_dist.command_line import Parser, run_main, say

# A small model, so that a mixer is trained in minutes on two cores; a window is a quarter of L.
SIZE: dict[str, Any] = {
    **{"hidden_dim": 64, "num_layers": 4, "head_dim": 16, "num_kv_heads": 4},
    **{"window": 32, "seq_len": 128, "batch_size": 32, "compute_dtype": "float32"},
}
LENGTH = SIZE["seq_len"]
DEFAULT = "spectral-window-2:1,spectral,window,ssd,attention,attention-conv"
# Of L, in quarters: where an answer is asked for.
DISTANCES = (LENGTH // 4, LENGTH // 2, 3 * LENGTH // 4, *(LENGTH * 2**k for k in range(5)))
_LETTERS, _DIGITS = np.array(list("abcdefghijklmnoprstuvyz")), np.array(list("0123456789"))
_FILLER = ("su", "dere", "tepe", "yol", "ev", "dal", "kuş", "taş", "ay", "gün", "ve", "ile")
_PAIRS = 4

Example = tuple[str, str]  # a text, and the answer that ends it


def _word(rng: np.random.Generator, letters: np.ndarray, size: int) -> str:
    return "".join(rng.choice(letters, size))


def _filler(rng: np.random.Generator, size: int) -> str:
    """Return about so many bytes of words that say nothing."""
    words, held = [], 0
    while held < size:
        words.append(_FILLER[rng.integers(len(_FILLER))])
        held += len(words[-1].encode()) + 1
    return " ".join(words)


def copy(rng: np.random.Generator, distance: int) -> Example:
    """A run of letters as long as the distance, and its first eight again."""
    run = _word(rng, _LETTERS, distance)
    return f"{run}=", run[:8]


def passkey(rng: np.random.Generator, distance: int) -> Example:
    """A key of four digits, filler, and the question for the key."""
    key = _word(rng, _DIGITS, 4)
    return f"anahtar={key} {_filler(rng, distance)} anahtar=", key


def pairs(rng: np.random.Generator, distance: int) -> Example:
    """Four names with two digits each, filler, and the question for one of them."""
    chosen = rng.choice(len(_LETTERS) ** 2, _PAIRS, replace=False)  # no name twice
    names = ["".join(_LETTERS[list(divmod(n, len(_LETTERS)))]) for n in chosen]
    values = {name: _word(rng, _DIGITS, 2) for name in names}
    asked = names[rng.integers(_PAIRS)]
    listed = " ".join(f"{name}:{value}" for name, value in values.items())
    return f"{listed} {_filler(rng, distance)} {asked}:", values[asked]


TASKS: dict[str, Callable[[np.random.Generator, int], Example]] = {
    "copy": copy,
    "passkey": passkey,
    "pairs": pairs,
}


def training_text(documents: int, seed: int) -> str:
    """Return documents of all tasks, at distances up to three quarters of L, even in their log."""
    rng, parts = np.random.default_rng(seed), []
    for _ in range(documents):
        distance = int(np.exp(rng.uniform(np.log(4), np.log(3 * LENGTH // 4))))
        text, answer = TASKS[list(TASKS)[rng.integers(len(TASKS))]](rng, max(distance, 8))
        parts.append(f"{text}{answer}\n<|endoftext|>\n")
    return "".join(parts)


@dataclass(frozen=True)
class Recall:
    """What a variant found again.

    Attributes:
      variant: of the bake-off.
      steps: of training.
      lr: the learning rate.
      seed: of the run; the questions are the same for all.
      shares: of the answers that are right to the last byte, by task and distance in bytes.
      examples: questions of each task at each distance.
    """

    variant: str
    steps: int
    lr: float
    seed: int
    shares: dict[str, dict[str, float]]
    examples: int

    @property
    def key(self) -> tuple[str, int, float, int, int]:
        """What tells results apart."""
        return self.variant, self.steps, self.lr, self.seed, self.examples


def flags_of(variant: str, steps: int, lr: float, seed: int, out: Path) -> dict[str, Any]:
    """Return the settings of `spectral_dist.train` for a variant, by their names."""
    return {
        "data_paths": str(out / "recall.txt"),
        "checkpoint_dir": str(out / "runs"),
        "run_name": f"recall-{variant.replace(':', 'to')}-{steps}-{lr:g}-{seed}",
        **{"steps": steps, "warmup_steps": max(steps // 10, 1), "lr": lr, "seed": seed},
        **{"save_every": max(steps // 4, 1), "eval_every": steps, "keep": 1, "eval_windows": 16},
        **{"log_every": max(steps // 40, 1), "eval_lengths": 1, "wandb_mode": "disabled"},
        **SIZE,
        **VARIANTS[variant],
    }


def ask(run_name: str, out: Path, examples: int) -> dict[str, dict[str, float]]:
    """Return the share of right answers of a trained run, by task and distance."""
    from spectral_dist.inference import load_run  # loads JAX
    from spectral_dist.likelihood import Likelihood

    run = load_run(run_name, checkpoint_dir=out / "runs")
    shares: dict[str, dict[str, float]] = {}
    for task, make in TASKS.items():
        shares[task] = {}
        for distance in DISTANCES:
            rng = np.random.default_rng(distance)  # the same questions for every variant
            asked = [make(rng, distance) for _ in range(examples)]
            likelihood = Likelihood(run, max(1, 32 * LENGTH // distance))
            right = [greedy for _, greedy in likelihood.of_continuations(asked)]
            shares[task][str(distance)] = sum(right) / examples
    return shares


def read_recalls(path: Path) -> list[Recall]:
    """Return the results that were written; none if the file is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [Recall(**json.loads(line)) for line in file if line.strip()]


def table(results: Sequence[Recall]) -> Table:
    """Return the table: share of right answers by task, variant and distance."""
    shown = Table(box=rich.box.MARKDOWN)
    shown.add_column("task")
    shown.add_column("variant")
    for heading in ("steps", "lr", "seed", *(f"{d / LENGTH:g}L" for d in DISTANCES)):
        shown.add_column(heading, justify="right")
    for task, result in itertools.product(TASKS, results):
        cells = [f"{share:.0%}" for share in result.shares[task].values()]
        shown.add_row(
            task, result.variant, f"{result.steps:,}", f"{result.lr:g}", str(result.seed), *cells
        )
    return shown


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="spectral-dist bench recall",
        allow_abbrev=False,
        description="Train mixers on recall at one length and ask them at 16 times that; continues"
        " where it was stopped.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and recall.jsonl")
    parser.add_argument("--variants", default=DEFAULT, help="of bench quality (%(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="of training (%(default)s)")
    parser.add_argument("--lrs", default="4e-3", help="learning rates (%(default)s)")
    parser.add_argument("--seeds", default="0", help="seeds (%(default)s)")
    parser.add_argument("--examples", type=int, default=100, help="questions each (%(default)s)")
    parser.add_argument("--table", action="store_true", help="print what is there, and end")
    return parser


def main(argv: Sequence[str]) -> int:
    """Train and ask what is missing, and print the table; return 0, or the code of a failed run.

    Raises:
      ValueError: if a flag is wrong.
    """
    flags = make_parser().read(argv)
    names, results = flags.variants.split(","), flags.out / "recall.jsonl"
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"variants={name}: must be among {', '.join(VARIANTS)}")
    for name in ("steps", "examples"):
        if getattr(flags, name) < 1:
            raise ValueError(f"{name}={getattr(flags, name)}: must be at least 1")
    lrs, seeds = numbers("lrs", flags.lrs, float), numbers("seeds", flags.seeds, int)
    flags.out.mkdir(parents=True, exist_ok=True)
    text = flags.out / "recall.txt"
    if not text.exists():
        write_text(text, training_text(60_000, seed=1))
    done = {result.key for result in read_recalls(results)}
    for seed, lr, name in itertools.product(seeds, lrs, names):
        if flags.table or (name, flags.steps, lr, seed, flags.examples) in done:
            continue
        values = flags_of(name, flags.steps, lr, seed, flags.out)
        words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "spectral_dist.train", *words]
        if code := subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            return code
        shares = ask(values["run_name"], flags.out, flags.examples)
        found = Recall(name, flags.steps, lr, seed, shares, flags.examples)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        say(f"{name}: {json.dumps(shares)}")
    if recalls := read_recalls(results):
        Console(width=160).print(table(recalls))
    return 0


if __name__ == "__main__":
    run_main(main)
