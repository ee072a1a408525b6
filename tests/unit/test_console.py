import io
import math
import re
import subprocess
import sys

import pytest

from spectral_dist.outputs.console import Console, duration
from spectral_dist.training.metrics import Record

TRAIN = {
    "train/loss": 1.5321,
    "train/bits_per_byte": 2.2103,
    "train/grad_norm": 0.41,
    "optimizer/learning_rate": 1e-3,
    "perf/tokens_per_second": 152340.0,
    "perf/data_wait_seconds": 2e-4,
    "perf/step_seconds": 0.1,
}
EVALUATION = {
    "val/[bold]tr/bits_per_byte": 2.1,
    "val/en/bits_per_byte": 2.3,
    "val/bits_per_byte": 2.2,
    "extrapolation/1x/bits_per_byte": 2.2,
    "extrapolation/1x/difference": 0.0,
    "extrapolation/2x/bits_per_byte": 2.1,
    "extrapolation/2x/difference": -0.1,
    "extrapolation/2x/difference_upper": -0.05,
    "extrapolation/2x/success": 1.0,
    "extrapolation/4x/bits_per_byte": 2.35,
    "extrapolation/4x/difference": 0.15,
    "extrapolation/4x/difference_upper": 0.25,
    "extrapolation/4x/success": 0.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def plain_lines(*records: Record, total: int = 2000) -> list[str]:
    stream = io.StringIO()
    console = Console(total, stream=stream)
    console.start(0)
    for record in records:
        console.write(record)
    console.close()
    return stream.getvalue().splitlines()


def test_plain_line_has_every_figure() -> None:
    (line,) = plain_lines(Record(120, TRAIN))
    assert re.sub(" +", " ", line) == (
        "step 120/2000 loss 1.5321 2.2103 bits/byte grad 0.41 lr 1.0e-03 152,340 tokens/s"
        " data wait 0.2 ms left 3:08"
    )


def test_plain_lines_are_aligned_and_without_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    other = {"train/loss": math.nan, "train/grad_norm": math.inf, "perf/tokens_per_second": 900.0}
    lines = plain_lines(Record(1, TRAIN), Record(2000, TRAIN | other))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    for mark in ("bits/byte", "tokens/s", "data wait", "left"):
        assert lines[0].index(mark) == lines[1].index(mark)
    assert "loss    nan" in lines[1]
    assert "grad     inf" in lines[1]


def test_absent_figures_are_left_out_and_skipped_steps_are_told() -> None:
    assert plain_lines(Record(3, {"train/loss": 2.0, "train/skipped_steps": 2.0}), total=9) == [
        "step 3/9  loss 2.0000  left -  skipped 2"
    ]


def test_a_new_figure_of_training_needs_no_column() -> None:
    metrics = {"train/loss": 2.0, "train/entropy": 1.2345678, "train/layers/3/norm": 5.0}
    (line,) = plain_lines(Record(10, metrics))
    assert "entropy 1.235  left" in line
    assert "norm" not in line  # many of a kind: metrics.jsonl has them


def test_evaluation_is_one_more_line() -> None:
    lines = plain_lines(Record(500, TRAIN | EVALUATION), Record(510, EVALUATION))
    assert len(lines) == 3
    assert lines[1] == (
        "step  500/2000  validation 2.2000 bits/byte  [bold]tr 2.1000  en 2.3000"
        "  2x -0.1000 success  4x +0.1500 no success"
    )


def test_long_lines_are_not_wrapped() -> None:
    many = {f"val/source_{i}/bits_per_byte": 1.0 for i in range(60)}
    assert len(plain_lines(Record(1, many))) == 1


def test_time_left_follows_the_recent_steps() -> None:
    records = [Record(s, {"train/loss": 1.0, "perf/step_seconds": 1.0}) for s in (1, 100)]
    lines = plain_lines(*records, total=100)
    assert lines[0].endswith("left 1:39")
    assert lines[1].endswith("left 0:00")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0:00"),
        (59.6, "1:00"),
        (3599.0, "59:59"),
        (3600.0, "1:00:00"),
        (90061.0, "1d 01:01:01"),
        (math.inf, "-"),
        (math.nan, "-"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def visible(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_terminal_shows_a_bar_with_figures_and_leaves_the_cursor_visible() -> None:
    stream = Terminal()
    console = Console(2000, stream=stream)
    console.start(100)
    assert "step 100/2000" in visible(stream.getvalue())
    console.write(Record(1200, TRAIN))
    console.close()
    console.close()
    text = stream.getvalue()
    last = visible(text).replace("\r", "\n").strip().splitlines()[-1]
    for part in (
        "step 1200/2000",
        "loss 1.532",
        "2.210 bits/byte",
        "152,340 tokens/s",
        "left 1:20",
    ):
        assert part in last
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_terminal_prints_evaluations_and_skipped_steps_above_the_bar() -> None:
    stream = Terminal()
    console = Console(2000, stream=stream)
    console.start(0)
    for step in (10, 20):
        console.write(Record(step, TRAIN | {"train/skipped_steps": 3.0}))
    console.write(Record(20, EVALUATION))
    console.close()
    text = visible(stream.getvalue())
    assert "validation 2.2000 bits/byte" in text
    assert "[bold]tr 2.1000" in text
    assert text.count("3 steps skipped") == 1


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    console = Console(10, stream=stream)
    console.start(0)
    console.write(Record(1, TRAIN))
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_tables_after_the_end(stream: io.StringIO) -> None:
    console = Console(10, stream=stream)
    console.start(0)
    console.close()
    console.show_tables(EVALUATION)
    text = re.sub(" +", " ", visible(stream.getvalue()))
    assert "| [bold]tr | 2.1000 |" in text
    assert "| mean by weight | 2.2000 |" in text
    assert "| 1x | 2.2000 | - | - | - |" in text
    assert "| 2x | 2.1000 | -0.1000 | -0.0500 | success |" in text
    assert "| 4x | 2.3500 | +0.1500 | +0.2500 | no success |" in text


def test_no_tables_without_figures() -> None:
    stream = io.StringIO()
    Console(10, stream=stream).show_tables({"train/loss": 1.0})
    assert stream.getvalue() == ""


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_sample_shows_turkish_and_replaces_what_is_no_text(make: type[io.StringIO]) -> None:
    stream = make()
    console = Console(10, stream=stream)
    console.start(0)
    console.close()
    before = len(stream.getvalue())
    console.show_sample(
        "Bir g\u00fcn ", "\u015fa\u015f\u0131rd\u0131 [red]\n\x1b[2J".encode() + b"\xff\x00"
    )
    text = stream.getvalue()[before:]
    assert "\u015fa\u015f\u0131rd\u0131 [red]\n\ufffd[2J\ufffd\ufffd" in visible(text)
    assert "\x1b[2J" not in text


def test_narrow_encoding_gets_a_replacement() -> None:
    raw = io.BytesIO()
    console = Console(10, stream=io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    console.start(0)
    console.note("\u015fa\u015f\u0131rd\u0131")
    assert raw.getvalue() == b"?a??rd?\n"


def test_notes_and_warnings() -> None:
    stream = io.StringIO()
    console = Console(10, stream=stream)
    console.start(0)
    console.note("resumed [from] step 5")
    console.warn("torn checkpoint")
    assert stream.getvalue() == "resumed [from] step 5\nwarning: torn checkpoint\n"


def test_disabled_console_is_silent() -> None:
    stream = Terminal()
    console = Console(10, stream=stream, enabled=False)
    console.start(0)
    console.write(Record(1, TRAIN | EVALUATION))
    console.note("a")
    console.warn("b")
    console.show_tables(EVALUATION)
    console.show_sample("c", "d")
    console.close()
    assert stream.getvalue() == ""


def test_lost_output_does_not_stop_the_run() -> None:
    console = Console(10, stream=Closed())
    console.start(0)
    for step in range(1, 4):
        console.write(Record(step, TRAIN | EVALUATION))
    console.show_tables(EVALUATION)
    stream = io.StringIO()
    console = Console(10, stream=stream)
    console.start(0)
    stream.close()
    console.write(Record(1, TRAIN))
    console.close()


def test_lost_terminal_does_not_stop_the_run() -> None:
    stream = Terminal()
    console = Console(10, stream=stream)
    console.start(0)
    stream.close()
    console.write(Record(1, TRAIN))
    console.note("a")
    console.close()


def test_pipe_that_closes_early_ends_nothing() -> None:
    script = """
import sys
from spectral_dist.outputs.console import Console
from spectral_dist.training.metrics import Record
console = Console(10000)
console.start(0)
for step in range(1, 10001):
    console.write(Record(step, {"train/loss": 1.0}))
console.close()
sys.stderr.write("done")
"""
    program = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stderr is not None
    program.stdout.readline()
    program.stdout.close()
    assert program.stderr.read() == "done"
    program.stderr.close()
    assert program.wait() == 0
