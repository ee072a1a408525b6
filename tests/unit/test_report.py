import itertools
import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from spectral_dist import atomic_file
from spectral_dist.outputs.jsonl import MetricsFile
from spectral_dist.outputs.report import write_report
from spectral_dist.outputs.report.__main__ import main
from spectral_dist.outputs.report.charts import HEIGHT, LABEL_GAP, MAX_POINTS, Series, draw_chart
from spectral_dist.outputs.report.compare_page import draw_comparison, write_comparison
from spectral_dist.outputs.report.facts import Facts
from spectral_dist.outputs.report.run_page import draw_page
from spectral_dist.outputs.report.scales import tick_text, ticks
from spectral_dist.training.metrics import Record

HOSTILE = '<script>alert("x")</script>&'


def run_folder(folder: Path, records: list[Record], settings: str = "lr: 0.001\n") -> Path:
    folder.mkdir(exist_ok=True)
    output = MetricsFile(folder / "metrics.jsonl", 0)
    for record in records:
        output.write(record)
    output.close()
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    return folder


def full_records() -> list[Record]:
    records = []
    for step in range(10, 2001, 10):
        values = {
            "train/loss": 5 / step,
            "train/bits_per_byte": 7 / step,
            "progress/tokens": 64.0 * step,
            "progress/train_hours": step / 100,
            "progress/saved_step": float(step // 500 * 500),
            "optimizer/learning_rate": 1e-3 * step / 2000,
            "perf/tokens_per_second": 1e5 + step,
        }
        if step % 500 == 0:
            values |= {"val/tr/bits_per_byte": 2.0 - step / 4000, "val/en/bits_per_byte": 2.1}
            values |= {"val/bits_per_byte": 2.05}
            values |= {
                "extrapolation/1x/bits_per_byte": 2.0,
                "extrapolation/2x/bits_per_byte": 1.9 + step / 1e6,
                "extrapolation/2x/difference": -0.1,
                "extrapolation/2x/difference_upper": -0.05,
                "extrapolation/2x/success": 1.0,
                "extrapolation/2x/tr/bits_per_byte": 1.8,
            }
        records.append(Record(step, values))
    return records


def charts(page: str) -> list[ElementTree.Element]:
    """Every SVG of a page, which must be well-formed and draw inside its box, finite numbers."""
    found = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.S)]
    for svg in found:
        left, top, width, height = (float(n) for n in svg.attrib["viewBox"].split())
        for line in svg.iter("polyline"):
            for point in line.attrib["points"].split():
                x, y = (float(n) for n in point.split(","))
                assert left <= x <= left + width
                assert top <= y <= top + height
        for mark in svg.iter("circle"):
            assert top <= float(mark.attrib["cy"]) <= top + height
    assert "nan" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)
    return found


def words(svg: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in svg.iter("text")]


def test_page_has_the_charts_the_table_and_the_configuration(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "trial", full_records())
    path = write_report(folder)
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    drawn = charts(page)
    axes = ("step", "tokens", "hours of training")
    wanted = [*(("bits per byte", axis) for _ in range(2) for axis in axes)]
    wanted.append(("bits per byte, difference to 1x", "step"))
    wanted += [(unit, "step") for unit in ("learning rate", "tokens per second")]
    wanted.append(("bits per byte", "training lengths"))
    assert len(drawn) == len(wanted)
    for svg, (unit, axis) in zip(drawn, wanted, strict=True):
        assert {unit, axis} <= set(words(svg))
    assert {"training", "held out"} <= set(words(drawn[0]))
    assert {"tr", "en"} <= set(words(drawn[3]))
    assert page.count('class="save"') == 3 * 4  # four saves, over three axes
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", body)
    assert cells == [
        *["1x", "2.0000", "-", "-", "-", "-"],
        *["2x", "1.9020", "-0.1000", "-0.0500", "success", "1.8000"],
    ]
    assert "Extrapolation at step 2,000" in page
    assert "mean: -0.098 bits per byte at training lengths 2" in page
    assert "tr: " not in page[page.index("Difference to the shortest context") :]
    assert "<pre>lr: 0.001\n</pre>" in page
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
    ]


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path, full_records())).read_text(encoding="utf-8")
    for word in ("http:", "https:", "<script", "src=", "@import", "url("):
        assert word not in page


