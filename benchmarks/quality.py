"""`spectral-dist bench quality`: mixers trained side by side on the same text, in bits per byte.

Every variant is the same trunk with another layer pattern: the same bytes in the same order, as
many parameters within 1% (2% at 128 x 6, and more below; tables of n-grams apart), and each
learning rate of one common grid.
A result is a line of results.jsonl, and a run that is there already is not made again: the command
may be stopped at any time and continued, by the run's own checkpoints. Read `VARIANTS`, then
`main`.
"""

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from spectral_dist.command_line import Parser, run_main, say
from spectral_dist.flags import load_config
from spectral_dist.training.state import model_spec

# name -> the flags that make it. Full attention has as many key-value heads as heads: then every
# mixer has 4 D^2 parameters.
VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"layer_pattern": "attention"},
    "attention-conv": {"layer_pattern": "attention", "attention_conv_width": 4},
    "window": {"layer_pattern": "window"},
    "spectral": {"layer_pattern": "spectral"},
    "spectral-window-2:1": {"layer_pattern": "spectral,spectral,window"},
    "spectral-window-1:1": {"layer_pattern": "spectral,window"},
    "ssd-fixed": {"layer_pattern": "ssd", "ssd_decay": "fixed"},
    "ssd": {"layer_pattern": "ssd"},
    "ssd-window-2:1": {"layer_pattern": "ssd,ssd,window"},
    "spectral-ssd-window": {"layer_pattern": "spectral,ssd,window"},
    "spectral-ngrams": {"layer_pattern": "spectral", "ngrams": "2,3,4,5"},
    "spectral-window-2:1-ngrams": {
        "layer_pattern": "spectral,spectral,window",
        "ngrams": "2,3,4,5",
    },
    "attention-conv-ngrams": {
        **{"layer_pattern": "attention", "attention_conv_width": 4},
        "ngrams": "2,3,4,5",
    },
    "document-mask": {"layer_pattern": "spectral,spectral,window", "document_mask": "true"},
}
# Turkish first, as the curriculum is; a dataset for each file of the corpus that is there.
WEIGHTS = {"turkish": 0.4, "code": 0.3, "english": 0.2, "math": 0.1}
SIZES: dict[str, dict[str, Any]] = {
    # For a curve over sizes (spectral-dist plan), beside the screen.
    "tiny": {
        **{"hidden_dim": 64, "num_layers": 4, "head_dim": 32, "num_kv_heads": 2},
        **{"window": 64, "seq_len": 256, "batch_size": 8},
        **{"compute_dtype": "float32"},
    },
    "mini": {
        **{"hidden_dim": 96, "num_layers": 5, "head_dim": 32, "num_kv_heads": 3},
        **{"window": 64, "seq_len": 256, "batch_size": 8},
        **{"compute_dtype": "float32"},
    },
    "screen": {
        **{"hidden_dim": 128, "num_layers": 6, "head_dim": 32, "num_kv_heads": 4},
        **{"window": 64, "seq_len": 256, "batch_size": 8},
        **{"compute_dtype": "float32"},  # for a CPU
    },
    "small": {
        **{"hidden_dim": 256, "num_layers": 6, "head_dim": 32, "num_kv_heads": 8},
        **{"window": 128, "seq_len": 512, "batch_size": 8},
        **{"compute_dtype": "float32"},
    },
    "level1": {
        **{"hidden_dim": 512, "num_layers": 12, "head_dim": 64, "num_kv_heads": 8},
        **{"window": 512, "seq_len": 2048, "batch_size": 16},
    },
}


@dataclass(frozen=True)
class Run:
    """One run: a variant at a size, a length of training, a learning rate and a seed."""

    variant: str
    size: str
    steps: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Of its run folder."""
        variant = self.variant.replace(":", "to")
        return f"{self.size}-{variant}-{self.steps}-{self.lr:g}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
      run: which one.
      parameters: of the model.
      tokens: trained on, in bytes.
      bits_per_byte: held out, the mean of the datasets by weight.
      by_dataset: the same for each dataset.
      extrapolation: bits per byte of the same bytes at each multiple of the training length.
      step_seconds: median over the windows of metrics; of this machine as busy as it was.
      flops: model FLOPs of training, for a token.
    """

    run: Run
    parameters: int
    tokens: int
    bits_per_byte: float
    by_dataset: Mapping[str, float]
    extrapolation: Mapping[str, float]
    step_seconds: float
    flops: float


