"""Worker process of `--mesh=auto`: compiles one candidate and answers with peak memory and time.

Owns what is compiled for a request, and the answer. `workers` starts it. Read `answer`.
"""

import dataclasses
import itertools
import sys
from typing import Any

from spectral_dist.planning.compile import compile_programs, described_mesh
from spectral_dist.planning.hardware import find_gpu, with_links
from spectral_dist.planning.memory import arguments, audit
from spectral_dist.planning.roofline import predict
from spectral_dist.planning.search.workers import Outcome
from spectral_dist.settings import from_flat, resolve
from spectral_dist.subprocesses import read_request, say

_UNLIMITED_BYTES = 2**50  # device memory of a reference: more than any program needs


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Compile a candidate; return its outcome and, if `whole` is true, its programs.

    Args:
      request: `config` (flat), `gpu` (name or null), `links` (their rates), `per_host`,
        `unlimited` (whether to assume unlimited device memory) and `whole` (all programs of the
        run, or the training step alone).

    Raises:
      ValueError: if it cannot be compiled.
    """
    config = resolve(from_flat(request["config"]))
    gpu = None
    if request["gpu"] is not None:
        gpu = with_links(find_gpu(request["gpu"]), *request["links"])
    if gpu is not None and request["unlimited"]:
        # The target description is where XLA reads the memory that it may schedule for.
        memory = f"device_memory_size: {gpu.memory_bytes}"
        assert memory in gpu.target, "the target says how much memory the device has"
        unlimited = gpu.target.replace(memory, f"device_memory_size: {_UNLIMITED_BYTES}")
        gpu = dataclasses.replace(gpu, target=unlimited)
    mesh = described_mesh(gpu, config.mesh.shape, request["per_host"], config.mesh.axes)
    audit(arguments(config, mesh), mesh)
    programs = []
    for program in itertools.islice(
        compile_programs(config, mesh), None if request["whole"] else 1
    ):
        # The roofline model needs the text of the first, the training step; others may be
        # megabytes.
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
    # A rule or the compiler says no: an answer, and cached. Anything else ends the process, and the
    # parent takes that for chance.
    except ValueError as error:
        found = {"error": " ".join(str(error).split())}
    say(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
