"""Dry-run report as one self-contained HTML page: no scripts, no fonts, nothing to download.

Owns which values are on the page. The template dry_run.html.jinja has their order and the text
around them, and `drawings` the bars and the mesh. Every figure is one of the report, so that page
and JSON agree. Read `draw_page` first.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from spectral_dist.atomic_file import write_text
from spectral_dist.outputs.report.render import Row, Table, bold, render
from spectral_dist.planning.compile import Program
from spectral_dist.planning.hlo.collectives import Traffic, mesh_sizes
from spectral_dist.planning.memory import GIB, MIB, Array, parameter_count
from spectral_dist.planning.report.curriculum import HEADS, phase_rows
from spectral_dist.planning.report.drawings import (
    Bar,
    Scale,
    Segment,
    count_text,
    legend,
    mesh_drawing,
    size_text,
    used_axes,
)
from spectral_dist.planning.report.links import link_rows
from spectral_dist.planning.report.text import Report, compiler_line
from spectral_dist.planning.search.candidates import Candidate

TEMPLATES = Path(__file__).parent / "templates"
# Fake devices live in one process: what they send stays in memory.
_CPU_LINK = "memory of this machine"


def write_html(report: Report, path: str) -> None:
    """Write the page, whole or not at all.

    Raises:
      ValueError: if the file cannot be written.
    """
    try:
        write_text(Path(path), draw_page(report))
    except OSError as error:
        raise ValueError(f"html={path!r}: cannot be written: {error.strerror}") from error


def draw_page(report: Report) -> str:
    """Return the page as HTML."""
    gpu = report.gpu.device_kind if report.gpu else "fake device"
    name, count = report.config.run.run_name, math.prod(report.config.mesh.shape)
    ranked, left_out = _ranking(report.ranking)
    return render(
        TEMPLATES,
        "dry_run.html.jinja",
        title=f"Dry run: {name} on {count:,} x {gpu}",
        compiler=compiler_line(report),
        verdict=_verdict(report),
        headline=_headline(report),
        defects=[f"{p.name}: {warning}" for p in report.programs for warning in p.warnings],
        curriculum=Table("the curriculum", list(HEADS), phase_rows(report.config), words=5),
        memory=_memory(report),
        remedies=_remedies(report),
        remedy_found=any(remedy.fits for remedy in report.remedies),
        mesh=_mesh(report),
        ranked=ranked,
        left_out=left_out,
        time=_time(report),
        costs=_costs(report),
        links=_links(report),
        communication=_communication(report),
        arguments=_arrays(report.arguments),
        values=_arrays(report.values),
        runtime=_runtime(report),
        figures=_figures(report),
        # All settings, defaults too, so that the page says exactly what was planned.
        settings=yaml.safe_dump(report.config.flat(), sort_keys=False, allow_unicode=True),
    )


# ---- the verdict ----


def _verdict(report: Report) -> dict[str, str]:
    """Return the verdict's kind (fits, not, unknown), its sentences, and a memory fraction to set.

    The kind is also the CSS class that colours it.
    """
    verdict = report.verdict
    if verdict.usable is None or verdict.spare is None:
        kind, head = "unknown", f"Needs {size_text(verdict.peak)}; no limit is known"
        detail = f"The {verdict.program} needs most."
    else:
        size = size_text(abs(verdict.spare))
        kind = "fits" if verdict.fits else "not"
        head = f"Fits, {size} to spare" if verdict.fits else f"Does not fit, {size} too much"
        detail = (
            f"The {verdict.program} needs {size_text(verdict.peak)}, the runtime"
            f" {size_text(verdict.runtime)}, of {size_text(verdict.usable)} that a device has."
        )
    fraction = "" if verdict.fraction is None else f"{verdict.fraction:.2f}"
    return {"kind": kind, "head": head, "detail": detail, "fraction": fraction}


def _headline(report: Report) -> list[tuple[str, str]]:
    """Return the key figures of a run, each with its label: size, time, throughput, cost."""
    time = report.prediction
    cells = [
        (count_text(parameter_count(report.config)), "parameters"),
        (f"{time.step.seconds:.3f} s", "a step, by the model"),
        (f"{time.tokens_per_second:,.0f}", "tokens per second"),
    ]
    if time.mfu is not None:  # no peak is known of a CPU
        cells.append((f"{time.mfu:.1%}", "MFU"))
    return [*cells, (f"{report.costs[0].gpu_hours:,.1f}", "GPU hours for the run")]


def _remedies(report: Report) -> Table:
    rows = [
        (
            # Markup.format escapes its arguments, so no text of a setting can become HTML.
            Markup("<code>{}</code>").format(remedy.flags),
            f"{remedy.devices:,}",
            size_text(remedy.peak),
            f"{size_text(abs(remedy.spare))} {'to spare' if remedy.fits else 'too much'}",
            bold("fits") if remedy.fits else "does not fit",
        )
        for remedy in report.remedies
    ]
    return Table("remedies that were tried", ("flags", "devices", "peak", "left", ""), rows)


# ---- memory ----


def program_segments(program: Program) -> list[Segment]:
    """Return the parts of one program's memory in bytes; their sum is its peak."""
    named = program.parameters + program.optimizer_state + program.batch
    parts = (
        # Each part keeps its colour in the bars of all programs.
        ("parameters", "c0", program.parameters),
        ("optimizer state", "c3", program.optimizer_state),
        ("batch", "c4", program.batch),
        ("other arguments", "c7", program.arguments - named),
        ("new outputs", "c2", max(0, program.outputs - program.aliased)),
        ("temporaries", "c1", program.temporaries),
        ("resident beside", "c5", program.resident),
    )
    return [Segment(name, style, size, size_text(size)) for name, style, size in parts]


