"""The shares of the sources: normalised, and every mistake named."""

import math

import pytest

from spectral_dist.data.weights import normalise_weights

PATHS = ("a.txt", "b.txt", "c.txt")


def test_no_weights_are_equal_shares() -> None:
    assert normalise_weights((), PATHS) == ((1 / 3, 1 / 3, 1 / 3), None)
    assert normalise_weights((), ()) == ((), None)


def test_weights_that_sum_to_one_stay_silent() -> None:
    assert normalise_weights((0.5, 0.25, 0.25), PATHS) == ((0.5, 0.25, 0.25), None)
    weights, message = normalise_weights((0.1, 0.2, 0.7), PATHS)
    assert message is None
    assert math.isclose(sum(weights), 1, rel_tol=1e-15)


def test_other_sums_are_scaled_with_a_message() -> None:
    weights, message = normalise_weights((2, 1, 1), PATHS)
    assert weights == (0.5, 0.25, 0.25)
    assert message == "data_weights=2,1,1 sum to 4: normalised to 0.5,0.25,0.25"


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ((0.5, 0.5), ("0.5,0.5", "2 weights for 3 files", "b.txt")),
        ((0.5, -0.5, 1), ("-0.5", "b.txt", "not negative")),
        ((0.5, math.nan, 1), ("nan", "b.txt", "finite")),
        ((0.5, 0.5, math.inf), ("inf", "c.txt", "finite")),
        ((0, 0, 0), ("0,0,0", "above 0")),
        ((1e308, 1e308, 1e308), ("sum",)),
    ],
)
def test_mistakes_are_one_line(weights: tuple[float, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^data_weights=") as caught:
        normalise_weights(weights, PATHS)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
