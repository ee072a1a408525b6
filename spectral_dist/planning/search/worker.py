"""Compiles one candidate of `--mesh=auto`, in a process of its own that `workers` starts.

Owns what is compiled for a request and what is told of it. Read `answer`.
"""

import dataclasses
import itertools
import sys
from typing import Any

from spectral_dist.planning.compile import compile_programs, described_mesh
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.memory import arguments, audit
from spectral_dist.planning.roofline import predict
from spectral_dist.planning.search.workers import Outcome
from spectral_dist.settings import from_flat, resolve
from spectral_dist.subprocesses import read_request, say

_ENDLESS = 2**50


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile as asked; return the outcome and, if all programs were asked for, these.

    Args:
      request: `config` (flat), `gpu` (name or null), `per_host`, `unlimited` (whether the memory
        is to have no end), and `whole`: all programs of the run, or the training step alone. Of
        all, the text is kept of the first.

    Raises:
      ValueError: if it cannot be compiled.
    """
    config = resolve(from_flat(request["config"]))
    gpu = None if request["gpu"] is None else find_gpu(request["gpu"])
    if gpu is not None and request["unlimited"]:
        memory = f"device_memory_size: {gpu.memory_bytes}"
        assert memory in gpu.target, "the target says how much memory the device has"
        endless = gpu.target.replace(memory, f"device_memory_size: {_ENDLESS}")
        gpu = dataclasses.replace(gpu, target=endless)
    mesh = described_mesh(gpu, config.mesh.shape, request["per_host"])
    audit(arguments(config, mesh), mesh)
    programs = []
    for program in itertools.islice(
        compile_programs(config, mesh), None if request["whole"] else 1
    ):
        programs.append(dataclasses.replace(program, text="") if programs else program)
    found = predict(programs[0].text, config, gpu, request["per_host"])
    outcome = Outcome(
        peak=max(program.peak for program in programs),
        kernel_seconds=found.step.kernel_seconds,
        communication_seconds=found.step.communication_seconds,
        exposed_seconds=found.step.exposed_seconds,
        tokens_per_second=found.tokens_per_second,
    )
    kept = programs if request["whole"] else []
    return {
        "outcome": dataclasses.asdict(outcome),
        "programs": [dataclasses.asdict(program) for program in kept],
    }


def main() -> int:
    """Answer one request; return the exit code."""
    try:
        found = answer(read_request())
    except ValueError as error:
        found = {"error": " ".join(str(error).split())}
    say(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
