"""`python -m benchmarks.dry_run_accuracy`: predictions of the dry run beside measurements.

On the CPU it compares peak memory, summed over fake devices that live in one process. With
`--gpu NAME`, on an attached GPU of that kind, it compares the peak memory of one device and the
time of a step. Owns the configurations that are compared. Read `compare` first.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rich.box
from rich.console import Console
from rich.table import Table

from spectral_dist.command_line import Parser, run_main
from spectral_dist.flags import configs_folder
from spectral_dist.plan import dry_run
from spectral_dist.planning.hardware import CPU, GPU_NAMES
from spectral_dist.subprocesses import run_module

MIB = 2**20
_MEASUREMENT = "benchmarks.measurement"
# The programs that the measurement runs; the others of a dry run are not measured.
_RUN = ("train step", "initial state")

# Large enough that arrays outweigh what any process needs (16 to 35 MiB), small enough for 4 GB and
# a minute. The worst error was -16.7%, at 1x8x1: scratch of XLA's CPU kernels, which no GPU has.
CPU_CASES = (
    "--mesh=1x1x1 --hidden_dim=256 --num_layers=6 --seq_len=512 --batch_size=4 --remat=none",
    "--mesh=1x1x1 --hidden_dim=256 --num_layers=6 --seq_len=512 --batch_size=8 --remat=dots",
    "--mesh=1x1x1 --hidden_dim=512 --num_layers=12 --seq_len=256 --batch_size=2 --remat=full",
    "--mesh=1x1x1 --hidden_dim=512 --num_layers=6 --seq_len=512 --batch_size=4 --remat=none"
    " --compute_dtype=bfloat16",
    "--mesh=8x1x1 --hidden_dim=256 --num_layers=6 --seq_len=256 --batch_size=16 --remat=full",
    "--mesh=1x8x1 --hidden_dim=256 --num_layers=6 --seq_len=256 --batch_size=8 --remat=dots",
    "--mesh=2x2x2 --hidden_dim=256 --num_layers=6 --seq_len=256 --batch_size=8 --remat=none",
    "--mesh=1x2x2 --hidden_dim=256 --num_layers=6 --seq_len=512 --batch_size=4 --remat=none"
    " --layer_pattern=attention",
)
GPU_CASES = (
    "level1 --accum_steps=2",
    "level1 --accum_steps=2 --remat=full",
    "level1 --accum_steps=2 --batch_size=32",
    "level2 --mesh=1x1x1 --accum_steps=2 --batch_size=8",
    "level2 --mesh=1x1x1 --accum_steps=2 --batch_size=16 --remat=full",
)


@dataclass(frozen=True)
class Comparison:
    """Predicted and measured peak memory and step time of one configuration.

    Attributes:
      flags: of the configuration.
      predicted: peak memory in bytes, of one GPU or of all fake devices together.
      measured: the same, measured.
      predicted_seconds: of a step; None on the CPU, of which no peak rates are known.
      measured_seconds: of a step.
    """

    flags: str
    predicted: int
    measured: int
    predicted_seconds: float | None
    measured_seconds: float

    @property
    def memory_error(self) -> float:
        """Relative error of the predicted peak; negative where it is too small."""
        return self.predicted / self.measured - 1

    @property
    def time_error(self) -> float | None:
        """Relative error of the predicted step time, or None without a prediction."""
        if self.predicted_seconds is None:
            return None
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True)
class Prediction:
    """What a dry run says of one configuration.

    Attributes:
      peak: memory in bytes, of one GPU or of all fake devices together.
      seconds: of a step; None on the CPU.
      devices: of the mesh.
      device_kind: JAX's name of the GPU; None for the CPU.
    """

    peak: int
    seconds: float | None
    devices: int
    device_kind: str | None


def predict(flags: str, gpu: str) -> Prediction:
    """Predict one configuration, in a process of its own.

    Raises:
      ValueError: if the dry run fails.
    """
    report = dry_run([f"--gpu={gpu}", "--eval_lengths=1", *flags.split()])
    devices = report["hosts"] * report["gpus_per_host"]
    kind = None if report["gpu"] is None else report["gpu"]["device_kind"]
    # Prefetched batches are resident in a run, but the measurement has a single batch.
    peaks = [p["peak"] - p["resident"] for p in report["programs"] if p["name"] in _RUN]
    return Prediction(
        peak=max(peaks) * (devices if kind is None else 1),
        seconds=None if kind is None else report["time"]["step_seconds"],
        devices=devices,
        device_kind=kind,
    )


def measure_case(
    flags: str, gpu: str, devices: int = 1, trace: str | None = None
) -> dict[str, Any]:
    """Measure one configuration, in a process of its own; return what `measurement` writes.

    Args:
      flags: of the configuration.
      gpu: of the attached GPU; "cpu" for fake devices.
      devices: how many fake devices there are.
      trace: folder for a trace of one more step; None for none.

    Raises:
      ValueError: if the measurement fails.
    """
    words = [*flags.split(), *([f"--trace={trace}"] if trace else [])]
    return run_module(_MEASUREMENT, words, environment=_environment(gpu, devices))


def compare(flags: str, gpu: str = CPU) -> Comparison:
    """Predict and measure one configuration, each in a process of its own.

    Raises:
      ValueError: if either fails, or the attached GPU is of another kind.
    """
    predicted = predict(flags, gpu)
    measured = measure_case(flags, gpu, predicted.devices)
    if predicted.device_kind not in (None, measured["device_kind"]):
        raise ValueError(f"gpu={gpu!r}: the attached device is {measured['device_kind']!r}")
    return Comparison(
        flags=flags,
        predicted=predicted.peak,
        measured=measured["peak"],
        predicted_seconds=predicted.seconds,
        measured_seconds=measured["step_seconds"],
    )


def _environment(gpu: str, devices: int) -> dict[str, str]:
    """Return the changes to this process's environment for the one that measures."""
    if gpu != CPU:
        return {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "JAX_PLATFORMS": CPU,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        # glibc must return freed memory at once, or it counts as in use: with an arena for each
        # thread 50 MiB of it were kept.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }


def cases(gpu: str) -> list[str]:
    """Return the flags of the configurations to compare on a kind of device."""
    if gpu == CPU:
        # Smaller chunks than the default of 128, which XLA's CPU compiler lowers badly
        # (docs/log.md).
        return [f"{case} --chunk_size=64" for case in CPU_CASES]
    named = (case.partition(" ") for case in GPU_CASES)
    return [f"--config={configs_folder() / name}.yaml {flags}" for name, _, flags in named]


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Return the comparisons as a Markdown table, for docs/log.md."""
    table = Table(box=rich.box.MARKDOWN)
    table.add_column("flags", no_wrap=True)
    heads = ["predicted MiB", "measured MiB", "error", "predicted s", "measured s", "error"]
    timed = any(c.predicted_seconds is not None for c in found)
    for head in heads if timed else heads[:3]:
        table.add_column(head, justify="right")
    for c in found:
        memory = (f"{c.predicted / MIB:,.0f}", f"{c.measured / MIB:,.0f}", f"{c.memory_error:+.1%}")
        time = () if c.predicted_seconds is None else _seconds(c)
        table.add_row(c.flags, *memory, *time)
    return table


def _seconds(c: Comparison) -> tuple[str, str, str]:
    return f"{c.predicted_seconds:.3f}", f"{c.measured_seconds:.3f}", f"{c.time_error:+.1%}"


def main(argv: Sequence[str]) -> int:
    """Compare the configurations and print the table; return 0."""
    parser = Parser(prog="python -m benchmarks.dry_run_accuracy", allow_abbrev=False)
    parser.add_argument(
        "--gpu", default=CPU, choices=(CPU, *GPU_NAMES), help="kind of the attached GPU, or cpu"
    )
    gpu = parser.read(argv).gpu
    found = []
    for flags in cases(gpu):
        found.append(compare(flags, gpu))
        # Progress: a case takes up to a minute.
        sys.stderr.write(f"{flags}: {found[-1].memory_error:+.1%}\n")
    console = Console(highlight=False, markup=False, width=200)
    console.print(comparison_table(found))
    worst = max((c.memory_error for c in found), key=abs)
    console.print(f"worst error of the peak: {worst:+.1%}")
    return 0


if __name__ == "__main__":
    run_main(main)
