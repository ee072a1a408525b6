"""Dry-run report: built from the compiled programs, printed as tables, and written as JSON.

Owns the order of the work (audit, compile, judge, try remedies) and the printed texts. The schema
of the JSON is in docs/formats.md. Read `build_report` first.
"""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import rich.box
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from spectral_dist.atomic_file import write_text
from spectral_dist.planning.compile import (
    INSTALL_HINT,
    Compiler,
    Program,
    compile_programs,
    described_mesh,
    find_compiler,
)
from spectral_dist.planning.hardware import Gpu
from spectral_dist.planning.hlo.collectives import Traffic, lower_bound
from spectral_dist.planning.memory import (
    GIB,
    MIB,
    Array,
    RuntimeLine,
    Verdict,
    arguments,
    audit,
    judge,
    largest_values,
    parameter_count,
    runtime_lines,
)
from spectral_dist.planning.report.curriculum import phase_json, phase_table
from spectral_dist.planning.report.links import LinkCase, link_cases, link_lines
from spectral_dist.planning.roofline import Prediction, RunCost, predict, run_cost, steps_for
from spectral_dist.planning.search.candidates import Candidate
from spectral_dist.planning.search.ranking import closest_line, ranking_table
from spectral_dist.planning.search.remedies import Remedy, try_remedies
from spectral_dist.settings import Config

FORMAT_VERSION = 1  # of the JSON
LARGEST = 10  # arrays in each list
# GPUs of a full host. A remedy may add GPUs to a single host up to this number; with several hosts
# their size is given.
FULL_HOST = 8


@dataclass(frozen=True)
class Report:
    """Everything that a dry run found out.

    Attributes:
      config: the run.
      compiler: which one made the programs.
      gpu: the described GPU; None for fake CPU devices.
      hosts: number of hosts.
      gpus_per_host: GPUs of each host.
      programs: in the order in which they were compiled.
      arguments: the largest inputs of the training step.
      values: the largest intermediate arrays of the training step.
      runtime: memory that the CUDA runtime adds.
      verdict: on the memory of one device.
      bound: lower bound on the traffic of a step on this mesh.
      prediction: of the roofline model.
      costs: of the run's steps and, if given, of a number of tokens.
      remedies: tried if it does not fit; the last one fits if any does.
      ranking: the candidates of `--mesh=auto`, the best first; empty if the mesh was given.
      command: starts the best candidate; empty if none fits.
    """

    config: Config
    compiler: Compiler
    gpu: Gpu | None
    hosts: int
    gpus_per_host: int
    programs: list[Program]
    arguments: list[Array]
    values: list[Array]
    runtime: list[RuntimeLine]
    verdict: Verdict
    bound: tuple[Traffic, ...]
    prediction: Prediction
    links: tuple[LinkCase, ...]
    costs: list[RunCost]
    remedies: list[Remedy]
    ranking: list[Candidate]
    command: str = ""


