"""Phases of the settings as the mixture takes them."""

from spectral_dist.data.phases import phases_of
from spectral_dist.settings import from_flat, resolve

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
