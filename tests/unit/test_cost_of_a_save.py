"""The sentence that says what a save costs."""

import pytest

from benchmarks import cost_of_a_save
from benchmarks.cost_of_a_save import Cost, cost_line, main
from spectral_dist.settings import Config


def test_the_cost_is_the_median_of_the_pairs() -> None:
    cost = Cost(155_000_000, [5.1, 5.2, 5.3, 9.0], [5.0, 5.0, 5.0, 5.0], 0.05)
    line = cost_line(cost, 10)
    assert line.startswith("155 MB of state, 4 pairs of 10 steps of 0.500 s: a save costs 0.25 s,")
    assert "5.00% of these steps (quartiles 2.50% and 61.50%), of which it blocks 0.050 s" in line


def test_the_command_makes_the_model_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(config: Config, steps: int, pairs: int) -> Cost:
        assert (config.model.num_layers, config.data.batch_size) == (3, 4)
        return Cost(1_000_000, [2.0] * pairs, [1.0] * pairs, 0.5)

    monkeypatch.setattr(cost_of_a_save, "measure", measure)
    assert main(["--layers=3", "--pairs=2"]) == 0
    assert "2 pairs of 20 steps" in capsys.readouterr().out