def build_report(
    config: Config,
    *,
    gpu: Gpu | None,
    gpus_per_host: int,
    usable: int | None,
    tokens: float | None = None,
    price_per_gpu_hour: float | None = None,
    programs: Iterable[Program] = (),
    ranking: Sequence[Candidate] = (),
    say: Callable[[str], None],
) -> Report:
    """Compile the programs of a run, predict its time and judge whether it fits.

    Args:
      config: the run; its data is not read.
      gpu: of each device; None for the CPU.
      gpus_per_host: GPUs of one host.
      usable: bytes of a device, in place of the table's.
      tokens: a number of tokens to predict the time for, beside the run's own steps.
      price_per_gpu_hour: in any currency.
      programs: those of the run, if they are compiled already.
      ranking: the candidates of `--mesh=auto`, if `config` is one of them.
      say: called with each line of progress.

    Raises:
      ValueError: if the mesh is invalid or the audit of its sharding fails.
    """
    usable = gpu.memory_bytes if usable is None and gpu is not None else usable
    mesh = described_mesh(gpu, config.mesh.shape, gpus_per_host, config.mesh.axes)
    hosts = mesh.size // gpus_per_host
    found = arguments(config, mesh)
    audit(found, mesh)  # before the compilations, which take a minute
    runtime = [] if gpu is None else runtime_lines(gpu, config)
    programs = list(programs) or _compile_all(config, mesh, say)  # the training step is the first
    prediction = predict(programs[0].text, config, gpu, gpus_per_host)
    lengths = [config.run.steps, *([] if tokens is None else [steps_for(prediction, tokens)])]
    verdict = judge(programs, runtime, usable)
    most = max(gpus_per_host, FULL_HOST) if hosts == 1 else gpus_per_host
    failed = verdict.fits is False and not ranking  # a search has tried more already
    remedies = try_remedies(config, gpu, usable, most, say) if failed else []
    return Report(
        config=config,
        compiler=find_compiler(gpu),
        gpu=gpu,
        hosts=hosts,
        gpus_per_host=gpus_per_host,
        programs=programs,
        arguments=found[:LARGEST],
        values=largest_values(programs[0].text, LARGEST),
        runtime=runtime,
        verdict=verdict,
        bound=lower_bound(config, gpus_per_host, parameter_count(config)),
        prediction=prediction,
        links=link_cases(programs[0].text, config, gpu, gpus_per_host),
        costs=[run_cost(prediction, n, price_per_gpu_hour) for n in lengths],
        remedies=remedies,
        ranking=list(ranking),
    )


def _compile_all(config: Config, mesh: Mesh, say: Callable[[str], None]) -> list[Program]:
    programs = []
    for program in compile_programs(config, mesh):
        programs.append(program)
        say(f"compiled {program.name} in {program.seconds:.0f} s")
    return programs


def compiler_line(report: Report) -> str:
    """Return the report's first line: the compiler, and whether its memory plan is exact."""
    compiler = report.compiler
    if compiler.kind == "cuda":
        assert report.gpu is not None
        return f"compiled for {report.gpu.device_kind} by XLA's CUDA compiler ({compiler.version})"
    if report.gpu is None:
        return f"compiled for the processor by XLA's CPU compiler ({compiler.version})"
    return (
        f"compiled by XLA's CPU compiler ({compiler.version}) in place of {report.gpu.device_kind}:"
        f" temporaries are an estimate; exact with {INSTALL_HINT}"
    )


def say(text: str) -> None:
    """Write a line of progress to stderr; a compilation may take a minute."""
    # The report must survive a closed stderr.
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def show_report(report: Report, stream: TextIO | None = None) -> None:
    """Print the report as tables and lines."""
    console = Console(file=stream, highlight=False, markup=False)
    # Rich takes 80 columns for a pipe, where the tables of arrays need more.
    if not console.is_terminal:
        console.width = 110
    console.print(compiler_line(report), soft_wrap=True)
    shape, gpu = report.config.mesh.mesh, report.gpu
    where = gpu.device_kind if gpu else "fake device"
    # soft_wrap keeps a sentence on one line, so that it can be searched with grep.
    console.print(f"mesh {shape} over {report.hosts} x {report.gpus_per_host} {where}")
    if report.config.phases:
        console.print(phase_table(report.config))
    console.print(_program_table(report.programs))
    console.print(_array_table("largest arguments of the training step", report.arguments))
    console.print(_array_table("largest values it makes", report.values))
    if report.runtime:
        console.print(_runtime_table(report.runtime))
    # A single device sends nothing: no empty tables.
    if report.prediction.traffic or report.bound:
        console.print(_traffic_table("collectives of a step, a device", report.prediction.traffic))
        console.print(_traffic_table("the least on this mesh", report.bound))
    if report.ranking:
        console.print(ranking_table(report.ranking))
    for line in time_lines(report):
        console.print(line, soft_wrap=True)
    for program in report.programs:
        for warning in program.warnings:
            console.print(f"DEFECT in {program.name}: {warning}", soft_wrap=True)
    for line in verdict_lines(report):
        console.print(line, soft_wrap=True)


