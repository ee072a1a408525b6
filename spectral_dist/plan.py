"""`spectral-dist plan`: which model to train for how long, before any GPU hour is paid for.

Small runs that have ended give a curve (planning/curves.py); a dry run of each preset on the GPUs
of the budget gives tokens a second; together they give what each preset comes to. Read `main`.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_dist.command_line import Parser, run_main, say
from spectral_dist.dryrun import DOES_NOT_FIT, MOST_GPUS_PER_HOST
from spectral_dist.subprocesses import run_module

if TYPE_CHECKING:
    from spectral_dist.planning.curves import Curve, Expected, Point
    from spectral_dist.settings import Config

_PRESETS = "level1,level2,level3"
_SECONDS = {"hour": 3600, "day": 86_400, "week": 604_800}
# Share of the dry run's speed that is reached: level 1 took 117 ms a step on an H200, and the dry
# run says 61 (docs/performance.md). Nothing is measured on an L4 yet.
_REACHED = 0.5
# What must be alike in runs of one curve, and is said where a planned run differs from them.
_RECIPE = ("layer_pattern", "ngrams", "tokenizer", "document_mask")


@dataclass(frozen=True)
class Budget:
    """What is there: GPUs of one kind, and seconds."""

    gpus: int
    kind: str
    seconds: float


@dataclass(frozen=True)
class Planned:
    """A preset on the GPUs of the budget.

    Attributes:
      preset: its name.
      mesh: as DATAxFSDPxTENSOR.
      command: what starts it.
      parameters: N of the curve.
      bytes_per_second: expected, of text.
    """

    preset: str
    mesh: str
    command: str
    parameters: float
    bytes_per_second: float


def read_budget(text: str) -> Budget:
    """Return the budget that a text such as "8 L4, 5 days" says.

    Raises:
      ValueError: if it says something else.
    """
    units = "|".join(_SECONDS)
    form = rf"\s*(\d+)\s*x?\s*([\w-]+)\s*,\s*(\d+(?:\.\d+)?)\s*({units})s?\s*"
    match = re.fullmatch(form, text.lower(), re.ASCII)
    if not match or int(match[1]) < 1 or float(match[3]) <= 0:
        raise ValueError(f"budget={text!r}: must be GPUs and time, such as '8 L4, 5 days'")
    return Budget(int(match[1]), match[2], float(match[3]) * _SECONDS[match[4]])


def read_points(names: Sequence[str], checkpoint_dir: Path) -> list[tuple["Point", "Config"]]:
    """Return the point and the settings of each run.

    Raises:
      ValueError: names the run that is not there, has not ended, or was not evaluated at its end.
    """
    from spectral_dist.planning.curves import Point

    found = []
    for name in names:
        folder = Path(name) if "/" in name else checkpoint_dir / name
        facts = _facts(folder)
        config, bits = facts.config, facts.last("val/bits_per_byte")
        tokens, flops = (facts.last(f"progress/{x}") for x in ("tokens", "flops"))
        if config is None or not tokens or not flops or bits is None:
            raise ValueError(f"fit={name}: has no settings, or no evaluation on held-out text")
        # The rate decays to the end: before it, a run is not what a shorter one would be.
        ended = max((r.step for r in facts.records if "val/bits_per_byte" in r.metrics), default=0)
        if ended < config.run.steps:
            raise ValueError(
                f"fit={name}: is at step {facts.step:,} of {config.run.steps:,}, or was not"
                " evaluated at its end"
            )
        size = tokens * _bytes_per_token(facts)
        found.append((Point(folder.name, flops / tokens / 6, size, bits), config))
    return found


def _facts(folder: Path) -> Any:
    from spectral_dist.outputs.report.facts import Facts

    try:
        return Facts.read(folder)
    except ValueError as error:
        raise ValueError(f"fit={folder}: {error}") from error


def _bytes_per_token(facts: Any) -> float:
    """Return how many bytes of text a token of a run stands for."""
    loss, bits = facts.last("train/loss"), facts.last("train/bits_per_byte")
    return loss / math.log(2) / bits if loss and bits else 1.0


def _one_recipe(runs: Sequence[tuple["Point", "Config"]]) -> dict[str, Any]:
    """Return the settings of `_RECIPE` that all runs share.

    Raises:
      ValueError: names the setting in which two runs differ.
    """
    first = {name: runs[0][1].flat()[name] for name in _RECIPE}
    for point, config in runs:
        for name, value in first.items():
            if config.flat()[name] != value:
                raise ValueError(
                    f"fit={point.name}: {name}={config.flat()[name]!r}, but {value!r} in"
                    f" {runs[0][0].name}; a curve is of one recipe"
                )
    return first


def make_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(
        prog="spectral-dist plan",
        allow_abbrev=False,
        description="What to train with a budget: size, bytes, mesh, and the bits per byte to"
        " expect, from a curve through small runs and dry runs of the presets.",
    )
    parser.add_argument("--budget", help="GPUs and time, such as '8 L4, 5 days'")
    parser.add_argument(
        "--fit", nargs="+", metavar="RUN", required=True, help="runs that have ended, by size"
    )
    parser.add_argument(
        "--check", nargs="+", metavar="RUN", default=(), help="other runs, to compare the curve to"
    )
    text = "folder of the runs (default: %(default)s)"
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help=text)
    parser.add_argument("--configs", default=_PRESETS, help="settings to plan (%(default)s)")
    parser.add_argument("--gpus_per_host", type=int, help="GPUs of one host (default: 8 or fewer)")
    parser.add_argument("--text", type=float, help="bytes of text at hand: more is read again")
    text = "share of the dry run's speed that is reached (default: %(default)s)"
    parser.add_argument("--reached", type=float, default=_REACHED, help=text)
    parser.add_argument("--json", type=Path, help="file to write every figure to")
    return parser


def main(argv: Sequence[str]) -> int:
    """Fit the curve, dry-run the presets, print the plan; return 0, or 3 where nothing fits.

    Raises:
      ValueError: if a flag is wrong, or a run cannot be used.
    """
    flags = make_parser().read(argv)
    if flags.budget is None and not flags.check:
        raise ValueError("budget: is missing; or --check RUN compares the curve to other runs")
    if not 0 < flags.reached <= 1:
        raise ValueError(f"reached={flags.reached}: must be above 0 and at most 1")
    if flags.text is not None and not 0 < flags.text < 1e18:
        raise ValueError(f"text={flags.text}: must be positive")
    budget = None if flags.budget is None else read_budget(flags.budget)
    from spectral_dist.planning.curves import Curve

    runs = read_points(flags.fit, flags.checkpoint_dir)
    recipe, curve = _one_recipe(runs), Curve([point for point, _ in runs])
    _show_curve(curve)
    written: dict[str, Any] = {"points": [asdict(point) for point in curve.points]}
    written["check"] = [_check(curve, p) for p, _ in read_points(flags.check, flags.checkpoint_dir)]
    planned = [] if budget is None else _dry_runs(budget, flags, recipe)
    if budget is not None and planned:
        written["plan"] = _show_plan(curve, budget, planned, flags.text)
    if flags.json:
        from spectral_dist.atomic_file import write_text

        try:
            write_text(flags.json, json.dumps(written, indent=2) + "\n")
        except OSError as error:
            raise ValueError(f"json={flags.json}: cannot be written: {error.strerror}") from error
    return DOES_NOT_FIT if budget is not None and not planned else 0


def _show_curve(curve: "Curve") -> None:
    best = curve.best
    sizes, lengths = ([getattr(p, x) for p in curve.points] for x in ("parameters", "bytes"))
    say(
        f"curve through {len(curve.points)} runs of {min(sizes):.3g} to {max(sizes):.3g} parameters"
        f" and {min(lengths):.3g} to {max(lengths):.3g} bytes: exponents {best.a:.2f} of parameters"
        f" and {best.b:.2f} of bytes, {best.weights[0]:.2f} bits/byte without end; off by"
        f" {curve.deviation:.3f} bits/byte"
    )


def _check(curve: "Curve", point: "Point") -> dict[str, Any]:
    expected = curve.expect(point.parameters, point.bytes)
    inside = expected.low <= point.bits <= expected.high
    say(
        f"check {point.name}: {_interval(expected)} expected, {point.bits:.3f} measured:"
        f" {point.bits - expected.bits:+.3f}, {'inside' if inside else 'OUTSIDE'} of the interval"
    )
    return asdict(point) | {"expected": asdict(expected), "inside": inside}


def _interval(expected: "Expected") -> str:
    return f"{expected.bits:.3f} bits/byte ({expected.low:.3f} to {expected.high:.3f})"


def _dry_runs(budget: Budget, flags: Any, recipe: dict[str, Any]) -> list[Planned]:
    """Return the presets that fit on the GPUs of the budget, each with its best mesh."""
    from spectral_dist.flags import find_config, load_config
    from spectral_dist.model.flops import flops_per_token
    from spectral_dist.training.state import model_spec

    per_host = flags.gpus_per_host or min(budget.gpus, MOST_GPUS_PER_HOST)
    if per_host < 1 or budget.gpus % per_host:
        raise ValueError(f"gpus_per_host={per_host}: does not divide the {budget.gpus} GPUs")
    found = []
    for name in [name.strip() for name in flags.configs.split(",") if name.strip()]:
        path = find_config(name)
        config = load_config(["--config", str(path), "--mesh", "auto"])
        if (split := _split(config, budget.gpus, per_host)) is None:
            say(f"{name}: its sequences of a step cannot be shared out evenly: left out")
            continue
        start = [f"--config={path}", *split]
        say(f"{name}: dry run on {budget.gpus} {budget.kind}")
        report = dry_run([*start, f"--gpu={budget.kind}", f"--gpus_per_host={per_host}"])
        if not report["verdict"]["fits"]:
            say(f"{name}: does not fit")
            continue
        differing = [f"{n}={config.flat()[n]!r}" for n in recipe if config.flat()[n] != recipe[n]]
        if differing:
            say(f"{name}: note: is not of the curve's recipe: {', '.join(differing)}")
        size = flops_per_token(model_spec(config), config.data.seq_len) / 6
        speed = report["time"]["tokens_per_second"] * flags.reached
        command = " ".join(["python -m spectral_dist.train", *start])
        found.append(Planned(name, report["config"]["mesh"], command, size, speed))
    return found


def _split(config: "Config", gpus: int, per_host: int) -> list[str] | None:
    """Return flags for a mesh of all GPUs, with the batch of a step as it is; None if none has it.

    Parameters are shared out inside a host and copied between hosts; a GPU has at most 8 sequences
    of a micro-batch. No search: `dryrun --mesh=auto` finds better, in many minutes.
    """
    total = config.data.batch_size * config.data.accum_steps
    batches = [n for n in range(gpus, 8 * gpus + 1, gpus) if total % n == 0]
    if not batches:
        return None
    batch = max(batches)
    return [
        f"--mesh={gpus // per_host}x{per_host}x1",
        f"--batch_size={batch}",
        f"--accum_steps={total // batch}",
    ]


def dry_run(words: Sequence[str]) -> dict[str, Any]:
    """Return the JSON report of a dry run in a process of its own (docs/formats.md).

    Raises:
      ValueError: if it cannot be made.
    """
    return run_module("spectral_dist.dryrun", words, accept=(0, DOES_NOT_FIT))


def _show_plan(
    curve: "Curve", budget: Budget, planned: Sequence[Planned], text: float | None
) -> list[dict[str, Any]]:
    """Print what each preset comes to, and what half and twice the time would; return it."""
    found = []
    for share in (1.0, 0.5, 2.0):
        seconds = budget.seconds * share
        rows = [_row(curve, p, seconds, text) for p in planned]
        best = min(rows, key=lambda row: row["expected"]["bits"])
        if share == 1.0:
            for row in rows:
                say(_row_line(row))
            say(f"best: {_row_line(best)}")
            say(f"  {best['command']}")
            _say_how_far(curve, best)
        else:
            word = "half" if share < 1 else "twice"
            say(f"{word} the budget: {_row_line(best)}")
        found += [row | {"share": share, "best": row is best} for row in rows]
    return found


def _row(curve: "Curve", plan: Planned, seconds: float, text: float | None) -> dict[str, Any]:
    from spectral_dist.planning.curves import worth

    read = plan.bytes_per_second * seconds
    expected = curve.expect(plan.parameters, read if text is None else worth(read, text))
    return {
        **{"preset": plan.preset, "mesh": plan.mesh, "command": plan.command},
        **{"parameters": plan.parameters, "bytes": read, "expected": asdict(expected)},
        "passes": None if text is None else read / text,
    }


def _row_line(row: dict[str, Any]) -> str:
    from spectral_dist.planning.curves import Expected

    passes = "" if row["passes"] is None else f", {row['passes']:.1f} passes over the text"
    return (
        f"{row['preset']}: mesh {row['mesh']}, {row['bytes'] / 1e9:,.1f} GB{passes}:"
        f" {_interval(Expected(**row['expected']))}"
    )


def _say_how_far(curve: "Curve", row: dict[str, Any]) -> None:
    """Say how many times larger and longer a plan is than the runs that it rests on."""
    size = row["parameters"] / max(p.parameters for p in curve.points)
    length = row["bytes"] / max(p.bytes for p in curve.points)
    if max(size, length) > 10:
        say(
            f"note: that is {size:,.0f} times the parameters and {length:,.0f} times the bytes of"
            " the largest run of the fit: a guess, and the interval knows the curve's form alone"
        )


if __name__ == "__main__":
    run_main(main)
