"""Roofline model: the predicted time of a compiled training step, its throughput and its cost.

Owns the rates that the model needs and what follows from a step's seconds: tokens, hours, cost.
Knows no figure of any GPU. Read `step_time` for the rules, `predict` for use. All of this is a
model, not a measurement:

1. A kernel takes the longest of: its FLOPs at the device's peak for their type, its bytes at the
   peak of the memory bandwidth, and the launch time. Kernels run one after another.
2. A collective takes the bytes of its ring at the bandwidth of its slowest link, and a latency.
3. Collectives run one after another, in parallel to the kernels. Where the schedule waits for one
   that is not done, the rest of it is exposed: it adds to the step.
4. The step is the sum of its kernels and of the exposed communication. Data, checkpoints and the
   host are assumed to keep up.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spectral_dist.model.flops import flops_per_token
from spectral_dist.planning.hardware import Gpu
from spectral_dist.planning.hlo.collectives import (
    Collective,
    Traffic,
    find_collectives,
    mesh_sizes,
    summarise,
)
from spectral_dist.planning.hlo.costs import Flops, flops, is_kernel, moved_bytes, uncounted_calls
from spectral_dist.planning.hlo.parse import (
    Computation,
    HloProgram,
    Instruction,
    parse,
    runs,
    unknown_loops,
)
from spectral_dist.settings import Config
from spectral_dist.training.metrics import mfu
from spectral_dist.training.state import model_spec

# Assumed of every GPU: the time from one kernel to the next in a stream, and the latency of a ring.
# Steps of toy models (width 32) are launches and little else, so their predictions mean nothing.
_KERNEL_SECONDS = 2e-6
_COLLECTIVE_SECONDS = 20e-6
# How a target description names them.
_UNITS = re.compile(r"(fpus_per_core|clock_rate_ghz): ([\d.]+)")


@dataclass(frozen=True)
class Rates:
    """Peak rates of a device: FLOP/s, memory bandwidth and network bandwidth.

    Attributes:
      flops: dense FLOP/s by type of the operands, as `costs.flops` names them. Must have "f32",
        which also stands for each type that is missing.
      memory: bytes/s to and from device memory.
      inside: bytes/s that it sends to another device of its host.
      between: bytes/s that its host sends to other hosts.
      kernel_seconds: launch time, the least of any kernel.
      collective_seconds: latency of a collective.
    """

    flops: Mapping[str, float]
    memory: float
    inside: float
    between: float
    kernel_seconds: float = _KERNEL_SECONDS
    collective_seconds: float = _COLLECTIVE_SECONDS


# Round figures of no particular CPU: they compare programs for fake devices and predict nothing.
CPU_RATES = Rates({"f32": 50e9}, memory=5e9, inside=5e9, between=1e9)


def rates_of(gpu: Gpu | None) -> Rates:
    """Return the peak rates of a GPU by its specification, or of fake devices if None."""
    if gpu is None:
        return CPU_RATES
    units = {name: float(value) for name, value in _UNITS.findall(gpu.target)}
    # Exact float32 has no tensor cores: it runs on the FPUs, one fused multiply-add a cycle each.
    exact = 2 * gpu.cores * units["fpus_per_core"] * units["clock_rate_ghz"] * 1e9
    return Rates(
        {"bf16": gpu.bfloat16, "f16": gpu.bfloat16, "tf32": gpu.float32, "f32": exact},
        memory=gpu.memory_bandwidth,
        inside=gpu.inside.bytes_per_second,
        between=gpu.between.bytes_per_second,
    )


@dataclass(frozen=True)
class StepTime:
    """Predicted time of one run of a program on one device, by what bounds it.

    Attributes:
      compute_seconds: of the compute-bound kernels.
      memory_seconds: of the memory-bound kernels.
      launch_seconds: of the kernels that are shorter than a launch.
      communication_seconds: of all collectives, hidden or exposed.
      exposed_seconds: communication that does not overlap with kernels.
      flops: by type of the operands.
      moved_bytes: to and from memory.
      kernels: how many run.
    """

    compute_seconds: float = 0.0
    memory_seconds: float = 0.0
    launch_seconds: float = 0.0
    communication_seconds: float = 0.0
    exposed_seconds: float = 0.0
    flops: Flops = field(default_factory=Counter)
    moved_bytes: int = 0
    kernels: int = 0

    @property
    def kernel_seconds(self) -> float:
        """Time of all kernels."""
        return self.compute_seconds + self.memory_seconds + self.launch_seconds

    @property
    def seconds(self) -> float:
        """Time of the step: kernels and exposed communication."""
        return self.kernel_seconds + self.exposed_seconds

    def plus(self, other: "StepTime", times: int = 1) -> "StepTime":
        """Return the sum of this time and a number of times another."""
        return StepTime(
            self.compute_seconds + times * other.compute_seconds,
            self.memory_seconds + times * other.memory_seconds,
            self.launch_seconds + times * other.launch_seconds,
            self.communication_seconds + times * other.communication_seconds,
            self.exposed_seconds + times * other.exposed_seconds,
            self.flops + Counter({kind: times * n for kind, n in other.flops.items()}),
            self.moved_bytes + times * other.moved_bytes,
            self.kernels + times * other.kernels,
        )


def step_time(program: HloProgram, collectives: Sequence[Collective], rates: Rates) -> StepTime:
    """Return the predicted time of one run of a program on a device, by the rules at the top.

    Args:
      program: the program of one device, in the order of its schedule.
      collectives: those of the program.
      rates: of the device.
    """
    seconds = {c.name: collective_seconds(c, rates) for c in collectives}
    known: dict[str, StepTime] = {}

    # A loop's body is simulated once and multiplied by its trip count. A -start and its -done lie
    # in the same computation, so no collective is in flight when a body ends.
    def of(computation: Computation) -> StepTime:
        if computation.name not in known:
            known[computation.name] = _simulate(computation)
        return known[computation.name]

    def _simulate(computation: Computation) -> StepTime:
        total = StepTime()
        done_at: dict[str, float] = {}  # end of each collective started here, on total's clock
        link_free = 0.0  # end of the last one: they share a link, so the next one queues
        for instruction in computation.instructions.values():
            names, times = runs(instruction)
            for name in names:
                total = total.plus(of(program.computations[name]), times)
            if is_kernel(instruction):
                total = total.plus(kernel_time(program, computation, instruction, rates))
            if instruction.name in seconds:
                took = seconds[instruction.name]
                link_free = max(link_free, total.seconds) + took
                done_at[instruction.name] = link_free
                total = total.plus(StepTime(communication_seconds=took))
            # A synchronous collective is waited for at once, an asynchronous one at its "-done".
            waited_for = [instruction.name] if not instruction.opcode.endswith("-start") else []
            if instruction.opcode.endswith("-done"):
                waited_for = list(instruction.operands)
            late = max((done_at.get(name, 0.0) for name in waited_for), default=0.0)
            if late > total.seconds:
                total = total.plus(StepTime(exposed_seconds=late - total.seconds))
        return total

    return of(program.entry)


def kernel_time(
    program: HloProgram, computation: Computation, instruction: Instruction, rates: Rates
) -> StepTime:
    """Return the time of one kernel, attributed to what bounds it: compute, memory or launch."""
    work = flops(program, computation, instruction)
    moved = moved_bytes(program, computation, instruction)
    # A real kernel reaches less than a peak, so the prediction is early. One that finds operands in
    # the L2 cache moves fewer bytes than counted, so a memory-bound one may be late.
    compute = sum(n / rates.flops.get(kind, rates.flops["f32"]) for kind, n in work.items())
    memory = moved / rates.memory
    # They overlap inside a kernel: the slowest decides, not the sum.
    longest = max(compute, memory, rates.kernel_seconds)
    binds = {"compute_seconds": 0.0, "memory_seconds": 0.0, "launch_seconds": 0.0}
    if longest == rates.kernel_seconds:
        binds["launch_seconds"] = longest
    else:
        binds["compute_seconds" if compute >= memory else "memory_seconds"] = longest
    return StepTime(**binds, flops=work, moved_bytes=moved, kernels=1)


def collective_seconds(collective: Collective, rates: Rates) -> float:
    """Return the time of one collective that runs alone; 0 for a group of one device."""
    if collective.group_size == 1:
        return 0.0
    link = rates.inside
    if collective.crosses_hosts:
        # The rings that leave a host at the same time share its network.
        link = min(link, rates.between / collective.rings_per_host)
    return collective.moved_bytes / link + rates.collective_seconds


@dataclass(frozen=True)
class Prediction:
    """Predicted step time, throughput and MFU of a training run.

    Attributes:
      step: the parts of a step.
      traffic: collectives of a step, for each device.
      tokens_per_second: over all devices.
      mfu: model FLOPs utilisation in [0, 1], or None for fake devices.
      tokens_per_step: over all devices.
      devices: number of devices.
      notes: what the model could not count, for the reader of the report.
    """

    step: StepTime
    traffic: tuple[Traffic, ...]
    tokens_per_second: float
    mfu: float | None
    tokens_per_step: int
    devices: int
    notes: tuple[str, ...]


def predict(text: str, config: Config, gpu: Gpu | None, devices_per_host: int) -> Prediction:
    """Return the predicted step time, throughput and MFU of a compiled training step.

    Args:
      text: the optimized HLO of the training step.
      config: of the run.
      gpu: what it was compiled for; None for fake CPU devices.
      devices_per_host: devices of a host, one after another in the mesh.

    Raises:
      ValueError: if the text is no compiled program of this mesh.
    """
    program = parse(text)
    collectives = find_collectives(program, mesh_sizes(config), devices_per_host)
    step = step_time(program, collectives, rates_of(gpu))
    data, devices = config.data, math.prod(config.mesh.shape)
    tokens = data.step_tokens
    rate = tokens / step.seconds  # every device runs this same program, so one stands for all
    used = None
    if gpu is not None:
        per_token = flops_per_token(model_spec(config), data.seq_len)
        # The run's own formula. What activation checkpointing recomputes is no model FLOP.
        used = mfu(rate, per_token, gpu.device_kind, devices, config.model.compute_dtype)
    notes = [f"loop {name} counts once: its length is unknown" for name in unknown_loops(program)]
    notes += [f"FLOPs of {name} are not counted" for name in uncounted_calls(program)]
    return Prediction(step, summarise(collectives), rate, used, tokens, devices, tuple(notes))


@dataclass(frozen=True)
class RunCost:
    """Predicted hours, GPU hours and price of a number of training steps.

    Attributes:
      steps: number of steps.
      tokens: in these steps.
      hours: wall-clock time.
      gpu_hours: hours of all devices together.
      cost: in the currency of the price; None without one.
    """

    steps: int
    tokens: int
    hours: float
    gpu_hours: float
    cost: float | None


def run_cost(
    prediction: Prediction, steps: int, price_per_gpu_hour: float | None = None
) -> RunCost:
    """Return the cost of a number of steps, without start-up and evaluation."""
    hours = steps * prediction.step.seconds / 3600
    # Only training steps: checkpoints cost 0.1% at the default interval (docs/log.md).
    gpu_hours = hours * prediction.devices
    cost = None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour
    return RunCost(steps, steps * prediction.tokens_per_step, hours, gpu_hours, cost)


def steps_for(prediction: Prediction, tokens: float) -> int:
    """Return the steps that a number of tokens takes, the last batch being full."""
    return math.ceil(tokens / prediction.tokens_per_step)