def _memory(report: Report) -> dict[str, Any]:
    """Return a bar for each program on a common scale, the legend, and the same as a table."""
    # The runtime's memory is there whatever program runs: every bar ends with it.
    added = [
        Segment(line.name, "added", line.bytes, size_text(line.bytes)) for line in report.runtime
    ]
    runtime, usable = report.verdict.runtime, report.verdict.usable
    most = max(program.peak for program in report.programs) + runtime
    end = max(most, usable or 0) * 1.03  # a margin, so that the limit's line stays inside
    bars, rows, keys = [], [], []
    for program in report.programs:
        segments = program_segments(program)
        total = size_text(program.peak)
        if runtime:
            total += f" + {size_text(runtime)} of runtime"
        bars.append(Bar(program.name, total, [*segments, *added], end, usable))
        keys += [segment for segment in segments if segment.amount]
        cells = [size_text(segment.amount) for segment in segments]
        rows.append((program.name, *cells, bold(size_text(program.peak))))
    # One entry for all of the runtime; the table at the end of the page has its lines.
    hatched = [Segment("the runtime, line by line", "added", 1, "")] if added else []
    heads = ("program", *(s.name for s in program_segments(report.programs[0])), "peak")
    # One unit for all ticks. Toy models, as those of the tests, stay below a GiB.
    unit, name = (GIB, "GiB") if end >= GIB else (MIB, "MiB")
    limit = None if usable is None else usable / unit
    text = "" if usable is None else f"usable: {size_text(usable)}"
    return {
        "legend": legend([*keys, *hatched]),
        "bars": bars,
        "scale": Scale(end / unit, name, limit, text),
        "table": Table("memory of one device by program", heads, rows),
    }


def _arrays(arrays: Sequence[Array]) -> Table:
    # Inputs have a PartitionSpec, intermediate arrays do not.
    placed = any(array.spec for array in arrays)
    heads = ("name", "shape", "dtype", *(("PartitionSpec",) if placed else ()), "size")
    rows = []
    for array in arrays:
        shape = " x ".join(map(str, array.shape)) or "scalar"
        spec = [array.spec] if placed else []
        rows.append((array.name, shape, array.dtype, *spec, size_text(array.bytes)))
    return Table("largest arrays", heads, rows, words=len(heads) - 1)


