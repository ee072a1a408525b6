"""Phases of the settings as the mixture takes them."""

import pytest

from spectral_dist.data.phases import phases_of, shares_of, stretches
from spectral_dist.planning.report.curriculum import phase_json, phase_rows, phase_table
from spectral_dist.settings import from_flat, resolve, with_values

DATASETS = [{"name": "a", "paths": ["a.txt"]}, {"name": "b", "paths": ["b.txt"]}]
PHASES = [
    {"steps": 10, "weights": {"a": 3, "b": 1}},
    {"steps": 5, "weights": {"b": 2}},
    {"steps": 5, "weights": {"a": 1, "b": 1}},
]


def settings(**changes: object):  # type: ignore[no-untyped-def]
    values = {"datasets": DATASETS, "steps": 20, "batch_size": 4, "accum_steps": 2}
    return resolve(from_flat(values | changes))


def test_without_phases_a_run_is_one() -> None:
    assert phases_of(settings(), 7, 56) == [(0, (0.5, 0.5))]


def test_phases_begin_at_their_steps() -> None:
    wanted = [(0, (0.75, 0.25)), (80, (0.0, 1.0)), (120, (0.5, 0.5))]
    for step in (0, 3, 10, 12, 19):
        assert phases_of(settings(phases=PHASES), step, step * 8) == wanted


def test_another_batch_before_moves_what_is_left() -> None:
    # 12 steps took 96 sequences; from here on a batch is 2.
    found = phases_of(settings(phases=PHASES, batch_size=1), 12, 96)
    assert found[2] == (96 + 3 * 2, (0.5, 0.5))
    # And one that was smaller before: the phase that is over cannot begin before the first.
    found = phases_of(settings(phases=PHASES, batch_size=64), 12, 24)
    assert [first for first, _ in found] == [0, 24 + 3 * 128]


def test_a_ramp_leads_from_one_mixture_to_the_next() -> None:
    phases = [
        {"steps": 100, "weights": {"a": 1}},
        {"steps": 100, "weights": {"b": 1}, "ramp": 50},
        {"steps": 3, "weights": {"a": 1}, "ramp": 3},
    ]
    parts = stretches(settings(phases=phases, steps=203))
    assert [p.first for p in parts] == [
        0,
        *(100 + 50 * i // 20 for i in range(20)),
        150,
        200,
        201,
        202,
    ]
    ends = [p.first + p.steps for p in parts]
    assert ends == [*[p.first for p in parts[1:]], 203]
    assert [p.weights for p in (parts[0], parts[21])] == [(1.0, 0.0), (0.0, 1.0)]
    shares = [p.weights[1] for p in parts[:22]]
    assert shares == sorted(shares)
    assert shares[1] == pytest.approx(0.02)
    assert all(sum(p.weights) == pytest.approx(1) for p in parts)
    assert [p.weights[0] for p in parts[22:]] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    # Half of the ramp is of either.
    assert shares_of(parts, 100, 150) == pytest.approx((0.5, 0.5))
    assert shares_of(parts, 0, 200) == pytest.approx((125 / 200, 75 / 200))
    assert shares_of(parts, 7, 7) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("number", "ramp", "words"),
    [
        (0, 1, "phases.0.ramp=1: must be 0, since no phase comes before it"),
        (1, 6, "phases.1.ramp=6: must be at most its steps=5"),
        (1, -1, "phases.1.ramp=-1: must not be negative"),
    ],
)
def test_rules_of_a_ramp(number: int, ramp: int, words: str) -> None:
    phases = [phase | ({"ramp": ramp} if i == number else {}) for i, phase in enumerate(PHASES)]
    with pytest.raises(ValueError, match=words):
        settings(phases=phases)


def test_the_curriculum_is_told_before_it_starts() -> None:
    phases = [PHASES[0], PHASES[1] | {"ramp": 2, "lr_factor": 0.5}, PHASES[2]]
    config = settings(phases=phases, lr=1e-3, warmup_steps=1, seq_len=1000)
    rows = phase_rows(config)
    assert rows[0] == (
        "1",
        "1 to 10",
        "8e-05",
        "0.001 to 0.000628",
        "a 75.0% (6e-05), b 25.0% (2e-05)",
    )
    assert rows[1][:2] == ("2", "11 to 15, 2 of them a ramp")
    assert rows[1][4].startswith("a 15.0% (6e-06), b 85.0%")
    assert phase_json(config)[2]["phase"] == "3"
    assert phase_table(config).row_count == 3
    assert phase_rows(settings()) == []


TOKENS = [
    {"tokens": 10_000, "weights": {"a": 1}},
    {"steps": 7, "weights": {"b": 1}},
    {"tokens": 1, "weights": {"a": 1}},
]


def by_tokens(**changes: object):  # type: ignore[no-untyped-def]
    values = {"datasets": DATASETS, "phases": TOKENS, "batch_size": 4, "accum_steps": 2}
    return resolve(from_flat(values | {"seq_len": 100} | changes))


def test_a_phase_may_be_as_long_as_some_tokens_and_the_run_as_its_phases() -> None:
    config = by_tokens()
    # 800 tokens a step: 12.5 steps, rounded up.
    assert config.phase_steps == (13, 7, 1)
    assert config.run.steps == 21
    assert [part.steps for part in stretches(config)] == [13, 7, 1]
    assert "run.steps" in config.derived
    # What follows from them follows anew where they change, by a flag or by another file.
    assert with_values(config, {"batch_size": 1}).run.steps == 50 + 7 + 1
    assert with_values(config, {"phases.1.steps": 1}).run.steps == 15
    assert with_values(config, {"lr": 1e-3}).run.steps == 21
    assert by_tokens(phases=TOKENS[1:2]).run.steps == 7
    assert settings(phases=[{"tokens": 20 * 8, "weights": {"a": 1}}], seq_len=1).run.steps == 20


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ({}, "phases.0: give its length once, as steps or as tokens"),
        ({"steps": 1, "tokens": 1}, "phases.0: give its length once, as steps or as tokens"),
        ({"tokens": 0}, "phases.0.tokens=0: must be positive"),
        ({"tokens": "many"}, "phases.0.tokens='many': must be an integer"),
        ({"tokens": 801, "ramp": 3}, "phases.0.ramp=3: must be at most its steps=2"),
    ],
)
def test_the_length_of_a_phase_is_given_once(phase: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        by_tokens(phases=[phase | {"weights": {"a": 1}}])
    with pytest.raises(ValueError, match="their steps sum to 21; must be steps=20 of the run"):
        by_tokens(steps=20)
