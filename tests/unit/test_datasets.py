"""The shares of the sources: normalised, and every mistake named."""

import math

import pytest

from spectral_dist.settings import from_flat, normalise_weights, resolve

PATHS = ["a.txt", "b.txt", "c.txt"]


def normalised(
    weights: tuple[float, ...], paths: list[str] = PATHS
) -> tuple[tuple[float, ...], str | None]:
    """Return what becomes of the two flags."""
    config = from_flat({"data_paths": paths, "data_weights": list(weights)})
    return normalise_weights(resolve(config).datasets)


def test_no_weights_are_equal_shares() -> None:
    assert normalised(()) == ((1 / 3, 1 / 3, 1 / 3), None)
    assert normalise_weights(()) == ((), None)


def test_weights_that_sum_to_one_stay_silent() -> None:
    assert normalised((0.5, 0.25, 0.25)) == ((0.5, 0.25, 0.25), None)
    weights, message = normalised((0.1, 0.2, 0.7))
    assert message is None
    assert math.isclose(sum(weights), 1, rel_tol=1e-15)


def test_other_sums_are_scaled_with_a_message() -> None:
    weights, message = normalised((2, 1, 1))
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
        ((1e308, 1e308, 1e308), ("1e+308", "below 2**31")),
    ],
)
def test_mistakes_are_one_line(weights: tuple[float, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"^(data_weights|datasets\.0\.weight)=") as caught:
        normalised(weights)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