def _runtime(report: Report) -> Table:
    rows = [(line.name, line.source, size_text(line.bytes)) for line in report.runtime]
    return Table("memory of the runtime", ("what", "source", "size"), rows, words=2)


# ---- devices and what they send ----


def _mesh(report: Report) -> dict[str, Any]:
    """Return the mesh in words, its drawings, and the mesh axes of size 1."""
    hosts, each, gpu = report.hosts, report.gpus_per_host, report.gpu
    inside, between = (gpu.inside.name, gpu.between.name) if gpu else (_CPU_LINK, _CPU_LINK)
    sizes = mesh_sizes(report.config)
    used = used_axes(sizes)
    return {
        "words": (
            f"{report.config.mesh.mesh} ({' x '.join(sizes)}) over {hosts:,}"
            f" host{'s' * (hosts > 1)} of {each:,} x {gpu.device_kind if gpu else 'fake device'}."
            " Devices of one colour send to each other."
        ),
        "axes": mesh_drawing(sizes, each, inside, between),
        "unused": [mesh_axis for mesh_axis in sizes if used and mesh_axis not in used],
    }


def _communication(report: Report) -> Table:
    """Return the collectives beside their lower bound on this mesh; no row if nothing is sent."""
    found = {(t.axes, t.kind): t for t in report.prediction.traffic}
    least = {(t.axes, t.kind): t for t in report.bound}
    # The union of both: the compiler may do without a collective of the bound, or add others.
    rows = [_traffic_row(found.get(key), least.get(key)) for key in dict.fromkeys((*found, *least))]
    # Without a row the template writes that the device is alone.
    if rows:
        sent = sum(t.moved_bytes for t in found.values())
        needed = sum(t.moved_bytes for t in least.values())
        ratio = f", {sent / needed:.2f}x the least" if needed else ""
        whole = bold("all") + ratio
        rows.append((whole, *[""] * 4, bold(size_text(sent)), "", size_text(needed)))
    heads = (
        *("collective", "mesh axes", "crosses hosts", "count", "payload", "sent"),
        *("least: count", "least: sent"),
    )
    return Table("collectives of one step and the lower bound", heads, rows, words=3)


def _traffic_row(found: Traffic | None, least: Traffic | None) -> Row:
    # Mesh axes and kind are the key of both; whether it crosses hosts follows from the mesh axes.
    known = found or least
    assert known is not None, "a row is of what was found or of the least"
    # "-" where one side has no such collective: a 0 would claim that it was measured.
    both = [
        ("-", "-", "-")
        if t is None
        else (f"{t.count:,}", size_text(t.payload_bytes), size_text(t.moved_bytes))
        for t in (found, least)
    ]
    crosses = "yes" if known.crosses_hosts else "no"
    return known.kind, known.axes, crosses, *both[0], both[1][0], both[1][2]


# ---- time ----


def _time(report: Report) -> dict[str, Any]:
    """Return the bar of one step, its legend, the same as a table, and the model's notes."""
    # Hidden communication is no part of the bar, because it runs beside kernels: the parts add up
    # to the step. The table has it below.
    step = report.prediction.step
    parts = (
        ("arithmetic", "c0", step.compute_seconds),
        ("memory", "c1", step.memory_seconds),
        ("small kernels", "c4", step.launch_seconds),
        ("exposed communication", "c3", step.exposed_seconds),
    )
    segments = [Segment(name, style, t, f"{t:.3f} s") for name, style, t in parts]
    rows: list[Row] = [(s.name, s.text, f"{s.amount / step.seconds:.1%}") for s in segments]
    rows.append((bold("step"), bold(f"{step.seconds:.3f} s"), "100.0%"))
    rows.append(("communication, hidden and exposed", f"{step.communication_seconds:.3f} s", ""))
    rate = f"{report.prediction.tokens_per_second:,.0f} tokens per second"
    return {
        "legend": legend([s for s in segments if s.amount]),
        "bar": Bar("one step", f"{step.seconds:.3f} s, {rate}", segments, step.seconds),
        "table": Table("parts of one step", ("part", "time", "share"), rows),
        "notes": report.prediction.notes,
    }


