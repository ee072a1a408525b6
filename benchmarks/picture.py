"""The picture of a bench: ratios as bars, and what grows with the length as lines, as one PNG.

Needs matplotlib, which the extra `bench` brings. Read `draw`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import OURS, Figure, number
from spectral_dist.outputs.report.scales import LIGHT

Panel = Callable[[Any, Sequence[Figure]], None]
_WIDTH, _ROW, _LEAST = 11.0, 0.26, 3.2  # inches: of the picture, of a bar, of a panel's height
_DPI = 110


def _colours(figures: Sequence[Figure]) -> dict[str, str]:
    """Return a colour for each form, ours the first; the same in all panels."""
    names = list(dict.fromkeys([OURS, *(f.name for f in figures)]))
    return {name: LIGHT[min(i, len(LIGHT) - 1)] for i, name in enumerate(names)}


def ratios(axes: Any, figures: Sequence[Figure]) -> None:
    """Draw how many times longer each peer takes than ours, a bar each, with its quartiles."""
    colours = _colours(figures)
    shown = [f for f in figures if f.name != OURS]
    # The value is at the middle; whiskers are distances from it.
    low = [f.ratio - f.ratio_low for f in shown if f.ratio and f.ratio_low]
    high = [f.ratio_high - f.ratio for f in shown if f.ratio and f.ratio_high]
    places = range(len(shown))
    bars = axes.barh(
        places,
        [f.ratio - 1 for f in shown if f.ratio],
        left=1,  # so that a bar to the left of the line is a loss
        xerr=(low, high),
        color=[colours[f.name] for f in shown],
        error_kw={"elinewidth": 0.8, "capsize": 2},
    )
    axes.bar_label(bars, [f" {f.ratio:.2f}" for f in shown], fontsize=8)
    axes.set_yticks(places, [f"{f.name}: {f.case}" for f in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.margins(x=0.15)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of a training step over ours (right of the line, ours is faster)")


def lines(axes: Any, figures: Sequence[Figure]) -> None:
    """Draw one line for each form over the length, with its quartiles as a band."""
    colours = _colours(figures)
    for name in dict.fromkeys(f.name for f in figures):
        own = [f for f in figures if f.name == name]
        at = [f.at for f in own]
        axes.plot(at, [f.value for f in own], marker="o", color=colours[name], label=name)
        axes.fill_between(
            at, [f.low for f in own], [f.high for f in own], color=colours[name], alpha=0.2
        )
    axes.set_xscale("log", base=2)
    _plain(axes.xaxis)
    axes.set_xlabel("tokens")
    axes.set_ylabel(figures[0].unit)
    axes.legend(fontsize=8)


def growing_lines(axes: Any, figures: Sequence[Figure]) -> None:
    """Draw `lines` whose values differ by orders of magnitude."""
    lines(axes, figures)
    axes.set_yscale("log")
    _plain(axes.yaxis, minor=False)


def level_lines(axes: Any, figures: Sequence[Figure]) -> None:
    """Draw `lines` from zero: what should be constant is to look so."""
    lines(axes, figures)
    axes.set_ylim(bottom=0)


def _plain(axis: Any, minor: bool = True) -> None:
    """Write the ticks of a logarithmic axis as ordinary numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ordinary = FuncFormatter(lambda value, _: number(value))
    axis.set_major_formatter(ordinary)
    axis.set_minor_formatter(ordinary if minor else NullFormatter())
    axis.set_tick_params(which="minor", labelsize=7)


# Title, which part's figures in which unit, and how they are drawn.
PANELS: tuple[tuple[str, str, str, Panel], ...] = (
    ("A training step beside peers", "step", "ms a step", ratios),
    ("Mixers alone, forward and backward", "mixer", "us a token", growing_lines),
    ("Generation by what came before", "generation", "ms a byte", level_lines),
)


def draw(figures: Sequence[Figure], file: Path, title: str) -> bool:
    """Write the picture; return whether there was anything to draw.

    Args:
      figures: of a bench.
      file: PNG to write.
      title: the machine, in words.

    Raises:
      ModuleNotFoundError: if matplotlib is not installed.
    """
    from matplotlib.figure import Figure as Picture

    panels = []
    for name, part, unit, panel in PANELS:
        own = [f for f in figures if f.part == part and f.unit == unit]
        if own and (panel is not ratios or any(f.name != OURS for f in own)):
            panels.append((name, own, panel))
    if not panels:
        return False
    heights = [max(_LEAST, _ROW * len(own) + 1) if p is ratios else _LEAST for _, own, p in panels]
    picture = Picture(figsize=(_WIDTH, sum(heights)), layout="constrained")
    picture.suptitle(title, fontsize=9)
    grid = picture.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, own, panel) in zip(grid, panels, strict=True):
        panel(axes, own)
        axes.set_title(name, fontsize=10)
    picture.savefig(file, dpi=_DPI)
    return True
