"""The dry run's report as one HTML page that needs nothing from elsewhere.

Owns what is on the page and in which order; how a bar or the mesh is drawn is in `drawings`. Every
figure is one of the report's, as its JSON holds it. Read `draw_page` first.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from spectral_dist.outputs.html_page import (
    Row,
    draw_frame,
    draw_table,
    write_page,
)
from spectral_dist.planning.compile import Program
from spectral_dist.planning.hlo.collectives import Traffic, mesh_sizes
from spectral_dist.planning.memory import GIB, MIB, Array, parameter_count
from spectral_dist.planning.report import drawings
from spectral_dist.planning.report.drawings import (
    Segment,
    count_text,
    draw_bar,
    draw_legend,
    draw_mesh,
    draw_scale,
    size_text,
)
from spectral_dist.planning.report.text import Report, compiler_line
from spectral_dist.planning.search.search import Candidate

_CPU_LINK = "memory of this machine"


def write_html(report: Report, path: str) -> None:
    """Write the page, whole or not at all.

    Raises:
      ValueError: if the file cannot be written.
    """
    try:
        write_page(Path(path), draw_page(report))
    except OSError as error:
        raise ValueError(f"html={path!r}: cannot be written: {error.strerror}") from error


def draw_page(report: Report) -> str:
    """Return the whole page."""
    gpu = report.gpu.device_kind if report.gpu else "fake device"
    name, count = report.config.run.run_name, math.prod(report.config.mesh.shape)
    title = f"Dry run: {name} on {count:,} x {gpu}"
    body = (
        f'<p class="muted">{html.escape(compiler_line(report))}</p>',
        _verdict(report),
        _defects(report),
        _section("Memory of one device", _memory(report)),
        _section("What to change", _remedies(report) if report.remedies else ""),
        _section("The mesh", _mesh(report)),
        _section("Ways to run it, ranked by modelled speed", _ranking(report.ranking)),
        _section("Time of one step, a model and not a measurement", _time(report)),
        _section("What a run costs, start-up and evaluation left out", _costs(report)),
        _section("Communication of one step, for each device", _communication(report)),
        _section("Ten largest arguments of the training step", _arrays(report.arguments)),
        _section("Ten largest values that it makes, not all alive at once", _arrays(report.values)),
        _section("What the runtime adds, outside the compiler's view", _runtime(report)),
        _section("Figures of the GPU", _figures(report)),
        _section("Settings", _settings(report)),
    )
    return draw_frame(title, drawings.STYLE + STYLE, "\n".join(part for part in body if part))


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{content}</section>" if content else ""


# ---- the verdict ----


def _verdict(report: Report) -> str:
    verdict = report.verdict
    if verdict.usable is None or verdict.spare is None:
        kind, head = "unknown", f"Needs {size_text(verdict.peak)}; no limit is known"
        detail = f"The {verdict.program} needs most."
    else:
        kind, sign = ("fits", "&#10003; ") if verdict.fits else ("not", "&#10007; ")
        spare = size_text(abs(verdict.spare))
        head = (
            f"{sign}Fits, {spare} to spare"
            if verdict.fits
            else f"{sign}Does not fit, {spare} too much"
        )
        detail = (
            f"The {verdict.program} needs {size_text(verdict.peak)}, the runtime"
            f" {size_text(verdict.runtime)}, of {size_text(verdict.usable)} that a device has."
        )
    hint = ""
    if verdict.fraction is not None:
        hint = (
            "<p>JAX takes 0.75 of the memory by itself: start with"
            f" <code>XLA_PYTHON_CLIENT_MEM_FRACTION={verdict.fraction:.2f}</code></p>"
        )
    time = report.prediction
    cells = [
        (count_text(parameter_count(report.config)), "parameters"),
        (f"{time.step.seconds:.3f} s", "a step, by the model"),
        (f"{time.tokens_per_second:,.0f}", "tokens per second"),
    ]
    if time.mfu is not None:
        cells.append((f"{time.mfu:.1%}", "MFU"))
    cells.append((f"{report.costs[0].gpu_hours:,.1f}", "GPU hours for the run"))
    figures = "".join(f"<div><b>{value}</b><span>{label}</span></div>" for value, label in cells)
    return (
        f'<div class="verdict {kind}"><p class="big">{head}</p>'
        f"<p>{html.escape(detail)}</p>{hint}</div>"
        f'<div class="headline">{figures}</div>'
    )


def _defects(report: Report) -> str:
    found = [f"{p.name}: {warning}" for p in report.programs for warning in p.warnings]
    items = "".join(f"<li>{html.escape(text)}</li>" for text in found)
    if not items:
        return ""
    return f'<div class="verdict not"><p class="big">Defects</p><ul>{items}</ul></div>'


def _remedies(report: Report) -> str:
    rows = [
        (
            f"<code>{html.escape(remedy.flags)}</code>",
            f"{remedy.devices:,}",
            size_text(remedy.peak),
            f"{size_text(abs(remedy.spare))} {'to spare' if remedy.fits else 'too much'}",
            "<b>fits</b>" if remedy.fits else "does not fit",
        )
        for remedy in report.remedies
    ]
    told = "Tried by compiling them, the cheapest first; add the flags of the one that fits."
    if not any(remedy.fits for remedy in report.remedies):
        told = "None was found: fewer parameters, a shorter seq_len or larger GPUs."
    heads = ("flags", "devices", "peak", "left", "")
    return f'<p class="muted">{told}</p>{draw_table(heads, rows, 1, "remedies that were tried")}'


# ---- memory ----


def program_segments(program: Program) -> list[Segment]:
    """Return the parts of one program's memory, in bytes; together they are its peak."""
    named = program.parameters + program.optimizer_state + program.batch
    parts = (
        ("parameters", "c0", program.parameters),
        ("optimizer state", "c3", program.optimizer_state),
        ("batch", "c4", program.batch),
        ("other arguments", "c7", program.arguments - named),
        ("new outputs", "c2", max(0, program.outputs - program.aliased)),
        ("temporaries", "c1", program.temporaries),
        ("resident beside", "c5", program.resident),
    )
    return [Segment(name, style, size, size_text(size)) for name, style, size in parts]


