"""What every HTML page of the program shares: its frame, its style, its colours, and its writing.

Owns how a page looks and that it is one file which needs nothing from elsewhere. Knows nothing of
what is on it. Read `draw_frame` first.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path

from spectral_dist.atomic_file import write_text

Row = Sequence[str]

# One colour scale, in its order; lighter steps of the same hues on a dark ground.
LIGHT = ["#2a78d6", "#eb6834", "#1baf7a", "#8a63d2", "#c99400", "#d6508a", "#008300", "#7a6a58"]
DARK = ["#4f97e8", "#f08a5c", "#2fc48d", "#a78be6", "#dcae2e", "#e877a8", "#3fae3f", "#a89a88"]


def draw_frame(title: str, style: str, body: str) -> str:
    """Return a whole page.

    Args:
      title: plain text.
      style: CSS, after `STYLE`.
      body: HTML, with every text in it escaped.
    """
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}{style}</style>
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
</html>
"""


def draw_table(heads: Row, rows: Sequence[Row], words: int, name: str) -> str:
    """Return a table that scrolls by itself where it is wider than the page.

    Args:
      heads: of the columns, plain text.
      rows: cells of HTML, the first one heads its row.
      words: how many columns, from the left, hold words and not numbers.
      name: what a screen reader calls the table.
    """
    styles = [' class="w"' if i < words else "" for i in range(len(heads))]
    head = "".join(
        f'<th scope="col"{style}>{html.escape(text)}</th>'
        for text, style in zip(heads, styles, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row"{styles[0]}>{row[0]}</th>'
        + "".join(f"<td{s}>{cell}</td>" for cell, s in zip(row[1:], styles[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    write_text(path, page)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about five round numbers in [low, high]; integers if `whole`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= 0.7 * rough)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Return a tick's number, short: 5e-4, 0.02, 2.5, 1.5k, 150k, 2.5M."""
    size = abs(value)
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.5g}{name}"
    if 0 < size < 1e-2:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{round(value, 12):.5g}"


def _scale(colours: Sequence[str]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


STYLE = (
    ":root{color-scheme:light dark;--bg:#fcfcfb;--ink:#1b1b1a;--muted:#65645f;--grid:#e7e6e2;"
    f"--axis:#b9b8b2;{_scale(LIGHT)}}}"
    "@media(prefers-color-scheme:dark){:root{--bg:#191918;--ink:#efeeea;--muted:#a3a29b;"
    f"--grid:#2e2e2b;--axis:#55544f;{_scale(DARK)}}}}}"
    "body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}"
    "main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}"
    "h1{font-size:24px;margin:0;overflow-wrap:anywhere}h2{font-size:15px;margin:0 0 6px}"
    ".muted,.empty{color:var(--muted);margin:2px 0}.empty{padding:60px 0;text-align:center}"
    ".headline{display:flex;flex-wrap:wrap;gap:12px 40px;margin:18px 0 8px}"
    ".headline b{display:block;font-size:22px;font-weight:600}"
    ".headline span{color:var(--muted);font-size:13px}"
    "section{margin-top:34px}.scroll{overflow-x:auto;max-width:100%}"
    ".legend{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:0 0 4px;padding:0;"
    "font-size:13px;color:var(--muted)}"
    ".legend i{display:inline-block;width:14px;height:3px;border-radius:2px;margin-right:6px;"
    "vertical-align:middle;background:var(--c)}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:5px 16px 5px 0;text-align:right;border-bottom:1px solid var(--grid)}"
    "th,td{white-space:nowrap;font-size:13px}thead th{color:var(--muted);font-weight:500}"
    # The head of a row stays in sight while the row is moved under it.
    "tbody th{font-weight:400;position:sticky;left:0;background:var(--bg)}.w{text-align:left}"
    "td.w{white-space:normal;min-width:5em;overflow-wrap:anywhere}"
    ":focus-visible{outline:2px solid var(--c0)}"
    "pre{overflow-x:auto;padding:12px 14px;border:1px solid var(--grid);border-radius:6px;"
    "font-size:13px}" + "".join(f".c{i}{{--c:var(--c{i})}}" for i in range(len(LIGHT)))
)