def planned(
    variants: Sequence[str],
    size: str,
    lengths: Sequence[int],
    lrs: Sequence[float],
    seeds: Sequence[int],
) -> list[Run]:
    """Return the runs of a bake-off: every variant once before any has its second."""
    # So that a bake-off that is stopped early compares all of them at something.
    grid = itertools.product(lengths, seeds, lrs, variants)
    return [Run(variant, size, steps, lr, seed) for steps, seed, lr, variant in grid]


def flags_of(run: Run, corpus: Path, out: Path) -> list[str]:
    """Return the flags of `spectral_dist.train` for a run.

    Raises:
      ValueError: if the corpus has none of the texts.
    """
    names = [name for name in WEIGHTS if (corpus / f"{name}.txt").is_file()]
    if not names:
        raise ValueError(f"corpus={corpus}: holds none of {', '.join(WEIGHTS)}, each .txt")
    values: dict[str, Any] = {
        "data_paths": ",".join(str(corpus / f"{name}.txt") for name in names),
        "data_weights": ",".join(str(WEIGHTS[name]) for name in names),
        "checkpoint_dir": str(out / "runs"),
        "run_name": run.name,
        "steps": run.steps,
        "warmup_steps": max(run.steps // 10, 1),
        "lr": run.lr,
        "seed": run.seed,
        "save_every": max(run.steps // 4, 1),
        "eval_every": run.steps,
        "log_every": max(run.steps // 40, 1),
        "eval_windows": 64,
        "extrapolation_windows": 16,
        "wandb_mode": "disabled",
        "keep": 1,
        **SIZES[run.size],
        **VARIANTS[run.variant],
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def read_result(run: Run, out: Path) -> Result:
    """Return what a run that has ended gave, from its run folder."""
    folder = out / "runs" / run.name
    with (folder / "metrics.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    last: dict[str, Any] = {}
    for line in lines:
        last |= line
    config = load_config(["--config", str(folder / "config.yaml")])
    return Result(
        run,
        parameters=model_spec(config).size,
        tokens=int(last["progress/tokens"]),
        bits_per_byte=last["val/bits_per_byte"],
        by_dataset=_named(last, "val/", "/bits_per_byte"),
        extrapolation=_named(last, "extrapolation/", "/bits_per_byte"),
        step_seconds=statistics.median(
            line["perf/step_seconds"] for line in lines if "perf/step_seconds" in line
        ),
        flops=last["progress/flops"] / last["progress/tokens"],
    )


def _named(metrics: Mapping[str, Any], before: str, after: str) -> dict[str, float]:
    """Return the metrics `before`NAME`after` by NAME, which holds no slash."""
    names = {
        metric[len(before) : -len(after)]: value
        for metric, value in metrics.items()
        if metric.startswith(before) and metric.endswith(after)
    }
    return {name: value for name, value in names.items() if name and "/" not in name}


def read_results(path: Path) -> list[Result]:
    """Return the results that were written; none if the file is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        found = [json.loads(line) for line in file if line.strip()]
    return [Result(**(values | {"run": Run(**values["run"])})) for values in found]


def best(results: Sequence[Result]) -> Iterator[tuple[Result, list[Result]]]:
    """Yield each variant, size and length: its results at the best learning rate, the best first.

    The best rate is the one with the lowest mean over its seeds, among those with the most seeds.
    """
    found: list[tuple[Result, list[Result]]] = []
    for _, group in itertools.groupby(sorted(results, key=_kind), _kind):
        by_lr: dict[float, list[Result]] = {}
        for result in group:
            by_lr.setdefault(result.run.lr, []).append(result)
        most = max(map(len, by_lr.values()))
        full = [rs for rs in by_lr.values() if len(rs) == most]
        chosen = min(full, key=_mean)
        found.append((chosen[0], chosen))
    found.sort(key=lambda item: (item[0].run.size, item[0].run.steps, _mean(item[1])))
    yield from found


def _kind(result: Result) -> tuple[str, int, str]:
    return result.run.size, result.run.steps, result.run.variant


def _mean(results: Sequence[Result]) -> float:
    return statistics.fmean(result.bits_per_byte for result in results)


def table(results: Sequence[Result]) -> Table:
    """Return the table of a bake-off: each variant at its best learning rate."""
    names = [name for name in WEIGHTS if any(name in r.by_dataset for r in results)]
    shown = Table(box=rich.box.MARKDOWN)
    for heading in (
        *("size", "steps", "variant", "bits/byte", "spread", "seeds", "lr", "rates tried"),
        *names,
        *("2x", "4x", "parameters", "MFLOPs/token", "ms/step"),
    ):
        shown.add_column(heading, justify="left" if heading in ("size", "variant") else "right")
    for first, runs in best(results):
        bits = [r.bits_per_byte for r in runs]
        rates = {r.run.lr for r in results if _kind(r) == _kind(first)}
        longer = [_difference(runs, multiple) for multiple in ("2x", "4x")]
        shown.add_row(
            first.run.size,
            f"{first.run.steps:,}",
            first.run.variant,
            f"{_mean(runs):.4f}",
            f"{max(bits) - min(bits):.4f}" if len(runs) > 1 else "-",
            str(len(runs)),
            f"{first.run.lr:g}",
            str(len(rates)),
            *(f"{statistics.fmean(r.by_dataset[name] for r in runs):.3f}" for name in names),
            *longer,
            f"{first.parameters / 1e6:.3f}M",
            f"{first.flops / 1e6:.2f}",
            f"{1e3 * statistics.median(r.step_seconds for r in runs):.0f}",
        )
    return shown


def _difference(runs: Sequence[Result], multiple: str) -> str:
    """Return the mean change of bits per byte at a multiple of the training length."""
    found = [r.extrapolation for r in runs if {"1x", multiple} <= r.extrapolation.keys()]
    if not found:
        return "-"
    return f"{statistics.fmean(e[multiple] - e['1x'] for e in found):+.4f}"


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="spectral-dist bench quality",
        allow_abbrev=False,
        description="Train mixers side by side on the same text; continues where it was stopped.",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder with turkish.txt, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and results.jsonl")
    parser.add_argument("--size", choices=SIZES, default="screen", help="default: %(default)s")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="some of %(default)s")
    parser.add_argument("--steps", default="600", help="lengths of training (%(default)s)")
    parser.add_argument("--lrs", default="2e-3,4e-3,8e-3", help="the grid (%(default)s)")
    parser.add_argument("--seeds", default="0", help="seeds (%(default)s)")
    parser.add_argument("--table", action="store_true", help="print what is there, and end")
    return parser


def numbers(name: str, text: str, kind: type) -> list[Any]:
    """Return the numbers of a flag.

    Raises:
      ValueError: names the flag, if it holds something else.
    """
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}={text}: must be numbers joined by commas") from None


def main(argv: Sequence[str]) -> int:
    """Train what is missing, and print the table; return 0, or the code of a run that failed.

    Raises:
      ValueError: if a flag is wrong.
    """
    flags = make_parser().read(argv)
    results = flags.out / "results.jsonl"
    names = flags.variants.split(",")
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"variants={name}: must be among {', '.join(VARIANTS)}")
    lengths, lrs = numbers("steps", flags.steps, int), numbers("lrs", flags.lrs, float)
    runs = planned(names, flags.size, lengths, lrs, numbers("seeds", flags.seeds, int))
    done = {result.run for result in read_results(results)}
    for run in [] if flags.table else [run for run in runs if run not in done]:
        words = flags_of(run, flags.corpus, flags.out)
        command = [sys.executable, "-m", "spectral_dist.train", *words]
        if code := subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            return code
        result = read_result(run, flags.out)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        say(f"{run.name}: {result.bits_per_byte:.4f} bits/byte")
    if found := read_results(results):
        Console(width=220).print(table(found))
    return 0


if __name__ == "__main__":
    run_main(main)
