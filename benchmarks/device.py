"""`python -m benchmarks.device`: what this device reaches, and how well the dry run foretold it.

The device's own rates of copies and products; of a few training steps the time, the memory and the
model FLOPs utilisation beside them; and for each the dry run's prediction. Imports no JAX: every
measurement is in a process of its own. Read `measure`.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.dry_run_accuracy import Prediction, measure_case, predict
from benchmarks.figures import OURS, Figure, part_parser, report, single
from spectral_dist.command_line import run_main
from spectral_dist.flags import configs_folder
from spectral_dist.planning.hardware import CPU, GPU_NAMES, find_gpu
from spectral_dist.subprocesses import run_module

PART = "device"
MIB = 2**20
# (name, flags): what one GPU of 24 GB can hold, and what two cores can compute.
GPU_CASES = (
    ("level 1, 16 x 4 sequences", "--config={configs}/level1.yaml --accum_steps=4"),
    (
        "level 2, 8 x 4 sequences",
        "--config={configs}/level2.yaml --mesh=1x1x1 --batch_size=8 --accum_steps=4",
    ),
)
CPU_CASES = (
    (
        "256 x 6, T=512, 4 sequences",
        "--hidden_dim=256 --num_layers=6 --seq_len=512 --batch_size=4 --mesh=1x1x1",
    ),
)


def known_as(device_kind: str) -> str | None:
    """Return the dry run's name of a device, or None if it has no description of it."""
    if device_kind == CPU:
        return CPU
    return next((name for name in GPU_NAMES if find_gpu(name).device_kind == device_kind), None)


def step_figures(case: str, found: dict[str, Any], rates: dict[str, Any]) -> list[Figure]:
    """Return the figures of one configuration's steps.

    Args:
      case: name of the configuration.
      found: what `benchmarks.measurement` measured.
      rates: of the device, as `benchmarks.rates` measures them.
    """
    seconds = found["step_seconds"]
    share = 100 * found["flops"] / seconds / rates["product"]
    return [
        single(PART, case, OURS, "ms a step", [1e3 * seconds]),
        single(PART, case, OURS, "tokens/s", [found["tokens"] / seconds]),
        single(PART, case, OURS, "% MFU", [share], "of the device's own product rate"),
        single(PART, case, OURS, "MiB at the peak", [found["peak"] / MIB]),
    ]


def prediction_figures(case: str, found: dict[str, Any], predicted: Prediction) -> list[Figure]:
    """Return what the dry run predicted of one configuration, beside what was measured."""

    def one(unit: str, value: float, truth: float) -> Figure:
        note = f"{value / truth - 1:+.1%} beside the measured one"
        return single(PART, case, "dry run", unit, [value], note)

    figures = [one("MiB at the peak", predicted.peak / MIB, found["peak"] / MIB)]
    if predicted.seconds is not None:
        figures.append(one("ms a step", 1e3 * predicted.seconds, 1e3 * found["step_seconds"]))
    return figures


def measure(trace: str | None, quick: bool) -> Iterator[Figure]:
    """Measure the attached device; yield its figures.

    Args:
      trace: folder that a trace of each configuration's last step is written to; None for none.
      quick: whether one configuration is enough.
    """
    rates = run_module("benchmarks.rates", [])
    kind = rates["device_kind"]
    yield single(PART, kind, "copies", "GB/s", [rates["copy"] / 1e9], "bytes read and written")
    yield single(PART, kind, "products", "TFLOP/s", [rates["product"] / 1e12], rates["dtype"])
    gpu = known_as(kind)
    cases = CPU_CASES if kind == CPU else GPU_CASES
    for case, words in cases[:1] if quick else cases:
        flags = words.format(configs=configs_folder())
        found = measure_case(flags, gpu or kind, trace=trace)
        yield from step_figures(case, found, rates)
        predicted = _predict(flags, gpu, kind)
        if predicted is not None:
            yield from prediction_figures(case, found, predicted)


def _predict(flags: str, gpu: str | None, kind: str) -> Prediction | None:
    """Return the dry run's prediction; without one, say why: the measurement stands by itself."""
    try:
        if gpu is None:
            raise ValueError(f"the dry run has no description of {kind}")
        return predict(flags, gpu)
    except ValueError as error:
        sys.stderr.write(f"note: no prediction of {flags}: {error}\n")
        return None


def main(argv: Sequence[str]) -> int:
    """Measure this device and a few training steps, beside the dry run's predictions; return 0."""
    parser = part_parser("benchmarks.device", main.__doc__)
    parser.add_argument("--trace", metavar="FOLDER", help="write a trace of the last step there")
    flags = parser.read(argv)
    report(measure(flags.trace, flags.quick), flags.json)
    return 0


if __name__ == "__main__":
    run_main(main)