def test_names_of_runs_and_datasets_and_settings_are_escaped(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "")
    values = {f"val/{name}/bits_per_byte": 1.0, "val/b/bits_per_byte": 2.0}
    for length in ("1x", "2x"):
        values |= {f"extrapolation/{length}/bits_per_byte": 1.0}
        values |= {f"extrapolation/{length}/{name}/bits_per_byte": 1.0}
    folder = tmp_path / HOSTILE.replace("/", "")
    run_folder(folder, [Record(1, values)], HOSTILE)
    end = {"time": 9, "step": 1, "code": 76, "message": HOSTILE}
    start = {"time": 1, "first_step": 0, "environment": {"commit": HOSTILE}}
    (folder / "starts.jsonl").write_text(f"{json.dumps(start)}\n{json.dumps(end)}\n")
    sample = {"step": 1, "prompt": HOSTILE, "text": HOSTILE}
    (folder / "samples.jsonl").write_text(json.dumps(sample))
    for page in (draw_page(Facts.read(folder)), draw_comparison([Facts.read(folder)] * 2)):
        assert "<script" not in page
        assert page.count("&lt;script&gt;") > 3
        charts(page)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [Record(0, {})],
        [Record(5, {"train/loss": 3.0, "perf/tokens_per_second": 0.0})],
        [Record(5, {"train/loss": 0.0}), Record(6, {"train/loss": 0.0})],
        [Record(5, {"train/loss": math.nan})],
        [Record(5, {"train/loss": 1e-300}), Record(6, {"train/loss": 1e300})],
        [Record(5, {"train/loss": -2.0, "optimizer/learning_rate": -1.0})],
        [Record(2, {"train/loss": 1.0}), Record(1, {"train/loss": 2.0})],
    ],
)
def test_few_or_odd_points(records: list[Record], tmp_path: Path) -> None:
    charts(
        write_report(run_folder(tmp_path, records))
        .read_text(encoding="utf-8")
        .replace(">nan<", "><")
    )


def test_line_breaks_where_a_value_is_not_finite() -> None:
    points = [(n, math.nan if n == 50 else 1.0 + n) for n in range(100)]
    (svg,) = charts(draw_chart("t", "u", [Series("a", points)]))
    assert [len(line.attrib["points"].split()) for line in svg.iter("polyline")] == [50, 49]


def test_long_runs_keep_their_spikes_in_a_small_file() -> None:
    points = [(n, 1000.0 if n == 77_777 else 1.0) for n in range(100_000)]
    (svg,) = charts(draw_chart("t", "u", [Series("a", points)]))
    (line,) = svg.iter("polyline")
    heights = [float(p.split(",")[1]) for p in line.attrib["points"].split()]
    assert len(heights) <= MAX_POINTS
    assert min(heights) < max(heights) - 150