def _memory(report: Report) -> str:
    added = [
        Segment(line.name, "added", line.bytes, size_text(line.bytes)) for line in report.runtime
    ]
    runtime, usable = report.verdict.runtime, report.verdict.usable
    most = max(program.peak for program in report.programs) + runtime
    end = max(most, usable or 0) * 1.03
    bars, rows, keys = [], [], []
    for program in report.programs:
        segments = program_segments(program)
        total = f"{size_text(program.peak)}"
        if runtime:
            total += f" + {size_text(runtime)} of runtime"
        bars.append(draw_bar(program.name, total, [*segments, *added], end, usable))
        keys += [segment for segment in segments if segment.amount]
        cells = [size_text(segment.amount) for segment in segments]
        rows.append((html.escape(program.name), *cells, f"<b>{size_text(program.peak)}</b>"))
    heads = ("program", *(s.name for s in program_segments(report.programs[0])), "peak")
    hatched = [Segment("the runtime, line by line", "added", 1, "")] if added else []
    unit, name = (GIB, "GiB") if end >= GIB else (MIB, "MiB")
    limit = None if usable is None else usable / unit
    text = "" if usable is None else f"usable: {size_text(usable)}"
    return (
        f'{draw_legend([*keys, *hatched])}<div class="bars">{"".join(bars)}'
        f"{draw_scale(end / unit, name, limit, text)}</div>"
        f"{draw_table(heads, rows, 1, 'memory of one device by program')}"
    )


def _arrays(arrays: Sequence[Array]) -> str:
    placed = any(array.spec for array in arrays)
    heads = ("name", "shape", "dtype", *(("PartitionSpec",) if placed else ()), "size")
    rows = []
    for array in arrays:
        shape = " x ".join(map(str, array.shape)) or "scalar"
        cells = [array.name, shape, array.dtype, *([array.spec] if placed else [])]
        rows.append((*map(html.escape, cells), size_text(array.bytes)))
    return draw_table(heads, rows, len(heads) - 1, "largest arrays") if rows else ""


def _runtime(report: Report) -> str:
    rows = [
        (html.escape(line.name), html.escape(line.source), size_text(line.bytes))
        for line in report.runtime
    ]
    heads = ("what", "source", "size")
    return draw_table(heads, rows, 2, "memory of the runtime") if rows else ""


# ---- devices and what they send ----


