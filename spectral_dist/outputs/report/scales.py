"""The scales that drawings share: round numbers along an axis, and the colours of the series.

Owns what a tick says and which colours there are. Read `ticks`.
"""

import math

# One colour scale, in its order; lighter steps of the same hues on a dark ground.
LIGHT = ("#2a78d6", "#eb6834", "#1baf7a", "#8a63d2", "#c99400", "#d6508a", "#008300", "#7a6a58")
DARK = ("#4f97e8", "#f08a5c", "#2fc48d", "#a78be6", "#dcae2e", "#e877a8", "#3fae3f", "#a89a88")


def colour_of(index: int) -> str:
    """Return the CSS class that colours a series; all beyond the scale share the last colour."""
    return f"c{min(index, len(LIGHT) - 1)}"


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about five round numbers in [low, high]; integers if `whole`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= 0.7 * rough)
    if whole:
        step = max(step, 1.0)
    # A limit that is itself a tick must not be lost to rounding: hence the 1e-9.
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
