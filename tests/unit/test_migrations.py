"""Checkpoints of earlier versions are read in the words of today, newer ones are refused."""

from typing import Any, cast

import pytest

from spectral_dist.training.migrations import FORMAT, as_stored, upgrade
from spectral_dist.training.state import TrainState

STATE = TrainState(*(cast(Any, name) for name in ("step", "params", "adam", "skipped", "bad")))


def test_a_description_of_the_first_format_speaks_of_sources_and_rows() -> None:
    old = {"config": {}, "sources": [1], "next_row": 320}
    assert upgrade(old) == {"config": {}, "datasets": [1], "next_sequence": 320}
    new = {"format": FORMAT, "datasets": [1], "next_sequence": 320}
    assert upgrade(new) == new


def test_a_newer_format_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=f"has format {FORMAT + 1} and this version") as caught:
        upgrade({"format": FORMAT + 1})
    assert "\n" not in str(caught.value)


def test_a_state_of_the_first_format_called_the_optimizer_s_moments() -> None:
    stored, back = as_stored(STATE, ["step", "params/head", "moments/1/mu/head"])
    assert stored["moments"] == "adam"
    assert "opt_state" not in stored
    assert back({name: f"read {value}" for name, value in stored.items()}).opt_state == "read adam"


def test_a_state_of_today_is_stored_as_it_is() -> None:
    stored, back = as_stored(STATE, ["step", "params/head", "opt_state/1/mu/head"])
    assert stored is STATE
    assert back("read") == "read"