def _mesh(report: Report) -> str:
    hosts, each = report.hosts, report.gpus_per_host
    gpu = report.gpu
    inside, between = (gpu.inside.name, gpu.between.name) if gpu else (_CPU_LINK, _CPU_LINK)
    told = (
        f"{report.config.mesh.mesh} (data x fsdp x tensor) over {hosts:,} host{'s' * (hosts > 1)}"
        f" of {each:,} x {gpu.device_kind if gpu else 'fake device'}."
        " Devices of one colour send to each other."
    )
    drawn = draw_mesh(mesh_sizes(report.config), each, inside, between)
    return f"<p>{html.escape(told)}</p>{drawn}"


def _communication(report: Report) -> str:
    found = {(t.axes, t.kind): t for t in report.prediction.traffic}
    least = {(t.axes, t.kind): t for t in report.bound}
    if not found and not least:
        return "<p>None: the device is alone.</p>"
    rows = [_traffic_row(found.get(key), least.get(key)) for key in dict.fromkeys((*found, *least))]
    sent = sum(t.moved_bytes for t in found.values())
    needed = sum(t.moved_bytes for t in least.values())
    ratio = f", {sent / needed:.2f}x the least" if needed else ""
    total = (f"<b>all</b>{ratio}", *[""] * 4, f"<b>{size_text(sent)}</b>", "", size_text(needed))
    heads = (
        *("collective", "mesh axes", "crosses hosts", "count", "payload", "sent"),
        *("least: count", "least: sent"),
    )
    return (
        '<p class="muted">From the compiled program, loops counted by their length; beside it the'
        " lower bound of this mesh for this way of training.</p>"
        + draw_table(heads, [*rows, total], 3, "collectives of one step and the lower bound")
    )


def _traffic_row(found: Traffic | None, least: Traffic | None) -> Row:
    known = found or least
    assert known is not None
    both = [
        ("-", "-", "-")
        if t is None
        else (f"{t.count:,}", size_text(t.payload_bytes), size_text(t.moved_bytes))
        for t in (found, least)
    ]
    crosses = "yes" if known.crosses_hosts else "no"
    return (
        html.escape(known.kind),
        html.escape(known.axes),
        crosses,
        *both[0],
        both[1][0],
        both[1][2],
    )


# ---- time ----


def _time(report: Report) -> str:
    step = report.prediction.step
    parts = (
        ("arithmetic", "c0", step.compute_seconds),
        ("memory", "c1", step.memory_seconds),
        ("small kernels", "c4", step.launch_seconds),
        ("exposed communication", "c3", step.exposed_seconds),
    )
    segments = [Segment(name, style, t, f"{t:.3f} s") for name, style, t in parts]
    rows = [(s.name, s.text, f"{s.amount / step.seconds:.1%}") for s in segments]
    hidden = step.communication_seconds
    rows.append(("<b>step</b>", f"<b>{step.seconds:.3f} s</b>", "100.0%"))
    rows.append(("communication, hidden and exposed", f"{hidden:.3f} s", ""))
    rate = f"{report.prediction.tokens_per_second:,.0f} tokens per second"
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.prediction.notes)
    return (
        '<p class="muted">A roofline of the compiled program: each kernel takes the longest of its'
        " arithmetic and its bytes at the peaks of the device; real kernels reach less.</p>"
        f'{draw_legend([s for s in segments if s.amount])}<div class="bars">'
        f"{draw_bar('one step', f'{step.seconds:.3f} s, {rate}', segments, step.seconds)}</div>"
        f"{draw_table(('part', 'time', 'share'), rows, 1, 'parts of one step')}"
        + (f"<ul>{notes}</ul>" if notes else "")
    )


def _costs(report: Report) -> str:
    priced = any(cost.cost is not None for cost in report.costs)
    heads = ("run", "steps", "bytes of text", "hours", "GPU hours", *(("cost",) if priced else ()))
    names = ("its own steps", "the amount of text asked for")
    rows = []
    for name, cost in zip(names, report.costs, strict=False):
        cells = (f"{cost.steps:,}", f"{cost.tokens:,}", f"{cost.hours:,.1f}")
        price = () if cost.cost is None else (f"{cost.cost:,.2f}",)
        rows.append((name, *cells, f"{cost.gpu_hours:,.1f}", *price))
    return draw_table(heads, rows, 1, "cost of a run")