def test_names_at_the_lines_ends_do_not_overlap() -> None:
    lines = [Series(f"source_{n}", [(1, 1.0 + n / 1e6), (2, 2.0)]) for n in range(9)]
    (svg,) = charts(draw_chart("t", "u", lines, named=True))
    heights = sorted(
        float(text.attrib["y"]) for text in svg.iter("text") if text.get("class") == "name"
    )
    assert len(heights) == 9
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) >= LABEL_GAP - 0.11
    assert heights[-1] <= HEIGHT


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1.53, 1.5301), (-3.0, 7e5), (0.0, 1e-9), (1e8, 3e8)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    room = 1e-6 * (high - low)
    assert all(low - room <= value <= high + room for value in found)
    assert all(float(n).is_integer() for n in ticks(0.0, 3.0, whole=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.5, "2.5"),
        (0.02, "0.02"),
        (5e-4, "5e-4"),
        (1500.0, "1.5k"),
        (150000.0, "150k"),
        (2.5e6, "2.5M"),
        (-20000.0, "-20k"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_tick_text(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "trial", full_records())
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    with pytest.raises(ValueError, match="absent"):
        main([str(tmp_path / "absent")])


_DEVICES = {"kind": "NVIDIA L4", "count": 8}
STARTS = [
    {"time": 0, "first_step": 0, "environment": {"devices": _DEVICES}},
    {"time": 3600, "step": 500, "code": 76, "message": "process 1 is lost"},
    {"time": 7200, "first_step": 500, "parameters": 1000, "train_tokens": {"a": 6400}},
]


def test_what_is_on_record_is_shown(tmp_path: Path) -> None:
    settings = "data_paths: a.txt\nlr: 0.5\nsteps: 3000\n"
    folder = run_folder(tmp_path / "trial", full_records(), settings)
    (folder / "starts.jsonl").write_text("\n".join(map(json.dumps, STARTS)))
    (folder / "samples.jsonl").write_text('{"step": 7, "prompt": "Bir ", "text": "varmış"}\n')
    page = write_report(folder).read_text(encoding="utf-8")
    for part in (
        "2,000 steps completed; no end on record", "8 x NVIDIA L4", "Sample at step 7",
        "a fault at step 500: process 1 is lost", "hours since the first start", "Bir </b>varmış",
    ):  # fmt: skip
        assert part in page
    assert re.search(r">passes over a</th>\s*<td[^>]*>20<", page)  # 128,000 of 6,400
    assert re.search(r">lr</th>\s*<td[^>]*>0.5</td>\s*<td[^>]*>0.001<", page)
    assert page.count('class="fault"') == page.count('class="start"') / 2 == 3


def test_a_curriculum_is_drawn_whole_and_its_passes_are_counted(tmp_path: Path) -> None:
    settings = yaml.safe_dump(
        {
            "datasets": [{"name": n, "paths": [f"{n}.txt"]} for n in ("a", "b")],
            "steps": 4000,
            "phases": [
                {"steps": 1000, "weights": {"a": 1}},
                {"steps": 3000, "weights": {"a": 1, "b": 1}, "ramp": 100},
            ],
        }
    )
    folder = run_folder(tmp_path / "trial", full_records(), settings)
    begun = STARTS[2] | {"train_tokens": {"a": 6400, "b": 6400}}
    (folder / "starts.jsonl").write_text("\n".join(map(json.dumps, [*STARTS[:2], begun])))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Mixture of the curriculum" in page
    assert page.count('class="now"') == 1
    # Of 2,000 steps b has half of 900 and a quarter of the ramp's 100; 128,000 tokens, 6,400 each.
    passes = {
        name: float(n)
        for name, n in re.findall(r">passes over (.)</th>\s*<td[^>]*>([\d.]+)<", page)
    }
    assert passes == {
        "a": pytest.approx(20 * 1525 / 2000, rel=5e-3),
        "b": pytest.approx(4.75, rel=5e-3),
    }
    plain = run_folder(tmp_path / "plain", full_records(), "data_paths: a.txt\n")
    assert "Mixture of" not in write_report(plain).read_text(encoding="utf-8")


def test_runs_are_compared_and_nothing_else_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name, lr in (("a", 0.1), ("b", 0.2)):
        settings = f"data_paths: a.txt\nlr: {lr}\n"
        folders.append(str(run_folder(tmp_path / name, full_records(), settings)))
    out = tmp_path / "page.html"
    for _ in range(2):  # the second time it replaces its own
        assert main([*folders, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" * 2
    page = out.read_text(encoding="utf-8")
    assert len(charts(page)) == 3 * 3  # three curves over three axes
    assert re.search(r">lr</th>\s*<td[^>]*>0.1</td>\s*<td[^>]*>0.2<", page)
    out.write_text("mine")
    with pytest.raises(ValueError, match="is in the way and is not replaced"):
        write_comparison([Path(f) for f in folders], out)
    assert out.read_text() == "mine"


def test_failed_write_keeps_the_earlier_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path / "trial", full_records())
    (folder / "report.html").write_text("earlier")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_file.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "earlier"
    assert len(list(folder.iterdir())) == 3


def test_runs_may_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """named_runs: a plain word is a run in checkpoints/, even if a folder here has that name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("checkpoints/one", "checkpoints/two", "two", "four"):
        Path(folder).mkdir(parents=True)
        Path(folder, "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    assert main(["one"]) == 0
    assert main(["two"]) == 0
    assert main(["four"]) == 0
    told = capsys.readouterr().out.split()
    assert told == [f"{n}/report.html" for n in ("checkpoints/one", "checkpoints/two", "four")]
    assert main(["one", "checkpoints/two"]) == 0
    with pytest.raises(ValueError, match=r"^metrics file 'three/metrics.jsonl': cannot be read"):
        main(["three"])
