"""Line charts, as SVG: over steps, tokens, hours or FLOPs.

Owns the geometry of a chart. The SVG is drawn here, so that the page needs no network and no
JavaScript library. `Markup.format` escapes every text. Read `draw_chart` first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spectral_dist.outputs.report.scales import colour_of, tick_text, ticks

# A chart, in SVG user units (about CSS pixels): the plot lies inside the margins.
WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 14, 46
LABEL_ROOM = 126  # more room to the right for the names at the lines' ends
LABEL_GAP = 15
MOST_LETTERS = 15  # of a name at a line's end, as LABEL_ROOM has no room for more
MAX_POINTS = 800  # a chart has no more pixels across than this
# Up to this many points, each is marked and shows its value under the mouse pointer.
MARKED_POINTS = 40

_NOTHING = Markup("")


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name, its points (x, value) by x, and its place in the palette.

    A value may be NaN. Without a place a line takes the next colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    place: int | None = None

    def colour(self, number: int) -> str:
        """Return the CSS class of its colour, as the line of that number in its chart."""
        return colour_of(number if self.place is None else self.place)


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place along the x axis: its CSS class and what to say of it."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Axes:
    """The scales of one chart: data limits, and the plot's right edge in user units."""

    x: tuple[float, float]
    y: tuple[float, float]
    right: float

    def position(self, step: float, value: float) -> tuple[float, float]:
        """Return the position of a point, in user units; y grows downwards in SVG."""
        across = (step - self.x[0]) / (self.x[1] - self.x[0])
        up = (value - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (self.right - LEFT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP)


def draw_chart(
    title: str,
    unit: str,
    lines: Sequence[Series],
    named: bool = False,
    from_zero: bool = False,
    across: str = "step",
    marks: Sequence[Mark] = (),
) -> Markup:
    """Draw one line chart as SVG, or return a note if there are no points.

    Args:
      title: what a screen reader calls it.
      unit: of the values.
      lines: what is drawn.
      named: whether the names of the lines stand at their ends.
      from_zero: whether the y axis starts at zero.
      across: what the x axis is.
      marks: thin lines across the chart.
    """
    finite = [p for line in lines for p in line.points if math.isfinite(p[1])]
    if not finite:
        return Markup('<p class="empty">no points yet</p>')
    steps, values = [p[0] for p in finite], [p[1] for p in finite]
    axes = Axes(
        x=(0.0, 1.04 * (max(steps) or 1.0)),  # a run may have no step but 0
        y=_limits(min([*values, 0.0]) if from_zero else min(values), max(values)),
        right=WIDTH - (LABEL_ROOM if named else RIGHT),
    )
    # `Markup.format` escapes the title and the unit; what is Markup already passes as it is.
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}</svg>').format(
        *(WIDTH, HEIGHT, title, _draw_axes(axes, unit, across)),
        _NOTHING.join(
            [_draw_mark(mark, axes) for mark in marks if 0 <= mark.x <= axes.x[1]]
            + [_draw_line(one, axes, one.colour(i), unit, across) for i, one in enumerate(lines)]
        ),
        _draw_names(lines, axes) if named else _NOTHING,
    )


def _limits(low: float, high: float) -> tuple[float, float]:
    """Return the limits of the y axis, with some room around the values."""
    if high > low:
        # A limit of zero stays: nothing is drawn below it.
        room = 0.0 if low == 0 else 0.04 * (high - low)
        return low - room, high + 0.04 * (high - low)
    room = abs(high) * 0.5 or 1.0  # all values are the same: an interval of no length has no scale
    return low - room, high + room


def _draw_mark(mark: Mark, axes: Axes) -> Markup:
    x, _ = axes.position(mark.x, axes.y[0])
    drawn = Markup('<path class="{}" d="M{:.1f} {}V{}"><title>{}</title></path>')
    return drawn.format(mark.kind, x, TOP, HEIGHT - BOTTOM, mark.text)


