"""The report of a dry run: built from the compiled programs, printed, and written as JSON.

Owns the order of the work (audit, compile, judge, look for a remedy) and the words. The schema of
the JSON is in docs/formats.md. Read `build_report` first.
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.table import Table

from spectral_dist.config import Config
from spectral_dist.planning.compile import (
    INSTALL_HINT,
    Compiler,
    Program,
    compile_programs,
    described_mesh,
    find_compiler,
)
from spectral_dist.planning.hardware import CPU, Gpu, find_gpu
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
    runtime_lines,
)
from spectral_dist.planning.remedies import Remedy, find_remedy

FORMAT_VERSION = 1
LARGEST = 10


@dataclass(frozen=True)
class Report:
    """All that a dry run found.

    Attributes:
      config: what was asked for.
      compiler: which one made the programs.
      gpu: the described GPU; None for the processor.
      hosts: how many.
      gpus_per_host: on each.
      programs: in the order in which they were compiled.
      arguments: the largest of the training step.
      values: the largest that the training step makes.
      runtime: what the runtime adds.
      verdict: on the memory of one device.
      remedies: tried where it does not fit, the last one fits if any does.
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
    remedies: list[Remedy]


def build_report(
    config: Config,
    *,
    gpu_name: str,
    gpus_per_host: int,
    usable: int | None,
    say: Callable[[str], None],
) -> Report:
    """Compile the programs of a run and judge them.

    Args:
      config: the run; its data is not read.
      gpu_name: a GPU of the table, or "cpu".
      gpus_per_host: GPUs of one host.
      usable: bytes of a device, in place of the table's.
      say: told what is compiled, as it is.

    Raises:
      ValueError: if the mesh cannot be made, or the audit of the arguments fails.
    """
    gpu = None if gpu_name == CPU else find_gpu(gpu_name)
    if usable is None and gpu is not None:
        usable = gpu.memory_bytes
    mesh = described_mesh(gpu, config.mesh.shape, gpus_per_host)
    found = arguments(config, mesh)
    audit(found, mesh)
    runtime = [] if gpu is None else runtime_lines(gpu, config, mesh)
    programs = []
    for program in compile_programs(config, mesh):
        programs.append(program)
        say(f"compiled {program.name} in {program.seconds:.0f} s")
    verdict = judge(programs, runtime, usable)
    remedies = []
    if verdict.fits is False:
        try_one = _trial(gpu, usable, gpus_per_host)
        for remedy in find_remedy(config, try_one, max(gpus_per_host, 8)):
            remedies.append(remedy)
            say(f"tried {remedy.flags}: {'fits' if remedy.fits else 'does not fit'}")
    return Report(
        config=config,
        compiler=find_compiler(gpu),
        gpu=gpu,
        hosts=math.prod(config.mesh.shape) // gpus_per_host,
        gpus_per_host=gpus_per_host,
        programs=programs,
        arguments=found[:LARGEST],
        values=largest_values(programs[0].text, LARGEST),
        runtime=runtime,
        verdict=verdict,
        remedies=remedies,
    )


def _trial(
    gpu: Gpu | None, usable: int | None, gpus_per_host: int
) -> Callable[[Config], tuple[int, int]]:
    """Return a function that compiles a changed configuration until one program does not fit."""

    def try_one(config: Config) -> tuple[int, int]:
        assert usable is not None, "a remedy is looked for where there is a limit"
        count = math.prod(config.mesh.shape)
        mesh = described_mesh(gpu, config.mesh.shape, min(count, max(gpus_per_host, 8)))
        added = sum(line.bytes for line in runtime_lines(gpu, config, mesh)) if gpu else 0
        peak = sum(array.bytes for array in arguments(config, mesh))
        if peak + added <= usable:  # else nothing needs to be compiled
            for program in compile_programs(config, mesh):
                peak = max(peak, program.peak)
                if peak + added > usable:
                    break
        return peak, usable - added - peak

    return try_one


