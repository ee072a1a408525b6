"""Chart scales: round ticks along an axis, and the colours of the series.

Owns the text of a tick and the palette. Read `ticks`.
"""

import math

# The palette, in order of use: the dark page has lighter steps of the same hues.
LIGHT = ("#2a78d6", "#eb6834", "#1baf7a", "#8a63d2", "#c99400", "#d6508a", "#008300", "#7a6a58")
DARK = ("#4f97e8", "#f08a5c", "#2fc48d", "#a78be6", "#dcae2e", "#e877a8", "#3fae3f", "#a89a88")


def colour_of(index: int) -> str:
    """Return the CSS class of a series' colour; all beyond the palette share the last one."""
    return f"c{min(index, len(LIGHT) - 1)}"


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about five round numbers in [low, high]; integers if `whole`."""
    rough = (high - low) / 5  # the distance of two ticks, if it need not be round
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= 0.7 * rough)
    if whole:
        step = max(step, 1.0)
    # 1e-9, so that rounding does not lose a limit that is itself a tick.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Return the number of a tick in short form: 5e-4, 0.02, 2.5, 1.5k, 150k, 2.5M, 3E."""
    size = abs(value)
    for unit, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.5g}{name}"
    if 0 < size < 1e-2:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{round(value, 12):.5g}"  # rounded: 3 x 0.1 is 0.30000000000000004