def _ranking(candidates: Sequence[Candidate]) -> str:
    kept = [candidate for candidate in candidates if not candidate.reason]
    out = [candidate for candidate in candidates if candidate.reason]
    if not candidates:
        return ""
    best = max((c.tokens_per_second or 0.0 for c in kept), default=0.0) or 1.0
    heads = ("place", "mesh", "remat", "batch_size", "accum_steps", "peak", "to spare", "step")
    rows = [
        (f"{place}", *_candidate_cells(c), _speed(c, best)) for place, c in enumerate(kept, start=1)
    ]
    ranked = draw_table((*heads, "tokens per second"), rows, 3, "ranking") if rows else ""
    if not out:
        return ranked
    rejected = [(html.escape(c.mesh), html.escape(c.reason), *_candidate_cells(c)[1:]) for c in out]
    left = ("mesh", "why it was left out", *heads[2:])
    return (
        f"{ranked}<details{' open' * (not kept)}><summary>{len(out):,} left out</summary>"
        f"{draw_table(left, rejected, 3, 'candidates that were left out')}</details>"
    )


def _candidate_cells(c: Candidate) -> Row:
    return (
        html.escape(c.mesh),
        html.escape(c.remat),
        f"{c.batch_size:,}",
        f"{c.accum_steps:,}",
        "-" if c.peak is None else size_text(c.peak),
        "-" if c.spare is None else size_text(c.spare),
        "-" if c.step_seconds is None else f"{c.step_seconds:.3f} s",
    )


def _speed(candidate: Candidate, best: float) -> str:
    rate = candidate.tokens_per_second
    if rate is None:
        return "-"
    return f'{rate:,.0f}<i class="rate" style="width:{100 * rate / best:.2f}%"></i>'


# ---- what it was made from ----


def _figures(report: Report) -> str:
    gpu = report.gpu
    if gpu is None:
        return ""
    shown = (
        ("usable memory", size_text(gpu.memory_bytes), "device_memory_size"),
        ("memory bandwidth", _rate(gpu.memory_bandwidth), "memory_bandwidth"),
        ("bfloat16, dense", f"{gpu.bfloat16 / 1e12:,.0f} TFLOP/s", "peak"),
        (f"inside a host: {gpu.inside.name}", _rate(gpu.inside.bytes_per_second), "inside"),
        (f"between hosts: {gpu.between.name}", _rate(gpu.between.bytes_per_second), "between"),
    )
    rows = [
        (html.escape(name), html.escape(gpu.sources.get(source, "")), value)
        for name, value, source in shown
    ]
    return draw_table(("figure", "source", "value"), rows, 2, "figures of the GPU")


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:,.1f} GB/s"


def _settings(report: Report) -> str:
    text = yaml.safe_dump(report.config.flat(), sort_keys=False, allow_unicode=True)
    return f'<pre tabindex="0">{html.escape(text)}</pre>'


STYLE = (
    ":root{--good:#0b7a3b;--bad:#b3261e}"
    "@media(prefers-color-scheme:dark){:root{--good:#4ccb84;--bad:#ff8a80}}"
    ".verdict{border-left:5px solid var(--axis);padding:2px 0 2px 16px;margin:20px 0}"
    ".verdict p{margin:3px 0}.verdict .big{font-size:25px;font-weight:600;line-height:1.25}"
    ".fits{border-color:var(--good)}.fits .big{color:var(--good)}"
    ".not{border-color:var(--bad)}.not .big{color:var(--bad)}"
    "h2{font-size:17px}code{font-size:13px;overflow-wrap:anywhere}"
    "tbody tr:last-child>*{border-bottom:0}"
    ".rate{display:block;height:3px;margin-left:auto;background:var(--c0)}"
    "summary{cursor:pointer;margin:12px 0 4px}"
    "pre{columns:3 250px;margin:0}"
    "@page{margin:12mm}@media print{:root{--bg:#fff}body{font-size:11px}main{max-width:none;"
    "padding:0}.scroll,pre{overflow:visible}section{margin-top:20px}h2{break-after:avoid}"
    ".bar,.host,figure,tr{break-inside:avoid}th,td{font-size:10px;padding:3px 10px 3px 0}"
    "thead th,th.w{white-space:normal}pre{font-size:10px;white-space:pre-wrap}}"
)