def compiler_line(report: Report) -> str:
    """Return the report's first line: which compiler made it, and how far that is exact."""
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
    """Tell on stderr how far the work is; a compilation may take a minute."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def show_report(report: Report, stream: TextIO | None = None) -> None:
    """Print the report."""
    console = Console(file=stream, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 110
    console.print(compiler_line(report), soft_wrap=True)
    shape, gpu = report.config.mesh.mesh, report.gpu
    where = gpu.device_kind if gpu else "fake device"
    console.print(f"mesh {shape} over {report.hosts} x {report.gpus_per_host} {where}")
    console.print(_program_table(report.programs))
    console.print(_array_table("largest arguments of the training step", report.arguments))
    console.print(_array_table("largest values it makes", report.values))
    if report.runtime:
        console.print(_runtime_table(report.runtime))
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
        new = max(0, p.outputs - p.aliased)
        sizes = (p.arguments, new, p.temporaries, p.resident, p.peak)
        table.add_row(p.name, *(f"{size / GIB:.2f}" for size in sizes))
    return table


def _array_table(title: str, arrays: list[Array]) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE, title_justify="left")
    table.add_column("MiB", justify="right")
    for name in ("name", "shape", "dtype", "PartitionSpec"):
        table.add_column(name, overflow="fold")
    for a in arrays:
        shape = "x".join(map(str, a.shape)) or "scalar"
        table.add_row(f"{a.bytes / MIB:.1f}", a.name, shape, a.dtype, a.spec)
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


def verdict_lines(report: Report) -> list[str]:
    """Return the verdict and what follows from it, one thing a line."""
    verdict = report.verdict
    peak = f"{verdict.peak / GIB:.2f} GiB ({verdict.program})"
    if verdict.usable is None or verdict.spare is None:
        return [f"peak {peak}; no limit is known"]
    need = f"{peak} + {verdict.runtime / GIB:.2f} GiB of runtime"
    have = f"{verdict.usable / GIB:.2f} GiB"
    if verdict.fits:
        lines = [f"FITS with {verdict.spare / GIB:.2f} GiB to spare: {need} of {have}"]
        if verdict.fraction is not None:
            lines.append(
                "JAX takes 0.75 of the memory by itself: start with"
                f" XLA_PYTHON_CLIENT_MEM_FRACTION={verdict.fraction:.2f}"
            )
        return lines
    lines = [f"DOES NOT FIT, {-verdict.spare / GIB:.2f} GiB too much: {need} of {have}"]
    devices = math.prod(report.config.mesh.shape)
    for remedy in report.remedies:
        more = f", on {remedy.devices} devices" if remedy.devices != devices else ""
        found = f"{abs(remedy.spare) / GIB:.2f} GiB {'to spare' if remedy.fits else 'too much'}"
        lines.append(f"{'fits' if remedy.fits else 'tried'}: {remedy.flags}{more} ({found})")
    if not any(remedy.fits for remedy in report.remedies):
        lines.append("no remedy was found: fewer parameters, a shorter seq_len or larger GPUs")
    return lines


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as docs/formats.md describes it."""
    gpu = None if report.gpu is None else dataclasses.asdict(report.gpu)
    if gpu is not None:
        del gpu["target"]
    programs = []
    for program in report.programs:
        found = dataclasses.asdict(program) | {"peak": program.peak}
        del found["text"]
        programs.append(found)
    return {
        "format_version": FORMAT_VERSION,
        "compiler": dataclasses.asdict(report.compiler) | {"line": compiler_line(report)},
        "config": report.config.flat(),
        "gpu": gpu,
        "hosts": report.hosts,
        "gpus_per_host": report.gpus_per_host,
        "programs": programs,
        "arguments": [dataclasses.asdict(array) for array in report.arguments],
        "values": [dataclasses.asdict(array) for array in report.values],
        "runtime": [dataclasses.asdict(line) for line in report.runtime],
        "verdict": dataclasses.asdict(report.verdict),
        "remedies": [dataclasses.asdict(r) | {"fits": r.fits} for r in report.remedies],
    }


def write_json(report: Report, path: str) -> None:
    """Write the report as JSON, whole or not at all.

    Raises:
      ValueError: if the file cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(to_json(report), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise ValueError(f"json={path!r}: cannot be written: {error.strerror}") from error