def _links(report: Report) -> Table:
    """Return how the step depends on the links; no row for a single device."""
    between = ("between hosts",) if report.hosts > 1 else ()
    heads = ("inside a host", *between, "step", "tokens per second", "share")
    return Table("the step by the rates of the links", heads, link_rows(report.links, report.hosts))


def _costs(report: Report) -> Table:
    # No column of costs without --price_per_gpu_hour.
    priced = any(cost.cost is not None for cost in report.costs)
    heads = ("run", "steps", "bytes of text", "hours", "GPU hours", *(("cost",) if priced else ()))
    # As build_report orders them.
    names = ("its own steps", "the amount of text asked for")
    rows = []
    for name, cost in zip(names, report.costs, strict=False):  # the second needs --tokens
        cells = (f"{cost.steps:,}", f"{cost.tokens:,}", f"{cost.hours:,.1f}")
        price = () if cost.cost is None else (f"{cost.cost:,.2f}",)
        rows.append((name, *cells, f"{cost.gpu_hours:,.1f}", *price))
    return Table("cost of a run", heads, rows)


def _ranking(candidates: Sequence[Candidate]) -> tuple[Table, Table]:
    """Return a table of the ranked candidates, and one of those left out with their reason."""
    kept = [candidate for candidate in candidates if not candidate.reason]
    out = [candidate for candidate in candidates if candidate.reason]
    # The longest bar is the fastest candidate's; 1 where none is ranked, as _speed divides by it.
    best = max((c.tokens_per_second or 0.0 for c in kept), default=0.0) or 1.0
    heads = ("mesh", "remat", "unroll", "batch_size", "accum_steps", "peak", "to spare", "step")
    ranked = [(f"{rank}", *_cells(c), _speed(c, best)) for rank, c in enumerate(kept, start=1)]
    # The reason comes second, beside the mesh: it is what a reader looks for in this table.
    left_out = [(c.mesh, c.reason, *_cells(c)[1:]) for c in out]
    return (
        Table("ranking", ("rank", *heads, "tokens per second"), ranked, words=4),
        Table(
            "candidates that were left out",
            (heads[0], "why it was left out", *heads[1:]),
            left_out,
            words=4,
        ),
    )


def _cells(c: Candidate) -> Row:
    return (
        c.mesh,
        c.remat,
        c.unroll,
        f"{c.batch_size:,}",
        f"{c.accum_steps:,}",
        "-" if c.peak is None else size_text(c.peak),
        "-" if c.spare is None else size_text(c.spare),
        "-" if c.step_seconds is None else f"{c.step_seconds:.3f} s",
    )


def _speed(candidate: Candidate, best: float) -> str:
    """Return the predicted throughput, and a bar below it for its share of the best."""
    rate = candidate.tokens_per_second
    if rate is None:
        return "-"
    # The width is a number that we formatted: nothing of it can break out of the attribute.
    cell = Markup('{:,.0f}<i class="rate" style="width:{:.2f}%"></i>')
    return cell.format(rate, 100 * rate / best)


# ---- what it was made from ----


def _figures(report: Report) -> Table:
    heads, gpu = ("figure", "source", "value"), report.gpu
    if gpu is None:
        return Table("figures of the GPU", heads, [], words=2)
    shown = (
        ("usable memory", size_text(gpu.memory_bytes), "device_memory_size"),
        ("memory bandwidth", _rate(gpu.memory_bandwidth), "memory_bandwidth"),
        ("bfloat16, dense", f"{gpu.bfloat16 / 1e12:,.0f} TFLOP/s", "peak"),
        (f"inside a host: {gpu.inside.name}", _rate(gpu.inside.bytes_per_second), "inside"),
        (f"between hosts: {gpu.between.name}", _rate(gpu.between.bytes_per_second), "between"),
    )
    # The third of each is the figure's name among the GPU's sources.
    rows = [(name, gpu.sources.get(source, ""), value) for name, value, source in shown]
    return Table("figures of the GPU", heads, rows, words=2)


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:,.1f} GB/s"