def _draw_line(line: Series, axes: Axes, colour: str, unit: str, across: str) -> Markup:
    """Return a polyline for each stretch of finite points, and marks if there are few points."""
    parts: list[Markup] = []
    corners: list[str] = []
    points = _thin(line.points)
    for step, value in [*points, (0, math.nan)]:  # the NaN ends the last polyline
        if math.isfinite(value):
            x, y = axes.position(step, value)
            corners.append(f"{x:.1f},{y:.1f}")
        elif corners:
            polyline = Markup('<polyline class="line {}" points="{}"/>')
            parts.append(polyline.format(colour, " ".join(corners)))
            corners = []
    if len(points) <= MARKED_POINTS:
        mark = Markup(
            '<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>'
        )
        for step, value in points:
            if math.isfinite(value):
                text = f"{line.name}: {value:.5g} {unit} at {across} {step:,.6g}"
                parts.append(mark.format(colour, *axes.position(step, value), text))
    return _NOTHING.join(parts)


def _thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Downsample to at most MAX_POINTS points: the lowest and the highest of each bucket."""
    # Not the mean of a bucket, which would hide the spikes of a loss.
    if len(points) <= MAX_POINTS:
        return points
    buckets = MAX_POINTS // 2
    kept: list[tuple[float, float]] = []
    for b in range(buckets):
        bucket = points[b * len(points) // buckets : (b + 1) * len(points) // buckets]
        finite = [p for p in bucket if math.isfinite(p[1])]
        if not finite:
            kept.append(bucket[0])  # a NaN, so that the gap stays visible
            continue
        ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _draw_names(lines: Sequence[Series], axes: Axes) -> Markup:
    """Return the name of each line at its end, moved apart where names would overlap."""
    ends: list[tuple[float, float, int, str]] = []
    for i, line in enumerate(lines):
        finite = [p for p in line.points if math.isfinite(p[1])]
        if finite:
            x, y = axes.position(*finite[-1])
            ends.append((y, x, i, line.name))
    ends.sort()
    # A name that was moved is tied to the end of its line by a thin leader line.
    label = Markup(
        '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>'
        '<text class="name" x="{:.1f}" y="{:.1f}">{}</text>'
    )
    leader = Markup('<path class="leader" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>')
    parts: list[Markup] = []
    # Names go from top to bottom, each at least LABEL_GAP below the last. None may be so low that
    # those after it would not fit above the x axis.
    lowest, free = HEIGHT - BOTTOM - LABEL_GAP * (len(ends) - 1), -math.inf
    for n, (y, x, i, name) in enumerate(ends):
        at = max(min(y, lowest + n * LABEL_GAP), free)
        free = at + LABEL_GAP
        short = name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "\u2026"
        right = axes.right
        parts.append(label.format(lines[i].colour(i), right + 12, at, right + 19, at + 4, short))
        if abs(at - y) > 1 or x < right - 30:  # the name is not beside the end of its line
            parts.append(leader.format(x + 5, y, right + 8, at))
    return _NOTHING.join(parts)


def _draw_axes(axes: Axes, unit: str, across: str) -> Markup:
    """Return the grid lines, the tick labels and the labels of both chart axes."""
    parts: list[Markup] = []
    grid_line = Markup(
        '<path class="grid" d="M{} {:.1f}H{:.1f}"/>'
        '<text class="tick" text-anchor="end" x="{}" y="{:.1f}">{}</text>'
    )
    for value in ticks(*axes.y):
        _, y = axes.position(axes.x[0], value)
        parts.append(grid_line.format(LEFT, y, axes.right, LEFT - 8, y + 4, tick_text(value)))
    base = HEIGHT - BOTTOM
    tick = Markup(
        '<path class="axis" d="M{0:.1f} {1}v4"/>'
        '<text class="tick" text-anchor="middle" x="{0:.1f}" y="{2}">{3}</text>'
    )
    for step in ticks(*axes.x, whole=across == "step"):
        x, _ = axes.position(step, axes.y[0])
        parts.append(tick.format(x, base, base + 18, tick_text(step)))
    labels = Markup(
        '<path class="axis" d="M{} {}H{:.1f}"/>'
        '<text text-anchor="middle" x="{:.1f}" y="{}">{}</text>'
        '<text text-anchor="middle" transform="translate(13 {:.1f}) rotate(-90)">{}</text>'
    )
    middle = (LEFT + axes.right) / 2, (TOP + base) / 2
    parts.append(
        labels.format(LEFT, base, axes.right, middle[0], HEIGHT - 8, across, middle[1], unit)
    )
    return _NOTHING.join(parts)