def _program_table(programs: list[Program]) -> Table:
    table = Table(title="memory of a device, GiB", box=rich.box.SIMPLE, title_justify="left")
    table.add_column("program")
    for name in ("arguments", "new outputs", "temporaries", "resident beside", "peak"):
        table.add_column(name, justify="right")
    for p in programs:
        new = max(0, p.outputs - p.aliased)  # the columns add up to the peak
        sizes = (p.arguments, new, p.temporaries, p.resident, p.peak)
        table.add_row(p.name, *(f"{size / GIB:.2f}" for size in sizes))
    return table


def _array_table(title: str, arrays: list[Array]) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE, title_justify="left")
    table.add_column("MiB", justify="right")
    placed = any(a.spec for a in arrays)  # intermediate arrays have no PartitionSpec
    for name in ("name", "shape", "dtype") + (("PartitionSpec",) if placed else ()):
        table.add_column(name, overflow="fold")
    for a in arrays:
        shape = "x".join(map(str, a.shape)) or "scalar"
        row = (f"{a.bytes / MIB:.1f}", a.name, shape, a.dtype)
        table.add_row(*row, *((a.spec,) if placed else ()))
    return table


def _runtime_table(lines: list[RuntimeLine]) -> Table:
    table = Table(
        title="the runtime adds, outside the compiler's view",
        box=rich.box.SIMPLE,
        title_justify="left",
    )
    table.add_column("MiB", justify="right")
    table.add_column("what")
    table.add_column("source", overflow="fold")
    for line in lines:
        table.add_row(f"{line.bytes / MIB:.0f}", line.name, line.source)
    return table


def _traffic_table(title: str, traffic: tuple[Traffic, ...]) -> Table:
    # Found traffic and its lower bound have the same columns, so that they can be compared by eye.
    table = Table(title=title, box=rich.box.SIMPLE, title_justify="left")
    for name in ("kind", "mesh axes", "crosses hosts"):
        table.add_column(name)
    for name in ("count", "payload MiB", "sent MiB"):
        table.add_column(name, justify="right")
    for t in traffic:
        sizes = (f"{size / MIB:,.1f}" for size in (t.payload_bytes, t.moved_bytes))
        table.add_row(t.kind, t.axes, "yes" if t.crosses_hosts else "no", f"{t.count:,}", *sizes)
    return table


def time_lines(report: Report) -> list[str]:
    """Return the predicted time of a step and of the run, as lines."""
    found, step = report.prediction, report.prediction.step
    share = "" if found.mfu is None else f", MFU {found.mfu:.1%}"
    parts = (
        f"arithmetic {step.compute_seconds:.3f}, memory {step.memory_seconds:.3f},"
        f" small kernels {step.launch_seconds:.3f}, exposed communication"
        f" {step.exposed_seconds:.3f} of {step.communication_seconds:.3f}"
    )
    lines = [
        "time, a model, not a measurement (real kernels reach less than the peaks):",
        f"  step {step.seconds:.3f} s = {parts}",
        f"  {found.tokens_per_second:,.0f} tokens/s{share}",
    ]
    for cost in report.costs:
        price = "" if cost.cost is None else f", cost {cost.cost:,.2f}"
        lines.append(
            f"  {cost.steps:,} steps, {cost.tokens:,} bytes of text: {cost.hours:,.1f} h,"
            f" {cost.gpu_hours:,.1f} GPU hours{price}"
        )
    lines += [f"  {line}" for line in link_lines(report.links, report.hosts)]
    return lines + [f"  note: {note}" for note in found.notes]


