"""The figures that say what a save and a restore cost."""

import pytest

from benchmarks import cost_of_a_save
from benchmarks.cost_of_a_save import Cost, figures_of, main
from spectral_dist.settings import Config


def test_the_cost_is_the_median_of_the_pairs() -> None:
    cost = Cost(155_000_000, [5.1, 5.2, 5.3, 9.0], [5.0, 5.0, 5.0, 5.0], 0.05, [0.3])
    seconds, share, blocked, restore = figures_of(cost, 10)
    assert seconds.case == "155 MB of state"
    assert seconds.value == pytest.approx(0.25)
    assert seconds.note == "4 pairs of 10 steps of 0.500 s"
    assert share.value == pytest.approx(5.0)
    assert (share.low, share.high) == (pytest.approx(3.5), pytest.approx(24.5))
    assert (blocked.value, restore.value) == (0.05, 0.3)


def test_the_command_makes_the_model_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(config: Config, steps: int, pairs: int) -> Cost:
        assert (config.model.num_layers, config.data.batch_size) == (3, 4)
        return Cost(1_000_000, [2.0] * pairs, [1.0] * pairs, 0.5, [0.1])

    monkeypatch.setattr(cost_of_a_save, "measure", measure)
    assert main(["--layers=3", "--pairs=2"]) == 0
    assert "2 pairs of 20 steps" in capsys.readouterr().out
