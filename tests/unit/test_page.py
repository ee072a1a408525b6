"""The dry run's page: its figures are those of the JSON, and a real browser draws them so."""

import dataclasses
import html
import json
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spectral_dist import atomic_file
from spectral_dist.flags import load_config
from spectral_dist.outputs.report.render import Table, environment
from spectral_dist.planning.compile import Compiler, Program
from spectral_dist.planning.hardware import find_gpu
from spectral_dist.planning.hlo.collectives import Traffic
from spectral_dist.planning.memory import GIB, MIB, Array, RuntimeLine, judge
from spectral_dist.planning.report.drawings import (
    MOST_GPUS,
    Bar,
    Scale,
    Segment,
    count_text,
    mesh_drawing,
    size_text,
)
from spectral_dist.planning.report.links import LinkCase
from spectral_dist.planning.report.page import TEMPLATES, draw_page, program_segments, write_html
from spectral_dist.planning.report.text import Report, to_json
from spectral_dist.planning.roofline import Prediction, StepTime, run_cost
from spectral_dist.planning.search.candidates import Candidate
from spectral_dist.planning.search.remedies import Remedy

HOSTILE = "<script>alert('x')</script>&\""


def a_report(
    mesh: str = "4x8x1", usable: int | None = 22 * GIB, flags: Sequence[str] = (), **changes: Any
) -> Report:
    config = load_config([f"--mesh={mesh}", "--batch_size=256", "--hidden_dim=1024", *flags])
    sizes = config.mesh.shape
    devices = sizes[0] * sizes[1] * sizes[2]
    step = Program(
        *("train step", 3 * GIB, 3 * GIB + 800, 3 * GIB, 5 * GIB + 7, 4096),
        *("", 1.0, (), GIB - 10, 2 * GIB - 20, 8),
    )
    programs = [step, Program("restore", 0, 3 * GIB, 0, 0, 0, "", 0.0, ())]
    runtime = [
        RuntimeLine("CUDA context and kernels", 512 * MIB, "assumed"),
        RuntimeLine("NCCL buffers", 128 * MIB, "documented"),
    ]
    found = (
        Traffic("all-gather", "fsdp", 1412, 36 * GIB, 31.5 * GIB, False),
        Traffic("all-reduce", "data", 14, GIB, 1.5 * GIB, True),
    )
    least = (
        Traffic("all-gather", "fsdp", 8, 36 * GIB, 30 * GIB, False),
        Traffic("reduce-scatter", "fsdp", 4, 18 * GIB, 3 * GIB, False),
    )
    time = Prediction(StepTime(2.5, 5.0, 0.1, 3.0, 2.4), found, 52_428.8, 0.193, 524_288, 32, ())
    report = Report(
        config=config,
        compiler=Compiler("cuda", True, "jax 0.0"),
        gpu=find_gpu("l4"),
        hosts=max(1, devices // 8),
        gpus_per_host=min(8, devices),
        programs=programs,
        arguments=[Array("state/params/w", (16, 2048), "float32", "P(None, fsdp)", 176 * MIB)],
        values=[Array("while/body", (2, 4), "bf16", "", 64 * MIB)],
        runtime=runtime,
        verdict=judge(programs, runtime, usable),
        bound=least,
        prediction=time,
        costs=[run_cost(time, 1000, 0.8), run_cost(time, 190_735, 0.8)],
        links=(LinkCase(31.5e9, 12.5e9, 8.0, 4e6), LinkCase(15.75e9, 12.5e9, 10.0, 3.2e6)),
        remedies=[],
        ranking=[],
    )
    return dataclasses.replace(report, **changes)


def ranking() -> list[Candidate]:
    return [
        Candidate("4x8x1", 64, 4, "full", "all", 8 * GIB, 13 * GIB, 10.0, 52_000.0, ""),
        Candidate("2x16x1", 64, 4, "dots", "none", 7 * GIB, 14 * GIB, 20.0, 26_000.0, ""),
        Candidate(
            "32x1x1",
            32,
            8,
            "full",
            "none",
            None,
            None,
            None,
            None,
            "the state <alone> is too large",
        ),
    ]


class Page(HTMLParser):
    """What a page is made of; fails where its tags do not close in order."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def bars(self) -> list[list[float]]:
        """The amounts of the segments of each bar, in its order."""
        found: list[list[float]] = []
        for _, attributes in self.tags:
            if attributes.get("class") == "bar":
                found.append([])
            elif "data-amount" in attributes:
                found[-1].append(float(attributes["data-amount"] or ""))
        return found


# ---- the page against the JSON ----


def test_bars_are_the_bytes_and_seconds_of_the_json() -> None:
    report = a_report()
    wanted = to_json(report)
    *programs, time = Page(draw_page(report)).bars()
    added = [line["bytes"] for line in wanted["runtime"]]
    for bar, program in zip(programs, wanted["programs"], strict=True):
        assert bar[-len(added) :] == added
        assert sum(bar[: -len(added)]) == program["peak"]
    parts = [wanted["programs"][0][name] for name in ("parameters", "optimizer_state", "batch")]
    assert programs[0][:3] == parts
    assert programs[0][3] == 3 * GIB - sum(parts)  # arguments of no other name
    names = ("compute_seconds", "memory_seconds", "launch_seconds", "exposed_seconds")
    assert time == [wanted["time"][name] for name in names]
    assert sum(time) == pytest.approx(wanted["time"]["step_seconds"])


def test_tables_hold_the_figures_of_the_json() -> None:
    report = a_report(ranking=ranking(), remedies=[Remedy("--remat=full", 32, 9 * GIB, GIB)])
    page, wanted = Page(draw_page(report)), to_json(report)
    rows = {row[0]: row for row in page.rows}
    step, v = wanted["programs"][0], wanted["verdict"]
    assert rows["train step"][-1] == size_text(step["peak"]) == "8.00 GiB"
    assert rows["train step"][6] == size_text(step["temporaries"])
    text = "".join(page.words)
    assert f"Fits, {size_text(v['spare'])} to spare" in text
    assert f"{wanted['time']['step_seconds']:.3f} s" in text
    assert f"{wanted['time']['tokens_per_second']:,.0f}" in text
    assert f"{wanted['parameters'] / 1e6:.1f}Mparameters" in text
    array = wanted["arguments"][0]
    assert rows[array["name"]] == [
        *(array["name"], "16 x 2048", "float32", "P(None, fsdp)", "176.0 MiB")
    ]
    assert rows["NCCL buffers"] == ["NCCL buffers", "documented", "128.0 MiB"]
    runs = wanted["time"]["runs"]
    assert rows["its own steps"][1:] == [
        *("1,000", f"{runs[0]['tokens']:,}", f"{runs[0]['hours']:,.1f}"),
        *(f"{runs[0]['gpu_hours']:,.1f}", f"{runs[0]['cost']:,.2f}"),
    ]
    assert rows["--remat=full"] == ["--remat=full", "32", "9.00 GiB", "1.00 GiB to spare", "fits"]
    assert rows["15.8 GB/s"][1:] == ["12.5 GB/s", "10.000 s", "3,200,000", "80%"]
    assert wanted["time"]["links"][1]["tokens_per_second"] == 3.2e6
    first, second = (rows[place] for place in "12")
    assert first[1:] == [
        *("4x8x1", "full", "all", "64", "4", "8.00 GiB", "13.00 GiB", "10.000 s", "52,000")
    ]
    assert second[1] == "2x16x1"
    assert rows["32x1x1"][:2] == ["32x1x1", "the state <alone> is too large"]


def test_communication_stands_beside_the_lower_bound() -> None:
    rows = Page(draw_page(a_report())).rows
    found = {
        tuple(row[:2]): row[2:] for row in rows if row[0].startswith("all-") or "sca" in row[0]
    }
    assert found["all-gather", "fsdp"] == [
        *("no", "1,412", "36.00 GiB", "31.50 GiB", "8", "30.00 GiB")
    ]
    assert found["all-reduce", "data"] == ["yes", "14", "1.00 GiB", "1.50 GiB", "-", "-"]
    assert found["reduce-scatter", "fsdp"] == ["no", "-", "-", "-", "4", "3.00 GiB"]
    (total,) = (row for row in rows if row[0].startswith("all,"))
    assert total == ["all, 1.00x the least", "", "", "", "", "33.00 GiB", "", "33.00 GiB"]


def test_it_says_where_it_does_not_fit_and_where_no_limit_is_known() -> None:
    tight = a_report(usable=4 * GIB, remedies=[Remedy("--remat=full", 32, 5 * GIB, -GIB)])
    words = "".join(Page(draw_page(tight)).words)
    assert "Does not fit, 4.63 GiB too much" in words
    assert "None was found" in words
    fake = a_report(usable=None, gpu=None, runtime=[], compiler=Compiler("cpu", True, "jax 0.0"))
    words = "".join(Page(draw_page(fake)).words)
    assert "Needs 8.00 GiB; no limit is known" in words
    page = draw_page(a_report(usable=9 * GIB))
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.90" in page


def test_warnings_of_the_compiler_are_shown() -> None:
    report = a_report()
    warned = dataclasses.replace(report.programs[0], warnings=("Involuntary <full> one",))
    words = Page(draw_page(dataclasses.replace(report, programs=[warned]))).words
    assert "train step: Involuntary <full> one" in words
    assert "Defects" not in Page(draw_page(report)).words


# ---- safety and form ----


def test_every_text_is_escaped() -> None:
    array = Array(HOSTILE, (1,), HOSTILE, HOSTILE, 1)
    config = dataclasses.replace(
        a_report().config,
        run=dataclasses.replace(a_report().config.run, run_name=HOSTILE.replace("/", "")),
    )
    program = Program(HOSTILE, 8, 0, 0, 1, 0, "", 0.0, (HOSTILE,))
    time = dataclasses.replace(a_report().prediction, notes=(HOSTILE,))
    line = RuntimeLine(HOSTILE, 1, HOSTILE)
    report = a_report(
        config=config,
        compiler=Compiler("cuda", True, HOSTILE),
        programs=[program],
        arguments=[array],
        values=[array],
        runtime=[line],
        verdict=judge([program], [line], 10),
        bound=(Traffic(HOSTILE, HOSTILE, 1, 1, 1, False),),
        prediction=time,
        remedies=[Remedy(HOSTILE, 1, 1, 1)],
        ranking=[
            Candidate(HOSTILE, 1, 1, HOSTILE, HOSTILE, 1, 1, 1.0, 1.0, reason)
            for reason in ("", "x")
        ],
    )
    page = draw_page(report)
    assert "<script" not in page
    assert HOSTILE not in page
    assert not any(tag == "script" or "onclick" in a for tag, a in Page(page).tags)
    assert "".join(Page(page).words).count(HOSTILE) >= 15


def test_it_needs_nothing_from_elsewhere() -> None:
    page = draw_page(a_report(ranking=ranking()))
    for word in ("http:", "https:", "<script", "<link", "<img", "src=", "@import", "url("):
        assert word not in page


def test_drawings_have_words_and_tables_have_heads() -> None:
    page = Page(draw_page(a_report(ranking=ranking())))
    drawn = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(drawn) == 2 + 1 + 2  # programs, time, mesh axes
    assert all(len(a["aria-label"] or "") > 20 for a in drawn)
    assert "temporaries 5.00 GiB" in (drawn[0]["aria-label"] or "")
    regions = [a for _, a in page.tags if a.get("role") == "region"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert all(a["scope"] in ("col", "row") for tag, a in page.tags if tag == "th")
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_sizes_and_counts_are_short() -> None:
    sizes = (0, 812, 8.75 * 1024, 644 * MIB, 1023 * MIB, GIB, 2000 * GIB)
    assert [size_text(size) for size in sizes] == [
        *("0", "812 B", "8.8 KiB", "644.0 MiB", "1,023.0 MiB", "1.00 GiB", "2,000.00 GiB")
    ]
    assert [count_text(n) for n in (12, 4_700_000, 301e6, 999.7e6, 2.44e9)] == [
        *("12", "4.7M", "301M", "1000M", "2.44B")
    ]


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_html(a_report(), str(path))
    assert path.read_text(encoding="utf-8") == draw_page(a_report())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "replace", full)
    with pytest.raises(ValueError, match=r"html='.*': cannot be written: No space left on device"):
        write_html(a_report(usable=None), str(path))
    assert path.read_text(encoding="utf-8") == draw_page(a_report())
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# ---- the drawings ----


def draw(macro: str, *values: object) -> str:
    """What a macro of the drawings makes of values."""
    return getattr(environment(TEMPLATES).get_template("drawings.html.jinja").module, macro)(
        *values
    )


def draw_mesh(data: int, fsdp: int, tensor: int, per_host: int, inside: str = "PCIe") -> str:
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    unused = [axis for axis, size in shape.items() if size == 1]
    return draw("mesh", mesh_drawing(shape, per_host, inside, "Ethernet"), unused)


def cells(drawing: str) -> list[list[tuple[str, str]]]:
    """The GPUs of each host of the first figure: colour and number."""
    figure = drawing[: drawing.index("</figure>")]
    hosts = figure.split('class="host"')[1:]
    return [re.findall(r'<i class="(\w+)">(\d+)</i>', host) for host in hosts]


def test_the_mesh_shows_what_each_axis_spans() -> None:
    drawn = draw_mesh(4, 8, 1, 8)
    hosts = cells(drawn)
    assert [[n for _, n in host] for host in hosts] == [
        [str(8 * h + g) for g in range(8)] for h in range(4)
    ]
    # data joins the same place of every host: one colour down the hosts, eight across.
    assert all([c for c, _ in host] == [f"c{g}" for g in range(8)] for host in hosts)
    assert "8 groups of 4 GPUs, across 4 hosts (Ethernet)" in drawn
    fsdp = cells(drawn[drawn.index("</figure>") + 9 :])
    assert [{c for c, _ in host} for host in fsdp] == [{"c0"}, {"c1"}, {"c2"}, {"c3"}]
    assert "4 groups of 8 GPUs, inside a host (PCIe)" in drawn
    assert "GPUs 0, 8, 16, 24 are the first group" in drawn
    assert "tensor: 1, not used" in drawn


def test_one_device_and_very_many() -> None:
    one = draw_mesh(1, 1, 1, 1)
    assert cells(one) == [[("c0", "0")]]
    many = draw_mesh(128, 8, 1, 8)
    assert sum(map(len, cells(many))) == MOST_GPUS
    assert "and 512 GPUs more" in many
    # Of the 128 groups of fsdp only as many are coloured as there are colours.
    fsdp = cells(many[many.index("</figure>") + 9 :])
    assert [host[0][0] for host in fsdp[:10]] == [*(f"c{i}" for i in range(8)), "plain", "plain"]
    assert "The first 8 groups are coloured" in many
    row = draw_mesh(1, 1024, 1, 1024, "NVLink")
    assert "and 512 GPUs more" in row


def test_a_bar_without_parts_and_a_limit_near_the_left() -> None:
    bar = draw("bar", Bar("nothing", "0", [Segment("a", "c0", 0, "0")], 1.0))
    assert "<i " not in bar
    assert "nothing, 0: nothing" in bar
    assert 'class="left" style="left:10.000%"' in draw("scale", Scale(10.0, "GiB", 1.0, "usable"))
    assert 'class="right" style="right:10.000%"' in draw("scale", Scale(10.0, "GiB", 9.0, "usable"))


def test_parts_of_a_program_are_its_peak() -> None:
    for program in a_report().programs:
        assert sum(part.amount for part in program_segments(program)) == program.peak


def test_a_table_of_another_width_is_refused() -> None:
    with pytest.raises(AssertionError, match="wrong: ragged rows"):
        Table("wrong", ("a", "b"), [("1", "2", "3")])


# ---- in a real browser ----

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars
    --enable-logging=stderr"""
# A frame of any width: the browser's own window has a least width.
MEASURE = """<!doctype html><body style="margin:0"><pre id="out"></pre><script>
const frame = document.createElement('iframe');
frame.style = 'width:WIDTHpx;height:600px;border:0';
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const bars = [...page.querySelectorAll('.bar')].map(bar => ({
    width: bar.getBoundingClientRect().width,
    parts: [...bar.querySelectorAll('[data-amount]')].map(
      part => [Number(part.dataset.amount), part.getBoundingClientRect().width]),
    line: [...bar.querySelectorAll('u')].map(
      line => line.getBoundingClientRect().left - bar.getBoundingClientRect().left),
  }));
  const small = [...page.querySelectorAll('.host i')].map(c => c.getBoundingClientRect().width);
  document.getElementById('out').textContent = JSON.stringify(
    {wide: root.scrollWidth, view: root.clientWidth, bars: bars, smallest: Math.min(...small)});
};
frame.srcdoc = PAGE;
document.body.append(frame);
</script>"""


def browse(folder: Path, text: str, *flags: str) -> tuple[str, list[str]]:
    """Open a page; return what the browser prints, and what its console complains of."""
    if BROWSER is None:
        if os.environ.get("SPECTRAL_TESTS_NEED_CHROMIUM"):
            pytest.fail("Chromium is missing, and .ci/run installs it")
        pytest.skip("needs Chromium: apt-get install chromium")
    (folder / "page.html").write_text(text, encoding="utf-8")
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *flags]
    done = subprocess.run(
        [*command, (folder / "page.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measure(folder: Path, page: str, width: int) -> dict[str, Any]:
    quoted = json.dumps(page).replace("</", "<\\/")
    text = MEASURE.replace("WIDTH", str(width)).replace("PAGE", quoted)
    printed, complaints = browse(folder, text, "--dump-dom", "--virtual-time-budget=5000")
    assert complaints == []
    found = re.search(r'<pre id="out">(.*?)</pre>', printed, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("width", [400, 1400])
def test_bars_are_drawn_in_proportion_and_nothing_overflows(tmp_path: Path, width: int) -> None:
    usable = 22 * GIB
    remedies = [Remedy("--mesh=1x8x1 --batch_size=8 --accum_steps=16 --remat=full", 8, GIB, GIB)]
    report = a_report(ranking=ranking(), remedies=remedies)
    found = measure(tmp_path, draw_page(report), width)
    assert found["wide"] <= found["view"] == width
    *programs, time = found["bars"]
    scale = 1.03 * usable
    for bar in programs:
        for amount, drawn in bar["parts"]:
            assert drawn == pytest.approx(bar["width"] * amount / scale, abs=0.05)
        assert bar["line"][0] == pytest.approx(bar["width"] * usable / scale, abs=0.05)
    assert sum(drawn for _, drawn in time["parts"]) == pytest.approx(time["width"], abs=0.2)
    assert found["smallest"] >= 18  # a number of two digits is readable in it


@pytest.mark.parametrize("mesh", ["1x1x1", "32x8x1", "2x2x2"])
def test_no_mesh_overflows_a_narrow_screen(tmp_path: Path, mesh: str) -> None:
    found = measure(tmp_path, draw_page(a_report(mesh, usable=4 * GIB)), 400)
    assert found["wide"] <= found["view"] == 400


def test_the_browser_would_complain(tmp_path: Path) -> None:
    _, complaints = browse(tmp_path, "<script>console.error('no')</script>", "--dump-dom")
    assert len(complaints) == 1


def first_pixel(path: Path) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Width and height of a PNG, and its first pixel, which no filter of the format changes."""
    data = path.read_bytes()
    size = struct.unpack(">II", data[16:24])
    start, packed = 8, b""
    while start < len(data):
        (length,) = struct.unpack(">I", data[start : start + 4])
        if data[start + 4 : start + 8] == b"IDAT":
            packed += data[start + 8 : start + 8 + length]
        start += 12 + length
    return (size[0], size[1]), tuple(zlib.decompressobj().decompress(packed, 64)[1:4])


@pytest.mark.parametrize(
    ("scheme", "ground"), [("1", (0xFC, 0xFC, 0xFB)), ("0", (0x19, 0x19, 0x18))]
)
def test_the_picture_is_light_or_dark_as_asked(
    tmp_path: Path, scheme: str, ground: tuple[int, ...]
) -> None:
    picture = tmp_path / "page.png"
    _, complaints = browse(
        tmp_path,
        draw_page(a_report(ranking=ranking())),
        *(f"--screenshot={picture}", "--window-size=1280,2000"),
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    assert complaints == []
    assert first_pixel(picture) == ((1280, 2000), ground)
    assert picture.stat().st_size > 50_000  # drawn, and not one colour


def test_a_curriculum_is_on_the_page_and_in_the_json(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "steps: 30\ndatasets: [{name: tr, paths: [a.txt]}, {name: en, paths: [b.txt]}]\n"
        "phases: [{steps: 10, weights: {tr: 1}}, {steps: 20, weights: {tr: 1, en: 3}, ramp: 4}]\n"
    )
    report = a_report(flags=["--config", str(file)])
    (first, second) = to_json(report)["curriculum"]
    assert first["share of each dataset, and its billion tokens"].startswith("tr 100.0% (")
    assert second["steps"] == "11 to 30, 4 of them a ramp"
    page = draw_page(report)
    assert "11 to 30, 4 of them a ramp" in page
    assert to_json(a_report())["curriculum"] == []
    assert "Curriculum" not in draw_page(a_report())
