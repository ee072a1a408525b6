"""The curve through small runs: it finds the law that they follow, and says what it cannot know."""

import itertools

import numpy as np
import pytest

from spectral_dist.planning.curves import Curve, Point, worth

SIZES, LENGTHS = (2e5, 5e5, 1.2e6), (5e5, 1e6, 2e6, 4e6)


def law(n: float, d: float) -> float:
    return 0.9 + 60 * n**-0.34 + 110 * d**-0.35


def points(noise: float = 0.0, seed: int = 0) -> list[Point]:
    draw = np.random.default_rng(seed)
    return [
        Point(f"{n:g}-{d:g}", n, d, law(n, d) + noise * draw.normal())
        for n, d in itertools.product(SIZES, LENGTHS)
    ]


def test_it_finds_the_law() -> None:
    curve = Curve(points())
    assert curve.best.a == pytest.approx(0.34, rel=0.1)
    assert curve.best.b == pytest.approx(0.35, rel=0.1)
    for point in curve.points:
        assert curve.expect(point.parameters, point.bytes).bits == pytest.approx(
            point.bits, abs=3e-3
        )
    assert curve.expect(2e6, 8e6).bits == pytest.approx(law(2e6, 8e6), abs=0.01)
    assert curve.deviation == 0.01, "seeds alone differ by as much"


def test_the_interval_holds_what_it_says() -> None:
    """At twice the size and eight times the length, for twenty draws of the noise."""
    inside = 0
    for seed in range(20):
        expected = Curve(points(0.01, seed)).expect(2.4e6, 3.2e7)
        assert expected.low <= expected.bits <= expected.high
        inside += expected.low <= law(2.4e6, 3.2e7) <= expected.high
    assert inside >= 18


def test_far_away_it_knows_less() -> None:
    curve = Curve(points(0.01))
    widths = [
        (found := curve.expect(1.2e6 * k, 4e6 * k)).high - found.low for k in (1, 10, 100, 1000)
    ]
    assert widths == sorted(widths)
    assert widths[3] > 4 * widths[0]
    more = [curve.expect(1.2e6, 4e6 * k).bits for k in (1, 10, 100)]
    assert more == sorted(more, reverse=True)
    assert curve.expect(1e12, 1e15).low >= 0


def test_a_size_that_changes_nothing_is_no_reason_to_pay() -> None:
    flat = [Point("x", p.parameters, p.bytes, 1 + 110 * p.bytes**-0.35) for p in points()]
    curve = Curve(flat)
    assert curve.expect(1e9, 4e6).bits == pytest.approx(curve.expect(1.2e6, 4e6).bits, abs=1e-3)


@pytest.mark.parametrize(
    ("some", "words"),
    [
        (points()[:6], "fit: 6 runs of 2 sizes and 4 lengths; a curve needs 7 of 3 sizes and 3"),
        (points()[:8], "fit: 8 runs of 2 sizes"),
        ([p for p in points() if p.bytes < 1.5e6] * 2, "fit: 12 runs of 3 sizes and 2 lengths"),
    ],
)
def test_runs_that_are_too_alike_are_refused(some: list[Point], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Curve(some)


def test_a_text_that_is_read_again_is_worth_less_each_time() -> None:
    assert worth(5e8, 1e9) == 5e8
    assert worth(1e9, 1e9) == 1e9
    # Four passes are nearly new text, forty are not (Muennighoff et al., figure 1).
    assert worth(4e9, 1e9) == pytest.approx(3.73e9, rel=0.01)
    assert worth(40e9, 1e9) == pytest.approx(15.2e9, rel=0.01)
    assert worth(1e15, 1e9) == pytest.approx(16.4e9)