def verdict_lines(report: Report) -> list[str]:
    """Return the verdict, the remedies and the command to start the run, as lines."""
    verdict = report.verdict
    peak = f"{verdict.peak / GIB:.2f} GiB ({verdict.program})"
    command = [f"start it with: {report.command}"] if report.command else []
    if verdict.usable is None or verdict.spare is None:
        return [f"peak {peak}; no limit is known", *command]
    need = f"{peak} + {verdict.runtime / GIB:.2f} GiB of runtime"
    have = f"{verdict.usable / GIB:.2f} GiB"
    if verdict.fits:
        lines = [f"FITS with {verdict.spare / GIB:.2f} GiB to spare: {need} of {have}"]
        # Without this flag JAX's pool is too small for a run that fits the GPU, and it ends in an
        # out-of-memory error.
        if verdict.fraction is not None:
            lines.append(
                "JAX takes 0.75 of the memory by itself: start with"
                f" XLA_PYTHON_CLIENT_MEM_FRACTION={verdict.fraction:.2f}"
            )
        return lines + command
    lines = [f"DOES NOT FIT, {-verdict.spare / GIB:.2f} GiB too much: {need} of {have}"]
    devices = math.prod(report.config.mesh.shape)
    for remedy in report.remedies:
        more = f", on {remedy.devices} devices" if remedy.devices != devices else ""
        found = f"{abs(remedy.spare) / GIB:.2f} GiB {'to spare' if remedy.fits else 'too much'}"
        lines.append(f"{'fits' if remedy.fits else 'tried'}: {remedy.flags}{more} ({found})")
    if report.ranking:
        return [*lines, closest_line(report.ranking)]
    # find_remedy ends at the first that fits, so without one all were tried.
    if not any(remedy.fits for remedy in report.remedies):
        lines.append("no remedy was found: fewer parameters, a shorter seq_len or larger GPUs")
    return lines


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as docs/formats.md describes it."""
    gpu = None if report.gpu is None else dataclasses.asdict(report.gpu)
    if gpu is not None:
        del gpu["target"]  # its figures are in the JSON already
    programs = []
    for program in report.programs:
        found = dataclasses.asdict(program) | {"peak": program.peak}
        del found["text"]  # megabytes of HLO
        programs.append(found)
    return {
        "format_version": FORMAT_VERSION,
        "compiler": dataclasses.asdict(report.compiler) | {"line": compiler_line(report)},
        "config": report.config.flat(),
        "gpu": gpu,
        "hosts": report.hosts,
        "gpus_per_host": report.gpus_per_host,
        "parameters": parameter_count(report.config),
        "curriculum": phase_json(report.config),
        "programs": programs,
        "arguments": [dataclasses.asdict(array) for array in report.arguments],
        "values": [dataclasses.asdict(array) for array in report.values],
        "runtime": [dataclasses.asdict(line) for line in report.runtime],
        "communication": {
            "collectives": [dataclasses.asdict(traffic) for traffic in report.prediction.traffic],
            "lower_bound": [dataclasses.asdict(traffic) for traffic in report.bound],
        },
        # Properties are no fields, so asdict leaves them out: time, peak and fits are added by
        # hand.
        "time": _time_json(report),
        "verdict": dataclasses.asdict(report.verdict),
        "remedies": [dataclasses.asdict(r) | {"fits": r.fits} for r in report.remedies],
        "ranking": [dataclasses.asdict(candidate) for candidate in report.ranking],
        "command": report.command,
    }


def _time_json(report: Report) -> dict[str, Any]:
    found, step = report.prediction, report.prediction.step
    parts = ("compute", "memory", "launch", "communication", "exposed")
    return {
        "step_seconds": step.seconds,
        **{f"{part}_seconds": getattr(step, f"{part}_seconds") for part in parts},
        "flops": dict(step.flops),
        "moved_bytes": step.moved_bytes,
        "tokens_per_second": found.tokens_per_second,
        "mfu": found.mfu,
        "links": [dataclasses.asdict(case) for case in report.links],
        "runs": [dataclasses.asdict(cost) for cost in report.costs],
        "notes": list(found.notes),
    }


def write_json(report: Report, path: str) -> None:
    """Write the report as JSON, whole or not at all.

    Raises:
      ValueError: if the file cannot be written.
    """
    try:
        write_text(Path(path), json.dumps(to_json(report), indent=2) + "\n")
    # A ValueError is one line for the user, not a traceback.
    except OSError as error:
        raise ValueError(f"json={path!r}: cannot be written: {error.strerror}") from error
