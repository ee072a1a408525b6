"""A training step in a process of its own, run when it is asked to.

Its libraries, threads and memory meet no other's; between two requests it waits for the next one
and computes nothing. The two ends speak lines of JSON over pipes. Read `StepProcess`; the other
end is `main`, started as `python -m benchmarks.peers.process`.
"""

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import OURS
from benchmarks.peers import PEERS, Shape, Step
from spectral_dist.command_line import run_main

# To build a model, compile its step and take it.
BUILD_SECONDS = 240.0


@dataclass(frozen=True)
class Sample:
    """One step as measured.

    Attributes:
      wall: seconds that passed.
      processor: seconds of all its threads together.
      loss: in nats a token, before the step's update.
    """

    wall: float
    processor: float
    loss: float


class StepProcess:
    """A process that holds one model and takes a step when asked.

    Use it as a context manager: leaving the block ends the process.
    """

    def __init__(self, name: str, shape: Shape, words: Sequence[str] = ()) -> None:
        """Start it, build the model and take one step, which compiles.

        Args:
          name: "ours", or of a peer.
          shape: of the comparison.
          words: flags of our own step.

        Raises:
          ValueError: with the last line that the process wrote to stderr, if it fails; or if it
            takes longer than BUILD_SECONDS.
        """
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Libraries would draw progress bars, and look for newer weights on the network.
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
            cwd=Path(__file__).parents[2],
        )
        try:
            request = {"name": name, "shape": asdict(shape), "words": list(words)}
            self.parameters: int = self._ask(request, BUILD_SECONDS)["parameters"]
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> "StepProcess":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process; what it has on its mind is lost."""
        self._end()

    def step(self) -> Sample:
        """Take one step, on the same tokens as every other process of the same shape."""
        return Sample(**self._ask({}))

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that was not read
                    pipe.close()

    def _ask(self, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        stdin, stdout, stderr = (
            self._process.stdin,
            self._process.stdout,
            self._process.stderr,
        )
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            if not select.select([stdout], [], [], seconds)[0]:
                raise ValueError(f"{self.name}: its first step takes more than {seconds:.0f} s")
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            lines = [line for line in stderr.read().splitlines() if line.strip()]
            reason = lines[-1] if lines else f"ended with code {self._process.wait()}"
            raise ValueError(f"{self.name}: {reason.removeprefix('error: ')}")
        return json.loads(answer)


def _build(request: dict[str, Any]) -> tuple[int, Step, Shape]:
    shape = Shape(**request["shape"])
    if request["name"] == OURS:
        from benchmarks.peers import ours

        return *ours.make_step(shape, request["words"]), shape
    module = importlib.import_module(PEERS[request["name"]][0])
    return *module.make_step(shape), shape


def main(argv: Sequence[str]) -> int:
    """Read requests from stdin and answer each with a line, until stdin ends; return 0."""
    del argv
    # Libraries may print: what they write to stdout goes to stderr, the answers alone go out.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    parameters, step, shape = _build(json.loads(sys.stdin.readline()))
    size = (shape.batch_size, shape.seq_len + 1)
    tokens = np.random.default_rng(0).integers(32, 127, size, np.uint8)
    step(tokens)
    answer({"parameters": parameters})
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        loss = step(tokens)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        answer(asdict(Sample(wall, processor, loss)))
    return 0


if __name__ == "__main__":
    run_main(main)
